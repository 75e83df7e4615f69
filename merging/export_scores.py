"""What an export costs in score: both models on the test sets of the adapters, where their data is at hand."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from datamodules.datamodule import ImageDataModule, normalize
from launch.errors import AdapterError, UserError
from merging.members import read_member
from merging.model import AnsweringModel
from merging.workbench import open_images


def score_both(
    model: AnsweringModel,
    run: Callable[[np.ndarray], Mapping[str, np.ndarray]],
    count: int,
    roots: Mapping[str, str],
    cache: Path,
) -> dict[str, Any]:
    """Scores of the model in PyTorch and of its export on the same test pictures.

    Nothing is fetched: a task whose data does not lie where its adapter was trained, or in ``roots``, goes without.

    Args:
        run: the export, normalised images (B, 3, S, S) to outputs by task.
        count: test pictures of each task, at most.
        roots: by task, where its data lies now.

    Returns:
        ``scores``: by task ``{"metric", "pytorch", "export", "images"}``; ``not_scored``: by task the reason.
    """
    scores: dict[str, dict[str, Any]] = {}
    reasons: dict[str, str] = {}
    for task in model.tasks:
        try:
            data = _test_data(model, task, roots.get(task), cache)
        except UserError as error:
            reasons[task] = str(error).splitlines()[0]
        else:
            scores[task] = _score(model, run, task, data, count)
    return {"scores": scores, "not_scored": reasons}


def _test_data(model: AnsweringModel, task: str, root: str | None, cache: Path) -> ImageDataModule:
    if task not in model.members:
        raise AdapterError(f"the model says nothing of the adapter of {task}")
    member = read_member(model.members[task], with_grams=False)
    told = ((member.bundle.card.get("config") or {}).get("data") or {}).get("root")
    place = root or told
    if place is None or not Path(place).expanduser().is_dir():
        raise AdapterError(f"its data is not at {place}; give roots.{task}=DIR")
    return open_images(member, cache, model.mean, model.std, root)


@torch.no_grad()
def _score(
    model: AnsweringModel,
    run: Callable[[np.ndarray], Mapping[str, np.ndarray]],
    task: str,
    data: ImageDataModule,
    count: int,
) -> dict[str, Any]:
    described = model.tasks[task].task
    metrics = {"pytorch": described.metrics()[described.metric], "export": described.metrics()[described.metric]}
    seen = 0
    for batch in data.plain_dataloader("test", count):
        images = normalize(batch["image"], data.mean, data.std)
        metrics["pytorch"].update(described.predict(model(images, [task])[task]), batch["target"])
        output = torch.from_numpy(np.asarray(run(images.numpy())[task]))
        metrics["export"].update(described.predict(output), batch["target"])
        seen += len(images)
    return {
        "metric": described.metric,
        **{name: float(metric.compute()) for name, metric in metrics.items()},
        "images": seen,
    }
