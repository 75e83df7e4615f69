"""Faults between the fields of a config, and in the two sections that stand for another's arguments.

Each check takes plain values as they stand in the config and yields one sentence for each fault.
"""

import importlib.util
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from launch.errors import nearest
from launch.signature import Argument, arguments, class_names

ROOT = Path(__file__).resolve().parents[1]
SOURCES = "datamodules"  # the only package whose classes a config may name
HIGHER_IS_BETTER = {
    "accuracy": True, "macro_f1": True, "rmse": False, "nme": False, "failure_rate": False, "auc": True,
}  # fmt: skip
METRICS = {"classification": ("accuracy", "macro_f1"), "regression": ("rmse",), "keypoints": ("nme",)}
PIPELINE = (
    "_target_", "size", "classes", "val_fraction", "test_fraction", "split_seed", "fit", "max_pixels", "max_broken",
    "batch_size", "num_workers",
)  # fmt: skip
# Not Lightning's 16-true, bf16-true and 64-true: the backbone stays in float32, or is held as autocast wants it.
PRECISIONS = ("auto", "32-true", "16-mixed", "bf16-mixed", "32", "16", "bf16")
STRATEGIES = ("auto", "ddp", "ddp_find_unused_parameters_true", "ddp_find_unused_parameters_false")
ACCELERATORS = ("auto", "cpu", "gpu", "cuda", "mps", "tpu")
TRAINER_OWNED = {
    "logger": "choose it with logger=wandb, csv or tensorboard",
    "callbacks": "early stopping and checkpoints are set by early_stopping.patience and resume",
    "default_root_dir": "choose the folder with paths.outputs=DIR",
    "enable_checkpointing": "checkpoints are what resume=auto goes on from",
    "barebones": "a run keeps a log and checkpoints, which it would go without",
    "max_steps": "a run is resumed by whole epochs; use trainer.max_epochs=N",
}


def show(value: object) -> str:
    """A value as it would be written in a command."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Mapping):
        text = "{" + ",".join(f"{show(key)}:{show(item)}" for key, item in value.items()) + "}"
    elif isinstance(value, list | tuple):
        text = "[" + ",".join(show(item) for item in value) + "]"
    else:
        text = str(value)
    return text if len(text) <= 80 else text[:77] + "..."


def known(names: Any) -> str:
    """A list of what there is, for the end of an error text."""
    return ", ".join(sorted(names))


def metric_of_kind(kind: str, metric: str) -> Iterator[str]:
    """The metric must be one that this kind of task has."""
    if metric not in METRICS[kind]:
        yield f"task.metric={metric}: a {kind} task is measured by {' or '.join(METRICS[kind])}."


def eye_corners(kind: str, corners: list[int] | None) -> Iterator[str]:
    """Keypoints are measured in distances of two points; nothing else is."""
    if kind != "keypoints" and corners is not None:
        yield f"task.eye_corners={show(corners)}: only a keypoints task has points; this one is {kind}."
    if kind == "keypoints" and corners is None:
        yield (
            "task.eye_corners is missing: the numbers of the two points whose distance is the unit of the error "
            "(for faces the outer corners of the eyes), e.g. task.eye_corners=[36,45]."
        )
    if corners is not None and len(set(corners)) < len(corners):
        yield f"task.eye_corners={show(corners)}: the two points must differ."


def flip(kind: str, order: list[int] | None, augment: dict[str, Any] | None) -> Iterator[str]:
    """A flipped face has its left eye on the right: points need an order after the flip."""
    flips = bool(augment and (augment.get("hflip") is True or augment.get("vflip") is True))
    if kind != "keypoints":
        if order is not None:
            yield f"task.flip_index={show(order)}: only a keypoints task has points; this one is {kind}."
        return
    if augment and augment.get("vflip") is True:
        yield "task.augment.vflip=true: points have no order after a vertical flip; use false."
    if order is None:
        if flips and augment and augment.get("hflip") is True:
            yield (
                "task.augment.hflip=true: after a flip left and right points change places; give their order as "
                "task.flip_index=[...], or use false."
            )
    elif sorted(order) != list(range(len(order))) or any(order[order[i]] != i for i in range(len(order))):
        yield f"task.flip_index={show(order)}: must hold each number from 0 once, in pairs (flipping twice is nothing)."


def units(kind: str, wanted: dict[str, float] | None) -> Iterator[str]:
    """Only numbers have units."""
    if wanted is not None and kind != "regression":
        yield f"task.units={show(wanted)}: only a regression has units; this task is {kind}."


def fit(kind: str, wanted: str | None) -> Iterator[str]:
    """An error in distances between points needs one scale in both directions."""
    if kind == "keypoints" and wanted == "squash":
        yield (
            "data.fit=squash: stretched pictures have two scales, so no distance of points can be measured in them; "
            "use pad (no point is cut off) or crop."
        )


def classes(kind: str, wanted: list[str] | dict[str, list[str]] | None) -> Iterator[str]:
    """Classes are for classification; each old class goes to one new class."""
    if wanted is None:
        return
    if kind != "classification":
        yield f"data.classes={show(wanted)}: a {kind} task has no classes; use null."
        return
    names = list(wanted) if isinstance(wanted, list) else [old for olds in wanted.values() for old in olds]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        yield f"data.classes={show(wanted)}: named more than once: {', '.join(map(str, twice))}."
    if len(wanted) < 2:
        yield f"data.classes={show(wanted)}: a classification needs at least two classes."


def fractions(val: float, test: float) -> Iterator[str]:
    """Something must be left to train on."""
    if val + test >= 1:
        yield f"data.val_fraction={val} and data.test_fraction={test}: together they must be below 1."


def targets(wanted: list[str]) -> Iterator[str]:
    """Each target once."""
    if len(set(wanted)) < len(wanted):
        yield f"lora.targets={show(wanted)}: a target is named twice."


def weights(wanted: str | None) -> Iterator[str]:
    """A path must be there."""
    if wanted is None or wanted in ("hub", "package") or Path(wanted).expanduser().is_file():
        return
    yield (
        f"backbone.weights={wanted}: no such file (looked in {Path.cwd()}). "
        f"Use hub, package or the path of a .safetensors file.{nearest(wanted, ['hub', 'package'])}"
    )


def tensorboard(wanted: bool | None) -> Iterator[str]:
    """What a run logs into must be there before it computes anything."""
    if wanted and not any(importlib.util.find_spec(name) for name in ("tensorboard", "tensorboardX")):
        yield "logger=tensorboard: TensorBoard is not installed; `pip install tensorboard`."


def source_arguments(data: dict[str, Any]) -> Iterator[str]:
    """``data._target_`` must be a class of ours, the rest its arguments."""
    target = data.get("_target_")
    if target is None:
        return  # reported as missing
    file, name = source_file(str(target))
    signature = arguments(file, name) if file is not None and file.is_file() else None
    if signature is None:
        yield (
            f"data._target_={target}: no such data source of ours."
            f"{nearest(str(target), source_names())} Known: {known(source_names())}."
        )
        return
    own = {key: value for key, value in data.items() if key not in PIPELINE}
    yield from _argument_faults("data", own, signature, f"data source {name}", extra=PIPELINE)
    for key, argument in signature.items():
        if argument.required and key not in data:
            yield f"data.{key} is missing: give data.{key}=..., {argument.wanted() or 'which'} {name} demands."


def source_file(target: str, root: Path = ROOT) -> tuple[Path | None, str]:
    """The module file and class name of ``datamodules.module.Class``; None for a class of another package."""
    module, _, name = target.rpartition(".")
    parts = module.split(".")
    if len(parts) < 2 or parts[0] != SOURCES or not all(part.isidentifier() for part in [*parts, name]):
        return None, name
    return root.joinpath(*parts).with_suffix(".py"), name


def source_names(root: Path = ROOT) -> list[str]:
    """Every class that could be meant by ``data._target_``: those with a ``root`` argument."""
    found = []
    for file in sorted((root / SOURCES).glob("*.py")):
        for name in class_names(file):
            if "root" in (arguments(file, name) or {}):
                found.append(f"{SOURCES}.{file.stem}.{name}")
    return found


def trainer_arguments(trainer: dict[str, Any]) -> Iterator[str]:
    """``trainer.*`` must be arguments of Lightning's Trainer, except those that the project sets itself."""
    for key in TRAINER_OWNED.keys() & trainer.keys():
        yield f"trainer.{key}={show(trainer[key])}: not set here; {TRAINER_OWNED[key]}."
    own = {key: value for key, value in trainer.items() if key not in TRAINER_OWNED}
    signature = trainer_signature()
    yield from _argument_faults("trainer", own, signature, "Lightning's Trainer", extra=())
    epochs = own.get("max_epochs")
    endless = epochs is None and own.get("max_time") is not None  # else Lightning takes 1000
    if endless or (isinstance(epochs, int) and epochs < 1):
        yield (
            f"trainer.max_epochs={show(epochs)}: must be 1 or more: the learning rate falls to 0 at the last one. "
            "early_stopping.patience and trainer.max_time end a run sooner."
        )
    given = own.get("max_time")
    if isinstance(given, str) and not re.fullmatch(r"\d+:\d\d:\d\d:\d\d", given.strip()):
        yield f"trainer.max_time={given}: must be days:hours:minutes:seconds, e.g. 00:12:00:00, or null."
    for key, allowed in (("precision", PRECISIONS), ("accelerator", ACCELERATORS), ("strategy", STRATEGIES)):
        if key in own and str(own[key]) not in allowed:
            yield (
                f"trainer.{key}={show(own[key])}: must be one of {', '.join(allowed)}.{nearest(str(own[key]), allowed)}"
            )
    for key in ("devices", "num_nodes", "accumulate_grad_batches"):
        if own.get(key) == 0:
            yield f"trainer.{key}=0: must be 1 or more."
    for key, use in (("train", "learned from"), ("val", "what the best epoch is chosen by"), ("test", "scored")):
        if own.get(f"limit_{key}_batches") == 0:
            yield f"trainer.limit_{key}_batches=0: must be more than 0: these batches are {use}."
    if own.get("check_val_every_n_epoch", 1) != 1:
        yield (
            f"trainer.check_val_every_n_epoch={show(own['check_val_every_n_epoch'])}: must be 1: each epoch is "
            "validated, so that the best one is known."
        )
    interval = own.get("val_check_interval")
    if interval is not None and not (isinstance(interval, float) and interval == 1):
        yield (
            f"trainer.val_check_interval={show(interval)}: must be 1.0 or null: weights are kept at the end of an "
            "epoch, so they are scored there."
        )


def trainer_signature() -> dict[str, Argument]:
    """Arguments of the installed Lightning's Trainer."""
    spec = importlib.util.find_spec("lightning")
    if spec is None or spec.origin is None:
        return {}
    return arguments(Path(spec.origin).parent / "pytorch" / "trainer" / "trainer.py", "Trainer") or {}


def one_process_a_job(trainer: dict[str, Any], multirun: bool) -> Iterator[str]:
    """Several processes a job and several jobs a command do not go together."""
    if not multirun:
        return
    devices, strategy = trainer.get("devices", 1), str(trainer.get("strategy", "auto"))
    many = devices not in (1, "1") and not (isinstance(devices, list) and len(devices) == 1)
    if many or trainer.get("num_nodes", 1) != 1 or strategy.startswith(("ddp", "fsdp", "deepspeed")):
        yield (
            f"trainer.devices={show(devices)}, trainer.strategy={strategy} in a sweep (-m): Lightning starts the other "
            "processes by repeating the whole command, so each would run the whole sweep. Use one device a job "
            "(trainer=auto) and several jobs at once (hydra/launcher=processes or gpus), or run the jobs one by one "
            "without -m."
        )


def _argument_faults(
    section: str, given: dict[str, Any], signature: dict[str, Argument], owner: str, extra: tuple[str, ...]
) -> Iterator[str]:
    for key, value in given.items():
        if key not in signature:
            names = [*signature, *extra]
            hint = nearest(key, names) or f" Known: {known(name for name in names if name != '_target_')}."
            yield f"{section}.{key}={show(value)}: unknown argument of {owner}.{hint}"
        elif value == "":
            yield f"{section}.{key}=: must not be empty; null means none."
        elif not signature[key].allows(value):
            is_number = type(value) in (int, float) and "str" in (signature[key].kinds or ())
            quoted = f" To give it as text quote it twice: \"{section}.{key}='{value}'\"." if is_number else ""
            hint = nearest(str(value), signature[key].choices())
            yield f"{section}.{key}={show(value)}: must be {signature[key].wanted()}.{quoted}{hint}"
