"""Merges that only rescale and add the deltas."""

import math
from collections.abc import Mapping

import torch

from launch.errors import CommandError
from merging.delta import Delta, Weights, collect, stack, weighted
from merging.factor import norms


def cat(deltas: Mapping[str, Delta], weights: Weights | None = None) -> Delta:
    """The exact sum: dW = sum_i w_i B_i A_i = [B_1 ... B_T] [w_1 A_1; ...; w_T A_T], of rank sum_i r_i.

    Ranks may differ; weights may have any sign and are multiplied into A. peft's ``combination_type="cat"``.
    """
    return _concatenate(deltas, weights, 1.0)


def average(deltas: Mapping[str, Delta], weights: Weights | None = None) -> Delta:
    """dW = (1 / T) sum_i w_i dW_i. T counts all adapters, so an all-zero one still dilutes the others."""
    return _concatenate(deltas, weights, 1.0 / max(len(deltas), 1))


def linear(deltas: Mapping[str, Delta], weights: Weights | None = None, *, scale: float | None) -> Delta:
    """Task arithmetic (Ilharco et al., arXiv 2212.04089): dW = scale * sum_i w_i dW_i.

    Args:
        scale: None stands for 1 / sqrt(T), at which the sum of T unrelated deltas is as large as one of them:
            1 for one adapter, between ``average`` and ``cat`` for two, 0.35 for eight (published: 0.3, tuned
            on eight).
    """
    return _concatenate(deltas, weights, 1.0 / math.sqrt(max(len(deltas), 1)) if scale is None else scale)


def peft_linear(deltas: Mapping[str, Delta], weights: Weights | None = None, *, scale: float | None) -> Delta:
    """peft's ``combination_type="linear"``: A and B are added apart, so this is NOT a sum of deltas.

    With v_i = scale * w_i: B = sum_i sqrt|v_i| B_i, A = sum_i sgn(v_i) sqrt|v_i| A_i, thus
    dW = sum_i v_i B_i A_i + sum_{i != j} sgn(v_j) sqrt|v_i v_j| B_i A_j. The cross terms are as large as the
    sum when the adapters began from different A, and complete it to sum_i dW_i (v_i = 1/T) when they began
    from the same. The result depends on how each delta is factored. The same as peft where all LoRA scales
    are equal: ours are already in A.

    Args:
        scale: None stands for 1 / T.

    Raises:
        CommandError: the ranks differ, so that A and B cannot be added.
    """
    share = 1.0 / max(len(deltas), 1) if scale is None else scale
    groups = stack(deltas, weights)
    for layers in groups:
        if len(set(layers.ranks)) > 1:
            ranks = ", ".join(f"{name}: {rank}" for name, rank in zip(layers.adapters, layers.ranks, strict=True))
            raise CommandError(
                f"merge=peft_linear adds the factors themselves and needs equal ranks, got {ranks}. "
                "Use merge=linear, which adds the deltas, or adapters of one rank."
            )
    pairs = []
    for layers in groups:
        roots = [(share * w).abs().sqrt() for w in layers.weights]
        b = [root * b for root, b in zip(roots, layers.b, strict=True)]
        a = [(share * w).sign() * root * a for w, root, a in zip(layers.weights, roots, layers.a, strict=True)]
        pairs.append((torch.stack(b).sum(0), torch.stack(a).sum(0)))
    return collect(groups, pairs)


def norm_balanced(deltas: Mapping[str, Delta], weights: Weights | None = None) -> Delta:
    """Every delta scaled, module by module, to the mean Frobenius norm, then added.

    dW = sum_i w_i (n / n_i) dW_i, where n is the mean of n_j = |dW_j| over the adapters that are not zero in
    that module. Weights come after the balancing; before it they would cancel.
    """
    groups = stack(deltas, weights)
    pairs = []
    for layers in groups:
        sizes = torch.stack([norms(b, a) for b, a in zip(layers.b, layers.a, strict=True)])  # (T, L)
        common = sizes.sum(0) / (sizes > 0).sum(0).clamp(min=1)
        factor = torch.where(sizes > 0, common / sizes, 0.0)[..., None, None]
        a = [w * f * a for w, f, a in zip(layers.weights, factor, layers.a, strict=True)]
        pairs.append((torch.cat(layers.b, -1), torch.cat(a, -2)))
    return collect(groups, pairs)


def _concatenate(deltas: Mapping[str, Delta], weights: Weights | None, scale: float) -> Delta:
    groups = weighted(deltas, weights)
    return collect(groups, ((torch.cat(g.b, -1), scale * torch.cat(g.a, -2)) for g in groups))
