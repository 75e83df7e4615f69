"""Merges that look at single entries of the deltas: trimming, dropping, sign election.

Shared decisions:

* Weights come first: delta i is w_i dW_i before anything is trimmed or elected.
* ``density`` is the fraction of entries kept. 0 keeps nothing (a zero delta), 1 keeps everything.
* Trimming has one threshold for all modules of an adapter (as TIES' own code): its round(density * entries)
  largest magnitudes stay, and any entry that equals the smallest of them.
* The elected sign of an entry is that of the sum of what was kept. A sum of exactly zero elects nobody, the
  merged entry is 0. Zeros neither vote nor count: an all-zero adapter changes nothing.
* The results have full rank. By default they are returned exactly, as a pair with the identity (rank
  min(d_out, d_in)); with ``rank`` as the best approximation of that rank, at the cost of a dense eigendecomposition
  for each module.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from merging.delta import Delta, Layers, Weights, collect, require, weighted
from merging.factor import leading, signs

Matrices = Tensor | list[Tensor]
"""(L, d_out, d_in), or as many matrices that own their memory."""

ROWS = 128
SAMPLED = 2**20  # entries of an adapter from which on a sample is worth while
STEP = 5  # of the sample, in rows and in columns
MARGIN = 0.01  # of all entries; samples of small trained adapters were off by up to 0.011, and a miss costs time only


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
    require(0 <= density <= 1, "density", density, "a number from 0 to 1")
    require(rank is None or rank >= 1, "rank", rank, "a whole number from 1 or null (= exact, full rank)")
    groups = weighted(deltas, weights)
    outs = [_room(layers, rank) for layers in groups]
    _elect_into(outs, groups, density, None, scale)
    return _collect_dense(groups, outs, rank)


def magnitude_prune(
    deltas: Mapping[str, Delta],
    weights: Weights | None = None,
    *,
    density: float,
    scale: float,
    rank: int | None,
) -> Delta:
    """The sum of the deltas, each cut to its largest entries; the rest of the arguments as ``ties``."""
    require(0 <= density <= 1, "density", density, "a number from 0 to 1")
    require(rank is None or rank >= 1, "rank", rank, "a whole number from 1 or null (= exact, full rank)")
    groups = weighted(deltas, weights)
    limits = thresholds(groups, density)
    outs = [_combine(layers, lambda x, i, _: _trim(x, limits[i]), _total, scale, rank) for layers in groups]
    return _collect_dense(groups, outs, rank)


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
    require(0 <= density <= 1, "density", density, "a number from 0 to 1")
    require(rank is None or rank >= 1, "rank", rank, "a whole number from 1 or null (= exact, full rank)")
    groups = weighted(deltas, weights)
    outs = [_combine(layers, _dropper(layers, density, seed), _total, scale, rank) for layers in groups]
    return _collect_dense(groups, outs, rank)


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
    require(0 <= density <= 1, "density", density, "a number from 0 to 1")
    require(rank is None or rank >= 1, "rank", rank, "a whole number from 1 or null (= exact, full rank)")
    groups = weighted(deltas, weights)
    outs = [_combine(layers, _dropper(layers, density, seed), _elect, scale, rank) for layers in groups]
    return _collect_dense(groups, outs, rank)


def elected(groups: Sequence[Layers], density: float, sizes: Sequence[int] | None = None) -> list[Tensor]:
    """TIES on the entries of the products B_i A_i, whatever basis these factors are written in.

    Args:
        groups: factors, weights applied.
        sizes: for each group the number of entries that ``density`` counts; None: all of them.

    Returns:
        for each group (L, d_out, d_in).
    """
    outs = [layers.b[0].new_empty(len(layers.modules), *_shape(layers)) for layers in groups]
    _elect_into(outs, groups, density, sizes, 1.0)
    return outs


def thresholds(groups: Sequence[Layers], density: float, sizes: Sequence[int] | None = None) -> list[float]:
    """For each adapter the magnitude of its round(density * entries)-th largest entry over all groups."""
    keep, total = _kept(groups, density, sizes)
    adapters = range(len(groups[0].adapters))
    if keep == 0 or density == 1:
        return [float("inf") if keep == 0 else 0.0 for _ in adapters]
    buffer = np.empty(total)
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


def _elect_into(
    outs: Sequence[Matrices], groups: Sequence[Layers], density: float, sizes: Sequence[int] | None, scale: float
) -> None:
    """Writes scale * TIES into ``outs``, of any type, forming every product once where there are many entries.

    A sample of the entries tells between which bounds an adapter's threshold lies. The one pass over all entries
    counts those above, merges as if the lower bound were the threshold, and remembers the few places where an entry
    lies between the bounds; these are merged anew when the threshold is known. Where the sample misled, the
    thresholds are found first.
    """
    keep, total = _kept(groups, density, sizes)
    if total >= SAMPLED and keep and density < 1:
        bounds = [_bounds(groups, i, keep / total) for i in range(len(groups[0].adapters))]
        if _elect_between(outs, groups, bounds, keep, scale):
            return
    _elect_between(outs, groups, [(limit, limit) for limit in thresholds(groups, density, sizes)], None, scale)


def _bounds(groups: Sequence[Layers], adapter: int, share: float) -> tuple[float, float]:
    """Magnitudes that a share of MARGIN more and less than ``share`` of a regular sample of the entries reach."""
    parts = []
    for layers in groups:
        # The same inputs and outputs are large in many modules: each STEP-th module starts from another one.
        for start in range(STEP):
            b, a = layers.b[adapter][start::STEP, start::STEP], layers.a[adapter][start::STEP, :, start::STEP]
            parts.append((b.float() @ a.float()).abs_().flatten().cpu().numpy())
    sample = np.concatenate(parts)
    many, few = (round((share + margin) * len(sample)) for margin in (MARGIN, -MARGIN))
    inside = [len(sample) - place for place in (many, few) if 0 < place <= len(sample)]
    sample.partition(inside)
    low = float(sample[len(sample) - many]) if many <= len(sample) else 0.0
    return low, float(sample[len(sample) - few]) if few > 0 else float("inf")


def _elect_between(
    outs: Sequence[Matrices],
    groups: Sequence[Layers],
    bounds: Sequence[tuple[float, float]],
    keep: int | None,
    scale: float,
) -> bool:
    """``_elect_into`` for thresholds from ``low`` to below ``high``; with both equal and no ``keep`` they are that.

    Returns:
        False if the keep-th largest entry of an adapter lies outside: then ``outs`` is of no use.
    """
    above = [0] * len(bounds)
    open_at: list[tuple[Tensor, Tensor]] = []  # a band's results, flat, and the places among them yet to decide
    open_entries: list[list[Tensor]] = [[] for _ in bounds]
    for layers, out in zip(groups, outs, strict=True):
        for index, rows in _chunks(layers):
            kept: list[np.ndarray] = []
            trimmed: list[Tensor] = []
            unsure = np.zeros((rows.stop - rows.start, _shape(layers)[1]), dtype=bool)
            for i, (low, high) in enumerate(bounds):
                entries = _entries(layers, i, index, rows).cpu()
                # NumPy compares, counts and finds several times as fast as torch does on a CPU.
                sizes = entries.abs().numpy()
                kept.append(sizes >= low)
                trimmed.append(_trim(entries, low))
                if keep is not None:
                    sure = sizes >= high
                    above[i] += int(np.count_nonzero(sure))
                    unsure |= np.not_equal(kept[-1], sure, out=sure)
            if keep is not None and len(places := torch.from_numpy(np.flatnonzero(unsure))):
                open_at.append((out[index][rows].view(-1), places))
                for x, found in zip(trimmed, open_entries, strict=True):
                    found.append(x.view(-1)[places])
            merged = _elect_shared(trimmed, kept)
            out[index][rows] = merged if scale == 1 else merged.mul_(scale)
    if keep is None or not open_at:
        return keep is None
    limits = []
    for (low, high), found, number in zip(bounds, open_entries, above, strict=True):
        sizes = torch.cat(found).abs_().numpy()
        sizes = sizes[(sizes >= low) & (sizes < high)]
        if not number < keep <= number + len(sizes):
            return False
        place = len(sizes) - (keep - number)
        sizes.partition(place)
        limits.append(float(sizes[place]))
    for (out, places), *found in zip(open_at, *open_entries, strict=True):
        decided = _elect([_trim(x, limit) for x, limit in zip(found, limits, strict=True)]).mul_(scale)
        out[places.to(out.device)] = decided.to(out.device, out.dtype)
    return True


def _elect_shared(entries: list[Tensor], kept: list[np.ndarray]) -> Tensor:
    """``_elect`` where an entry not marked in ``kept`` is 0: only what more than one adapter kept needs a vote."""
    if len(entries) == 1:
        return entries[0]
    seen, shared = kept[0] | kept[1], kept[0] & kept[1]
    for more in kept[2:]:
        shared |= seen & more
        seen |= more
    places = torch.from_numpy(np.flatnonzero(shared))
    if 4 * len(places) > entries[0].numel():
        return _elect(entries)
    merged = _total(entries)
    if len(places):
        merged.view(-1)[places] = _elect([x.view(-1)[places] for x in entries])
    return merged


def _kept(groups: Sequence[Layers], density: float, sizes: Sequence[int] | None) -> tuple[int, int]:
    """How many of an adapter's entries stay, and how many it has."""
    counts = [len(layers.modules) * math.prod(_shape(layers)) for layers in groups]
    return round(density * sum(counts if sizes is None else sizes)), sum(counts)


def _shape(layers: Layers) -> tuple[int, int]:
    return layers.b[0].shape[-2], layers.a[0].shape[-1]


def _chunks(layers: Layers) -> Iterator[tuple[int, slice]]:
    """Every module in bands of rows: few enough for the processor's cache, where the many small steps then stay."""
    height, _ = _shape(layers)
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
    scale: float,
    rank: int | None,
) -> Matrices:
    out = _room(layers, rank)
    for index, rows in _chunks(layers):
        module = layers.modules[index]
        entries = [sparsify(_entries(layers, i, index, rows), i, module) for i in range(len(layers.adapters))]
        out[index][rows] = consensus(entries).mul_(scale)
    return out


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
    if len(entries) == 1:
        return entries[0]
    total = entries[0] + entries[1]
    for x in entries[2:]:
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


def _room(layers: Layers, rank: int | None) -> Matrices:
    """Where a merge writes: apart and of the final type if the result is returned as it is, else for the SVD."""
    shape, like = _shape(layers), layers.b[0]
    if rank is None or rank >= min(shape):
        return [like.new_empty(shape, dtype=layers.dtype) for _ in layers.modules]
    return like.new_empty(len(layers.modules), *shape)


def _collect_dense(groups: Sequence[Layers], outs: Sequence[Matrices], rank: int | None) -> Delta:
    """Matrices as delta: those in a list as they are, paired with the identity, stacked ones cut to ``rank``."""
    merged: Delta = {}
    for layers, out in zip(groups, outs, strict=True):
        if isinstance(out, Tensor):
            assert rank is not None  # see _room
            merged |= collect([layers], [_cut(out, rank)])
            continue
        for module, x in zip(layers.modules, out, strict=True):
            d_out, d_in = x.shape
            eye = torch.eye(min(d_out, d_in), dtype=x.dtype, device=x.device)
            merged[module] = (x, eye) if d_in <= d_out else (eye, x)
    return dict(sorted(merged.items()))


def _cut(merged: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    u, s, v = leading(merged, rank)
    root = s.sqrt().unsqueeze(-2) * signs(u)
    return u * root, (v * root).mT
