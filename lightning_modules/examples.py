"""A few test pictures with what the model said, for a report: ``<run>/examples/examples.json`` and the pictures.

``reporting.examples`` reads them and tells the layout.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.loggers import Logger
from PIL import Image

from launch.files import atomic_folder, write_json
from lightning_modules.pictures import Answers, Images
from lightning_modules.tasks import Task
from lightning_modules.tracking import log_table

COUNT = 12  # spread over the test set, so the same pictures in every run on the same data


def spread(index: np.ndarray) -> np.ndarray:
    """Positions of ``COUNT`` of the rows, or of all where there are fewer, evenly spread over the table."""
    order = np.argsort(index, kind="stable")
    return order[np.unique(np.linspace(0, len(order) - 1, min(len(order), COUNT)).round().astype(int))]


def save_examples(
    folder: Path,
    tested: Mapping[str, tuple[Task, Answers, Images]],
    merged: Mapping[str, np.ndarray] | None = None,
    **told: str,
) -> list[dict[str, Any]]:
    """Writes ``COUNT`` test pictures of each task, targets and answers; returns what ``examples.json`` holds.

    Classes come by name, numbers as they are, points in [0, 1] of the picture.

    Args:
        tested: by task; the answers of its own adapter.
        merged: by task, what a merged model said of the same examples, laid out as ``Answers.output``.
        told: stands with each example, such as ``method`` and ``set``.

    Raises:
        UserError: the folder cannot be written.
    """
    examples: list[dict[str, Any]] = []
    with atomic_folder(folder) as new:
        for task, answers, images in tested.values():
            said = {"single": answers.output} | ({} if merged is None else {"merged": merged[task.name]})
            chosen = spread(answers.index)
            for position, picture in zip(chosen, images(answers.index[chosen]), strict=True):
                name = f"{len(examples):02}.png"
                Image.fromarray(picture).save(new / name)
                shown = {"target": _plain(task, answers.target[position])}
                shown |= {who: _plain(task, _answer(task, output[position])) for who, output in said.items()}
                examples.append({"task": task.name, "image": name, **shown, **told})
        write_json(new / "examples.json", examples)
    return examples


def log_examples(loggers: list[Logger], folder: Path, examples: list[dict[str, Any]]) -> None:
    """Logs saved examples to W&B, a table for each task."""
    for name in dict.fromkeys(item["task"] for item in examples):
        rows = [item for item in examples if item["task"] == name]
        log_table(loggers, f"examples/{name}", rows, {"image": folder})


def _answer(task: Task, output: np.ndarray) -> np.ndarray:
    """One output as a target is: the class of logits, numbers and points as they are."""
    return np.asarray(output.argmax()) if task.kind == "classification" else output


def _plain(task: Task, value: np.ndarray) -> str | float | list[list[float]]:
    """A target (class index, number (1,), points (K, 2)) as people read it."""
    if task.kind == "classification":
        return str(task.classes[int(value)]) if task.classes else str(int(value))
    if task.kind == "regression":
        return round(float(value[0]), 4)
    return [[round(float(x), 4), round(float(y), 4)] for x, y in value]
