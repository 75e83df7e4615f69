"""What a task is to the model: output shape, loss, metrics and which way each is better. No Lightning here."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Categorical
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

from launch.checks import HIGHER_IS_BETTER
from lightning_modules.metrics import NormalizedMeanError, RootMeanSquaredError


def higher_is_better(metric: str) -> bool:
    """Whether more is better, also of a metric in another unit or over a subset (``rmse_years``, ``nme_pose``)."""
    (known,) = (name for name in HIGHER_IS_BETTER if metric == name or metric.startswith(f"{name}_"))
    return HIGHER_IS_BETTER[known]


@dataclass(frozen=True)
class Task:
    """One task of a model.

    Attributes:
        name: key of the head, of every table and of the output folders.
        kind: ``classification``, ``regression`` or ``keypoints``.
        metric: the one that chooses checkpoints and fills tables.
        outputs: number of classes, 1, or twice the number of points.
        classes: class names in the order of the outputs.
        eye_corners: keypoints only: the two points whose distance normalises the error.
        units: regression only: further units of the error, such as ``(("years", 10.0),)`` for a target in decades.
    """

    name: str
    kind: str
    metric: str
    outputs: int
    classes: tuple[str, ...] | None = None
    eye_corners: tuple[int, int] | None = None
    units: tuple[tuple[str, float], ...] = ()

    @property
    def mode(self) -> str:
        """``max`` or ``min``, the better direction of the metric."""
        return "max" if higher_is_better(self.metric) else "min"

    def shape(self, output: Tensor) -> Tensor:
        """(B, out) as the target comes: (B, classes), (B, 1) or (B, K, 2)."""
        return output.unflatten(1, (-1, 2)) if self.kind == "keypoints" else output

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy for classes, mean absolute error for numbers and points, in float32."""
        if self.kind == "classification":
            return F.cross_entropy(output.float(), target)
        return F.l1_loss(self.shape(output).float(), target)

    def metrics(self) -> MetricCollection:
        """Fresh metrics that take ``predict(output)`` and the target; accuracies and F1 in [0, 1]."""
        if self.kind == "classification":
            count = self.outputs
            return MetricCollection(
                {
                    "accuracy": MulticlassAccuracy(count, average="micro"),
                    "macro_f1": MulticlassF1Score(count, average="macro"),
                }
            )
        if self.kind == "regression":
            units = [("rmse", 1.0), *((f"rmse_{unit}", factor) for unit, factor in self.units)]
            return MetricCollection({name: RootMeanSquaredError(factor) for name, factor in units})
        reductions = ("nme", "failure_rate", "auc")
        return MetricCollection({name: NormalizedMeanError(self.eye_corners, name) for name in reductions})

    def constant_score(self, train: Tensor, target: Tensor) -> float:
        """What the metric gives for the same answer everywhere: the commonest class or the mean of ``train``.

        Args:
            train, target: (N,), (N, 1) or (N, K, 2), of the training set and of the set that is scored.
        """
        answer = train.mode().values if self.kind == "classification" else train.mean(0)
        metric = self.metrics()[self.metric]
        metric.update(answer.expand_as(target), target)
        return float(metric.compute())

    def constant_loss(self, train: Tensor) -> float:
        """What ``loss`` gives on a training set for the same answer everywhere: its class frequencies or its mean."""
        if self.kind == "classification":
            return float(Categorical(probs=train.bincount(minlength=self.outputs).float()).entropy())
        return float(F.l1_loss(train.mean(0).expand_as(train), train))

    def skill(self, score: float, constant: float) -> float:
        """The way from a constant answer's score (0) to a perfect one (1) that a score has gone; below 0 it is worse.

        Of one kind for all tasks, whatever their unit and number of classes, and with no other training to refer to.
        """
        perfect = 1.0 if self.mode == "max" else 0.0
        return (score - constant) / (perfect - constant) if perfect != constant else 0.0

    def subset_metrics(self, names: Iterable[str]) -> dict[str, Metric]:
        """For each subset ``<metric>_<name>``: a fresh copy of the task's own metric."""
        return {f"{self.metric}_{name}": self.metrics()[self.metric] for name in names}

    def predict(self, output: Tensor) -> Tensor:
        """(B, out) -> class index (B,), number (B, 1) or points (B, K, 2) in float32."""
        if self.kind == "classification":
            return output.argmax(dim=1)
        return self.shape(output).float()
