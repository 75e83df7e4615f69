"""Datasets in the Hugging Face Hub's parquet files, read as they lie there: pictures are not unpacked to files."""

import collections
import hashlib
import io
import json
import re
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from datamodules.decode import MAX_PIXELS, BrokenImageError, read_image
from datamodules.hashes import UNREADABLE
from datamodules.splits import split_name
from launch.errors import DataError

_KEPT = 2  # row groups in memory: threads that read in order are seldom further apart
_SHARD = re.compile(r"(?P<split>[A-Za-z]+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?:-[0-9a-f]+)?\.parquet")
_KEY = re.compile(r"(?P<file>.+\.parquet) row (?P<row>\d{7})")


def find_parquet(root: Path) -> dict[str, str]:
    """Posix paths below ``root`` of all parquet files -> train, val or test, sorted by path.

    The split is told by the file's name (``train-00000-of-00005.parquet``) or its folder's (``train/0000.parquet``);
    where neither tells it, it is train.

    Raises:
        DataError: some of a split's numbered files are missing.
    """
    found: dict[str, str] = {}
    shards: dict[tuple[str, str, int], set[int]] = {}
    paths = {path.relative_to(root).as_posix(): path for path in root.rglob("*.parquet")} if root.is_dir() else {}
    for name in sorted(name for name in paths if not any(part.startswith(".") for part in name.split("/"))):
        match = _SHARD.fullmatch(paths[name].name)
        if match is not None:
            folder = name.rpartition("/")[0]
            shards.setdefault((folder, match["split"], int(match["count"])), set()).add(int(match["number"]))
        found[name] = _split_of(match["split"] if match is not None else paths[name].parent.name)
    for (folder, split, count), numbers in shards.items():
        if missing := sorted(set(range(count)) - numbers):
            raise DataError(
                f"{root / folder} has {len(numbers)} of the {count} files {split}-*-of-{count:05d}.parquet; missing: "
                f"{', '.join(f'{number:05d}' for number in missing[:5])}{' ...' * (len(missing) > 5)}. Fetch these too."
            )
    return found


def _split_of(word: str) -> str:
    try:
        return split_name(word)
    except DataError:
        return "train"


class ParquetPictures:
    """All rows of a folder's parquet files; may be read by several threads at once.

    A row's key is ``<file> row <number>``, so that rows in the order of their keys are read from front to back and
    each row group is read once.
    """

    def __init__(self, root: Path) -> None:
        """Looks at the files' schemas only.

        Raises:
            DataError: no file, not parquet, files of different columns, or none or several columns of pictures.
        """
        self.root = root
        self.splits = find_parquet(root)
        if not self.splits:
            raise DataError(f"{root} has no parquet files.")
        self._files = {name: _open(root / name) for name in self.splits}
        schemas = {name: file.schema_arrow for name, file in self._files.items()}
        first = next(iter(schemas))
        self.schema = schemas[first]
        for name, schema in schemas.items():
            if not schema.equals(self.schema):
                raise DataError(f"{root}: {name} has other columns ({', '.join(schema.names)}) than {first}.")
        pictures = [field.name for field in self.schema if _holds_pictures(field.type)]
        if len(pictures) != 1:
            raise DataError(
                f"{root}: {len(pictures)} columns hold pictures, wanted one; the columns are "
                f"{', '.join(f'{field.name} ({field.type})' for field in self.schema)}."
            )
        self.picture_column = pictures[0]
        self._in_struct = pa.types.is_struct(self.schema.field(self.picture_column).type)
        self._starts = {name: _group_starts(file) for name, file in self._files.items()}
        self._groups: collections.OrderedDict[tuple[str, int], pa.ChunkedArray] = collections.OrderedDict()
        self._lock = threading.Lock()

    def table(self) -> pd.DataFrame:
        """``key``, ``split``, ``path`` (the picture's name where one is told) and every column but the pictures."""
        parts = []
        others = [name for name in self.schema.names if name != self.picture_column]
        named = self._in_struct and self.schema.field(self.picture_column).type.get_field_index("path") >= 0
        wanted = [*others, f"{self.picture_column}.path"] if named else others
        for name, file in self._files.items():
            read = file.read(columns=wanted)
            part = read.select(others).to_pandas()
            if named:
                part["path"] = [(value or {}).get("path") for value in read.column(self.picture_column).to_pylist()]
            count = file.metadata.num_rows
            part.insert(0, "key", [f"{name} row {row:07d}" for row in range(count)])
            part.insert(1, "split", self.splits[name])
            parts.append(part)
        return pd.concat(parts, ignore_index=True)

    def class_names(self, column: str) -> list[str] | None:
        """What the numbers of a label column mean, as the Hub's ``ClassLabel`` keeps it in the files."""
        kept = (self.schema.metadata or {}).get(b"huggingface")
        if kept is None:
            return None
        feature = json.loads(kept).get("info", {}).get("features", {}).get(column) or {}
        names = feature.get("names")
        return None if names is None else [str(name) for name in names]

    def encoded(self, key: str) -> bytes:
        """The picture's file.

        Raises:
            BrokenImageError: the row has none.
        """
        match = _KEY.fullmatch(key)
        assert match is not None, key  # keys are our own
        name, row = match["file"], int(match["row"])
        starts = self._starts[name]
        group = int(np.searchsorted(starts, row, side="right")) - 1
        with self._lock:
            values = self._groups.get((name, group))
            if values is None:
                leaf = f"{self.picture_column}.bytes" if self._in_struct else self.picture_column
                try:
                    values = self._files[name].read_row_group(group, columns=[leaf], use_threads=False).column(0)
                except (OSError, pa.ArrowInvalid) as error:
                    raise DataError(f"{self.root / name} is damaged: {error}. Delete it and fetch it again.") from error
                self._groups[name, group] = values
                while len(self._groups) > _KEPT:
                    self._groups.popitem(last=False)
        value = values[row - int(starts[group])].as_py()
        content = (value or {}).get("bytes") if self._in_struct else value
        if not content:
            raise BrokenImageError("the row has no picture")
        return bytes(content)

    def read(self, key: str, max_pixels: int = MAX_PIXELS, side: int | None = None) -> np.ndarray:
        """The picture, uint8 (H, W, 3); see ``decode.read_image``."""
        return read_image(io.BytesIO(self.encoded(key)), max_pixels, side)

    def digest(self, key: str) -> str:
        """Content hash of the picture's file."""
        try:
            return hashlib.sha256(self.encoded(key)).hexdigest()
        except BrokenImageError:
            return UNREADABLE + key

    def stamp(self, key: str) -> tuple[int, int]:
        """Size and mtime of the parquet file."""
        status = (self.root / key.rpartition(" row ")[0]).stat()
        return status.st_size, status.st_mtime_ns


def label_names(pictures: ParquetPictures, values: Sequence[Any], column: str, known: Sequence[str]) -> list[str]:
    """A dataset's own spelling of the class of each row.

    Args:
        pictures: where ``column`` is.
        values: of that column: names in any case, or numbers.
        column: of labels.
        known: the dataset's names, in the order that numbers without names of their own count in.

    Raises:
        DataError: there is another class.
    """
    names = pictures.class_names(column) or list(known)
    spelling = {name.lower(): name for name in known}
    result = []
    for value in values:
        number = isinstance(value, int | np.integer)
        name = names[value] if number and 0 <= value < len(names) else str(value)
        if name.lower() not in spelling:
            raise DataError(f"{pictures.root}: {column} has '{name}'; the classes are {', '.join(known)}.")
        result.append(spelling[name.lower()])
    return result


def _open(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path, memory_map=True)
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{path} is not a whole parquet file: {error}. Delete it and fetch it again.") from error


def _holds_pictures(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return index >= 0 and _holds_pictures(kind.field(index).type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _group_starts(file: pq.ParquetFile) -> np.ndarray:
    counts = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    return np.concatenate([[0], np.cumsum(counts)[:-1]]).astype(np.int64)
