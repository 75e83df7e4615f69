"""A GPU as far as a machine without one has it: tensors that lie on another device and compute on the processor."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import lightning as L
import pytest
import torch
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from merging.answers import answer

# The only device type that needs neither a driver nor a build of its own. Nothing else here has tensors without data.
THERE = torch.device("meta")
_ACROSS = ("copy_", "_to_copy", "index", "index_put", "index_put_", "_index_put_impl_")  # as CUDA allows it


class AwayTensor(Tensor):
    """Lies on ``THERE``; ``home`` has its values. Only ``cpu`` and ``item`` bring them back."""

    home: Tensor
    __torch_function__: ClassVar[Any] = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, home: Tensor) -> "AwayTensor":
        away = Tensor._make_wrapper_subclass(
            cls,
            home.size(),
            strides=home.stride(),
            storage_offset=home.storage_offset(),
            dtype=home.dtype,
            device=THERE,
        )
        away.home = home
        return away

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        return _compute(func, args, kwargs or {})

    def numpy(self, *, force: bool = False) -> Any:
        raise TypeError(f"can't convert {THERE} device type tensor to numpy. Use Tensor.cpu() to copy it first.")

    def __array__(self, *arguments: Any, **named: Any) -> Any:
        return self.numpy()

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.detach().cpu().__reduce_ex__(protocol)


def _compute(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    name = func._schema.name.partition("::")[2]
    tensors = [value for value in tree_leaves((args, dict(kwargs))) if isinstance(value, Tensor)]
    away = [tensor for tensor in tensors if isinstance(tensor, AwayTensor)]
    here = [tensor for tensor in tensors if not isinstance(tensor, AwayTensor) and tensor.dim()]  # scalars go anywhere
    if away and here and (name not in _ACROSS or (name.startswith("index") and not isinstance(args[0], AwayTensor))):
        raise RuntimeError(f"Expected all tensors to be on the same device, but found {THERE} and cpu, in {func}")
    wanted = kwargs.get("device")
    there = bool(away) if wanted is None else torch.device(wanted) == THERE
    if name == "copy_":
        there = isinstance(args[0], AwayTensor)
    plain = dict(kwargs) | ({} if wanted is None else {"device": torch.device("cpu")})
    plain |= {"pin_memory": False} if "pin_memory" in plain else {}
    args, plain = tree_map(lambda value: value.home if isinstance(value, AwayTensor) else value, (args, plain))
    found = func(*args, **plain)

    def bring(value: Any) -> Any:
        if not isinstance(value, Tensor) or not there:
            return value
        same = [tensor for tensor in away if tensor.home is value]  # computed in place
        return same[0] if same else AwayTensor(value)

    return tree_map(bring, found)


class _OnAnotherDevice(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        return _compute(func, args, kwargs or {})


class _Accelerator(CPUAccelerator):
    def setup_device(self, device: torch.device) -> None:
        return


class _Autocast(torch.autocast):
    def __init__(self, device_type: str, *arguments: Any, **named: Any) -> None:
        super().__init__("cpu" if device_type == THERE.type else device_type, *arguments, **named)


@contextmanager
def another_device() -> Iterator[torch.device]:
    """What computes inside may move tensors to the device that this gives; mixing both raises as CUDA would.

    Whatever ``device`` says, merges and predictions choose it, and Lightning trains on it. It has no autocast (all is
    float32) and no inference mode, in which torch cannot make views of wrapped tensors.
    """
    tensor, trainer = torch.tensor, L.Trainer

    def named(ask: Callable[[str], Any]) -> Callable[[str], Any]:
        return lambda kind: ask("cpu" if kind == THERE.type else kind)

    def make(*arguments: Any, device: Any = None, **more: Any) -> Tensor:
        made = tensor(*arguments, **more)
        return made if device is None else made.to(device)

    def train(**given: Any) -> L.Trainer:
        left = {key: value for key, value in given.items() if key not in ("accelerator", "devices", "strategy")}
        strategy = SingleDeviceStrategy(THERE, accelerator=_Accelerator())
        return trainer(**left, strategy=strategy, inference_mode=False)

    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)  # a parameter cannot hold another kind of tensor
    try:
        with pytest.MonkeyPatch.context() as patch, _OnAnotherDevice():
            for module in ("merging.run", "merging.predicting"):
                patch.setattr(f"{module}.chosen_device", lambda name: THERE)
            patch.setattr("merging.predicting.answer", torch.no_grad()(inspect.unwrap(answer)))
            patch.setattr(torch, "autocast", _Autocast)
            patch.setattr(torch, "is_autocast_enabled", named(torch.is_autocast_enabled))
            patch.setattr(torch, "get_autocast_dtype", named(torch.get_autocast_dtype))
            patch.setattr(torch, "tensor", make)
            patch.setattr(L, "Trainer", train)
            yield THERE
    finally:
        torch.__future__.set_swap_module_params_on_conversion(before)
