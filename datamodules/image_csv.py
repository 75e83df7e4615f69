"""Pictures listed in CSV files with a class, a number or points each.

``python train.py task=classification name=... data=image_csv data.root=DIR data.csv=labels.csv``
"""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd

from datamodules.base import BOX, SPLITS, Records, Source
from datamodules.csv_files import CsvFile, Faults, read_csv
from datamodules.prepare import LATER_SPLIT, TARGETS, Kind
from datamodules.splits import split_name
from launch.errors import DataError, DatasetNotFoundError, nearest

_MISSING = ("", "nan", "NaN", "NA", "null")
# Columns of the records that mean something to the pipeline: a CSV's own of these names must not decide anything.
_RESERVED = ("key", "file", "group", "split", "hash", "target", "stratum", *BOX)


class ImageCsv(Source):
    """One row a picture.

    Columns that no argument names become attributes of the records (numbers where every cell is one, else text), so
    that ``task.subsets`` can name those of 0 and 1; only the names that the pipeline itself uses (key, file, group,
    split, hash, target, stratum, left, top, right, bottom and the target's) are passed over. Attributes decide neither
    what is learned nor how it is split, so they are not in the data's fingerprint.

    Args:
        root: folder that everything lies in; no path may leave it.
        csv: file below the root, or a list of files, or a mapping split -> file (official splits).
        image_column: column with the picture's path, relative to ``image_dir``, to the CSV's folder or to
            the root (the first of these that exists).
        target_column: classification and regression: one column, by default "label" or "value". keypoints:
            the columns x, y of one point after another; by default all of x0, y0, x1, y1, ... in numeric
            order, in picture pixels.
        kind: classification | regression | keypoints.
        image_dir: folder of the pictures below the root, or a mapping split -> folder (of the row's split, by ``csv``
            or ``split_column``); None: see ``image_column``.
        split_column: official split of each row (train, val, test).
        group_column: rows with the same value (person, scene) are never separated.
        group_pattern: the same from the picture's path: a regular expression searched in it whose first
            bracket is the group, such as ``^(.*)_\\d+\\.jpg$``.
        box_scale: keypoints: cut a square around the points, its side so many longer sides of their own
            bounding box (as WFLW's pictures are cut from annotated boxes); None: the whole picture.
        name: of the data in result rows; the root folder's own name by default.
    """

    def __init__(
        self,
        root: str | Path,
        csv: str | Sequence[str] | Mapping[str, str] = "labels.csv",
        image_column: str = "file",
        target_column: str | Sequence[str] | None = None,
        kind: Kind = "classification",
        image_dir: str | Mapping[str, str] | None = None,
        split_column: str | None = None,
        group_column: str | None = None,
        group_pattern: str | None = None,
        box_scale: float | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(root=root, name=name or Path(root).expanduser().resolve().name)
        if kind not in TARGETS:
            raise DataError(f"kind={kind} must be one of {', '.join(TARGETS)}.{nearest(str(kind), TARGETS)}")
        if box_scale is not None and (kind != "keypoints" or not box_scale > 0):
            raise DataError(f"data.box_scale={box_scale} must be more than 0, and is for keypoints only.")
        self.files = _csv_files(csv)
        self.box_scale = box_scale
        self.image_column = image_column
        self.target_column = target_column
        self.kind = kind
        self.image_dir = _image_dirs(image_dir)
        if isinstance(image_dir, Mapping) and split_column is None and not isinstance(csv, Mapping):
            raise DataError(
                f"data.image_dir={dict(image_dir)}: which row is of which split is not known; give data.split_column, "
                "or data.csv as a mapping split -> file."
            )
        self.split_column = split_column
        self.group_column = group_column
        try:
            self.group_pattern = re.compile(group_pattern) if group_pattern else None
        except re.error as error:
            raise DataError(f"data.group_pattern={group_pattern} is not a regular expression: {error}") from error
        if self.group_pattern is not None and not self.group_pattern.groups:
            raise DataError(f"data.group_pattern={group_pattern} has no bracket () around the group's name.")

    def check(self) -> None:
        if not self.root.is_dir():
            raise DatasetNotFoundError(f"There is no folder {self.root}. Name the folder of the data: data.root=DIR")
        for _, file in self.files:
            if not (self.root / file).is_file():
                here = sorted(path.name for path in (self.root / file).parent.glob("*.csv"))
                raise DatasetNotFoundError(
                    f"There is no file {self.root / file}.{nearest(Path(file).name, here)} "
                    f"CSV files there: {', '.join(here) or 'none'}. Name the file: data.csv=FILE"
                )
        faults = Faults()
        for _, file in self.files:
            self._columns(read_csv(self.root / file, file, faults), faults)
        faults.raise_if_any("Name the columns that there are.")

    def records(self) -> Records:
        """Reads the CSV files; of a picture listed in several splits only the copy in the last of them is kept.

        Raises:
            DataError: all faults at once, each with its first five lines: missing column or picture, empty or
                non-numeric or non-finite value, a path that leaves the root, a picture listed twice with
                different targets, rows of the wrong length, no rows.
        """
        self.check()
        faults = Faults()
        rows: dict[str, dict[str, Any]] = {}
        dropped: Counter[str] = Counter()
        for split, name in self.files:
            file = read_csv(self.root / name, name, faults)
            columns = self._columns(file, faults)
            if columns is None:
                continue
            others = self._others(file, columns)
            order = {name: number for number, name in enumerate(others)}
            for line, cells in file.rows:
                row = self._row(file, line, cells, columns, split, faults)
                if row is None:
                    continue
                key, row["place"] = row["key"], f"{name} line {line}"
                row["others"] = order, [cells[position].strip() for position in others.values()]
                earlier = rows.setdefault(key, row)
                if earlier is row:
                    continue
                if not np.array_equal(earlier["target"], row["target"]):
                    where = f"{key}, first in {earlier['place']}"
                    faults.add("listed twice with different targets", name, line, where)
                    continue
                one, other = earlier.get("split"), row.get("split")
                dropped["row repeated" if one == other else LATER_SPLIT] += 1
                if one != other and SPLITS.index(other) > SPLITS.index(one):
                    rows[key] = row | {"place": earlier["place"]}
        faults.raise_if_any()
        if not rows:
            raise DataError(f"{', '.join(name for _, name in self.files)} in {self.root} has no rows.")
        table = pd.DataFrame(rows.values()).rename(columns={"target": TARGETS[self.kind]})
        table.insert(1, "file", table["key"])
        attributes = _attributes(list(table["others"]))
        table = pd.concat([table.drop(columns=["place", "others"]), attributes], axis=1)
        if self.box_scale is not None:
            table[list(BOX)] = np.stack([_box(points, self.box_scale) for points in table["points"]])
        return Records(table, dict(dropped))

    def _columns(self, file: CsvFile, faults: Faults) -> dict[str, list[int]] | None:
        """Positions of the columns in this file by role, or None when one is missing (told to ``faults``)."""
        target = self._target_names(file.header)
        if not target:
            faults.add("no columns x0, y0, x1, y1, ... for points", file.name, 1, f"columns: {_short(file.header)}")
            return None
        roles = {"image": [self.image_column], "target": target}
        roles |= {"split": [self.split_column]} if self.split_column else {}
        roles |= {"group": [self.group_column]} if self.group_column else {}
        options = {
            "image": "image_column",
            "target": "target_column",
            "split": "split_column",
            "group": "group_column",
        }
        missing = [(role, name) for role, names in roles.items() for name in names if name not in file.header]
        for role, name in missing:
            faults.add(
                f"no column '{name}' (data.{options[role]}).{nearest(name, file.header)} "
                f"Columns: {_short(file.header)}",
                file.name, 1,
            )  # fmt: skip
        if missing:
            return None
        return {role: [file.header.index(name) for name in names] for role, names in roles.items()}

    def _others(self, file: CsvFile, columns: dict[str, list[int]]) -> dict[str, int]:
        """Name -> position of the columns that become attributes."""
        used = {file.header[position] for positions in columns.values() for position in positions}
        passed = used | {"", TARGETS[self.kind], *_RESERVED}
        return {name: position for position, name in enumerate(file.header) if name not in passed}

    def _target_names(self, header: Sequence[str]) -> list[str]:
        if isinstance(self.target_column, str):
            names = [self.target_column]
        elif self.target_column is not None:
            names = [str(name) for name in self.target_column]
        elif self.kind != "keypoints":
            return [TARGETS[self.kind]]
        else:
            numbers = sorted({int(name[1:]) for name in header if re.fullmatch(r"[xy]\d+", name)})
            return [f"{axis}{number}" for number in numbers for axis in "xy"]
        if self.kind == "keypoints" and (len(names) < 2 or len(names) % 2):
            raise DataError(f"data.target_column={names}: points need x, y columns in pairs.")
        if self.kind != "keypoints" and len(names) != 1:
            raise DataError(f"data.target_column={names}: {self.kind} learns one column.")
        return names

    def _row(
        self,
        file: CsvFile,
        line: int,
        cells: Sequence[str],
        columns: dict[str, list[int]],
        split: str | None,
        faults: Faults,
    ) -> dict[str, Any] | None:
        before = faults.count
        if "split" in columns:
            try:
                split = split_name(cells[columns["split"][0]])
            except DataError as error:
                faults.add("not a split (train, val, test)", file.name, line, str(error).split(" is ")[0])
                return None  # the picture's folder may depend on it
        key = self._locate(cells[columns["image"][0]].strip(), split, file, line, faults)
        target = self._target([cells[position].strip() for position in columns["target"]], file, line, columns, faults)
        row: dict[str, Any] = {"key": key, "target": target}
        if split is not None:
            row["split"] = split
        if "group" in columns:
            row["group"] = cells[columns["group"][0]].strip() or None
        elif self.group_pattern is not None and key is not None:
            match = self.group_pattern.search(key)
            if match is None:
                faults.add("data.group_pattern does not match", file.name, line, key)
            else:
                row["group"] = match.group(1)
        return row if faults.count == before else None

    def _target(
        self, cells: list[str], file: CsvFile, line: int, columns: dict[str, list[int]], faults: Faults
    ) -> str | float | np.ndarray | None:
        names = [file.header[position] for position in columns["target"]]
        empty = [name for name, cell in zip(names, cells, strict=True) if cell in _MISSING]
        if empty:
            faults.add(f"no value in column '{empty[0]}'", file.name, line)
            return None
        if self.kind == "classification":
            return cells[0]
        try:
            numbers = np.array([float(cell) for cell in cells])
        except ValueError:
            bad = next((name, cell) for name, cell in zip(names, cells, strict=True) if not _is_number(cell))
            faults.add(f"not a number in column '{bad[0]}'", file.name, line, f"'{bad[1]}'")
            return None
        if not np.isfinite(numbers).all():
            faults.add("not a finite number", file.name, line)
            return None
        return numbers.reshape(-1, 2) if self.kind == "keypoints" else float(numbers[0])

    def _locate(self, path: str, split: str | None, file: CsvFile, line: int, faults: Faults) -> str | None:
        """Posix path of the picture relative to the root."""
        inner = PurePosixPath(path.replace("\\", "/"))
        if not path:
            faults.add(f"no value in column '{self.image_column}'", file.name, line)
            return None
        if _leaves_root(path):
            faults.add("a path that leaves data.root", file.name, line, path)
            return None
        folder = self.image_dir if isinstance(self.image_dir, str | None) else self.image_dir.get(split or "")
        for base in dict.fromkeys((folder or file.folder, file.folder, "")):
            candidate = (PurePosixPath(base) / inner).as_posix()
            if (self.root / candidate).is_file():
                return candidate
        faults.add("picture is missing", file.name, line, path)
        return None


def _attributes(rows: Sequence[tuple[dict[str, int], list[str]]]) -> pd.DataFrame:
    """A column for each name in any of the rows (name -> place, cells); rows of a CSV without it have no value."""
    orders = {id(order): order for order, _ in rows}.values()
    names = dict.fromkeys(name for order in orders for name in order)
    return pd.DataFrame(
        {name: _attribute([cells[order[name]] if name in order else "" for order, cells in rows]) for name in names},
        index=range(len(rows)),
    )


def _attribute(cells: Sequence[str]) -> pd.Series:
    """float64 where every cell that holds something is a number, else text."""
    try:
        return pd.Series([math.nan if cell in _MISSING else float(cell) for cell in cells], dtype="float64")
    except ValueError:
        return pd.Series([None if cell in _MISSING else cell for cell in cells], dtype=object)


def _box(points: np.ndarray, scale: float) -> np.ndarray:
    """left, top, right, bottom of a square around points (K, 2)."""
    low, high = points.min(axis=0), points.max(axis=0)
    half = scale * (high - low).max() / 2
    return np.concatenate([(low + high) / 2 - half, (low + high) / 2 + half])


def _csv_files(csv: str | Sequence[str] | Mapping[str, str]) -> list[tuple[str | None, str]]:
    pairs: list[tuple[str | None, str]]
    if isinstance(csv, str):
        pairs = [(None, csv)]
    elif isinstance(csv, Mapping):
        pairs = [(split_name(split), str(file)) for split, file in csv.items()]
    else:
        pairs = [(None, str(file)) for file in csv]
    if not pairs:
        raise DataError("data.csv names no file.")
    for _, file in pairs:
        if _leaves_root(file):
            raise DataError(f"data.csv={file} must be a path below data.root.")
    return pairs


def _image_dirs(given: str | Mapping[str, str] | None) -> str | dict[str, str] | None:
    """As given, with the usual names of the splits."""
    for folder in given.values() if isinstance(given, Mapping) else [given or ""]:
        if _leaves_root(str(folder)):
            raise DataError(f"data.image_dir={folder} must be a folder below data.root.")
    return {split_name(split): str(folder) for split, folder in given.items()} if isinstance(given, Mapping) else given


def _leaves_root(path: str) -> bool:
    inner = PurePosixPath(path.replace("\\", "/"))
    return inner.is_absolute() or ".." in inner.parts or re.match(r"[A-Za-z]:", path) is not None


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _short(names: Sequence[str], most: int = 20) -> str:
    return ", ".join(names[:most]) + (f", ... ({len(names)} in all)" if len(names) > most else "")
