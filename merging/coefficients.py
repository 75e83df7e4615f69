"""Weights of a sum, chosen from stored Gram matrices."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from merging.delta import Delta, Layers, Weights, collect, weighted
from merging.gram import Grams, Normalise, gram_batches, scale_of


def ls_coef(
    deltas: Mapping[str, Delta],
    weights: Weights | None = None,
    *,
    grams: Grams,
    normalise: Normalise,
) -> Delta:
    """The weighted sum dW = sum_j c_j D_j nearest to all adapters: T x T least squares for each module.

    c minimises sum_i l_i tr((sum_j c_j D_j - D_i) G_i (...)^T): H c = h, H_jk = sum_i l_i tr(D_j G_i D_k^T),
    h_j = sum_i l_i tr(D_j G_i D_i^T); of several solutions (equal or zero adapters) the smallest. Classical
    least squares with RegMean's objective; ``gram`` is the optimum without the restriction to one number per
    adapter.

    Args:
        grams, normalise: as in ``gram``.

    Raises:
        AdapterError: as in ``gram``.
    """
    groups = weighted(deltas, weights)
    pairs = []
    for layers in groups:
        coefficients = layers.a[0].new_empty(len(layers.adapters), len(layers.modules), 1, 1)
        for (index,), inputs in gram_batches(layers, grams, single=True):
            products = output_products(layers, index, inputs)
            scales = scale_of(layers, index, inputs, normalise)
            left = torch.einsum("i,ijk->jk", scales, products)
            right = torch.einsum("i,iji->j", scales, products)
            coefficients[:, index, 0, 0] = torch.linalg.pinv(left, rtol=1e-12, hermitian=True) @ right
        a = [c * a for c, a in zip(coefficients, layers.a, strict=True)]
        pairs.append((torch.cat(layers.b, -1), torch.cat(a, -2)))
    return collect(groups, pairs)


def output_products(layers: Layers, index: int, inputs: Sequence[Tensor]) -> Tensor:
    """(T, T, T): entry (i, j, k) is tr(D_j G_i D_k^T), the outputs of j and k compared on inputs of i."""
    b = torch.cat([b[index] for b in layers.b], -1)
    a = torch.cat([a[index] for a in layers.a], -2)
    # (R, T): column t is 1 in the block of adapter t, so that the product adds up each block.
    outer = torch.block_diag(*[b.new_ones(rank, 1) for rank in layers.ranks])
    return torch.stack([outer.mT @ ((b.mT @ b) * (a @ g @ a.mT)) @ outer for g in inputs])
