"""What a task is to the model: output shape, loss, metrics and which way each is better. No Lightning here."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor
from torchmetrics import MeanSquaredError, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

from launch.checks import HIGHER_IS_BETTER
from lightning_modules.metrics import NormalizedMeanError


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
    """

    name: str
    kind: str
    metric: str
    outputs: int
    classes: tuple[str, ...] | None = None
    eye_corners: tuple[int, int] | None = None

    @property
    def mode(self) -> str:
        """``max`` or ``min``, the better direction of the metric."""
        return "max" if HIGHER_IS_BETTER[self.metric] else "min"

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
            return MetricCollection({"rmse": MeanSquaredError(squared=False)})
        reductions = ("nme", "failure_rate", "auc")
        return MetricCollection({name: NormalizedMeanError(self.eye_corners, name) for name in reductions})

    def predict(self, output: Tensor) -> Tensor:
        """(B, out) -> class index (B,), number (B, 1) or points (B, K, 2) in float32."""
        if self.kind == "classification":
            return output.argmax(dim=1)
        return self.shape(output).float()
