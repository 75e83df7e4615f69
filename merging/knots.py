"""TIES in the output basis that all adapters share."""

from collections.abc import Mapping
from dataclasses import replace

import torch

from merging.delta import Delta, Weights, collect, require, weighted
from merging.factor import blocks, signs, singular
from merging.sparse import elected


def knots_ties(deltas: Mapping[str, Delta], weights: Weights | None = None, *, density: float, scale: float) -> Delta:
    """KnOTS-TIES (Stoica et al., arXiv 2410.19735): TIES in the output basis of all adapters together.

    [dW_1 ... dW_T] = U S [V_1 ... V_T]^T, dW = scale * U TIES(S V_1^T, ..., S V_T^T), rank at most R = sum of
    ranks. S V_i^T = U^T dW_i, so that U alone is needed: the left singular vectors of an R x R matrix.
    Numerically null directions are left out and not counted by ``density``; weights come first, as in
    ``merging.sparse``. (A plain sum in this basis would be ``cat``.)

    Args:
        density: fraction of each adapter's entries kept, one threshold over all modules.
        scale: factor of the result (0.6 in the authors' configuration).
    """
    require(0 <= density <= 1, "density", density, "a number from 0 to 1")
    groups = weighted(deltas, weights)
    bases, coordinates, sizes = [], [], []
    for layers in groups:
        q, r = torch.linalg.qr(torch.cat(layers.b, -1))
        parts = blocks(r, layers.ranks)
        # The rows of A_i count only through their lengths and angles: R of a QR keeps both.
        small = [torch.linalg.qr(a.mT, mode="r").R.mT for a in layers.a]
        u, s, _ = singular(torch.cat([p @ x for p, x in zip(parts, small, strict=True)], -1))
        u = u * signs(q @ u)
        bases.append(q @ u)
        coordinates.append(replace(layers, b=tuple(u.mT @ p for p in parts)))
        sizes.append(int((s > 0).sum()) * layers.a[0].shape[-1])
    merged = elected(coordinates, density, sizes)
    return collect(groups, ((basis, scale * m) for basis, m in zip(bases, merged, strict=True)))
