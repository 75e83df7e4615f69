"""From a source to pixels on disk: the one way that preparing, training and evaluating go."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from datamodules.base import Source
from datamodules.cache import PixelCache, cache_folder, open_or_build
from datamodules.classes import ClassMap
from datamodules.crop import Fit
from datamodules.decode import MAX_PIXELS
from datamodules.hashes import content_hashes
from datamodules.prepare import Kind, Prepared, check_target, prepare_table


@dataclass(frozen=True)
class Pixels:
    """A prepared table and its pixel cache. ``read`` counts the examples that the source's files tell of."""

    prepared: Prepared
    cache: PixelCache
    read: int


def default_fit(kind: Kind) -> Fit:
    """Points must not be cut off; of everything else the middle is what counts."""
    return "pad" if kind == "keypoints" else "crop"


def make_pixels(
    source: Source,
    kind: Kind,
    *,
    target: str | None,
    classes: ClassMap,
    size: int | Literal["full"],
    split: tuple[float, float],
    split_seed: int,
    fit: Fit | None,
    image_size: int,
    cache_root: Path,
    max_pixels: int = MAX_PIXELS,
    max_broken: float = 0.01,
) -> Pixels:
    """Reads labels, hashes pictures, splits, and opens or builds the pixel cache.

    Hashes and pixels that an earlier call with the same arguments left below ``cache_root`` are used again.

    Args:
        source: prepared (``Source.prepare``).
        kind, target, classes, size, split, split_seed: see ``prepare_table``.
        fit: None is ``default_fit``.
        image_size: side in pixels.
        cache_root: folder of hashes and pixel caches.
        max_pixels, max_broken: see ``open_or_build``.

    Raises:
        DataError: the data cannot be used.
        UserError: the cache cannot be written.
    """
    place = hashlib.sha256(source.root.resolve().as_posix().encode()).hexdigest()[:12]
    records = source.records()
    read = len(records.table) + sum(records.dropped.values())
    check_target(records, kind, target, classes)  # before the pictures are read, which may take minutes
    index = cache_root / "hashes" / f"{place}.parquet"
    prepared = prepare_table(
        records, kind, target, classes, size, split, split_seed, content_hashes(source, records, index)
    )
    del records  # of a large set it is tens of megabytes
    shape = fit or default_fit(kind)
    folder = cache_folder(cache_root, source.name, prepared.fingerprint, image_size, shape, max_pixels)
    cache = open_or_build(
        folder, source, prepared.table, size=image_size, fit=shape, points=kind == "keypoints",
        max_pixels=max_pixels, max_broken=max_broken,
    )  # fmt: skip
    return Pixels(prepared, cache, read)
