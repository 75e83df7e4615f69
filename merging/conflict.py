"""How much adapters will disturb each other, from factors and stored Gram matrices alone."""

from collections.abc import Mapping

import torch
from torch import Tensor

from merging.coefficients import output_products
from merging.delta import Delta, stack
from merging.gram import Grams, Normalise, gram_batches, scale_of, solve


def interference(deltas: Mapping[str, Delta], grams: Grams) -> dict[str, Tensor]:
    """(T, T) ratios |dW_j X_i| / |dW_i X_i| by module: row j disturbs, column i suffers, sorted by name.

    What a plain sum costs task i, as a fraction of the output it needs; the diagonal is 1. A column is
    infinite (or NaN for another zero) where the adapter's own delta puts nothing out.

    Raises:
        AdapterError: as ``merging.gram.gram``.
    """
    ratios = {}
    for layers in stack(deltas, None):
        for (index,), inputs in gram_batches(layers, grams, single=True):
            energy = torch.einsum("ijj->ji", output_products(layers, index, inputs)).clamp(min=0)
            ratios[layers.modules[index]] = (energy / energy.diagonal()).sqrt()
    return dict(sorted(ratios.items()))


def conflict(
    deltas: Mapping[str, Delta], grams: Grams, normalise: Normalise = "trace", ridge: float = 1e-6
) -> dict[str, float]:
    """For each module the share of the adapters' output that no merged matrix X can give: 0 none, 1 all.

    kappa = min_X sum_i l_i tr((X - D_i) G_i (X - D_i)^T) / sum_i l_i tr(D_i G_i D_i^T), the minimum being
    ``gram``'s. For two adapters and no ridge the numerator is tr(D (G_1 : G_2) D^T), D = D_1 - D_2, with the
    parallel sum G_1 : G_2 = G_1 (G_1 + G_2)^-1 G_2 of the weighted Grams. High interference with low
    conflict: ``gram`` helps; high conflict: only other heads, distillation or training do.

    Raises:
        AdapterError: as ``merging.gram.gram``.
    """
    shares = {}
    for layers in stack(deltas, None):
        for (index,), inputs in gram_batches(layers, grams, single=True):
            moved = solve(layers, [index], inputs, normalise, ridge)
            b = torch.cat([b[index] for b in layers.b], -1)
            rows = torch.cat([a[0] for a in moved], -2)
            left = wanted = b.new_zeros(())
            for i, scale in enumerate(scale_of(layers, index, inputs, normalise)):
                own = torch.cat([a[index] if i == j else torch.zeros_like(a[index]) for j, a in enumerate(layers.a)])
                wanted = wanted + scale * _energy(b, own, inputs[i])
                left = left + scale * _energy(b, rows - own, inputs[i])
            shares[layers.modules[index]] = float(left / wanted) if wanted > 0 else 0.0
    return dict(sorted(shares.items()))


def _energy(b: Tensor, a: Tensor, inputs: Tensor) -> Tensor:
    return ((b.mT @ b) * (a @ inputs @ a.mT)).sum()
