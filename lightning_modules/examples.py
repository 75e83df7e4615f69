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


def save_examples(folder: Path, tested: Mapping[str, tuple[Task, Answers, Images]]) -> list[dict[str, Any]]:
    """Writes ``COUNT`` test pictures of each task, targets and answers; returns what ``examples.json`` holds.

    Classes come by name, numbers as they are, points in [0, 1] of the picture.

    Raises:
        UserError: the folder cannot be written.
    """
    examples: list[dict[str, Any]] = []
    with atomic_folder(folder) as new:
        for task, answers, images in tested.values():
            order = np.argsort(answers.index, kind="stable")
            chosen = order[np.unique(np.linspace(0, len(order) - 1, min(len(order), COUNT)).round().astype(int))]
            for position, picture in zip(chosen, images(answers.index[chosen]), strict=True):
                name = f"{len(examples):02}.png"
                Image.fromarray(picture).save(new / name)
                said = answers.output[position]
                if task.kind == "classification":
                    said = said.argmax()
                shown = {"target": _plain(task, answers.target[position]), "single": _plain(task, said)}
                examples.append({"task": task.name, "image": name, **shown})
        write_json(new / "examples.json", examples)
    return examples


def log_examples(loggers: list[Logger], folder: Path, tested: Mapping[str, tuple[Task, Answers, Images]]) -> None:
    """Saves the examples and logs them to W&B, a table for each task."""
    examples = save_examples(folder, tested)
    for name in tested:
        rows = [item for item in examples if item["task"] == name]
        log_table(loggers, f"examples/{name}", rows, {"image": folder})


def _plain(task: Task, value: np.ndarray) -> str | float | list[list[float]]:
    """A target (class index, number (1,), points (K, 2)) as people read it."""
    if task.kind == "classification":
        return str(task.classes[int(value)]) if task.classes else str(int(value))
    if task.kind == "regression":
        return round(float(value[0]), 4)
    return [[round(float(x), 4), round(float(y), 4)] for x, y in value]
