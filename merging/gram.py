"""Merges that know each task's inputs through stored Gram matrices, without images."""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from launch.errors import AdapterError, CommandError
from merging.delta import Delta, Layers, Weights, collect, require, weighted

Grams = Mapping[str, Mapping[str, Tensor]]
"""Adapter name to module path to the mean of x x^T (d_in, d_in) over the inputs x of that adapter's task.

A module uses the entry of the longest path that is its own or an ancestor's, so that ``blocks.0.attn.qkv``
serves q, k and v.
"""

Normalise = Literal["trace", "output", "none"]


def gram(
    deltas: Mapping[str, Delta],
    weights: Weights | None = None,
    *,
    grams: Grams,
    normalise: Normalise,
    ridge: float,
    cat_share: float,
) -> Delta:
    """RegMean (Jin et al., arXiv 2212.09849) for LoRA, in closed form and without a dense delta.

    The X that minimises sum_i l_i tr((X - D_i) G_i (X - D_i)^T), D_i = w_i B_i A_i, is ``cat`` with other A:
    X = sum_i B_i [w_i A_i (l_i G_i + e/T I) S^-1], S = sum_j l_j G_j + e I, e = ridge * tr(sum_j l_j G_j) /
    d_in. Each adapter listens to inputs like its own task's; inputs that no task has seen get the average;
    one adapter comes back unchanged. T counts the adapters with l_i > 0. Rank at most R = sum of ranks.

    Args:
        grams: see ``Grams``.
        normalise: l_i: "trace" = 1 / tr G_i (inputs of equal size), "output" = 1 / tr(D_i G_i D_i^T) (equal
            relative error; module by module; it gives an adapter of large outputs, as landmarks, the smallest
            say), "none" = 1. Where the divisor is 0, l_i = 0: that adapter asks for nothing there.
        ridge: share of the mean eigenvalue added to S.
        cat_share: 0 to 1, the result moved towards ``cat``: (1 - c) X + c sum_i D_i.

    Raises:
        AdapterError: a Gram is missing, of another size or not finite.
        CommandError: impossible argument, or S cannot be inverted with so small a ridge.
    """
    require(ridge >= 0, "ridge", ridge, "a number from 0")
    require(0 <= cat_share <= 1, "cat_share", cat_share, "a number from 0 to 1")
    groups = weighted(deltas, weights)
    pairs = []
    for layers in groups:
        moved = [torch.empty_like(a) for a in layers.a]
        for indices, inputs in gram_batches(layers, grams, single=normalise == "output"):
            for target, rows in zip(moved, solve(layers, indices, inputs, normalise, ridge), strict=True):
                target[indices] = rows
        mixed = [(1 - cat_share) * new + cat_share * old for new, old in zip(moved, layers.a, strict=True)]
        pairs.append((torch.cat(layers.b, -1), torch.cat(mixed, -2)))
    return collect(groups, pairs)


def gram_batches(layers: Layers, grams: Grams, single: bool) -> list[tuple[list[int], list[Tensor]]]:
    """Indices of modules that share their inputs (each alone if ``single``), each with the adapters' Grams.

    Raises:
        AdapterError: as ``gram``.
    """
    by_source: dict[tuple[str, ...], list[int]] = {}
    for index, module in enumerate(layers.modules):
        source = tuple(_source(grams, name, module) for name in layers.adapters)
        by_source.setdefault(source, []).append(index)
    batches = []
    for source, indices in by_source.items():
        width, place = layers.a[0].shape[-1], layers.a[0]
        inputs = [
            _checked(grams[name][key], name, key, width).to(place)
            for name, key in zip(layers.adapters, source, strict=True)
        ]
        batches += [([index], inputs) for index in indices] if single else [(indices, inputs)]
    return batches


def solve(
    layers: Layers, indices: Sequence[int], inputs: Sequence[Tensor], normalise: Normalise, ridge: float
) -> list[Tensor]:
    """The new A of each adapter, (len(indices), r_i, d_in), as ``gram`` says, by one Cholesky factorisation."""
    scales = scale_of(layers, indices[0], inputs, normalise)
    total = torch.stack([s * g for s, g in zip(scales, inputs, strict=True)]).sum(0)
    eye = torch.eye(total.shape[-1], dtype=total.dtype, device=total.device)
    if total.trace() <= 0:
        return [a[list(indices)] / len(inputs) for a in layers.a]  # nothing is known of any input: the average
    share = ridge * total.trace() / len(total)
    active = (scales > 0).sum()
    factor, failed = torch.linalg.cholesky_ex(total + share * eye)
    if failed:
        raise CommandError(
            f"The Grams of {layers.modules[indices[0]]} cannot be inverted with merge.ridge={ridge}: "
            "some inputs never occur. Give merge.ridge=0.001 or more."
        )
    moved = []
    for a, scale, own in zip(layers.a, scales, inputs, strict=True):
        rows = a[list(indices)]
        heard = scale * own + (scale > 0) * (share / active) * eye
        moved.append(torch.cholesky_solve((rows.flatten(0, 1) @ heard).mT, factor).mT.reshape(rows.shape))
    return moved


def scale_of(layers: Layers, index: int, inputs: Sequence[Tensor], normalise: Normalise) -> Tensor:
    """(T,) the l_i of ``gram`` for one module.

    Raises:
        CommandError: ``normalise`` is not one of the three.
    """
    if normalise == "none":
        return inputs[0].new_ones(len(inputs))
    if normalise == "trace":
        sizes = torch.stack([g.trace() for g in inputs])
    elif normalise == "output":
        own = [(b[index].mT @ b[index], a[index] @ g) for b, a, g in zip(layers.b, layers.a, inputs, strict=True)]
        sizes = torch.stack([(n * (x @ a[index].mT)).sum() for (n, x), a in zip(own, layers.a, strict=True)])
    else:
        raise CommandError(f"merge.normalise={normalise} is not possible: give trace, output or none.")
    return torch.where(sizes > 0, 1 / sizes, 0.0)


def gram_of(grams: Grams, name: str, module: str) -> Tensor:
    """The Gram (d_in, d_in) of the inputs of an adapter's module.

    Raises:
        AdapterError: there is none, or it is not finite.
    """
    key = _source(grams, name, module)
    return _checked(grams[name][key], name, key, len(grams[name][key]))


def _source(grams: Grams, name: str, module: str) -> str:
    known = grams.get(name, {})
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        if (key := ".".join(parts[:length])) in known:
            return key
    raise AdapterError(
        f"Adapter '{name}' has no Gram matrix for {module}, and this merge needs to know each task's inputs. "
        "Train it again, so that its bundle holds grams.safetensors, or merge without Grams (merge=cat)."
    )


def _checked(gram: Tensor, name: str, key: str, width: int) -> Tensor:
    if gram.shape != (width, width):
        raise AdapterError(
            f"The Gram matrix of adapter '{name}' for {key} is {tuple(gram.shape)}, not {(width, width)}. "
            "It belongs to another backbone: train the adapter again."
        )
    if not torch.isfinite(gram).all():
        raise AdapterError(f"The Gram matrix of adapter '{name}' for {key} holds NaN or infinity. Train it again.")
    return gram.detach()
