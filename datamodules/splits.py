"""Seeded train/val/test splits that never separate a group."""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from launch.errors import DataError, nearest

SPELLINGS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}


def split_name(word: object) -> str:
    """train, val or test from the usual spellings.

    Raises:
        DataError: another word.
    """
    name = SPELLINGS.get(str(word).strip().lower())
    if name is None:
        hint = nearest(str(word), SPELLINGS)
        raise DataError(f"'{word}' is not a split; allowed are train, val and test.{hint}")
    return name


def seeded_rank(names: Iterable[str], seed: int) -> np.ndarray:
    """uint64 for each name: an order that depends on seed and name alone, whatever else is in the list."""
    return np.array(
        [int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8]) for name in names], np.uint64
    )


def merge_groups(keys: Sequence[str], links: Iterable[Sequence[Any]]) -> list[str]:
    """Connected components: examples that share a value in any of the links end in one group.

    Args:
        keys: one unique name an example.
        links: columns as long as keys (declared group, file, content hash); None and NaN link nothing.

    Returns:
        For each example the smallest key of its group.
    """
    parent = list(range(len(keys)))

    def find(node: int) -> int:
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    for column in links:
        first: dict[Any, int] = {}
        for row, value in enumerate(column):
            if value is None or value != value:
                continue
            one, other = find(first.setdefault(value, row)), find(row)
            if keys[one] <= keys[other]:
                parent[other] = one
            else:
                parent[one] = other
    return [keys[find(row)] for row in range(len(keys))]


def assign_splits(
    groups: Sequence[str],
    strata: np.ndarray,
    fractions: tuple[float, float],
    seed: int,
    official: Sequence[str | None] | None = None,
) -> tuple[np.ndarray, list[str]]:
    """Which split each example belongs to.

    Without official splits the fractions of examples are cut from each stratum (class, or quantile of the
    target): groups go in the order of sha256(seed:group) to test, then to val, the rest to train. A group
    that would overshoot is passed over; a stratum of three groups or more is present in every split. One of
    fewer is all train; where all are, the second groups of those with two are cut as one stratum. Official
    splits are kept as they are. Where val is missing it is carved from train, and where test is missing it is
    carved from train too (never from val, whose published scores stay comparable); the fraction is then one of
    the official train split. A lone official split is no split: it is divided like everything else.

    Args:
        groups: group name of each example.
        strata: int of each example; a group counts where most of its examples lie.
        fractions: of val and of test.
        seed: of the order inside a stratum.
        official: split of each example, where the dataset has such.

    Returns:
        Array of "train", "val", "test", and notes on what was carved or straddles.

    Raises:
        DataError: some but not all examples have an official split, or there is no train split among them.
    """
    result = np.full(len(groups), "train", object)
    notes: list[str] = []
    wanted = {"test": fractions[1], "val": fractions[0]}
    given = [] if official is None else [name for name in official if isinstance(name, str)]
    if given and len(given) != len(groups):
        raise DataError(f"{len(groups) - len(given)} of {len(groups)} examples have no official split.")
    present = set(given)
    if len(present) > 1:
        if "train" not in present:
            raise DataError("The official splits are val and test only: there is nothing to train on.")
        result[:] = given
        straddling = _straddling(groups, given)
        if straddling:
            notes.append(f"{straddling} groups straddle the official splits, which were kept as published")
        wanted = {name: share for name, share in wanted.items() if name not in present}
        notes += [f"the official splits have no {name}: carved from train" for name in wanted]
    elif present:
        notes.append(f"all examples are officially {given[0]}: split as if there were no official split")
    rows = np.flatnonzero(result == "train")
    if wanted and len(rows):
        result[rows] = _carve([groups[row] for row in rows.tolist()], strata[rows], wanted, seed)
    return result, notes


def _straddling(groups: Sequence[str], given: Sequence[str]) -> int:
    places: dict[str, set[str]] = {}
    for group, name in zip(groups, given, strict=True):
        places.setdefault(group, set()).add(name)
    return sum(len(names) > 1 for names in places.values())


def _carve(groups: Sequence[str], strata: np.ndarray, wanted: dict[str, float], seed: int) -> np.ndarray:
    members: dict[str, list[int]] = {}
    for row, group in enumerate(groups):
        members.setdefault(group, []).append(row)
    by_stratum: dict[int, list[str]] = {}
    for group, rows in members.items():
        values, counts = np.unique(strata[rows], return_counts=True)
        by_stratum.setdefault(int(values[counts.argmax()]), []).append(group)
    if all(len(names) < 3 for names in by_stratum.values()):  # else nothing would be left to validate or test on
        by_stratum = {0: [by_stratum[stratum][1] for stratum in sorted(by_stratum) if len(by_stratum[stratum]) == 2]}
    result = np.full(len(groups), "train", object)
    for stratum in sorted(by_stratum):
        names = by_stratum[stratum]
        rank = dict(zip(names, seeded_rank(names, seed).tolist(), strict=True))
        queue = sorted(names, key=lambda name: (rank[name], name))
        total = sum(len(members[name]) for name in queue)
        active = [split for split in ("test", "val") if wanted.get(split, 0) > 0]
        if len(names) < 3:
            continue
        for position, split in enumerate(active):
            reserve = len(active) - position  # one group for each later split and for train
            taken, queue = _take(queue, members, total * wanted[split], reserve)
            for name in taken:
                result[members[name]] = split
    return result


def _take(queue: list[str], members: dict[str, list[int]], target: float, reserve: int) -> tuple[list[str], list[str]]:
    """Groups of about ``target`` examples, at least one group, and the rest: at least ``reserve`` groups."""
    taken: list[str] = []
    rest: list[str] = []
    count, most = 0, len(queue) - reserve
    for name in queue:
        if count + len(members[name]) <= round(target) and len(taken) < most:
            taken.append(name)
            count += len(members[name])
        else:
            rest.append(name)
    if not taken and most > 0:
        smallest = min(rest, key=lambda name: len(members[name]))
        rest.remove(smallest)
        taken.append(smallest)
    return taken, rest


def check_fractions(val_fraction: float, test_fraction: float) -> None:
    """Raises DataError unless both are at least 0 and something is left to train on."""
    if not (0 <= val_fraction < 1 and 0 <= test_fraction < 1 and val_fraction + test_fraction < 1):
        raise DataError(
            f"data.val_fraction={val_fraction} and data.test_fraction={test_fraction} must each be at "
            "least 0 and together less than 1."
        )
