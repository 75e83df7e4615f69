"""A merge run from a checked config: adapters, backbone, images, then set after set, each scored and kept."""

import functools
import json
import logging
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from lightning.pytorch.loggers import Logger
from rich.console import Console
from rich.table import Table
from timm.models import PretrainedCfg
from timm.models.vision_transformer import VisionTransformer

from launch.bundles import CARD, bundle_path
from launch.errors import AdapterError
from launch.files import write_json
from launch.labels import digest, lora_settings
from launch.merge_schema import MergeConfig
from launch.progress import track
from launch.runs import Run
from lightning_modules.building import autocast_type, chosen_device
from lightning_modules.examples import log_examples
from lightning_modules.lineage import artifact_name, log_inputs, log_model
from lightning_modules.model import MLPHead
from lightning_modules.tracking import log_summary, log_table, open_loggers
from merging.branch import Branching
from merging.bundle import save_merged
from merging.evaluate import COLUMNS, FURTHER, PREDICTED, Merged, merge_set, predict_set, score_set
from merging.examples import save_merged_examples
from merging.frozen_backbone import backbone_of, require_whole
from merging.members import Member, read_member
from merging.methods import merge_function
from merging.paired import retention_text
from merging.views import require_own_columns
from merging.workbench import Workbench, open_images

log = logging.getLogger(__name__)
EXAMPLES = "examples"


@dataclass(frozen=True)
class Bench:
    """A workbench with what rows say of it."""

    bench: Workbench
    head_only: dict[str, MLPHead]
    backbone: dict[str, Any]
    frozen: Callable[[], VisionTransformer]  # makes the backbone anew, float32, nothing folded

    def data_name(self, tasks: Sequence[str]) -> str:
        """The data of a set, each name once."""
        return "+".join(sorted({self.bench.data[task].source.name for task in tasks}))


def merge(config: MergeConfig, run: Run, bundles: Mapping[str, Path]) -> dict[str, Any]:
    """Merges and scores every set; sets that an interrupted run has finished are not done again.

    Returns:
        The content of ``result.json``: ``rows`` in the columns of ``evaluate.COLUMNS``, with all metrics in ``scores``.
    """
    settings = None if config.logger.wandb is None else config.logger.wandb.model_dump()
    loggers = open_loggers(
        run.path, run.name, run.config, run_id=run.hash, group=run.group, job_type="merge",
        tags=[config.method_name, f"r{config.lora.rank}"], wandb=settings, tensorboard=config.logger.tensorboard,
    )  # fmt: skip
    with loggers as opened:
        bench = open_bench(config, bundles)
        log_inputs(opened, {task: member.bundle for task, member in bench.bench.members.items()})
        result = merge_all(config, run, bench, opened)
        rows = [{key: row[key] for key in (*COLUMNS, *FURTHER, *PREDICTED)} for row in result["rows"]]
        log_table(opened, "rows", rows)
        curves = [{"set": tasks, **look} for tasks, curve in result["curves"].items() for look in curve]
        log_table(opened, "curves", curves)
        shown = run.path / EXAMPLES / "examples.json"
        if shown.is_file():
            log_examples(opened, shown.parent, json.loads(shown.read_text(encoding="utf-8")))
        log_summary(opened, {f"retention/{name}": value for name, value in _summary(result["rows"]).items()})
    return result


def merge_all(config: MergeConfig, run: Run, opened: Bench, loggers: list[Logger]) -> dict[str, Any]:
    """What ``merge`` does once the bench is open; ``loggers`` are told of saved models only."""
    method = functools.partial(merge_function(config.merge), opened.bench)
    sets = config.chosen_sets()
    folder = run.path / "sets"
    opened.bench.scratch = run.path / "scratch"
    for tasks in track(sets, f"Merging by {config.method_name}", len(sets)):
        file = folder / f"{'+'.join(tasks)}.json"
        if file.exists():
            continue
        opened.bench.start_clock()
        merges = merge_set(opened.bench, tasks, method, config.realigns, config.images, branching_of(config))
        expected = _expected(config, opened, merges)
        rows = score_set(opened.bench, merges, config.split, opened.head_only, config.images)
        rows = [row | told for row, told in zip(rows, expected, strict=True)]
        saved = _save(config, opened, tasks, merges, rows, loggers) if _saves(config) else []
        if saved and len(sets) == 1:  # the richest readout's answers, which the run's score is of, too
            told = {"set": "+".join(tasks), "method": config.method_label, "realign": merges[-1].realign}
            save_merged_examples(run.path / EXAMPLES, opened.bench, merges[-1], config.split, **told)
        shared = {
            "data": opened.data_name(tasks),
            "backbone": f"{opened.backbone['name']}@{opened.backbone['image_size']}",
            "set": "+".join(tasks),
            "method": config.method_label,
            "rank": config.lora.rank,
            "seed": config.seed,
            "lora": _adapters_label(config, [opened.bench.members[task] for task in tasks]),
        }
        scored = [shared | row for row in rows]
        write_json(file, {"rows": scored, "models": saved, "curve": list(merges[0].outcome.curve)})
        for checkpoint in opened.bench.scratch.glob("*.pt"):
            checkpoint.unlink()
    return summarise(sets, folder, config, opened)


def _expected(config: MergeConfig, opened: Bench, merges: Sequence[Merged]) -> list[dict[str, Any]]:
    """A row for each that ``score_set`` gives; empty ones where nothing is to be predicted.

    Of validation images nothing is: a prediction has read their labels.
    """
    if config.advice_images is None or config.split == "val":
        return [dict.fromkeys(PREDICTED) for merged in merges for _ in merged.heads]
    return predict_set(opened.bench, merges, config.advice_images)


def summarise(sets: Sequence[Sequence[str]], folder: Path, config: MergeConfig, opened: Bench) -> dict[str, Any]:
    """All sets' rows together, shown as a table and returned."""
    rows, models, curves = [], [], {}
    for tasks in sets:
        content = json.loads((folder / f"{'+'.join(tasks)}.json").read_text(encoding="utf-8"))
        rows += content["rows"]
        models += content["models"]
        if curve := content.get("curve"):
            curves["+".join(tasks)] = curve
    show(rows, config.split)
    for model in models:
        log.info("Merged model: %s", model)
    kept = _retained(rows, rows[-1]["realign"])
    return {
        "metric": "retention",
        "score": statistics.mean(kept) if kept else None,
        "worst": min(kept, default=None),
        "split": config.split,
        "backbone": opened.backbone,
        "adapters": {name: _origin(member) for name, member in opened.bench.members.items()},
        "rows": [{key: row[key] for key in (*COLUMNS, *FURTHER, *PREDICTED, "lora", "scores")} for row in rows],
        "models": models,
        "curves": curves,
    }


def _summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    found: dict[str, float] = {}
    for realign in dict.fromkeys(row["realign"] for row in rows):
        if kept := _retained(rows, realign):
            found |= {f"{realign}/mean": statistics.mean(kept), f"{realign}/lowest": min(kept)}
    return found


def _retained(rows: Sequence[Mapping[str, Any]], realign: str) -> list[float]:
    """Without the members whose adapter alone scores nothing: nobody can say how much of it they keep."""
    return [row["retention"] for row in rows if row["realign"] == realign and row["retention"] is not None]


def show(rows: Sequence[Mapping[str, Any]], split: str = "test") -> None:
    """Prints a table for each set, prediction beside measurement, and mean and lowest retention over all of them.

    A star marks a loss that the split's images can show: the 95 % interval of the paired retention ends below 1.
    """
    console = Console()
    for name in dict.fromkeys(row["set"] for row in rows):
        console.print(_set_table(name, [row for row in rows if row["set"] == name]))
    for realign in dict.fromkeys(row["realign"] for row in rows):
        own = [row for row in rows if row["realign"] == realign and row["retention"] is not None]
        if not own:
            continue
        retained = _retained(own, realign)
        off = [abs(row["predicted"] - row["retention"]) for row in own if row["predicted"] is not None]
        told = f"; predictions were off by {statistics.mean(off):.3f} on average" if off else ""
        console.print(
            f"realign {realign}: mean retention {statistics.mean(retained):.3f}, lowest {min(retained):.3f} "
            f"of {len(own)} members, {sum(map(_lost, own))} with a loss that the "
            f"{'test' if split == 'test' else 'validation'} set can show (*){told}",
            markup=False, highlight=False, soft_wrap=True,
        )  # fmt: skip


def _lost(row: Mapping[str, Any]) -> bool:
    """Whether the test set shows a loss."""
    return row["retention_high"] is not None and row["retention_high"] < 1


def _set_table(name: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    """One set's rows; its name stands above them, since beside them it would not fit into 80 columns."""
    choice = rows[0]["choice"]
    title = name if choice is None else f"{name}, by {choice}"
    table = Table(
        title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, collapse_padding=True
    )
    for heading in ("task", "realign", "metric"):
        table.add_column(heading, overflow="fold")
    for heading in ("score", "single", "head\nonly", "control", "predicted", "retention"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        alone, control = ("" if row[name] is None else f"{row[name]:.4g}" for name in ("head_only", "control"))
        kept = retention_text(row["retention"]) + ("*" if _lost(row) else " ")
        predicted = "" if row["predicted"] is None else f"{row['predicted']:.3f}"
        numbers = [f"{row['score']:.4g}", f"{row['single']:.4g}", alone, control, predicted, kept]
        table.add_row(row["task"], row["realign"], row["metric"], *numbers)
    return table


def open_bench(config: MergeConfig, bundles: Mapping[str, Path]) -> Bench:
    """The workbench of a config; the jobs of one sweep in one process share it.

    Raises:
        AdapterError: adapters that do not belong together, or tasks of one set whose answers would share a column.
    """
    for key, given in (("adapters", config.adapters), ("roots", config.roots)):
        if unused := sorted(set(given) - set(bundles)):  # no fault: the jobs of a sweep may share one mapping
            log.warning("%s: %s is in no set here, so that is not used", key, ", ".join(unused))
    device = chosen_device(config.device)
    alone = {task: bundle_path(Path(config.paths.outputs), task, 0, config.seed) for task in bundles}
    stamps = tuple((str(path), (path / CARD).stat().st_mtime_ns) for path in bundles.values())
    heads = tuple(
        (task, str(path), (path / CARD).stat().st_mtime_ns) for task, path in alone.items() if (path / CARD).is_file()
    )
    members = _read_members(tuple(bundles.items()), stamps)
    for tasks in config.chosen_sets():
        require_own_columns({task: members[task].view for task in tasks})
    return _open(
        tuple(bundles.items()), stamps, heads, tuple(config.roots.items()), config.backbone.weights,
        str(Path(config.paths.outputs) / "cache"), config.precision, device,
    )  # fmt: skip


@functools.lru_cache(maxsize=1)
def _read_members(bundles: tuple[tuple[str, Path], ...], stamps: tuple[tuple[str, int], ...]) -> dict[str, Member]:
    """By task; ``stamps`` tell a bundle that was written anew."""
    members = {task: read_member(path) for task, path in bundles}
    for task, member in members.items():
        if member.name != task:
            raise AdapterError(f"adapters: {task}: {member.bundle.path} is an adapter of {member.name}.")
        if member.bundle.card.get("features") == "deep":
            raise AdapterError(
                f"{member.bundle.path}: its head was trained on deep features (features=deep), which a merge cannot "
                "realign. Take the adapter's, or a head that reads the class token."
            )
    check_alike(list(members.values()))
    return members


@functools.lru_cache(maxsize=1)
def _open(
    bundles: tuple[tuple[str, Path], ...],
    stamps: tuple[tuple[str, int], ...],
    alone: tuple[tuple[str, str, int], ...],
    roots: tuple[tuple[str, str], ...],
    weights: str | None,
    cache: str,
    precision: str,
    device: torch.device,
) -> Bench:
    members = _read_members(bundles, stamps)
    first = next(iter(members.values())).bundle
    backbone, card, anew = backbone_of(first, weights, Path(cache))
    for member in members.values():
        require_whole(member.bundle, backbone)
    dtype = autocast_type(precision, device.type)
    pretrained = timm.get_pretrained_cfg(card["name"]) or PretrainedCfg()
    places = dict(roots)
    data = {
        task: open_images(member, Path(cache), pretrained.mean, pretrained.std, places.get(task))
        for task, member in members.items()
    }
    heads = {task: head for task, path, _ in alone if (head := _head_only(Path(path), members[task])) is not None}
    card |= {"mean": pretrained.mean, "std": pretrained.std}
    bench = Workbench(backbone, members, data, device, dtype)
    return Bench(bench, heads, card, anew)


def _head_only(path: Path, member: Member) -> MLPHead | None:
    """The head on the bare backbone that a member is compared with; None where it is of other data or backbone."""
    found = read_member(path, with_grams=False)
    for part in ("backbone", "data"):
        if found.bundle.card[part]["fingerprint"] != member.bundle.card[part]["fingerprint"]:
            told = "%s was trained on another %s than %s, so head_only is left out of its rows"
            log.warning(told, path, part, member.bundle.path)
            return None
    return found.head


def check_alike(members: Sequence[Member]) -> None:
    """All members must have been trained on one backbone at one image size.

    Raises:
        AdapterError: names the first two that differ, and how.
    """
    first = members[0].bundle
    for member in members[1:]:
        other = member.bundle
        if other.card["backbone"]["fingerprint"] != first.card["backbone"]["fingerprint"]:
            lines = [
                f"  {bundle.path}: {made.get('name')} at {made.get('image_size')} px, "
                f"fingerprint {made['fingerprint'][:12]}"
                for bundle, made in ((bundle, bundle.card["backbone"]) for bundle in (first, other))
            ]
            raise AdapterError("\n".join(["Adapters of different backbones cannot be merged.", *lines]))


def _origin(member: Member) -> dict[str, Any]:
    card = member.bundle.card
    return {
        "path": str(member.bundle.path),
        "run": card.get("run"),
        "config_hash": card.get("config_hash"),
        "content": member.bundle.content,
        "data": card["data"]["fingerprint"],
        "lora": card.get("lora"),
    }


def _adapters_label(config: MergeConfig, members: Sequence[Member]) -> str:
    """How members were trained otherwise than by default or than asked for; of several ways, each that occurs."""
    found = {_adapter_label(config, member.bundle.card) for member in members}
    return found.pop() if len(found) == 1 else " + ".join(sorted(label or "default" for label in found))


def _adapter_label(config: MergeConfig, card: Mapping[str, Any]) -> str:
    """As ``labels.lora_settings``; of ``adapters={task: folder}`` also a rank and a seed that the rows do not tell."""
    lora = card.get("lora") or {}
    told = {"rank": (lora.get("rank"), config.lora.rank), "seed": (card.get("seed"), config.seed)}
    other = [f"{name}={own}" for name, (own, asked) in told.items() if own is not None and own != asked]
    return ",".join(filter(None, [lora_settings(lora), *other]))


def branching_of(config: MergeConfig) -> Branching | None:
    """Where the config's merges branch; None where they do not."""
    if config.branch_at is None:
        return None
    return Branching(config.branch_at, None if config.branch is None else tuple(config.branch))


def _saves(config: MergeConfig) -> bool:
    if config.branch_at is not None:
        return False  # several last blocks are no plain timm state dict
    return len(config.chosen_sets()) == 1 if config.save == "auto" else config.save


def _save(
    config: MergeConfig,
    opened: Bench,
    tasks: Sequence[str],
    merges: Sequence[Merged],
    rows: Sequence[dict[str, Any]],
    loggers: list[Logger],
) -> list[str]:
    models = Path(config.paths.outputs) / "models"
    saved = []
    for merged in merges:
        parts = ["+".join(tasks), config.method_slug, merged.realign, f"r{config.lora.rank}", f"s{config.seed}"]
        if given := {task: opened.bench.members[task].bundle.content for task in tasks if task in config.adapters}:
            parts.append(digest(json.dumps(given, sort_keys=True)))
        path = models / (config.name if config.name and len(merges) == 1 else "-".join(parts))
        own = [row for row in rows if row["realign"] == merged.realign]
        recipe = {
            "method": config.method_name, "merge": config.merge, "realign": merged.realign, "images": config.images,
            "choice": merged.outcome.choice,
        }  # fmt: skip
        members = {task: opened.bench.members[task] for task in tasks}
        save_merged(path, opened.frozen(), members, merged, recipe, opened.backbone, own)
        told = {
            "method": config.method_label, "realign": merged.realign, "rank": config.lora.rank, "seed": config.seed,
            "inputs": {task: member.bundle.content for task, member in members.items()},
            "retention": {row["task"]: row["retention"] for row in own},
        }  # fmt: skip
        log_model(loggers, path, artifact_name("merged", config.method_slug, *tasks), merged.realign, told)
        saved.append(str(path))
    return saved
