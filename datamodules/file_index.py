"""Numbers that are slow to get from a file (picture size, face box), got once and kept."""

import io
import logging
import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd

from datamodules.hashes import cpu_count
from launch.errors import UserError
from launch.files import atomic_write
from launch.progress import track

log = logging.getLogger(__name__)
_BATCH = 2048  # files between two savings: what an interruption can cost


def per_file(
    root: Path,
    files: Sequence[str],
    compute: Callable[[Path], Sequence[float]],
    columns: Sequence[str],
    index: Path | None,
    description: str,
    stamp: Callable[[str], tuple[int, int]] | None = None,
) -> np.ndarray:
    """float64 (len(files), len(columns)): ``compute`` of every file, in threads, in the order of ``files``.

    Args:
        root: folder that ``files`` are relative to.
        files: posix paths; each is computed once, however often it is named.
        compute: must be safe to call from several threads.
        columns: names of the numbers.
        index: parquet file; rows whose file still has the same size and mtime are taken from it. None keeps nothing.
            Rows without a finite number are not kept: their file may only be unreadable for now.
        description: for the progress bar.
        stamp: size and mtime (ns) of one of ``files`` where it is no file of its own.
    """
    stamp_of = stamp or (lambda file: _stamp(f"{root}/{file}"))
    stamps = {file: stamp_of(file) for file in dict.fromkeys(files)}
    known = {file: (kept, row) for file, (kept, row) in _load(index, columns).items() if stamps.get(file, kept) == kept}
    missing = sorted(file for file in stamps if file not in known)
    if missing:
        progress = iter(track(missing, description, len(missing)))
        with ThreadPoolExecutor(cpu_count()) as pool:
            for start in range(0, len(missing), _BATCH):
                batch = missing[start : start + _BATCH]
                for file, row in zip(batch, pool.map(lambda file: compute(root / file), batch), strict=True):
                    next(progress)
                    known[file] = (stamps[file], tuple(row))
                _save(index, known, columns)
        for _ in progress:  # ends the bar
            pass
    return np.array([known[file][1] for file in files], np.float64).reshape(len(files), len(columns))


_Stamp = tuple[int, int]


def _stamp(path: str) -> _Stamp:
    try:
        status = os.stat(path)  # noqa: PTH116 (a Path for each of 100,000 files costs seconds at every start)
    except OSError:
        return -1, -1
    return status.st_size, status.st_mtime_ns


def _load(index: Path | None, columns: Sequence[str]) -> dict[str, tuple[_Stamp, tuple[float, ...]]]:
    if index is None or not index.is_file():
        return {}
    try:
        table = pd.read_parquet(index)
        stamps = zip(table["size"].tolist(), table["mtime_ns"].tolist(), strict=True)
        rows = map(tuple, table[list(columns)].to_numpy(np.float64).tolist())
        return dict(zip(table["file"].tolist(), zip(stamps, rows, strict=True), strict=True))
    except (OSError, ValueError, KeyError) as error:  # pyarrow's errors are ValueErrors
        log.warning("%s is unreadable (%s) and is made anew", index, error)
        return {}


def _save(index: Path | None, entries: dict[str, tuple[_Stamp, tuple[float, ...]]], columns: Sequence[str]) -> None:
    if index is None:
        return
    whole = {
        file: entry for file, entry in entries.items() if entry[0] != (-1, -1) and any(map(math.isfinite, entry[1]))
    }
    rows = [(file, *stamp, *row) for file, (stamp, row) in sorted(whole.items())]
    buffer = io.BytesIO()
    pd.DataFrame(rows, columns=["file", "size", "mtime_ns", *columns]).to_parquet(buffer, index=False)
    try:
        atomic_write(index, buffer.getvalue())
    except UserError as error:
        log.warning("not kept for the next run: %s", error)
