"""A prediction run from a checked config: pictures pass through threads, the model and the output file as they come."""

import itertools
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

import torch

from datamodules.hashes import cpu_count
from datamodules.ordered import in_order
from launch.errors import CommandError, DataError, nearest
from launch.predict_schema import PredictConfig
from launch.progress import track
from lightning_modules.backbone import hold_frozen_weights
from lightning_modules.building import autocast_type, chosen_device
from merging.answer_files import answer_file
from merging.answer_pictures import picture_folder, write_picture
from merging.answers import Answered, Seen, answer, look, sights
from merging.hub import resolve
from merging.model import AnsweringModel, load
from merging.picture_list import check_images, list_pictures

log = logging.getLogger(__name__)
_SHOWN = 5  # pictures without an answer that are named in the log; the output names them all
Item = TypeVar("Item")


def open_model(
    path: str, weights: str | None, tasks: Sequence[str] | None, device_name: str, cache: Path
) -> AnsweringModel:
    """A model on its device, with the tasks that were asked for alone.

    Raises:
        CommandError: it has no such task, or this machine no such device.
        HubError: the Hub does not give it.
    """
    device = chosen_device(device_name)
    model = load(resolve(path), weights, cache)
    for name in tasks or ():
        if name not in model.tasks:
            near = nearest(name, model.tasks)
            raise CommandError(f"tasks: {path} has no task {name}.{near} It has {', '.join(model.tasks)}.")
    if tasks is not None:
        model.tasks = {name: view for name, view in model.tasks.items() if name in tasks}
        model.heads = torch.nn.ModuleDict({name: model.heads[name] for name in model.tasks})
    return model.to(device)


def predict(config: PredictConfig) -> dict[str, Any]:
    """Answers every picture; those that cannot be used are in the output with the reason.

    Returns:
        ``output``, ``passes`` (the most that a picture takes), and the counts ``pictures``, ``answers``,
        ``unreadable``, ``without_face``.

    Raises:
        CommandError: there are no such pictures.
        DataError: not one picture could be read.
    """
    check_images(config.image_list, config.column)
    model = open_model(
        config.model, config.backbone.weights, config.tasks, config.device, Path(config.paths.outputs) / "cache"
    )
    dtype = autocast_type(config.precision, model.device.type)
    if dtype is not None:
        hold_frozen_weights(model.backbone, dtype)
    wanted = sights(model.tasks, config.faces == "detect")
    if len(wanted) > 1:
        ways = "; ".join(f"{', '.join(names)}: {sight.words}" for sight, names in wanted.items())
        log.info(
            "The tasks see pictures in %d ways, so one that is not square takes as many passes (%s)", len(wanted), ways
        )
    cut = [name for name, view in model.tasks.items() if view.face_scale is not None]
    if cut and config.faces != "detect":
        told = "%s learned from pictures cut around a box and reads whole ones here: give cut ones, or, of faces, %s"
        log.warning(told, ", ".join(cut), "faces=detect")
    output = Path(config.output_file).expanduser()
    drawings: AbstractContextManager[Path | None] = nullcontext()
    if config.pictures is not None:
        drawings = picture_folder(Path(config.pictures).expanduser())
    counts = {"pictures": 0, "answers": 0, "unreadable": 0, "without_face": 0}
    with (
        answer_file(output, model.tasks) as write,
        drawings as pictures,
        ThreadPoolExecutor(cpu_count()) as pool,
    ):
        found = _answers(config, model, wanted, pool, dtype)
        for number, group in enumerate(track(found, "Answering", None)):
            for answered in group:
                write(answered)
            _count(counts, group)
            if pictures is not None and group[0].seen.picture is not None:
                write_picture(pictures, number, group)
        if not counts["pictures"]:
            raise DataError(f"images={','.join(config.image_list)}: there are no pictures in it; nothing was written.")
        if counts["unreadable"] == counts["pictures"]:
            reason = group[0].seen.fault
            raise DataError(f"Not one of {counts['pictures']} pictures can be read ({reason}); nothing was written.")
    _tell(counts, output)
    return {"output": str(output), "passes": len(wanted), **counts}


def _answers(
    config: PredictConfig, model: AnsweringModel, wanted: Any, pool: ThreadPoolExecutor, dtype: torch.dtype | None
) -> Iterator[list[Answered]]:
    """The answers of each picture in turn; a batch's worth of pictures is in memory, and as much ahead."""

    def submit(path: Path) -> Future[list[Seen]]:
        return pool.submit(
            look, path, readable(path), list(wanted), model.image_size,
            faces=config.faces == "detect", draw=config.pictures is not None, max_pixels=config.max_pixels,
        )  # fmt: skip

    paths = list_pictures(config.image_list, config.column)
    looked = in_order((submit(path) for path in paths), config.batch_size + 4 * cpu_count())
    for batch in _batches(looked, config.batch_size):
        answered = iter(answer(model, [seen for group in batch for seen in group], wanted, dtype))
        for group in batch:
            yield list(itertools.islice(answered, len(group)))


def readable(path: Path) -> str:
    """A path as text in UTF-8: each byte that is none is told as ``\\xff``, in all files of answers alike."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _batches(groups: Iterable[list[Item]], size: int) -> Iterator[list[list[Item]]]:
    """Groups together until they hold ``size`` items; no group is torn."""
    batch: list[list[Item]] = []
    held = 0
    for group in groups:
        batch.append(group)
        held += len(group)
        if held >= size:
            yield batch
            batch, held = [], 0
    if batch:
        yield batch


def _count(counts: dict[str, int], group: Sequence[Answered]) -> None:
    first = group[0].seen
    counts["pictures"] += 1
    counts["answers"] += sum(bool(answered.answers) for answered in group)
    if first.fault == "no face found":
        counts["without_face"] += 1
    elif first.fault:
        counts["unreadable"] += 1
        if counts["unreadable"] <= _SHOWN:
            log.warning("%s cannot be used: %s", first.file, first.fault)


def _tell(counts: dict[str, int], output: Path) -> None:
    log.info("%d answers on %d pictures: %s", counts["answers"], counts["pictures"], output)
    for key, text in (("unreadable", "cannot be used"), ("without_face", "have no face that was found")):
        if counts[key]:
            log.warning("%d of them %s; %s names each in the column error", counts[key], text, output.name)
