"""Data-free interference minimisation in closed form."""

from collections.abc import Mapping

import torch
from torch import Tensor

from merging.delta import Delta, Layers, Weights, collect, require, weighted
from merging.factor import blocks


def wudi(deltas: Mapping[str, Delta], weights: Weights | None = None, *, ridge: float) -> Delta:
    """WUDI (Cheng et al., arXiv 2503.08099), the least interference without data, minimised exactly.

    The loss sum_i |(X - D_i) D_i^T|^2 / |D_i|^2 over X, D_i = w_i dW_i, is quadratic with G_i = D_i^T D_i /
    |D_i|^2 in the place of the task's input covariance: X = (sum_i D_i G_i + e sum_i D_i) (sum_i G_i + e
    I)^-1, e = ridge * trace(sum_i G_i) / d_in, solved in the row space of the A_i. The ridge pulls towards
    the sum, from which the authors' 300 Adam steps start; it keeps X bounded where adapters read nearly the
    same directions (a shared A init). Zero deltas drop out. Rank at most R = sum of ranks.

    Args:
        ridge: 1e-8 or more (less is lost in rounding); 0 gives the minimiser of the loss itself, of the smallest
            norm.
    """
    require(ridge == 0 or ridge >= 1e-8, "ridge", ridge, "a number from 1e-8, or 0")
    groups = weighted(deltas, weights)
    return collect(groups, (_wudi(layers, ridge) for layers in groups))


def _wudi(layers: Layers, ridge: float) -> tuple[Tensor, Tensor]:
    q_b, r_b = torch.linalg.qr(torch.cat(layers.b, -1))
    q_a, r_a = torch.linalg.qr(torch.cat(layers.a, -2).mT)
    parts = [b @ a.mT for b, a in zip(blocks(r_b, layers.ranks), blocks(r_a, layers.ranks), strict=True)]
    gram, target = torch.zeros_like(parts[0].mT @ parts[0]), torch.zeros_like(parts[0])
    for part in parts:
        size = part.square().sum(dim=(-2, -1), keepdim=True)
        own = part.mT @ part / torch.where(size > 0, size, 1.0)
        gram += own
        target += part @ own
    if ridge == 0:
        return q_b @ (target @ torch.linalg.pinv(gram, rtol=1e-13, hermitian=True)), q_a.mT
    share = ridge * gram.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None] / layers.a[0].shape[-1]
    # An all-zero set has no scale of its own; any positive number gives zero.
    share = torch.where(share > 0, share, 1.0)
    eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    factor = torch.linalg.cholesky(gram + share * eye)
    merged = torch.cholesky_solve((target + share * torch.stack(parts).sum(0)).mT, factor).mT
    return q_b @ merged, q_a.mT
