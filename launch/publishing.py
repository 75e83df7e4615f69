"""The step from a run's own adapter to the one that merges take, ``<outputs>/adapters/<task>/<rank and seed>``."""

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launch.bundles import CARD, MEMBERS, bundle_content, bundle_path
from launch.checks import show
from launch.files import atomic_folder
from launch.runs import Run, read_json
from launch.schema import Training

log = logging.getLogger(__name__)


def shortened(trainer: Mapping[str, Any]) -> list[str]:
    """The arguments by which Lightning's Trainer learns from, chooses by or scores only a part of the data."""
    limits = {key: trainer.get(key) for key in ("limit_train_batches", "limit_val_batches", "limit_test_batches")}
    # as a float 1 is all of the data, as a whole number one batch
    cut = [key for key, value in limits.items() if value is not None and (value != 1 or isinstance(value, int))]
    cut += [key for key in ("overfit_batches", "fast_dev_run") if trainer.get(key)]
    return [f"trainer.{key}={show(trainer[key])}" for key in cut]


def publish(run: Run, config: Training) -> Path | None:
    """Copies the run's adapter to where merges find it, as the newest of its task, rank and seed.

    The run keeps its own, so that training again with other settings loses nothing. None where the run was cut short:
    nobody means to merge such an adapter.
    """
    kept, newest = kept_bundle(run), _newest(config)
    if cut := shortened(config.trainer):
        log.warning("Not published in %s, since %s cut it short: the adapter is in %s", newest, ", ".join(cut), kept)
        return None
    with atomic_folder(newest) as folder:
        shutil.copytree(kept, folder, dirs_exist_ok=True)
    return newest


def publish_again(config: Training, run: Run) -> None:
    """Publishes the adapter of a run that is done already, unless it lies there still."""
    kept, newest = kept_bundle(run), _newest(config)
    cards = [card.relative_to(kept) for card in kept.rglob(CARD)]  # of several tasks each has one
    lies_there = all((read_json(newest / card) or {}).get("run") == run.name for card in cards)
    if not lies_there and not shortened(config.trainer) and publish(run, config):
        log.info("Published again: %s", newest)


def look_for_models(_: Any, run: Run) -> None:
    """Warns where a merge that is done already would not find the models that it wrote as they were."""
    result = read_json(run.result_file) or {}
    for model in map(Path, result.get("models") or []):
        card = read_json(model / CARD) or {}
        if "recipe" not in card:
            log.warning("Its model %s is gone; resume=restart writes it anew", model)
        elif not _is_of(card, model, run, result):
            log.warning("%s holds another merge by now; resume=restart writes this one again", model)


def _is_of(card: Mapping[str, Any], model: Path, run: Run, result: Mapping[str, Any]) -> bool:
    recipe, tasks = card["recipe"], frozenset(card["tasks"])
    wrote = {(frozenset(row["set"].split("+")), row["realign"]) for row in result["rows"]}
    is_same = all(recipe[key] == run.config[key] for key in ("merge", "images"))
    return (
        is_same
        and (tasks, recipe["realign"]) in wrote
        and all(bundle_content(model / MEMBERS / task) == result["adapters"][task]["content"] for task in tasks)
    )


def kept_bundle(run: Run) -> Path:
    """Where a run keeps its adapter."""
    return run.path / "adapter"


def _newest(config: Training) -> Path:
    return bundle_path(Path(config.paths.outputs), config.name, config.lora.rank, config.seed, config.features)
