"""One backbone, any number of heads: pure torch, no Lightning."""

from collections.abc import Iterable, Mapping
from typing import Self

import torch
from torch import Tensor, nn

from launch.errors import CommandError

HIDDEN = 512
TAKEN = ("file", "face", "left", "top", "right", "bottom", "error", "images")  # columns of answers, an export's input


class MLPHead(nn.Module):
    """Linear(d, 512) - ReLU - Linear(512, out), the study's head: (B, d) -> (B, out).

    Args:
        center: (out,) what the head answers to everything before it has learned anything, such as the mean target:
            numbers and points would else begin far from all targets, and large first steps can kill the hidden units.
        scale: the unit of the answers while the head is trained. An optimiser moves every weight by about its rate, so
            that answers of thousands would take thousands of steps, and those of thousandths would never settle.
    """

    def __init__(self, features: int, outputs: int, center: Tensor | None = None, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale
        self.hidden = nn.Linear(features, HIDDEN)
        self.output = nn.Linear(HIDDEN, outputs)
        if center is not None:
            with torch.no_grad():
                self.output.weight.zero_()
                self.output.bias.copy_(center.reshape(-1) / scale)

    def forward(self, features: Tensor) -> Tensor:
        features = features.to(self.hidden.weight.dtype)
        if not torch.is_autocast_enabled(features.device.type):
            return self._answers(features)
        # Whatever the backbone computes in: bfloat16 would round a year to eight, and float16 ends at 65504.
        with torch.autocast(features.device.type, enabled=False):
            return self._answers(features)

    def _answers(self, features: Tensor) -> Tensor:
        answers = self.output(torch.relu(self.hidden(features)))
        return answers if self.scale == 1 else answers * self.scale

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Tensor]) -> Self:
        """The frozen head that four tensors are of, in evaluation mode.

        Raises:
            RuntimeError: they do not fit one head.
        """
        head = cls(state["hidden.weight"].shape[1], state["output.weight"].shape[0])
        head.load_state_dict(dict(state))
        return head.eval().requires_grad_(False)

    def plain_state_dict(self) -> dict[str, Tensor]:
        """Four float32 tensors of a head without ``scale`` that gives the same answers."""
        state = {name: value.detach().cpu().double() for name, value in self.state_dict().items()}  # no float64 on MPS
        scaled = {name: state[name] * self.scale for name in ("output.weight", "output.bias")}
        return {name: value.float().contiguous() for name, value in (state | scaled).items()}


def require_names(tasks: Iterable[str]) -> None:
    """Raises ``CommandError`` for a task that is named like a part of torch's modules, of an answer or of an export."""
    for task in tasks:
        if hasattr(nn.ModuleDict(), task) or task in TAKEN:
            raise CommandError(
                f"name={task}: torch or the files of answers have a use for this name; take another, e.g. {task}_task."
            )


class MultiTaskModel(nn.Module):
    """(B, 3, S, S) -> {task: (B, out)}: one pass through the backbone for all tasks asked for.

    Args:
        backbone: images to features (B, d); an identity where features come instead of images.
        heads: by task.
    """

    def __init__(self, backbone: nn.Module, heads: Mapping[str, MLPHead]) -> None:
        super().__init__()
        self.backbone = backbone
        self.heads = nn.ModuleDict(heads)

    def forward(self, images: Tensor, tasks: Iterable[str] | None = None) -> dict[str, Tensor]:
        features = self.backbone(images)
        return {task: self.heads[task](features) for task in (self.heads if tasks is None else tasks)}

    def trainable_state_dict(self) -> dict[str, Tensor]:
        """Adapter and heads only; the frozen backbone can always be had again."""
        names = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        return {name: value for name, value in self.state_dict().items() if name in names}
