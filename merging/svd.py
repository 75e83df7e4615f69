"""The best low-rank approximation of the sum."""

from collections.abc import Mapping

import torch

from merging.delta import Delta, Weights, collect, require, weighted
from merging.factor import factor_svd


def svd(deltas: Mapping[str, Delta], weights: Weights | None = None, *, rank: int | None) -> Delta:
    """sum_i w_i dW_i cut to its ``rank`` largest singular values (Eckart-Young).

    The nearest of that rank in Frobenius norm. Computed in the R x R core (R = sum of ranks), equal to the
    SVD of the full matrix. B and A share the singular values, sqrt(s) each. peft's ``combination_type="svd"``
    from peft 0.21 on.

    Args:
        rank: None stands for the largest rank among the adapters, peft's default; half of two unrelated
            adapters of equal rank is then lost. More than R keeps all.
    """
    require(rank is None or rank >= 1, "rank", rank, "a whole number from 1 or null (= the largest of the set)")
    groups = weighted(deltas, weights)
    pairs = []
    for layers in groups:
        u, s, v = factor_svd(torch.cat(layers.b, -1), torch.cat(layers.a, -2), rank or max(layers.ranks))
        root = s.sqrt().unsqueeze(-2)
        pairs.append((u * root, (v * root).mT))
    return collect(groups, pairs)
