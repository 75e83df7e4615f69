"""Merges that look at single entries of the deltas: trimming, dropping, sign election.

Shared decisions:

* Weights come first: delta i is w_i dW_i before anything is trimmed or elected.
* ``density`` is the fraction of entries kept. 0 keeps nothing (a zero delta), 1 keeps everything.
* Trimming has one threshold for all modules of an adapter (as TIES' own code): its round(density * entries)
  largest magnitudes stay, and any entry that equals the smallest of them.
* The elected sign of an entry is that of the sum of what was kept. A sum of exactly zero elects nobody, the
  merged entry is 0. Zeros neither vote nor count: an all-zero adapter changes nothing.
* The results have full rank. By default they are returned exactly, as a pair with the identity (rank
  min(d_out, d_in)); with ``rank`` as the best approximation of that rank, at the cost of a dense SVD for each
  module.
"""

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from merging.delta import Delta, Layers, Weights, collect, require, weighted
from merging.factor import signs, singular

ROWS = 128


def ties(
    deltas: Mapping[str, Delta],
    weights: Weights | None = None,
    *,
    density: float,
    scale: float,
    rank: int | None,
) -> Delta:
    """TIES (Yadav et al., arXiv 2306.01708) on the deltas: trim, elect signs, mean of the entries that agree.

    With density 1 this is the disjoint mean, not the sum. peft's ``ties`` does the same to A and B apart,
    with a threshold for each matrix; its ``ties_svd`` elects signs before it applies the weights. See the
    module for decisions.

    Args:
        density: fraction of each adapter's entries kept, 0 to 1.
        scale: factor of the result (lambda of the paper).
        rank: None returns the full-rank result exactly; a number truncates it.
    """
    groups = weighted(deltas, weights)
    return _collect_dense(groups, elected(groups, density), scale, rank)


def magnitude_prune(
    deltas: Mapping[str, Delta],
    weights: Weights | None = None,
    *,
    density: float,
    scale: float,
    rank: int | None,
) -> Delta:
    """The sum of the deltas, each cut to its largest entries; the rest of the arguments as ``ties``."""
    groups = weighted(deltas, weights)
    limits = thresholds(groups, density)
    merged = (_combine(layers, lambda x, i, _: _trim(x, limits[i]), _total) for layers in groups)
    return _collect_dense(groups, merged, scale, rank)


def dare_linear(
    deltas: Mapping[str, Delta],
    weights: Weights | None = None,
    *,
    density: float,
    seed: int,
    scale: float,
    rank: int | None,
) -> Delta:
    """DARE (Yu et al., arXiv 2311.03099): keep each entry with probability ``density``, divide by it, add up.

    Which entries stay follows from (seed, adapter name, module) alone: neither the order of the adapters nor
    the company they are merged in plays a part.
    """
    groups = weighted(deltas, weights)
    require(0 <= density <= 1, "density", density, "a number from 0 to 1")
    return _collect_dense(groups, (_combine(g, _dropper(g, density, seed), _total) for g in groups), scale, rank)


def dare_ties(
    deltas: Mapping[str, Delta],
    weights: Weights | None = None,
    *,
    density: float,
    seed: int,
    scale: float,
    rank: int | None,
) -> Delta:
    """``dare_linear``'s dropping, then TIES' sign election and the mean of those that agree, not the sum."""
    groups = weighted(deltas, weights)
    require(0 <= density <= 1, "density", density, "a number from 0 to 1")
    return _collect_dense(groups, (_combine(g, _dropper(g, density, seed), _elect) for g in groups), scale, rank)


def elected(groups: Sequence[Layers], density: float, sizes: Sequence[int] | None = None) -> list[Tensor]:
    """TIES on the entries of the products B_i A_i, whatever basis these factors are written in.

    Args:
        groups: factors, weights applied.
        sizes: for each group the number of entries that ``density`` counts; None: all of them.

    Returns:
        for each group (L, d_out, d_in).
    """
    limits = thresholds(groups, density, sizes)
    return [_combine(layers, lambda x, i, _: _trim(x, limits[i]), _elect) for layers in groups]


def thresholds(groups: Sequence[Layers], density: float, sizes: Sequence[int] | None = None) -> list[float]:
    """For each adapter the magnitude of its round(density * entries)-th largest entry over all groups."""
    require(0 <= density <= 1, "density", density, "a number from 0 to 1")
    counts = [len(g.modules) * g.b[0].shape[-2] * g.a[0].shape[-1] for g in groups]
    keep = round(density * sum(counts if sizes is None else sizes))
    adapters = range(len(groups[0].adapters))
    if keep == 0 or density == 1:
        return [float("inf") if keep == 0 else 0.0 for _ in adapters]
    buffer = np.empty(sum(counts))
    limits = []
    for i in adapters:
        start = 0
        for layers in groups:
            for index, rows in _chunks(layers):
                entries = _entries(layers, i, index, rows).abs_()
                buffer[start : start + entries.numel()] = entries.flatten().cpu().numpy()
                start += entries.numel()
        buffer.partition(len(buffer) - keep)
        limits.append(float(buffer[len(buffer) - keep]))
    return limits


def _chunks(layers: Layers) -> Iterator[tuple[int, slice]]:
    """Every module in bands of rows: few enough for the processor's cache, where the many small steps then stay."""
    height = layers.b[0].shape[-2]
    for index in range(len(layers.modules)):
        for start in range(0, height, ROWS):
            yield index, slice(start, min(start + ROWS, height))


def _entries(layers: Layers, adapter: int, index: int, rows: slice) -> Tensor:
    # The same product for thresholds and for merging: entries are compared with the very same bits.
    return layers.b[adapter][index, rows] @ layers.a[adapter][index]


def _combine(
    layers: Layers,
    sparsify: Callable[[Tensor, int, str], Tensor],
    consensus: Callable[[list[Tensor]], Tensor],
) -> Tensor:
    merged = layers.b[0].new_empty(len(layers.modules), layers.b[0].shape[-2], layers.a[0].shape[-1])
    for index, rows in _chunks(layers):
        module = layers.modules[index]
        entries = [sparsify(_entries(layers, i, index, rows), i, module) for i in range(len(layers.adapters))]
        merged[index, rows] = consensus(entries)
    return merged


def _trim(entries: Tensor, limit: float) -> Tensor:
    # hardshrink keeps what is greater than its bound: the next smaller number lets the limit itself stay.
    return entries if limit == 0 else torch.nn.functional.hardshrink(entries, math.nextafter(limit, 0))


def _dropper(layers: Layers, density: float, seed: int) -> Callable[[Tensor, int, str], Tensor]:
    generators: dict[tuple[int, str], np.random.Generator] = {}

    def drop(entries: Tensor, adapter: int, module: str) -> Tensor:
        if density in (0, 1):
            return entries * density
        if (adapter, module) not in generators:
            digest = hashlib.sha256(f"{seed}:{layers.adapters[adapter]}:{module}".encode()).digest()
            generators[adapter, module] = np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "big")))
        uniform = generators[adapter, module].random(tuple(entries.shape))
        keep = torch.from_numpy(uniform < density).to(entries.device)
        return entries.mul_(keep).div_(density)

    return drop


def _total(entries: list[Tensor]) -> Tensor:
    total = entries[0].clone()
    for x in entries[1:]:
        total += x
    return total


def _elect(entries: list[Tensor]) -> Tensor:
    if len(entries) == 1:
        return entries[0]
    sign = _total(entries).sign_()
    agreed, count = torch.zeros_like(sign), torch.zeros_like(sign)
    for x in entries:
        x.mul_(sign).clamp_(min=0)  # the magnitude where the sign agrees, 0 elsewhere
        agreed += x
        count += x.sign()
    return agreed.mul_(sign).div_(count.clamp_(min=1))


def _collect_dense(groups: Sequence[Layers], merged: Iterable[Tensor], scale: float, rank: int | None) -> Delta:
    require(rank is None or rank >= 1, "rank", rank, "a whole number from 1 or null (= exact, full rank)")
    return collect(groups, (_pair(m.mul_(scale), rank) for m in merged))


def _pair(merged: Tensor, rank: int | None) -> tuple[Tensor, Tensor]:
    _, d_out, d_in = merged.shape
    if rank is None or rank >= min(d_out, d_in):
        eye = torch.eye(min(d_out, d_in), dtype=merged.dtype, device=merged.device).expand(len(merged), -1, -1)
        return (merged, eye) if d_in <= d_out else (eye, merged)
    u, s, v = (x[..., :rank] for x in singular(merged))
    root = s.sqrt().unsqueeze(-2) * signs(u)
    return u * root, (v * root).mT
