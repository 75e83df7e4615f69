"""How sure a measured retention is: the merged and the single model's answers on the same test images, drawn anew."""

import math
from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor

from lightning_modules.metrics import NormalizedMeanError
from lightning_modules.tasks import HIGHER_IS_BETTER, Task

ROUNDS = 1000
AT_ONCE = 100  # samples: of 20,000 test images 16 MB


def retention(metric: str, score: float, single: float) -> float:
    """1.00 is as good as the adapter alone, more is better: score / single, or single / score for errors."""
    above, below = (score, single) if HIGHER_IS_BETTER[metric] else (single, score)
    if below == 0:
        return 1.0 if above == 0 else float("inf")
    return above / below


def retention_text(value: float | None) -> str:
    """As tables tell it; "?" where the adapter alone scores nothing, and nobody can say what is kept of it."""
    return "?" if value is None else f"{value:.3f}"


def retention_interval(
    task: Task,
    single: Tensor,
    merged: Tensor,
    target: Tensor,
    groups: Tensor | None = None,
    rounds: int = ROUNDS,
    seed: int = 0,
) -> tuple[float, float]:
    """95 % interval of a member's retention by the paired bootstrap over groups of test images (Efron's percentiles).

    An interval that ends below 1 is a loss that this test set can show. Both models answer the same drawn images, so
    what is hard for both cancels out. Images of one person or one picture are drawn together: one after the other they
    would pass for more evidence than they are.

    Args:
        single, merged: (n, out) outputs on the same images.
        target: as ``Task.metrics`` takes it.
        groups: (n,) of the images, numbered from 0; None: each is its own.
        rounds: of drawing as many groups as there are, with replacement.

    Returns:
        Its ends; infinite where the single model scores nothing in that many drawn samples.
    """
    groups = torch.arange(len(target)) if groups is None else groups
    kept = []
    for drawn in _draws(int(groups.max()) + 1, rounds, seed):
        counts = drawn[:, groups]
        one, two = (_scores(task, outputs.double(), target, counts) for outputs in (single, merged))
        kept += [retention(task.metric, new, own) for new, own in zip(two.tolist(), one.tolist(), strict=True)]
    finite = [value for value in kept if math.isfinite(value)]
    if not finite:
        return float("inf"), float("inf")
    bounded = torch.tensor(kept, dtype=torch.float64).clamp(max=max(finite))  # infinite ones stay above all others
    low, high = torch.quantile(bounded, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high if len(kept) - len(finite) <= 0.025 * len(kept) else float("inf")


def _draws(n: int, rounds: int, seed: int) -> Iterator[Tensor]:
    """How often each of n is drawn, each row a sample of n with replacement; ``AT_ONCE`` rows (k, n) at a time."""
    generator = torch.Generator().manual_seed(seed)
    for start in range(0, rounds, AT_ONCE):
        drawn = torch.randint(n, (min(AT_ONCE, rounds - start), n), generator=generator)
        yield torch.zeros(drawn.shape, dtype=torch.float64).scatter_add_(1, drawn, torch.ones(drawn.shape).double())


def _scores(task: Task, outputs: Tensor, target: Tensor, counts: Tensor) -> Tensor:
    """(rounds,) the task's metric on each drawn sample, all samples at once."""
    total = counts.sum(1)
    if task.metric == "accuracy":
        return counts @ (outputs.argmax(1) == target).double() / total
    if task.metric == "macro_f1":
        answers, truth = (torch.nn.functional.one_hot(x, task.outputs).double() for x in (outputs.argmax(1), target))
        hits, sizes = counts @ (answers * truth), counts @ (answers + truth)
        seen = sizes > 0  # like torchmetrics: a class that nobody names is no class of the sample
        return (2 * hits / sizes.clamp(min=1)).sum(1) / seen.sum(1)
    if task.metric == "rmse":
        return (counts @ (outputs - target).square().flatten(1).mean(1) / total).sqrt()
    metric = cast(NormalizedMeanError, task.metrics()[task.metric])
    metric.update(task.shape(outputs), target)
    return counts @ metric.values().double() / total
