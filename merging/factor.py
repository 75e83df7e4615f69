"""Batched linear algebra on factors: no delta is ever written out as a full matrix here.

Leading dimensions are batch dimensions (the L modules of ``Layers``). Directions whose singular value is at
most ``RANK_TOLERANCE`` of the largest are noise: their vectors are arbitrary, so they are set to zero, not
kept.
"""

import torch
from torch import Tensor

RANK_TOLERANCE = 1e-6  # factors come in float32: two copies of one direction, scaled apart, differ by 1e-7


def singular(m: Tensor, reference: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Thin SVD with the numerically null part set to zero.

    Args:
        m: (L, m, n).
        reference: (L,) size that "null" is judged by when m may itself be all noise, e.g. a residual.

    Returns:
        U (L, m, k), s (L, k) descending, V (L, n, k), with k = min(m, n) and zeros beyond the rank.
    """
    u, s, vh = torch.linalg.svd(m, full_matrices=False)
    size = s[..., :1] if reference is None else torch.maximum(s[..., :1], reference.unsqueeze(-1))
    keep = (s > RANK_TOLERANCE * size).to(s.dtype)
    return u * keep.unsqueeze(-2), s * keep, vh.mT * keep.unsqueeze(-2)


def leading(m: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """The first ``rank`` directions of dense matrices; as ``singular``, at half its cost.

    They span the space of the largest eigenvalues of the Gram matrix on the smaller side, in which a thin SVD finds
    them. Squaring loses what is below 1e-8 of the largest singular value, so product and values are known to that.

    Args:
        m: (L, m, n) with rank < min(m, n).

    Returns:
        U (L, m, rank), s (L, rank), V (L, n, rank).
    """
    tall = m.shape[-2] > m.shape[-1]
    side = m.mT if tall else m
    basis = torch.linalg.eigh(side @ side.mT)[1][..., -rank:]
    u, s, v = singular(basis.mT @ side)
    return (v, s, basis @ u) if tall else (basis @ u, s, v)


def factor_svd(b: Tensor, a: Tensor, rank: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """SVD of the product B A by two thin QRs and one small SVD; the first ``rank`` directions.

    Each left singular vector is turned so that its largest entry is positive: the factors, not only their
    product, are then the same on every LAPACK.

    Args:
        b: (L, d_out, r).
        a: (L, r, d_in).

    Returns:
        U (L, d_out, k), s (L, k), V (L, d_in, k).
    """
    (left, r_b), (right, r_a) = _reflections(b), _reflections(a.mT)
    u, s, v = singular(r_b @ r_a.mT)
    u, v = _reflect(left, u[..., :rank]), _reflect(right, v[..., :rank])
    sign = signs(u)
    return u * sign, s[..., :rank], v * sign


def _reflections(x: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """QR of x (L, d, n) with Q left as Householder reflections: to apply it to few columns costs less than to form it.

    Returns:
        the reflections for ``_reflect``, and R (L, k, n) with k = min(d, n).
    """
    packed, scales = torch.geqrf(x)
    count = scales.shape[-1]
    return (packed[..., :count], scales), packed[..., :count, :].triu()


def _reflect(reflections: tuple[Tensor, Tensor], x: Tensor) -> Tensor:
    """Q x (L, d, n) for x (L, k, n)."""
    packed, scales = reflections
    padded = torch.nn.functional.pad(x, (0, 0, 0, packed.shape[-2] - x.shape[-2]))
    return torch.ormqr(packed, scales, padded)


def signs(u: Tensor) -> Tensor:
    """(L, 1, k) of +-1: the sign of the largest entry of each column of u (L, m, k), + where two are as large."""
    low, high = torch.aminmax(u, dim=-2, keepdim=True)
    return torch.where(-low > high, -1.0, 1.0).to(u.dtype)


def polar(x: Tensor) -> Tensor:
    """The nearest partial isometry P Q^T of x = P S Q^T over its numerical rank; zero columns stay zero.

    Args:
        x: (L, d, n).

    Returns:
        (L, d, n).
    """
    q, r = torch.linalg.qr(x)
    u, _, v = singular(r)
    return q @ (u @ v.mT)


def blocks(x: Tensor, ranks: list[int]) -> tuple[Tensor, ...]:
    """Columns of x (L, m, R) by adapter."""
    return torch.split(x, ranks, dim=-1)


def norms(b: Tensor, a: Tensor) -> Tensor:
    """(L,) Frobenius norms of the products B A, by r x r algebra."""
    return ((b.mT @ b) * (a @ a.mT)).sum(dim=(-2, -1)).clamp(min=0).sqrt()
