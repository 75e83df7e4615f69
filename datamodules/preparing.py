"""What ``prepare.py`` does with a checked config: one dataset after the other, and what can be said of each."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from datamodules.base import Source
from datamodules.pipeline import Pixels, make_pixels
from datamodules.preview import View, write_preview
from datamodules.sample.drawn import draw_set
from datamodules.sources import PublishedSource
from datamodules.summary import count_table, left_out, used_counts
from launch.checks import source_file
from launch.errors import UserError
from launch.prepare_schema import PrepareConfig
from launch.runs import Run
from launch.schema import Data, Task
from launch.signature import arguments
from launch.target import instantiate

log = logging.getLogger(__name__)


def prepare(config: PrepareConfig, run: Run) -> dict[str, Any]:
    """Prepares every dataset that was asked for; one that cannot be had does not keep the others from it.

    Returns:
        Counts by dataset and task; ``score`` is the number of examples that can be used, all together.

    Raises:
        UserError: some dataset is not ready. If it was the only one, its own error.
    """
    told: dict[str, Any] = {}
    previews: dict[str, Path] = {}
    faults: dict[str, UserError] = {}
    chosen = config.chosen()
    for name, data in chosen.items():
        try:
            if config.sample is not None:
                draw_set(name, Path(data.arguments()["root"]), config.count, config.seed)
            source = open_source(data, config.download)
            told[source.name], previews[source.name] = _prepare_one(config, data, source)
        except UserError as error:
            if len(chosen) == 1:
                raise
            log.error("%s", error)
            faults[name] = error
    if config.logger.wandb is not None:
        _log_previews(run, config.logger.wandb.model_dump(), previews, told)
    if faults:
        raise UserError(f"{len(faults)} of {len(chosen)} datasets are not ready: {', '.join(faults)} (see above).")
    return {"metric": "examples", "score": sum(_most(tasks) for tasks in told.values()), "data": told}


def open_source(data: Data, download: bool) -> Source:
    """The source of a config; whether it may fetch what is missing is said here and not by the config."""
    given = data.arguments()
    file, name = source_file(data.source)
    if file is not None and "download" in (arguments(file, name) or {}):
        given["download"] = download
    return instantiate(data.source, given)


def _prepare_one(config: PrepareConfig, data: Data, source: Source) -> tuple[dict[str, Any], Path]:
    source.check()
    if isinstance(source, PublishedSource) and source.download:
        announce(source)
    source.prepare()
    console = Console()
    views, told = [], {}
    for name, task in config.tasks(data).items():
        pixels = _pixels_of(config, data, source, task)
        console.print()
        console.print(f"{source.name}: {name}", style="bold", markup=False, highlight=False, soft_wrap=True)
        console.print(count_table(pixels))
        for note in pixels.prepared.notes:
            console.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)
        augment = None if task.augment is None else task.augment.model_dump()
        views.append(View(name, task.kind, pixels.prepared, pixels.cache, augment, task.flip_index))
        told[name] = {
            "fingerprint": pixels.prepared.fingerprint,
            "read": pixels.read,
            "dropped": left_out(pixels),
            "counts": used_counts(pixels),
            "notes": pixels.prepared.notes,
        }
    path = Path(config.paths.outputs) / "previews" / f"{source.name}.png"
    write_preview(path, f"{source.name} at {config.image_size} px: {', '.join(told)}", views, config.seed)
    console.print(f"preview: {path}", markup=False, highlight=False, soft_wrap=True)
    return told, path


def _pixels_of(config: PrepareConfig, data: Data, source: Source, task: Task) -> Pixels:
    return make_pixels(
        source,
        task.kind,
        target=task.target,
        classes=data.classes if task.kind == "classification" else None,
        size=data.size,
        split=(data.val_fraction, data.test_fraction),
        split_seed=data.split_seed,
        fit=data.fit,
        image_size=config.image_size,
        cache_root=Path(config.paths.outputs) / "cache",
        max_pixels=data.max_pixels,
        max_broken=data.max_broken,
    )


def announce(source: PublishedSource) -> None:
    """Says what is going to be fetched, before anything is."""
    published = source.publication
    wanted = [file for part in published.parts if not (source.root / part.folder).exists() for file in part.archives]
    if source.format == "parquet":
        wanted = list(published.mirror)
    elif source.parquet is not None:
        wanted = []
    for file in wanted:
        if file.find(source.root) is None:
            log.info(
                "%s: %s (%s) is not here and is going to be fetched into %s. Licence: %s. See %s",
                published.title, file.name, file.size_text, source.root, published.licence, published.url,
            )  # fmt: skip


def _log_previews(run: Run, wandb: Mapping[str, Any], previews: Mapping[str, Path], told: Mapping[str, Any]) -> None:
    if not previews:
        return
    from lightning_modules.tracking import log_picture, open_loggers  # imports torch

    folder = next(iter(previews.values())).parent
    opened = open_loggers(
        folder, run.name, {**run.config, "prepared": told}, run_id=run.hash, group=run.group, job_type="prepare",
        tags=list(previews), wandb=wandb,
    )  # fmt: skip
    with opened as loggers:
        for name, path in previews.items():
            log_picture(loggers, f"preview/{name}", path)


def _most(tasks: Mapping[str, Any]) -> int:
    return max(sum(sum(counts.values()) for counts in told["counts"].values()) for told in tasks.values())
