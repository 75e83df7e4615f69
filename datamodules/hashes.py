"""Content hashes of all pictures, computed once and kept in an index."""

import io
import logging
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from datamodules.base import Records, Source
from launch.errors import UserError
from launch.files import atomic_write
from launch.progress import track

log = logging.getLogger(__name__)
UNREADABLE = "unreadable:"  # begins what stands for the hash of a picture that has none
_BATCH = 4096
_GONE = (-1, -1)  # the stamp of a file that cannot be looked at or read: its hash is not kept


def cpu_count() -> int:
    """Processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def content_hashes(source: Source, records: Records, index: Path) -> dict[str, str]:
    """Hex content hash of every record's picture, by key.

    Files whose path, size and mtime are in the index are not read again. An unreadable file gets a name of
    its own instead of a hash, until it can be read; the pixel cache will count it as broken.

    Args:
        source: where the pictures are.
        records: its records; those with the same ``file`` are read once.
        index: parquet file; made or brought up to date when it can be written.
    """
    keys = records.table["key"].tolist()
    names = records.table["file"].tolist() if "file" in records.table else keys
    first: dict[str, int] = {}
    for place, name in enumerate(names):
        first.setdefault(name, place)

    def row(unit: str) -> dict[str, Any]:  # made when it is asked for: 100,000 of them are 60 MB
        place = first[unit]
        return {"key": keys[place]} | ({"file": unit} if names is not keys else {})

    known = _load(index)
    missing = []
    for unit in first:
        stamp = _stamp(source, row(unit))
        if unit not in known or known[unit][:2] != stamp:
            known[unit] = (*stamp, "")
            missing.append(unit)
    if missing:
        found = _compute(source, missing, row)
        for unit, digest in track(found, f"Reading {source.name} for duplicates", len(missing)):
            known[unit] = (*_GONE, UNREADABLE + unit) if digest is None else (*known[unit][:2], digest)
        _save(index, known)
    return {key: known[name][2] for key, name in zip(keys, names, strict=True)}


def _stamp(source: Source, row: dict[str, Any]) -> tuple[int, int]:
    try:
        return source.stamp(row)
    except OSError:
        return _GONE


def _compute(
    source: Source, missing: list[str], row: Callable[[str], dict[str, Any]]
) -> Iterator[tuple[str, str | None]]:
    def one(unit: str) -> tuple[str, str | None]:
        try:
            return unit, source.digest(row(unit))
        except OSError:
            return unit, None

    if not source.parallel:
        yield from map(one, missing)
        return
    with ThreadPoolExecutor(2 * cpu_count()) as pool:
        for start in range(0, len(missing), _BATCH):  # map submits all that it is given at once
            yield from pool.map(one, missing[start : start + _BATCH])


def _load(index: Path) -> dict[str, tuple[int, int, str]]:
    if not index.is_file():
        return {}
    try:
        table = pd.read_parquet(index)
        rows = zip(table["unit"], table["size"], table["mtime_ns"], table["sha256"], strict=True)
        return {unit: (int(size), int(mtime), digest) for unit, size, mtime, digest in rows}
    except (OSError, ValueError, KeyError) as error:  # pyarrow's errors are ValueErrors
        log.warning("%s is unreadable (%s); the pictures are read again", index, error)
        return {}


def _save(index: Path, entries: dict[str, tuple[int, int, str]]) -> None:
    units = sorted(unit for unit, entry in entries.items() if entry[:2] != _GONE)
    columns: dict[str, pa.Array] = {"unit": pa.array(units, pa.string())}
    for number, (name, kind) in enumerate((("size", pa.int64()), ("mtime_ns", pa.int64()), ("sha256", pa.string()))):
        columns[name] = pa.array((entries[unit][number] for unit in units), kind, size=len(units))
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    try:
        atomic_write(index, bytes(buffer.getbuffer()))
    except UserError as error:
        log.warning("content hashes are not kept: %s", error)
