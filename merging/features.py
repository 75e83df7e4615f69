"""What heads may read of one pass: the class token, or class and mean patch token of the last blocks."""

import threading
from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

DEPTH = 4  # last blocks whose tokens the deep features hold


def deep_width(width: int) -> int:
    """Numbers per image in the deep features of a backbone of this width."""
    return 2 * DEPTH * width


class TokenReader:
    """Collects the deep features of each pass of its own thread as long as it is attached.

    For each of the last ``DEPTH`` blocks, first to last: class token and mean patch token after the final norm, so that
    the class token that heads usually read is at ``[:, -2 * d : -d]``.
    """

    def __init__(self, model: VisionTransformer) -> None:
        self.model = model
        self.found: list[Tensor] = []
        self.handles: list[Any] = []
        self.thread: int | None = None

    def __enter__(self) -> "TokenReader":
        self.thread = threading.get_ident()
        blocks = list(cast(nn.Sequential, self.model.blocks))[-DEPTH:]
        self.handles = [block.register_forward_hook(self._keep()) for block in blocks]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()

    def _keep(self) -> Callable[[nn.Module, Any, Tensor], None]:
        def keep(_: nn.Module, __: Any, tokens: Tensor) -> None:
            if threading.get_ident() == self.thread:  # others may have a pass through the same blocks
                self.found.append(tokens)

        return keep

    def take(self) -> Tensor:
        """(B, 2 DEPTH d) of the pass since the last call."""
        prefix = int(self.model.num_prefix_tokens)
        parts = []
        for tokens in self.found:
            normed = self.model.norm(tokens)
            parts += [normed[:, 0], normed[:, prefix:].mean(dim=1)]
        self.found.clear()
        return torch.cat(parts, dim=1)


class DeepFeatures(nn.Module):
    """A backbone as a module that gives deep features: images (B, 3, S, S) to (B, 2 DEPTH d)."""

    def __init__(self, model: VisionTransformer) -> None:
        super().__init__()
        self.model = model
        self.num_features = deep_width(int(model.num_features))

    def forward(self, images: Tensor) -> Tensor:
        with TokenReader(self.model) as reader:
            self.model.forward_features(images)
            return reader.take()


@torch.no_grad()
def read_features(
    model: VisionTransformer, batches: Iterable[Tensor], *, deep: bool, dtype: torch.dtype | None = None
) -> Tensor:
    """Class tokens (n, d) or deep features (n, 2 DEPTH d) of all images, float32, on the CPU.

    Args:
        batches: normalised images (B, 3, S, S) on the model's device.
        dtype: of autocast; None for float32.
    """
    device = next(model.parameters()).device.type
    with torch.autocast(device, dtype, enabled=dtype is not None):
        reader = DeepFeatures(model) if deep else model
        return torch.cat([reader(images).float().cpu() for images in batches])


def class_token(features: Tensor, width: int) -> Tensor:
    """(n, d) the class token of the last block out of deep features; of plain features, all of them."""
    return features if features.shape[1] == width else features[:, -2 * width : -width]
