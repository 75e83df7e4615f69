"""Content hashes of all pictures, computed once and kept in an index."""

import io
import logging
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd

from datamodules.base import Records, Source
from launch.errors import UserError
from launch.files import atomic_write
from launch.progress import track

log = logging.getLogger(__name__)


def cpu_count() -> int:
    """Processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def content_hashes(source: Source, records: Records, index: Path) -> dict[str, str]:
    """Hex content hash of every record's picture, by key.

    Files whose path, size and mtime are in the index are not read again. An unreadable file gets a name of
    its own instead of a hash; the pixel cache will count it as broken.

    Args:
        source: where the pictures are.
        records: its records; those with the same ``file`` are read once.
        index: parquet file; made or brought up to date when it can be written.
    """
    units = _units(records)
    known = _load(index)
    stamps = {unit: _stamp(source, row) for unit, row in units.items()}
    done = {unit: known[unit][2] for unit, stamp in stamps.items() if unit in known and known[unit][:2] == stamp}
    missing = [(unit, row) for unit, row in units.items() if unit not in done]
    if missing:
        found = _compute(source, missing)
        for unit, digest in track(found, f"Reading {source.name} for duplicates", len(missing)):
            done[unit] = digest
        _save(
            index,
            known | {unit: (*stamps[unit], done[unit]) for unit, _ in missing if stamps[unit] != (-1, -1)},
        )
    keys = records.table["key"]
    names = records.table.get("file", keys)
    return {key: done[name] for key, name in zip(keys, names, strict=True)}


def _units(records: Records) -> dict[str, dict[str, Any]]:
    columns = [name for name in ("key", "file") if name in records.table]
    rows = records.table[columns].to_dict("records")
    units: dict[str, dict[str, Any]] = {}
    for row in rows:
        units.setdefault(row.get("file", row["key"]), row)
    return units


def _stamp(source: Source, row: dict[str, Any]) -> tuple[int, int]:
    try:
        return source.stamp(row)
    except OSError:
        return -1, -1


def _compute(source: Source, missing: list[tuple[str, dict[str, Any]]]) -> Iterator[tuple[str, str]]:
    def one(item: tuple[str, dict[str, Any]]) -> tuple[str, str]:
        unit, row = item
        try:
            return unit, source.digest(row)
        except OSError:
            return unit, f"unreadable:{unit}"

    if not source.parallel:
        yield from map(one, missing)
        return
    with ThreadPoolExecutor(2 * cpu_count()) as pool:
        yield from pool.map(one, missing)


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
    rows = [(unit, *entry) for unit, entry in sorted(entries.items())]
    buffer = io.BytesIO()
    pd.DataFrame(rows, columns=["unit", "size", "mtime_ns", "sha256"]).to_parquet(buffer, index=False)
    try:
        atomic_write(index, buffer.getvalue())
    except UserError as error:
        log.warning("content hashes are not kept: %s", error)
