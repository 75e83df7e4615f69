"""TIES in the small core that all adapters share."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from merging.delta import Delta, Weights, collect, require, weighted
from merging.factor import factor_svd, signs, singular
from merging.sparse import elected


def core_ties(deltas: Mapping[str, Delta], weights: Weights | None = None, *, density: float, scale: float) -> Delta:
    """Core Space (Panariello et al., arXiv 2509.17786) with TIES: dW = scale * U TIES(M_1, ..., M_T) V^T.

    dW_i = U M_i V^T exactly, with M_i at most R x R. TIES depends on the basis, and the paper's (left
    singular vectors of [B_1 ... B_T], right ones of [A_1; ...; A_T]) on how each delta happens to be
    factored. So every delta is first written in its one balanced form B_i = U_i sqrt(S_i), A_i = sqrt(S_i)
    V_i^T. Each basis vector's largest entry is positive; numerically null directions are left out and not
    counted by ``density``; weights come first.

    Args:
        density: fraction of each adapter's core entries kept, one threshold over all modules.
        scale: factor of the result.
    """
    require(0 <= density <= 1, "density", density, "a number from 0 to 1")
    groups = weighted(deltas, weights)
    bases, cores, sizes = [], [], []
    for layers in groups:
        balanced = [_balanced(b, a) for b, a in zip(layers.b, layers.a, strict=True)]
        left, rank_left = _basis(torch.cat([b for b, _ in balanced], -1))
        right, rank_right = _basis(torch.cat([a for _, a in balanced], -1))
        bases.append((left, right))
        cores.append(replace(layers, b=tuple(left.mT @ b for b in layers.b), a=tuple(a @ right for a in layers.a)))
        sizes.append(int((rank_left * rank_right).sum()))
    merged = elected(cores, density, sizes)
    return collect(groups, ((scale * left @ m, right.mT) for (left, right), m in zip(bases, merged, strict=True)))


def _balanced(b: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    u, s, v = factor_svd(b, a)
    root = s.sqrt().unsqueeze(-2)
    return u * root, v * root


def _basis(x: Tensor) -> tuple[Tensor, Tensor]:
    q, r = torch.linalg.qr(x)
    u, s, _ = singular(r)
    left = q @ u
    return left * signs(left), (s > 0).sum(-1)
