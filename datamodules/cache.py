"""The pixel cache: every picture decoded, cropped and resized once, then read from a memory map."""

import hashlib
import io
import json
import logging
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from datamodules.base import BOX, Source
from datamodules.crop import Box, Fit, crop_region, crop_resize, to_crop
from datamodules.decode import MAX_PIXELS, BrokenImageError
from datamodules.hashes import UNREADABLE, cpu_count
from datamodules.locks import locked
from datamodules.ordered import in_order
from datamodules.sources import human_bytes
from launch.errors import DataError
from launch.files import atomic_folder, atomic_write, write_json
from launch.progress import track

log = logging.getLogger(__name__)
_VERSION = 1


@dataclass(frozen=True)
class PixelCache:
    """Square pictures of one prepared table, read from disk as they are asked for.

    Attributes:
        pixels: uint8 (N, S, S, 3), a read-only memory map.
        points: float32 (N, K, 2) in crop coordinates (0 and 1 are the crop's edges; may lie outside), or
            None.
        keys: key of each of the N pictures, in the table's order.
        broken: key -> reason of the pictures left out.
        path: the .npy file of ``pixels``.
    """

    path: Path
    pixels: np.ndarray
    points: np.ndarray | None
    keys: list[str]
    broken: dict[str, str] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path) -> "PixelCache":
        """Opens what ``build`` made.

        Raises:
            OSError, ValueError, KeyError: missing, or not whole.
        """
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        keys = list(pd.read_parquet(folder / "index.parquet")["key"])
        pixels = np.load(folder / "pixels.npy", mmap_mode="r", allow_pickle=False)
        points = np.load(folder / "points.npy", allow_pickle=False) if meta["points"] else None
        if meta["version"] != _VERSION or len(pixels) != len(keys) or (points is not None and len(points) != len(keys)):
            raise ValueError("its parts do not belong together")
        return cls(folder / "pixels.npy", pixels, points, keys, meta["broken"])


def cache_folder(root: Path, name: str, fingerprint: str, size: int, fit: Fit, max_pixels: int = MAX_PIXELS) -> Path:
    """``<root>/<name>-<16 hex digits>``, where the digits stand for all that decides the pixels."""
    key = hashlib.sha256(f"{_VERSION}|{fingerprint}|{size}|{fit}|{max_pixels}".encode()).hexdigest()[:16]
    return root / f"{re.sub(r'[^A-Za-z0-9_.-]+', '_', name)}-{key}"


def open_or_build(
    folder: Path,
    source: Source,
    table: pd.DataFrame,
    *,
    size: int,
    fit: Fit,
    points: bool,
    max_pixels: int = MAX_PIXELS,
    max_broken: float = 0.01,
) -> PixelCache:
    """The cache in ``folder``, made now if it is not there; a second process waits for the first.

    A picture that cannot be used is left out and named, as long as they are at most ``max_broken`` of all
    (one is always tolerated among 20 or more, unless ``max_broken`` is 0).

    Args:
        folder: see ``cache_folder``.
        source: reads the pictures.
        table: of ``Prepared``: key, file, box and hash if any; with ``points`` also target (K, 2) in picture
            pixels.
        size: side S in pixels.
        fit: see ``crop_region``.
        points: carry the targets along into crop coordinates.
        max_pixels: pictures with more count as broken.
        max_broken: fraction of the table.

    Raises:
        DataError: too many broken pictures, one that is another than was hashed, or not enough room on the disk.
        UserError: the folder cannot be written.
    """
    cache = _try_open(folder)
    if cache is None:
        with locked(folder, "paths.outputs"):
            cache = _try_open(folder)
            if cache is None:
                _build(folder, source, table, size, fit, points, max_pixels, max_broken)
                cache = PixelCache.open(folder)
    _judge(cache.broken, len(table), max_broken, source.name)
    return cache


def _try_open(folder: Path) -> PixelCache | None:
    if not folder.is_dir():
        return None
    try:
        return PixelCache.open(folder)
    except (OSError, ValueError, KeyError) as error:
        log.warning("The pixel cache %s is damaged (%s) and is made anew", folder, error)
        return None


def _judge(broken: dict[str, str], total: int, max_broken: float, name: str, stopped: bool = False) -> None:
    allowed = max(int(max_broken * total), 1 if total >= 20 and max_broken > 0 else 0)
    if len(broken) <= allowed:
        return
    shown = "\n".join(f"  {key}: {reason}" for key, reason in list(broken.items())[:5])
    raise DataError(
        f"{name}: {'at least ' if stopped else ''}{len(broken)} of {total} pictures cannot be used, "
        f"more than the {allowed} allowed (data.max_broken={max_broken}). The first:\n{shown}\n"
        "Mend or remove them, or allow more with data.max_broken=FRACTION."
    )


def _build(
    folder: Path,
    source: Source,
    table: pd.DataFrame,
    size: int,
    fit: Fit,
    points: bool,
    max_pixels: int,
    max_broken: float,
) -> None:
    shape = (len(table), size, size, 3)
    keys: list[str] = []
    broken: dict[str, str] = {}
    carried: list[np.ndarray] = []
    columns = [name for name in ("key", "file", *BOX, "hash") if name in table] + (["target"] if points else [])
    with atomic_folder(folder, alone=True) as temporary:
        free = shutil.disk_usage(folder.parent).free  # once what a killed process had begun is cleared
        needed = len(table) * size * size * 3
        if needed > free:
            raise DataError(
                f"The pixel cache of {source.name} needs {human_bytes(needed)} in {folder.parent}, "
                f"where {human_bytes(free)} are free. Free space, choose another place with paths.outputs=DIR, "
                "or use fewer pictures with data.size=N."
            )
        with (temporary / "pixels.npy").open("wb") as file:
            file.write(_header(shape))
            results = _render_all(source, table[columns], size, fit, points, max_pixels)
            for key, image, moved, reason in track(results, f"Caching {source.name} at {size} px", len(table)):
                if image is None:
                    broken[key] = reason
                    log.warning("%s is left out: %s", key, reason)
                    _judge(broken, len(table), max_broken, source.name, stopped=True)
                    continue
                file.write(image.tobytes())
                keys.append(key)
                if moved is not None:
                    carried.append(moved)
            file.seek(0)
            file.write(_header((len(keys), *shape[1:])))
        if points:
            buffer = io.BytesIO()
            np.save(buffer, np.stack(carried), allow_pickle=False)
            atomic_write(temporary / "points.npy", buffer.getvalue())
        index = io.BytesIO()
        pd.DataFrame({"key": keys}).to_parquet(index, index=False)
        atomic_write(temporary / "index.parquet", index.getvalue())
        write_json(
            temporary / "meta.json",
            {
                "version": _VERSION,
                "size": size,
                "fit": fit,
                "points": points,
                "count": len(keys),
                "broken": broken,
            },
        )


def _header(shape: tuple[int, ...]) -> bytes:
    """Header of an .npy file of uint8; 128 bytes for any shape, so that the final count can be filled in."""
    text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}"
    return b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little") + text.ljust(117).encode() + b"\n"


def _check_unchanged(source: Source, row: dict[str, Any], error: BrokenImageError) -> None:
    """Refuses to leave out for good what was whole when it was hashed: the table's fingerprint tells of it."""
    known = row.get("hash", UNREADABLE)
    if known.startswith(UNREADABLE):
        return
    try:
        found = source.digest(row)
    except OSError as fault:
        found = str(fault)
    if found != known:
        raise DataError(
            f"{source.name}: {row['key']} was changed or could no longer be read while pixels were cached ({error}). "
            "Run the same command again; the disk or network that it is read from may be failing."
        )


Rendered = tuple[str, np.ndarray | None, np.ndarray | None, str]


def _render_all(
    source: Source, table: pd.DataFrame, size: int, fit: Fit, points: bool, max_pixels: int
) -> Iterator[Rendered]:
    """Rendered pictures in the table's order; a few at a time are in memory."""
    names = list(table.columns)
    rows = (dict(zip(names, values, strict=True)) for values in table.itertuples(index=False, name=None))
    free = not points and BOX[0] not in names  # nothing counts the picture's pixels: a reduced one will do
    side = size if free else None

    def load(row: dict[str, Any]) -> np.ndarray | str:
        try:
            return source.read(row, max_pixels, side)
        except BrokenImageError as error:
            _check_unchanged(source, row, error)
            return str(error)

    def render(row: dict[str, Any], picture: np.ndarray | str | None) -> Rendered:
        picture = load(row) if picture is None else picture
        if isinstance(picture, str):
            return row["key"], None, None, picture
        box: Box | None = None if BOX[0] not in row else (row["left"], row["top"], row["right"], row["bottom"])
        try:
            region = crop_region(picture.shape[1], picture.shape[0], box, fit)
        except BrokenImageError as error:
            return row["key"], None, None, str(error)
        moved = to_crop(row["target"], region) if points else None
        return row["key"], crop_resize(picture, region, size), moved, ""

    workers = cpu_count()
    with ThreadPoolExecutor(workers) as pool:
        work = (pool.submit(render, row, None if source.parallel else load(row)) for row in rows)
        yield from in_order(work, 4 * workers)
