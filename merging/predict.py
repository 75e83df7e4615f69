"""Retention predicted before any test label is read: from how the merged model's answers differ from the single's.

No parameter is fitted to any merge. The labels that a score needs are stood in for:

- classes: by the single model's own probabilities p, at the temperature at which they are as sure of its answers as its
  validation accuracy says they should be. With m the merged model's answer, the sum over images of p in column m is the
  expected confusion matrix; accuracy and macro F1 are read off it and divided by those of the single model's answers;
- numbers and points: the single model is wrong by its validation error, whatever the shift between the two answers is,
  so the error e grows to the square root of e^2 + d^2, d the shift.

Where the images' labels are known (validation: training has chosen its checkpoint by them), what they measure is mixed
in. They see what the merge really does, also that it helps, but few of them are noisy; the stand-in is steady, but off
by ``OFF``. The share of the labels is what weighs two such measurements best, OFF^2 / (OFF^2 + their variance): near
one for thousands of images, a fifth for 300 on which the single model is hardly better than chance.

The interval is that of the retention that a test set of a given size would show: images are drawn anew for what is not
known of the merge from these few, and from those the test set, with a label or an error drawn for each image. Where
labels are known, what the stand-in's part of the prediction may be off is added, (1 - share) OFF. (Without labels that
is left out: a merge that changes no answer is off by nothing.)
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_modules.tasks import Task

ROUNDS = 400  # draws of a test set
OFF = 0.03  # how far stand-ins are off, in retention; the one number that was chosen by looking at merges
LEVEL = 0.9


@dataclass(frozen=True)
class _Stand:
    """One member's retention in three ways; ``trust`` is the share of the labels, rows are image indices.

    Attributes:
        expected: (trust) -> on these images.
        measured: (rows) -> by their labels alone; None without labels.
        drawn: (rows, trust, generator) -> with a label or an error drawn for each.
    """

    expected: Callable[[float], float]
    measured: Callable[[Tensor], float] | None
    drawn: Callable[[Tensor, float, torch.Generator], float]


def predict_retention(
    task: Task,
    single: Tensor,
    merged: Tensor,
    known: Mapping[str, float],
    targets: Tensor | None = None,
    test_count: int | None = None,
    groups: Tensor | None = None,
    seed: int = 0,
) -> tuple[float, float, float]:
    """Expected retention of a member, and the interval that holds what a test set shows nine times of ten.

    Args:
        single: (n, out) the single-adapter model's outputs on images that it was not trained on.
        merged: (n, out) those of the merged model.
        known: the single model's validation metrics: accuracy, or its metric in that metric's unit (rmse, nme).
        targets: (n,), (n, 1) or (n, K, 2), the images' labels where they are known.
        test_count: images of the test set; None: n.
        groups: (n,) of the images, numbered from 0: drawn together (see ``paired``); None: each is its own.

    Raises:
        ValueError: a number or points, and neither ``known[task.metric]`` nor targets.
    """
    single, merged = single.double(), merged.double()
    if targets is not None and task.kind != "classification":
        targets = targets.double()
    stand = _stand(task, single, merged, known, targets)
    rows = _Rows(torch.arange(len(single)) if groups is None else groups)
    trust = 0.0 if stand.measured is None else OFF**2 / (OFF**2 + _variance(stand.measured, rows, seed))
    value = stand.expected(trust)
    values = []
    generator = torch.Generator().manual_seed(seed)
    tested = max(1, round((test_count or len(single)) * rows.count / len(single)))
    for _ in range(ROUNDS):
        seen = torch.randint(rows.count, (rows.count,), generator=generator)
        test = rows.of(seen[torch.randint(rows.count, (tested,), generator=generator)])
        values.append(stand.drawn(test, trust, generator))
    doubt = 0.0 if stand.measured is None else (1 - trust) * OFF
    shown = torch.tensor(values).double() + doubt * torch.randn(ROUNDS, generator=generator, dtype=torch.double)
    tail = (1 - LEVEL) / 2
    low, high = torch.quantile(shown, torch.tensor([tail, 1 - tail]).double()).tolist()
    return value, min(low, value), max(high, value)


def expected_retention(task: Task, single: Tensor, merged: Tensor, known: Mapping[str, float]) -> float | None:
    """As ``predict_retention`` without labels and without the interval; None where ``known`` does not suffice."""
    if task.kind != "classification" and task.metric not in known:
        return None
    return _stand(task, single.double(), merged.double(), known, None).expected(0.0)


def measurement_noise(
    task: Task, single: Tensor, merged: Tensor, targets: Tensor, groups: Tensor | None = None, seed: int = 0
) -> float:
    """Standard deviation of a measured retention over the choice of its images: no prediction comes nearer to it."""
    if task.kind != "classification":
        targets = targets.double()
    stand = _stand(task, single.double(), merged.double(), {}, targets)
    assert stand.measured is not None
    return _variance(stand.measured, _Rows(torch.arange(len(single)) if groups is None else groups), seed) ** 0.5


class _Rows:
    """Which images lie in each of ``count`` groups."""

    def __init__(self, groups: Tensor) -> None:
        self._order = groups.argsort(stable=True)
        self._sizes = groups.bincount()
        self._starts = self._sizes.cumsum(0) - self._sizes
        self.count = len(self._sizes)

    def of(self, drawn: Tensor) -> Tensor:
        """Indices of all images of some groups, those of a group that is drawn twice twice."""
        sizes = self._sizes[drawn]
        within = torch.arange(int(sizes.sum())) - (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
        return self._order[self._starts[drawn].repeat_interleave(sizes) + within]


def _variance(measured: Callable[[Tensor], float], rows: _Rows, seed: int) -> float:
    generator = torch.Generator().manual_seed(seed)
    drawn = (torch.randint(rows.count, (rows.count,), generator=generator) for _ in range(ROUNDS // 4))
    repeats = [measured(rows.of(groups)) for groups in drawn]
    return float(torch.tensor(repeats).double().var())


def _stand(task: Task, single: Tensor, merged: Tensor, known: Mapping[str, float], targets: Tensor | None) -> _Stand:
    make = {"classification": _classes, "regression": _numbers, "keypoints": _points}[task.kind]
    return make(task, single, merged, known, targets)


def output_drift(task: Task, single: Tensor, merged: Tensor) -> float:
    """|merged - single| / |single - mean|, root mean square over images and outputs: 0 is the same, 1 is a stranger.

    Log-probabilities for classes, so that a constant added to all logits does not count.
    """
    one, two = (x.double().log_softmax(1) if task.kind == "classification" else x.double() for x in (single, merged))
    spread = (one - one.mean(0)).square().mean()
    return float(((two - one).square().mean() / spread.clamp(min=1e-12)).sqrt())


def tolerance(task: Task, single: Tensor, known: Mapping[str, float]) -> float:
    """Mean square of a head output's change that counts as one: what costs each task about as much as it costs another.

    The scale is that of a likelihood, a change of the tolerance costs half a nat. For numbers and points that is the
    square of the single model's own validation error, since a change adds to it. For classes it is, to second order
    and for changes of all logits alike, T^2 / sum_c p_c (1 - p_c), with p the probabilities at the temperature T at
    which they are as sure as the model is right: who is often wrong may change more.

    Args:
        single: (n, out) the single-adapter model's outputs.
        known: its validation metrics; where its metric (for classes the accuracy) is not among them, the variance of
            the outputs over images stands in.
    """
    if task.kind == "classification" and "accuracy" in known:
        heat = temperature(single.double(), known["accuracy"])
        p = (single.double() / heat).softmax(1)
        return heat**2 / max(float((p * (1 - p)).sum(1).mean()), 1e-12)
    error = known.get(task.metric)
    if error and task.kind == "regression":
        return float(error) ** 2
    if error and task.kind == "keypoints":  # percent of the eyes' distance, along two axes
        return float(error / 100 * _unit(task, task.shape(single)).mean()) ** 2 / 2
    return float(single.var(0).mean())


def temperature(logits: Tensor, accuracy: float) -> float:
    """What to divide logits (n, classes) by so that the largest probability is the accuracy on average; e^-3 to e^3."""
    accuracy = min(accuracy, 1 - 0.5 / len(logits))  # that no image was missed does not say that none ever will be
    low, high = -3.0, 3.0
    for _ in range(40):
        middle = (low + high) / 2
        sure = float((logits / math.exp(middle)).softmax(1).amax(1).mean())
        low, high = (middle, high) if sure > accuracy else (low, middle)
    return math.exp((low + high) / 2)


def _classes(task: Task, single: Tensor, merged: Tensor, known: Mapping[str, float], targets: Tensor | None) -> _Stand:
    count, own, new = single.shape[1], single.argmax(1), merged.argmax(1)
    accuracy = known.get("accuracy") if targets is None else float((own == targets).double().mean())
    p = (single if accuracy is None else single / temperature(single, accuracy)).softmax(1)
    exact = None if targets is None else F.one_hot(targets, count).to(p.dtype)

    def ratio(labels: Tensor, rows: Tensor) -> float:
        before, after = (_agreement(labels, answers[rows], task.metric) for answers in (own, new))
        return after / before if before > 0 else 1.0

    def mixed(trust: float) -> Tensor:
        return p if exact is None else trust * exact + (1 - trust) * p

    def drawn(rows: Tensor, trust: float, generator: torch.Generator) -> float:
        labels = torch.multinomial(mixed(trust)[rows], 1, generator=generator)[:, 0]
        return ratio(F.one_hot(labels, count).to(p.dtype), rows)

    return _Stand(
        expected=lambda trust: ratio(mixed(trust), torch.arange(len(p))),
        measured=None if exact is None else lambda rows: ratio(exact[rows], rows),
        drawn=drawn,
    )


def _agreement(labels: Tensor, answers: Tensor, metric: str) -> float:
    """Accuracy or macro F1 of answers (n,) when the labels are probabilities (n, classes)."""
    count = labels.shape[1]
    confusion = labels.new_zeros(count, count).index_add_(0, answers, labels)  # [answer, true class]
    hits = confusion.diagonal()
    if metric == "accuracy":
        return float(hits.sum() / len(labels))
    named = confusion.sum(0) + confusion.sum(1)
    return float(
        (2 * hits / named.clamp(min=1e-12)).sum() / (named > 0).sum()
    )  # as torchmetrics: not of absent classes


def _numbers(task: Task, single: Tensor, merged: Tensor, known: Mapping[str, float], targets: Tensor | None) -> _Stand:
    shift = (merged - single)[:, 0]
    if targets is None:
        error = _known_error(task, known)

        def drawn_blindly(rows: Tensor, _: float, generator: torch.Generator) -> float:
            wrong = error * torch.randn(len(rows), generator=generator, dtype=shift.dtype)
            return _rms_ratio(wrong, wrong + shift[rows])

        return _Stand(lambda _: (error**2 / (error**2 + float(shift.square().mean()))) ** 0.5, None, drawn_blindly)
    wrong = (single - targets)[:, 0]

    def expected(trust: float) -> float:
        together = trust * (wrong * shift).mean() + (1 - trust) * wrong.mean() * shift.mean()
        before = wrong.square().mean()
        return _ratio(before, before + shift.square().mean() + 2 * together) ** 0.5

    def drawn(rows: Tensor, trust: float, generator: torch.Generator) -> float:
        errors = wrong[_own_or_another(rows, len(wrong), trust, generator)]
        return _rms_ratio(errors, errors + shift[rows])

    return _Stand(expected, lambda rows: _rms_ratio(wrong[rows], (wrong + shift)[rows]), drawn)


def _points(task: Task, single: Tensor, merged: Tensor, known: Mapping[str, float], targets: Tensor | None) -> _Stand:
    points, moved = task.shape(single), task.shape(merged)
    unit = _unit(task, points if targets is None else targets)
    shift = (moved - points).norm(dim=-1) / unit  # (n, K)
    if targets is None:
        before = points.new_full((len(points),), _known_error(task, known) / 100)
        after = None
    else:
        before = ((points - targets).norm(dim=-1) / unit).mean(1)
        after = ((moved - targets).norm(dim=-1) / unit).mean(1)

    def expected(trust: float) -> float:
        grown = (before.mean().square() + shift.square()).sqrt().mean()
        return _ratio(before.mean(), grown if after is None else trust * after.mean() + (1 - trust) * grown)

    def drawn(rows: Tensor, trust: float, generator: torch.Generator) -> float:
        images = _own_or_another(rows, len(before), trust, generator)
        grown = (before[images, None].square() + shift[rows].square()).sqrt().mean(1)
        if after is not None:
            grown = torch.where(images == rows, after[rows], grown)
        return _ratio(before[images].mean(), grown.mean())

    measured = None if after is None else lambda rows: _ratio(before[rows].mean(), after[rows].mean())
    return _Stand(expected, measured, drawn)


def _own_or_another(rows: Tensor, count: int, trust: float, generator: torch.Generator) -> Tensor:
    """For each image itself, or any other in its stead: whose error it is drawn to have."""
    others = torch.randint(count, (len(rows),), generator=generator)
    return torch.where(torch.rand(len(rows), generator=generator) < trust, rows, others)


def _unit(task: Task, points: Tensor) -> Tensor:
    """(n, 1): the distance of the eye corners, 1 where the task has none."""
    if task.eye_corners is None:
        return points.new_ones(len(points), 1)
    left, right = task.eye_corners
    return (points[:, left] - points[:, right]).norm(dim=-1, keepdim=True).clamp(min=1e-6)


def _known_error(task: Task, known: Mapping[str, float]) -> float:
    if task.metric not in known:
        raise ValueError(f"{task.name}: without the single model's validation {task.metric} nothing can be predicted")
    return float(known[task.metric])


def _ratio(before: Tensor, after: Tensor) -> float:
    return float(before / after) if float(after) > 0 else 1.0


def _rms_ratio(before: Tensor, after: Tensor) -> float:
    return _ratio(before.square().mean(), after.square().mean()) ** 0.5
