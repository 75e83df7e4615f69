"""From a dataset's records to the table that is trained on: one deterministic pipeline for every source."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd

from datamodules.base import BOX, SPLITS, Records
from datamodules.classes import ClassMap, map_classes
from datamodules.splits import assign_splits, check_fractions, merge_groups, seeded_rank, split_name
from launch.errors import DataError, nearest

Kind = Literal["classification", "regression", "keypoints"]
TARGETS: dict[str, str] = {"classification": "label", "regression": "value", "keypoints": "points"}
LATER_SPLIT = "same picture in a later official split"  # reason for leaving out the earlier copies
_FORMAT = "records-1"
_QUANTILES = 10


@dataclass(frozen=True)
class Prepared:
    """The examples to learn from, all decided.

    Attributes:
        table: sorted by key; columns key, file and box (when the records have them), ``target`` (int class
            index | float | float64 (K, 2) in picture pixels), group, split, hash, and the source's attribute
            columns.
        classes: names by index (classification), else None.
        fingerprint: sha256 hex over key, content hash, box, target and split of all rows; equal on every
            machine.
        dropped: reason -> examples left out, the parser's own included.
        counts: split -> class name (or "all") -> examples.
        notes: what a reader of the results should know.
    """

    table: pd.DataFrame
    classes: list[str] | None
    fingerprint: str
    dropped: dict[str, int]
    counts: dict[str, dict[str, int]]
    notes: list[str] = field(default_factory=list)


def prepare_table(
    records: Records,
    kind: Kind,
    target: str | None,
    classes: ClassMap,
    size: int | Literal["full"],
    split: tuple[float, float],
    split_seed: int,
    hashes: Mapping[str, str],
) -> Prepared:
    """Groups, class mapping, missing targets, duplicates, downsampling, split and fingerprint, in this order.

    Args:
        records: what the source tells.
        kind: classification | regression | keypoints.
        target: column of the records; None is label, value or points by kind.
        classes: see ``map_classes``; only for classification.
        size: examples to keep; "full" is all. The choice is seeded, smaller sizes are subsets of larger
            ones, and classes are as even as the rare ones allow.
        split: fractions for val and test, see ``assign_splits``.
        split_seed: of downsampling and split.
        hashes: key -> content hash. Equal pictures are one group; where they lie in different official
            splits only the copies in the last of train, val, test are kept.

    Raises:
        DataError: no such target column or class, nothing left, or a fraction or size that cannot be.
    """
    check_fractions(*split)
    if size != "full" and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
        raise DataError(f"data.size={size} must be a whole number of at least 1, or full.")
    table = records.table.sort_values("key", kind="stable").reset_index(drop=True)
    if table["key"].duplicated().any():
        twice = table.loc[table["key"].duplicated(), "key"].iloc[0]
        raise DataError(f"Two examples have the key '{twice}'.")
    dropped, notes = Counter(records.dropped), list(records.notes)
    table["hash"] = [hashes[key] for key in table["key"]]
    if "split" in table:
        table["split"] = [split_name(word) if isinstance(word, str) else None for word in table["split"]]

    # Before anything is dropped: two examples that a dropped one links belong together without it.
    links = [table[column] for column in ("group", "file", "hash") if column in table]
    table["group"] = merge_groups(list(table["key"]), links)
    table, names = _set_target(table, kind, _target_column(table, kind, target), classes, records.classes, dropped)
    table = _drop_leaks(table, dropped)
    table["group"] = merge_groups(list(table["key"]), [table["group"]])  # named by those that are left
    notes += _conflicts(table, kind)
    table = _downsample(table, kind, size, split_seed, dropped)
    official = list(table["split"]) if "split" in table else None
    table["split"], said = assign_splits(list(table["group"]), _strata(table, kind), split, split_seed, official)
    notes += said
    if not (table["split"] == "train").any():
        raise DataError("Nothing is left to train on.")
    counts = split_counts(table, names)
    if unseen := [name for name in names or () if not counts["train"][name]]:
        notes.append(f"no training example of {', '.join(unseen)}: such pictures cannot be answered rightly")
    return Prepared(table, names, _fingerprint(table, kind, names), dict(dropped), counts, notes)


def check_target(records: Records, kind: Kind, target: str | None, classes: ClassMap) -> None:
    """Refuses what ``prepare_table`` would refuse of target and classes, without a hash of any picture.

    Raises:
        DataError: no such target column or class, or nothing to learn.
    """
    table = records.table.copy()
    _set_target(table, kind, _target_column(table, kind, target), classes, records.classes, Counter())


def split_counts(table: pd.DataFrame, classes: Sequence[str] | None) -> dict[str, dict[str, int]]:
    """split -> class name (or "all") -> number of examples."""
    result: dict[str, dict[str, int]] = {}
    for name in SPLITS:
        targets = table.loc[table["split"] == name, "target"]
        if classes is None:
            result[name] = {"all": len(targets)}
        else:
            found = Counter(int(index) for index in targets)
            result[name] = {label: found[index] for index, label in enumerate(classes)}
    return result


def _target_column(table: pd.DataFrame, kind: Kind, target: str | None) -> str:
    name = target or TARGETS[kind]
    if name not in table:
        reserved = {"key", "file", "group", "split", "hash", *BOX}
        known = [str(column) for column in table.columns if column not in reserved]
        raise DataError(
            f"The records have no column '{name}' to learn (task.target).{nearest(name, known)} "
            f"There are: {', '.join(known) or 'none'}."
        )
    if kind == "keypoints" and not any(np.ndim(value) == 2 for value in table[name]):
        raise DataError(f"The column '{name}' of the records holds no points to learn (task.target).")
    return name


def _set_target(
    table: pd.DataFrame,
    kind: Kind,
    column: str,
    classes: ClassMap,
    official: Sequence[str] | None,
    dropped: Counter[str],
) -> tuple[pd.DataFrame, list[str] | None]:
    values = table.pop(column)
    names: list[str] | None = None
    missing = _missing(values, kind)
    dropped[f"no {column}"] += int(missing.sum())
    if kind == "classification":
        labels = [None if gone else _label(value) for value, gone in zip(values, missing, strict=True)]
        mapped, names = map_classes(labels, classes, official)
        unlisted = np.array([label is None for label in mapped], bool) & ~missing
        dropped["class not in data.classes"] += int(unlisted.sum())
        missing |= unlisted
        index = {name: position for position, name in enumerate(names)}
        table["target"] = pd.Series([-1 if name is None else index[name] for name in mapped], dtype="int64")
    elif kind == "regression":
        table["target"] = pd.to_numeric(values, errors="coerce").astype("float64")
    else:
        table["target"] = values
    table = table[~missing].reset_index(drop=True)
    for reason in [reason for reason, count in dropped.items() if not count]:
        del dropped[reason]
    if table.empty:
        raise DataError(f"No example is left ({dict(dropped)}): there is nothing to learn.")
    if names is not None:
        absent = sorted(set(range(len(names))) - set(table["target"]))
        if absent:
            raise DataError(f"No example has the class {', '.join(repr(names[position]) for position in absent)}.")
        if len(names) < 2:
            raise DataError(f"There is only one class, '{names[0]}': nothing to tell apart.")
    if kind == "keypoints" and len({np.shape(points) for points in table["target"]}) > 1:
        raise DataError("Some examples have more points than others.")
    return table, names


def _label(value: Any) -> str:
    return str(int(value)) if isinstance(value, float | np.floating) and value == int(value) else str(value)


def _missing(values: pd.Series, kind: Kind) -> np.ndarray:
    if kind == "classification":
        return np.array([value is None or value != value or value == "" for value in values], bool)
    if kind == "regression":
        return ~np.isfinite(pd.to_numeric(values, errors="coerce").to_numpy("float64"))
    return np.array([value is None or not np.isfinite(np.asarray(value, float)).all() for value in values], bool)


def _drop_leaks(table: pd.DataFrame, dropped: Counter[str]) -> pd.DataFrame:
    if "split" not in table:
        return table
    order = table["split"].map({name: position for position, name in enumerate(SPLITS)})
    last = order.groupby(table["hash"]).transform("max")
    leaks = (order < last).to_numpy(bool)
    if leaks.any():
        dropped[LATER_SPLIT] += int(leaks.sum())
    return table[~leaks].reset_index(drop=True)


def _conflicts(table: pd.DataFrame, kind: Kind) -> list[str]:
    """Notes copies of one picture (and box) whose targets differ: only a person can mend them."""
    if kind == "keypoints":
        return []
    columns = ["hash", *(column for column in BOX if column in table)]
    differ = int((table.groupby(columns)["target"].nunique() > 1).sum())
    return [f"{differ} pictures occur more than once with different targets"] if differ else []


def _strata(table: pd.DataFrame, kind: Kind) -> np.ndarray:
    """What the choice is balanced by and the split is stratified by: the class; else the source's own strata."""
    if kind == "classification":
        return table["target"].to_numpy("int64")
    if "stratum" in table:
        return np.unique(table["stratum"].to_numpy(str), return_inverse=True)[1].astype("int64")
    strata = np.zeros(len(table), np.int64)
    if kind == "regression":
        # Ranks, not computed quantiles: comparisons give the same strata on every machine.
        order = np.lexsort((table["key"].to_numpy(str), table["target"].to_numpy("float64")))
        for position, rows in enumerate(np.array_split(order, min(_QUANTILES, max(1, len(table) // 20)))):
            strata[rows] = position
    return strata


def _downsample(
    table: pd.DataFrame, kind: Kind, size: int | Literal["full"], seed: int, dropped: Counter[str]
) -> pd.DataFrame:
    if size == "full" or size >= len(table):
        return table
    rank = seeded_rank(table["key"], seed)
    balanced = kind == "classification" or "stratum" in table
    strata = _strata(table, kind) if balanced else np.zeros(len(table), np.int64)
    counts = np.bincount(strata)
    kept: list[np.ndarray] = []
    left = size
    for position, stratum in enumerate(np.argsort(counts, kind="stable")):
        quota = min(int(counts[stratum]), left // (len(counts) - position))
        rows = np.flatnonzero(strata == stratum)
        kept.append(rows[np.argsort(rank[rows], kind="stable")][:quota])
        left -= quota
    dropped["downsampled to data.size"] += len(table) - size
    if kind == "classification" and any(len(rows) == 0 for rows in kept):
        raise DataError(f"data.size={size} leaves no example for some of the {len(counts)} classes.")
    return table.iloc[np.sort(np.concatenate(kept))].reset_index(drop=True)


def _fingerprint(table: pd.DataFrame, kind: Kind, classes: Sequence[str] | None) -> str:
    digest = hashlib.sha256()

    def add(part: str | bytes) -> None:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little") + data)

    for part in (_FORMAT, kind, *(classes or [])):
        add(part)
    boxes = table[list(BOX)].to_numpy("<f8") if set(BOX) <= set(table.columns) else None
    rows = zip(table["key"], table["hash"], table["target"], table["split"], strict=True)
    for row, (key, content, target, split) in enumerate(rows):
        add(key)
        add(content)
        add(b"" if boxes is None else boxes[row].tobytes())
        add(str(int(target)) if kind == "classification" else np.asarray(target, "<f8").tobytes())
        add(split)
    return digest.hexdigest()
