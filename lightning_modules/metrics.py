"""Metrics that torchmetrics does not have, accumulated over a whole set."""

import numpy as np
import torch
from torch import Tensor
from torchmetrics import MeanSquaredError, Metric
from torchmetrics.utilities import dim_zero_cat

FAILURE_THRESHOLD = 0.1


class RootMeanSquaredError(MeanSquaredError):
    """The root of the mean squared error over a set, times ``factor``: the same error in another unit."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__(squared=False)
        self.factor = factor

    def compute(self) -> Tensor:
        return self.factor * super().compute()


class NormalizedMeanError(Metric):
    """Landmark errors in percent: mean over images of (mean point error / normalising distance).

    The distance is that between two of the target's points, such as the outer eye corners (WFLW: Wu et al., CVPR
    2018), or the side of the crop when none are given. ``failure_rate`` is the percentage of images above 0.1,
    ``auc`` the area under the cumulative error curve up to 0.1, divided by 0.1 (exact, not sampled).

    Args:
        eye_corners: indices of the two points.
        reduce: ``nme`` | ``failure_rate`` | ``auc``.
    """

    full_state_update = False
    errors: list[Tensor]

    def __init__(self, eye_corners: tuple[int, int] | None = None, reduce: str = "nme") -> None:
        super().__init__()
        if reduce not in ("nme", "failure_rate", "auc"):
            raise ValueError(f"reduce must be nme, failure_rate or auc, not {reduce!r}")
        self.eye_corners = eye_corners
        self.reduce = reduce
        self.add_state("errors", default=[], dist_reduce_fx="cat")

    def update(self, points: Tensor, target: Tensor) -> None:
        """Takes (B, K, 2) points and targets of one scale in both directions."""
        mean_error = (points - target).norm(dim=-1).mean(dim=-1)
        if self.eye_corners is not None:
            left, right = self.eye_corners
            mean_error = mean_error / (target[:, left] - target[:, right]).norm(dim=-1)
        self.errors.append(mean_error.float())

    def compute(self) -> Tensor:
        return self.values().mean()

    def values(self) -> Tensor:
        """(N,) what each image so far gives; the metric is their mean."""
        errors = dim_zero_cat(self.errors)
        if self.reduce == "nme":
            return 100 * errors
        if self.reduce == "failure_rate":
            return 100 * (errors > FAILURE_THRESHOLD).float()
        # The empirical curve is a sum of steps, so its area is the mean of what each step leaves below the threshold.
        return (FAILURE_THRESHOLD - errors).clamp(min=0) / FAILURE_THRESHOLD


class Collected(Metric):
    """Every output, target and index of a set, gathered over devices: each index once, in order, on the CPU."""

    full_state_update = False
    outputs: list[Tensor]
    targets: list[Tensor]
    indices: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        for name in ("outputs", "targets", "indices"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, output: Tensor, target: Tensor, index: Tensor) -> None:
        """Takes (B, ...), (B, ...) and (B,)."""
        self.outputs.append(output.float())
        self.targets.append(target)
        self.indices.append(index)

    def compute(self) -> tuple[Tensor, Tensor, Tensor]:
        index = dim_zero_cat(self.indices).cpu()
        order = torch.from_numpy(np.unique(index.numpy(), return_index=True)[1])
        return dim_zero_cat(self.outputs).cpu()[order], dim_zero_cat(self.targets).cpu()[order], index[order]
