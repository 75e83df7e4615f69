"""Deltas written into the weights of a plain timm backbone, and taken out again bit for bit."""

import contextlib
from collections.abc import Iterable, Iterator

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from launch.errors import AdapterError
from lightning_modules.backbone import PARTS
from merging.delta import Delta


class FoldableWeights:
    """The weights of a plain (fused) backbone that deltas change.

    Each such W is kept as it was when this was made, so that the model may be held in bfloat16 afterwards: W + B A is
    summed in float32 and rounded once.

    Args:
        modules: paths in the split model, as in ``Delta``.

    Raises:
        AdapterError: the backbone has no such module.
    """

    def __init__(self, model: VisionTransformer, modules: Iterable[str]) -> None:
        self.model = model
        self.places = {module: locate(model, module) for module in modules}
        self.kept = {name: model.get_parameter(name).detach().clone() for name, _ in self.places.values()}
        self.changed = set(self.kept)  # nothing is known of what is in the model now

    def fold(self, delta: Delta) -> None:
        """Puts W + B A in place of each W that the delta names; whatever was folded before is gone.

        Raises:
            AdapterError: a delta of another shape than its weight.
        """
        self.restore()
        for module, (b, a) in delta.items():
            name, rows = self.places[module]
            weight = self.model.get_parameter(name)
            if (b.shape[0], a.shape[1]) != (rows.stop - rows.start, weight.shape[1]):
                raise AdapterError(
                    f"The delta of {module} is {b.shape[0]} x {a.shape[1]}; the backbone's weight there is "
                    f"{rows.stop - rows.start} x {weight.shape[1]}. It belongs to another backbone."
                )
            self.changed.add(name)
            change = b.to(weight.device, torch.float32) @ a.to(weight.device, torch.float32)
            with torch.no_grad():
                weight[rows] = (self.kept[name][rows].float() + change).to(weight.dtype)

    def restore(self) -> None:
        """The frozen weights, bit for bit."""
        with torch.no_grad():
            for name in self.changed:
                self.model.get_parameter(name).copy_(self.kept[name])
        self.changed.clear()

    @contextlib.contextmanager
    def folded(self, delta: Delta | None) -> Iterator[VisionTransformer]:
        """The model with a delta in it (None: as it is) as long as the block runs."""
        self.fold(delta or {})
        try:
            yield self.model
        finally:
            self.restore()


def folded_state(model: VisionTransformer, delta: Delta | None) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A plain timm state dict with W + B A in place of each W that the delta names, and those W themselves.

    Args:
        model: plain, float32; left as it is.
    """
    state = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
    base: dict[str, Tensor] = {}
    for module, (b, a) in (delta or {}).items():
        name, rows = locate(model, module)
        base.setdefault(name, state[name].clone())
        state[name][rows] = (state[name][rows].double() + b.cpu().double() @ a.cpu().double()).to(state[name].dtype)
    return state, base


def locate(model: nn.Module, module: str) -> tuple[str, slice]:
    """The parameter of a plain timm model that a module path of the split model stands for, and its rows in it.

    Raises:
        AdapterError: there is none.
    """
    parent, _, last = module.rpartition(".")
    path = parent if last in PARTS and parent.endswith(".qkv") else module
    try:
        linear = model.get_submodule(path)
    except AttributeError as error:
        raise AdapterError(f"The backbone has no module {module}, which the adapter changes: {error}.") from error
    if not isinstance(linear, nn.Linear):
        raise AdapterError(f"The adapter changes {module}, which is a {type(linear).__name__} here, not a Linear.")
    if path == module:
        return f"{path}.weight", slice(0, linear.out_features)
    width = linear.out_features // len(PARTS)
    start = PARTS.index(last) * width
    return f"{path}.weight", slice(start, start + width)
