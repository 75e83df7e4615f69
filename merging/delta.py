"""What a merge works on: low-rank deltas by module, checked, weighted and stacked for batched algebra."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from launch.errors import AdapterError, CommandError, nearest

Delta = dict[str, tuple[Tensor, Tensor]]
"""Module path ("blocks.0.attn.qkv.k") to (B (d_out, r), A (r, d_in)); dW = B A, LoRA's scale folded in."""

Weights = Mapping[str, float | Mapping[str, float]]
"""Adapter name to its weight, or to factors by part of the model (see ``module_weight``)."""


@dataclass(frozen=True)
class Layers:
    """L modules of one shape and the same ranks, all adapters' factors in float64, adapters sorted by name.

    Attributes:
        modules: the L module paths, sorted.
        adapters: the T adapter names, sorted.
        b: for each adapter (L, d_out, r_i).
        a: for each adapter (L, r_i, d_in).
        weights: for each adapter (L, 1, 1).
        dtype: what results are cast to, the widest type among the inputs.
    """

    modules: tuple[str, ...]
    adapters: tuple[str, ...]
    b: tuple[Tensor, ...]
    a: tuple[Tensor, ...]
    weights: tuple[Tensor, ...]
    dtype: torch.dtype

    @property
    def ranks(self) -> list[int]:
        return [a.shape[-2] for a in self.a]


def module_weight(spec: float | Mapping[str, float], module: str) -> float:
    """The weight of one module: a plain number, or the product of all factors whose key matches its path.

    A key matches as the whole path, its beginning or its end in whole dotted parts: ``{"blocks.3": 0.5, "k":
    0.8}`` gives 0.4 to the key projection of block 3, 0.5 to its value projection and 0.8 to the other key
    projections.
    """
    if not isinstance(spec, Mapping):
        return float(spec)
    return math.prod((float(factor) for key, factor in spec.items() if _matches(key, module)), start=1.0)


def stack(deltas: Mapping[str, Delta], weights: Weights | None) -> list[Layers]:
    """Checks the adapters and stacks modules of equal shape; weights are looked up but not applied.

    Args:
        deltas: by adapter name; the order plays no part.
        weights: None stands for 1 everywhere; else exactly the names of ``deltas``.

    Raises:
        AdapterError: adapters of different modules or shapes, rank zero, NaN.
        CommandError: no adapter, a weight for an unknown adapter or module, or one that is not finite.
    """
    names = sorted(deltas)
    if not names:
        raise CommandError("Nothing to merge: the set of adapters is empty. Name at least one, as in tasks=[galaxy].")
    modules = sorted(deltas[names[0]])
    _check_deltas(deltas, names, modules)
    _check_weights(weights, names, modules)
    factors = [deltas[name][module] for name in names for module in modules]
    dtype = factors[0][0].dtype
    for pair in factors:
        dtype = torch.promote_types(torch.promote_types(dtype, pair[0].dtype), pair[1].dtype)
    shapes: dict[tuple[tuple[int, ...], ...], list[str]] = {}
    for module in modules:
        shape = tuple(tuple(factor.shape) for name in names for factor in deltas[name][module])
        shapes.setdefault(shape, []).append(module)
    return [_stack_group(deltas, weights, names, group, dtype) for group in shapes.values()]


def weighted(deltas: Mapping[str, Delta], weights: Weights | None) -> list[Layers]:
    """``stack`` with every weight multiplied into its A: for all that comes after, delta i is w_i B_i A_i."""
    return [
        replace(layers, a=tuple(w * a for w, a in zip(layers.weights, layers.a, strict=True)))
        for layers in stack(deltas, weights)
    ]


def collect(groups: Sequence[Layers], pairs: Iterable[tuple[Tensor, Tensor]]) -> Delta:
    """One merged pair (B (L, d_out, r), A (L, r, d_in)) for each group, cast and taken apart, modules sorted.

    Every tensor owns its memory, so that a file of them holds nothing twice.
    """
    merged: Delta = {}
    for layers, (b, a) in zip(groups, pairs, strict=True):
        for index, module in enumerate(layers.modules):
            merged[module] = tuple(
                factor[index].to(layers.dtype, copy=True, memory_format=torch.contiguous_format) for factor in (b, a)
            )  # type: ignore[assignment]
    return dict(sorted(merged.items()))


def require(condition: bool, key: str, value: Any, allowed: str) -> None:
    """Raises a CommandError about ``merge.<key>`` unless the condition holds."""
    if not condition:
        raise CommandError(f"merge.{key}={value} is not possible: give {allowed}.")


def require_held_out(images: int) -> None:
    """Raises a CommandError about ``merge.images`` where a fifth of them would be one, whose outputs have no spread."""
    require(images >= 10, "images", images, "a whole number from 10, a fifth of which is held out")


def _matches(key: str, module: str) -> bool:
    return module == key or module.startswith(f"{key}.") or module.endswith(f".{key}")


def _stack_group(
    deltas: Mapping[str, Delta],
    weights: Weights | None,
    names: list[str],
    group: list[str],
    dtype: torch.dtype,
) -> Layers:
    def factors(name: str, side: int) -> Tensor:
        return torch.stack([deltas[name][module][side].detach() for module in group]).to(torch.float64)

    def weight(name: str, like: Tensor) -> Tensor:
        values = [1.0 if weights is None else module_weight(weights[name], module) for module in group]
        return like.new_tensor(values).reshape(-1, 1, 1)

    b = tuple(factors(name, 0) for name in names)
    a = tuple(factors(name, 1) for name in names)
    return Layers(tuple(group), tuple(names), b, a, tuple(weight(n, x) for n, x in zip(names, a, strict=True)), dtype)


def _check_deltas(deltas: Mapping[str, Delta], names: list[str], modules: list[str]) -> None:
    first = names[0]
    if not modules:
        raise AdapterError(
            f"Adapter '{first}' adapts no module: there is nothing to merge. Train it with lora.rank > 0."
        )
    for name in names:
        odd = sorted(set(modules) ^ set(deltas[name]))
        if odd:
            holder, other = (first, name) if odd[0] in modules else (name, first)
            raise AdapterError(
                f"Adapter '{holder}' adapts {odd[0]} and '{other}' does not ({len(odd)} modules differ). "
                "Merge adapters trained with the same backbone and the same lora.targets."
            )
        for module in modules:
            b, a = deltas[name][module]
            place = f"Adapter '{name}', module {module}"
            if b.ndim != 2 or a.ndim != 2 or b.shape[1] != a.shape[0]:
                raise AdapterError(
                    f"{place}: B {tuple(b.shape)} and A {tuple(a.shape)} are no pair (d_out, r), (r, d_in). "
                    "The file is damaged or not a LoRA adapter."
                )
            if b.shape[1] == 0:
                raise AdapterError(f"{place}: rank 0 holds nothing to merge. Train the adapter with lora.rank > 0.")
            expected = (deltas[first][module][0].shape[0], deltas[first][module][1].shape[1])
            if (b.shape[0], a.shape[1]) != expected:
                raise AdapterError(
                    f"{place} changes a {b.shape[0]} x {a.shape[1]} weight, that of adapter '{first}' is "
                    f"{expected[0]} x {expected[1]}. Merge adapters of one backbone."
                )
            if not (torch.isfinite(b).all() and torch.isfinite(a).all()):
                raise AdapterError(f"{place} holds NaN or infinity. Its training diverged: train it again.")


def _check_weights(weights: Weights | None, names: list[str], modules: list[str]) -> None:
    if weights is None:
        return
    for name in weights:
        if name not in names:
            raise CommandError(
                f"merge.weights names '{name}', which is not in the set ({', '.join(names)}).{nearest(name, names)}"
            )
    for name in names:
        if name not in weights:
            raise CommandError(f"merge.weights has no weight for '{name}'. Give one for every adapter of the set.")
        spec = weights[name]
        factors = spec if isinstance(spec, Mapping) else {"": spec}
        for key, factor in factors.items():
            if not math.isfinite(float(factor)):
                raise CommandError(f"merge.weights of '{name}' holds {factor}. Give a finite number.")
            if isinstance(spec, Mapping) and not any(_matches(key, module) for module in modules):
                raise CommandError(
                    f"merge.weights of '{name}' names '{key}', and no adapted module begins or ends so. "
                    f"They are called like {modules[0]}.{nearest(key, modules)}"
                )
