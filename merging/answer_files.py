"""Answers on disk as CSV, JSON lines or parquet, written as they come and named when they are whole."""

import contextlib
import csv
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from launch.errors import CommandError
from launch.files import _UMASK, cannot_write
from merging.answer_places import ERROR, FRAME
from merging.answers import Answered
from merging.views import View, require_own_columns

FORMATS = (".csv", ".jsonl", ".parquet")
_ROWS = 4096  # in a parquet row group, and in memory
_FRAME = list(zip(FRAME, (pa.string(), pa.int32(), *[pa.float32()] * 4), strict=True))
Write = Callable[[Answered], None]


def columns(views: Mapping[str, View]) -> list[tuple[str, pa.DataType]]:
    """Name and type of each column of a table: file, face and box, then those of each task, then the error.

    Raises:
        AdapterError: two tasks have a column of the same name.
    """
    require_own_columns(views)
    found = list(_FRAME)
    for view in views.values():
        first = pa.string() if view.task.kind == "classification" else pa.float32()
        found += zip(view.columns, [first, *[pa.float32()] * (len(view.columns) - 1)], strict=True)
    return [*found, (ERROR, pa.string())]


def row_of(answered: Answered, views: Mapping[str, View]) -> list[Any]:
    """The cells of ``columns``; None where there is no answer."""
    seen = answered.seen
    cells: list[Any] = [seen.file, seen.face, *(seen.box or [None] * 4)]
    for name, view in views.items():
        told = answered.answers.get(name)
        if view.task.kind == "classification":
            cells += [None, None] if told is None else [told["class"], told["probability"]]
        elif view.task.kind == "regression":
            cells.append(None if told is None else told["value"])
        elif told is None:
            cells += [None] * view.task.outputs
        else:
            cells += [number for point in told["points"] for number in point]
    return [*cells, seen.fault or None]


@contextlib.contextmanager
def answer_file(path: Path, views: Mapping[str, View]) -> Iterator[Write]:
    """Gives a function that writes one answer; the file gets its name when the block ends well.

    Args:
        path: its suffix tells the format, one of ``FORMATS``.

    Raises:
        AdapterError: see ``columns``.
        CommandError: another suffix.
        UserError: cannot be written (read-only, disk full).
    """
    openers = dict(zip(FORMATS, (_csv, _json_lines, _parquet), strict=True))
    if path.suffix.lower() not in openers:
        raise CommandError(f"output={path}: the name must end in {', '.join(FORMATS)}.")
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name[:80]}.", suffix=".tmp", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
    except OSError as error:
        raise cannot_write(error, path) from error
    try:
        with openers[path.suffix.lower()](temporary, views) as write:
            yield _telling(write, path)
        try:
            temporary.chmod(0o666 & ~_UMASK)
            temporary.replace(path)
        except OSError as error:
            raise cannot_write(error, path) from error
    finally:
        temporary.unlink(missing_ok=True)


def _telling(write: Write, path: Path) -> Write:
    def call(answered: Answered) -> None:
        try:
            write(answered)
        except OSError as error:
            raise cannot_write(error, path) from error

    return call


@contextlib.contextmanager
def _csv(path: Path, views: Mapping[str, View]) -> Iterator[Write]:
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow([name for name, _ in columns(views)])

        def write(answered: Answered) -> None:
            table.writerow(row_of(answered, views))

        yield write


@contextlib.contextmanager
def _json_lines(path: Path, views: Mapping[str, View]) -> Iterator[Write]:
    with path.open("w", encoding="utf-8") as file:

        def write(answered: Answered) -> None:
            file.write(json.dumps(answered.as_json()) + "\n")

        yield write


@contextlib.contextmanager
def _parquet(path: Path, views: Mapping[str, View]) -> Iterator[Write]:
    schema = pa.schema(columns(views))
    waiting: list[list[Any]] = []
    with pq.ParquetWriter(path, schema) as writer:

        def flush() -> None:
            cells = [list(column) for column in zip(*waiting, strict=True)] if waiting else [[] for _ in schema]
            arrays = [pa.array(column, kind.type) for column, kind in zip(cells, schema, strict=True)]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
            waiting.clear()

        def write(answered: Answered) -> None:
            waiting.append(row_of(answered, views))
            if len(waiting) >= _ROWS:
                flush()

        yield write
        flush()
