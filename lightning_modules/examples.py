"""A few test pictures with what the model answers, for people: files in the run folder and a table in W&B.

``<run>/examples/examples.json`` is read by ``reporting.examples``; its docstring tells the layout.
"""

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from datamodules.datamodule import ImageDataModule, normalize
from launch.files import atomic_folder, write_json
from lightning_modules.model import MultiTaskModel
from lightning_modules.tasks import Task

COUNT = 12  # the same pictures in every run on the same data


@torch.no_grad()
def save_examples(
    folder: Path, model: MultiTaskModel, data: ImageDataModule, task: Task, device: torch.device, count: int = COUNT
) -> list[dict[str, Any]]:
    """Writes ``count`` test pictures, targets and answers; returns the list that ``examples.json`` holds.

    Points are in [0, 1] of the picture, classes by name, numbers as they are.
    """
    examples: list[dict[str, Any]] = []
    model.to(device).eval()
    with atomic_folder(folder) as new:
        for batch in data.plain_dataloader("test", count):
            images = normalize(batch["image"].to(device), data.mean, data.std)
            answers = task.predict(model(images, [task.name])[task.name]).cpu()
            for picture, target, answer in zip(batch["image"], batch["target"], answers, strict=True):
                name = f"{len(examples):02}.png"
                Image.fromarray(picture.numpy()).save(new / name)
                shown = {"target": _plain(task, target), "single": _plain(task, answer)}
                examples.append({"task": task.name, "image": name, **shown})
        write_json(new / "examples.json", examples)
    return examples


def _plain(task: Task, value: Tensor) -> str | float | list[list[float]]:
    """A target (number, class index, points (K, 2)) as people read it."""
    if task.kind == "classification":
        return str(task.classes[int(value)]) if task.classes else str(int(value))
    if task.kind == "regression":
        return round(float(value), 4)
    return [[round(float(x), 4), round(float(y), 4)] for x, y in value]
