"""Retention predicted before any label is seen: from how the merged model's answers differ from the single models'.

No parameter is fitted. A single-adapter model says how sure it is, so its own probabilities stand in for the labels:

- classes: with p the single model's class probabilities and m the merged model's answer, sum over images of p in column
  m is the expected confusion matrix; accuracy and macro F1 are read off it and divided by those of the single model's
  own answers, estimated the same way;
- numbers: the shift d between the two answers adds to the single model's error e as if they were independent,
  e_merged^2 = e^2 + d^2, with e the single model's validation error;
- points: the same, image by image, in units of the distance of the eye corners as the single model sees them.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from lightning_modules.tasks import Task

ROUNDS = 200  # of the bootstrap


def predict_retention(
    task: Task, single: Tensor, merged: Tensor, error: float | None, seed: int = 0
) -> tuple[float, float, float]:
    """Expected retention of a member, and the interval (5 %, 95 %) over the choice of images.

    Args:
        single: (n, out) the single-adapter model's outputs on unlabeled images that it was not trained on.
        merged: (n, out) those of the merged model.
        error: the single model's validation error in its metric's unit (rmse, nme); unused for classes.

    Raises:
        ValueError: a number or points, and no ``error``.
    """
    estimate = _estimator(task, single.double(), merged.double(), error)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(single), (ROUNDS, len(single)), generator=generator)
    values = torch.tensor([estimate(rows) for rows in drawn], dtype=torch.float64)
    low, high = torch.quantile(values, torch.tensor([0.05, 0.95], dtype=torch.float64)).tolist()
    return estimate(torch.arange(len(single))), low, high


def output_drift(task: Task, single: Tensor, merged: Tensor) -> float:
    """|merged - single| / |single - mean|, root mean square over images and outputs: 0 is the same, 1 is a stranger.

    Log-probabilities for classes, so that a constant added to all logits does not count.
    """
    one, two = (x.double().log_softmax(1) if task.kind == "classification" else x.double() for x in (single, merged))
    spread = (one - one.mean(0)).square().mean()
    return float(((two - one).square().mean() / spread.clamp(min=1e-12)).sqrt())


def _estimator(task: Task, single: Tensor, merged: Tensor, error: float | None) -> Callable[[Tensor], float]:
    if task.kind == "classification":
        p, own, new = single.softmax(1), single.argmax(1), merged.argmax(1)

        def classes(rows: Tensor) -> float:
            before, after = (_expected(p[rows], answers[rows], task.metric) for answers in (own, new))
            return after / before if before > 0 else 1.0

        return classes
    if error is None:
        raise ValueError(f"{task.name}: without the single model's validation {task.metric} nothing can be predicted")
    if task.kind == "regression":
        shift = (merged - single).square().mean(1)
        return lambda rows: float(error / (error**2 + shift[rows].mean()).sqrt())
    points, moved = task.shape(single), task.shape(merged)
    distance = (moved - points).norm(dim=-1)  # (n, K)
    if task.eye_corners is not None:
        left, right = task.eye_corners
        distance = distance / (points[:, left] - points[:, right]).norm(dim=-1, keepdim=True).clamp(min=1e-6)
    typical = error / 100
    sizes = (typical**2 + distance.square()).sqrt().mean(1)
    return lambda rows: float(typical / sizes[rows].mean())


def _expected(p: Tensor, answers: Tensor, metric: str) -> float:
    count = p.shape[1]
    confusion = p.new_zeros(count, count).index_add_(0, answers, p)  # [answer, true class]
    hits = confusion.diagonal()
    if metric == "accuracy":
        return float(hits.sum() / len(p))
    return float((2 * hits / (confusion.sum(0) + confusion.sum(1)).clamp(min=1e-12)).mean())
