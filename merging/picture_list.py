"""What ``images=`` may name: a picture, a folder, a glob, a CSV, or a list of them. Only globs are listed in memory."""

import csv
import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from datamodules.csv_files import read_header
from datamodules.decode import SUFFIXES
from launch.errors import CommandError, DataError, nearest


def check_images(images: Sequence[str], column: str = "file") -> None:
    """Cheap: looks at names, and at a CSV's header.

    Raises:
        CommandError: there is no such file or folder, or a glob that nothing matches.
        DataError: a CSV has no such column.
    """
    for text in images:
        path = Path(text).expanduser()
        if path.is_file() and path.suffix.lower() == ".csv":
            _header(path, column)
        if path.exists():
            continue
        if not glob.has_magic(text):
            folder = path.parent
            near = (
                nearest(path.name, (entry.name for entry in folder.iterdir()))
                if folder.is_dir()
                else f" There is no folder {folder}."
            )
            raise CommandError(f"images={text}: there is no such file or folder.{near}")
        if next(glob.iglob(str(path), recursive=True), None) is None:  # noqa: PTH207 - takes absolute patterns
            raise CommandError(
                f"images={text}: nothing matches. Quote it for the shell, e.g. 'images=\"DIR/**/*.jpg\"'."
            )


def list_pictures(images: Sequence[str], column: str = "file") -> Iterator[Path]:
    """Paths of pictures, one by one, those of a folder or a glob sorted by name.

    Folders are searched to the bottom for files with a picture's suffix (those that begin with a dot are passed over,
    links to folders are not followed); files that are named, matched by a glob or listed in a CSV are taken whatever
    their suffix.

    Args:
        column: of a CSV that holds the files, relative to the CSV's folder or absolute.

    Raises:
        DataError: a CSV cannot be read or has no such column.
    """
    for text in images:
        path = Path(text).expanduser()
        if path.is_dir():
            yield from _walk(path)
        elif path.is_file():
            yield from _read_csv(path, column) if path.suffix.lower() == ".csv" else [path]
        elif glob.has_magic(text):
            yield from matches(path)
        else:
            yield path  # gone since the command was checked: told as unreadable


def matches(pattern: Path) -> list[Path]:
    """The files that a glob finds, sorted: a file system gives them in an order of its own."""
    found = map(Path, glob.iglob(str(pattern), recursive=True))  # noqa: PTH207 - takes absolute patterns
    return sorted(path for path in found if path.is_file())


def _walk(root: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                yield Path(folder) / name


def _header(path: Path, column: str) -> tuple[list[str], str]:
    names, delimiter = read_header(path)
    if column not in names:
        near = nearest(column, names)
        raise DataError(
            f"{path} has no column {column!r} but: {', '.join(names)}.{near} Name the files' one: column=NAME"
        )
    return names, delimiter


def _read_csv(path: Path, column: str) -> Iterator[Path]:
    names, delimiter = _header(path, column)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file, names, delimiter=delimiter)
            next(rows)
            for row in rows:
                if name := (row[column] or "").strip():
                    yield path.parent / name
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as a CSV in UTF-8: {error}.") from error
