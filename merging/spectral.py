"""Merges that change the spectrum: singular vectors made orthogonal, singular values made equal."""

from collections.abc import Mapping

import torch
from torch import Tensor

from merging.delta import Delta, Layers, Weights, collect, require, weighted
from merging.factor import blocks, factor_svd, norms, polar, singular


def tsv(deltas: Mapping[str, Delta], weights: Weights | None = None, *, scale: float) -> Delta:
    """TSV-M (Gargiulo et al., arXiv 2412.00081): the tasks' singular vectors made orthogonal to each other.

    dW = scale * polar([U_1 ... U_T]) diag(S_1 ... S_T) polar([V_1 ... V_T])^T. Of each SVD dW_i = U_i S_i
    V_i^T the first min(r_i, floor(min(d_out, d_in) / T)) directions are used, T counting the adapters that
    are not zero in the module, and never a null direction: the authors' code takes 384 of 768 for two tasks,
    and a LoRA's null vectors, which are arbitrary, then turn the others. polar(X) = P Q^T from the thin SVD,
    over the numerical rank. Rank at most R = sum of ranks.
    """
    groups = weighted(deltas, weights)
    return collect(groups, (_tsv(layers, scale) for layers in groups))


def iso_c(deltas: Mapping[str, Delta], weights: Weights | None = None, *, scale: float) -> Delta:
    """Iso-C (Marczak et al., arXiv 2502.04959): U S V^T = SVD(sum_i w_i dW_i), dW = scale * mean(S) U V^T.

    The mean and the directions are those of the numerical rank (at most R). The authors' code takes all
    min(d_out, d_in), which for LoRA is mostly arbitrary null directions. One adapter alone does not come back
    unchanged: its spectrum is flattened too.
    """
    groups = weighted(deltas, weights)
    pairs = []
    for layers in groups:
        u, s, v = factor_svd(torch.cat(layers.b, -1), torch.cat(layers.a, -2))
        mean = s.sum(-1) / (s > 0).sum(-1).clamp(min=1)
        pairs.append((scale * mean[:, None, None] * u, v.mT))
    return collect(groups, pairs)


def iso_cts(deltas: Mapping[str, Delta], weights: Weights | None = None, *, common: float, scale: float) -> Delta:
    """Iso-CTS (Marczak et al., arXiv 2502.04959): the sum's first directions and some of each task's residual.

    With K the numerical rank of sum_i w_i dW_i and T the adapters not zero in the module, each task gives
    t = floor((1 - common) K / T) directions, the sum its first K - t T, with U_c. The tasks' are the first of
    SVD(dW_i - U_c U_c^T dW_i). Both sides are made orthogonal by polar, and all singular values replaced by
    their mean: dW = scale * mean(S) polar([U_c U_1 ...]) polar([V_c V_1 ...])^T, computed in the R x R core.
    As in ``iso_c``, one adapter alone is changed.

    Args:
        common: fraction of the directions taken from the sum, 0 to 1 (published: 0.8). 1 is ``iso_c``.
    """
    require(0 <= common <= 1, "common", common, "a number from 0 to 1")
    groups = weighted(deltas, weights)
    return collect(groups, (_iso_cts(layers, common, scale) for layers in groups))


def _tsv(layers: Layers, scale: float) -> tuple[Tensor, Tensor]:
    parts = [(u, s.unsqueeze(-2), v) for u, s, v in map(factor_svd, layers.b, layers.a)]
    active = torch.stack([s[:, 0, 0] > 0 for _, s, _ in parts]).sum(0).clamp(min=1)  # (L,)
    width = min(layers.b[0].shape[-2], layers.a[0].shape[-1])
    limit = torch.div(width, active, rounding_mode="floor")
    u, s, v = (torch.cat([_first(part[side], limit) for part in parts], -1) for side in range(3))
    root = s.sqrt()
    return scale * polar(u) * root, (polar(v) * root).mT


def _iso_cts(layers: Layers, common: float, scale: float) -> tuple[Tensor, Tensor]:
    q_b, r_b = torch.linalg.qr(torch.cat(layers.b, -1))
    q_a, r_a = torch.linalg.qr(torch.cat(layers.a, -2).mT)
    pairs = zip(blocks(r_b, layers.ranks), blocks(r_a, layers.ranks), strict=True)
    parts = [b @ a.mT for b, a in pairs]
    sizes = torch.stack([norms(b, a) for b, a in zip(layers.b, layers.a, strict=True)])  # (T, L)
    u, s, v = singular(torch.stack(parts).sum(0), sizes.amax(0))
    rank, active = (s > 0).sum(-1), (sizes > 0).sum(0).clamp(min=1)
    # The small number keeps (1 - 0.8) * 5 a whole direction in floating point.
    own = torch.floor((1 - common) * rank / active + 1e-9).long()
    first = rank - own * active
    u_c = _first(u, first)
    left, right = [u_c], [_first(v, first)]
    values = [_first(s.unsqueeze(-2), first)]
    for part, size in zip(parts, sizes, strict=True):
        u_i, s_i, v_i = singular(part - u_c @ (u_c.mT @ part), size)
        left.append(_first(u_i, own))
        right.append(_first(v_i, own))
        values.append(_first(s_i.unsqueeze(-2), own))
    spectrum = torch.cat(values, -1)
    mean = spectrum.sum(-1, keepdim=True) / (spectrum > 0).sum(-1, keepdim=True).clamp(min=1)
    merged = mean * (polar(torch.cat(left, -1)) @ polar(torch.cat(right, -1)).mT)
    return scale * q_b @ merged, q_a.mT


def _first(x: Tensor, count: Tensor) -> Tensor:
    """The first count[l] columns of each x (L, m, n), zeros after them, cut to the longest."""
    longest = min(int(count.max()), x.shape[-1])
    kept = torch.arange(longest, device=x.device) < count[:, None]
    return x[..., :longest] * kept.to(x.dtype).unsqueeze(-2)
