"""What the static figures draw: means of rows, grouped."""

import statistics
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from reporting.rows import STUDY_METHOD, Collected, Row, is_control, method_label, primary_metrics

Key = TypeVar("Key", bound=Hashable)


class Mean(NamedTuple):
    """Mean, standard deviation (0 of one) and number of values."""

    mean: float
    deviation: float
    number: int


def own_metric(found: Collected) -> list[Row]:
    """The merge rows in each task's own metric that have a retention."""
    primary = primary_metrics(found)
    return [
        row for row in found.merges if row["metric"] == primary[row["task"]] and row["retention"] is not None
    ]  # fmt: skip


def means(rows: Iterable[Row], key: Callable[[Row], Hashable], value: str = "retention") -> dict[Any, Mean]:
    """Means of a column by key, in order of appearance; rows without a value do not count."""
    groups: dict[Any, list[float]] = {}
    for row in rows:
        if row.get(value) is not None:
            groups.setdefault(key(row), []).append(row[value])
    return {
        name: Mean(statistics.fmean(found), statistics.stdev(found) if len(found) > 1 else 0.0, len(found))
        for name, found in groups.items()
    }


def methods(rows: Iterable[Row]) -> list[str]:
    """Labels of the methods: the study's own first, then by name, controls last."""
    labels = {method_label(row): is_control(row) for row in rows}
    return sorted(labels, key=lambda name: (name != STUDY_METHOD, labels[name], name))


def alike(rows: Iterable[Row], column: str) -> list[Row]:
    """Of one method's rows those that compare along a column: of tasks in sets that were measured at the same values.

    Where several lists of values were measured, the longest counts, then that of the most tasks in sets.
    """
    by_task: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        by_task.setdefault((row["backbone"], row["data"], row["set"], row["task"]), []).append(row)
    values = {key: frozenset(row[column] for row in some) for key, some in by_task.items()}
    number = Counter(values.values())
    best = max(number, key=lambda found: (len(found), number[found]), default=frozenset())
    return [row for key, some in by_task.items() if best <= values[key] for row in some if row[column] in best]


def best_merge(rows: Iterable[Row]) -> tuple[str, Mean, int, int] | None:
    """Of the merges that were measured on just the same sets, the most of them, the one that keeps most on average.

    Returns:
        Its label and mean, and the numbers of merges and of sets; None where no two were measured alike.
    """
    by_label: dict[str, list[Row]] = {}
    for row in rows:
        if not is_control(row):
            by_label.setdefault(method_label(row), []).append(row)
    labels = widest(by_label, ("backbone", "set", "rank", "seed"))
    if len(labels) < 2:
        return None
    kept = means((row for label in labels for row in by_label[label]), method_label)
    name = max(kept, key=lambda label: kept[label].mean)
    return name, kept[name], len(kept), len({row["set"] for row in by_label[name]})


def widest(rows: Mapping[Key, Iterable[Row]], columns: Sequence[str]) -> list[Key]:
    """Of what was measured (rows by key) the keys that compare: those with just the same values of the columns.

    Of several such groups the one with the most values counts, of groups of more than one key if there are any.
    """
    groups: dict[frozenset[Any], list[Key]] = {}
    for key, some in rows.items():
        groups.setdefault(frozenset(tuple(row[name] for name in columns) for row in some), []).append(key)
    best = max(groups, key=lambda found: (len(groups[found]) > 1, len(found), len(groups[found])), default=None)
    return [] if best is None else groups[best]


def pairs(rows: Iterable[Row]) -> dict[tuple[str, int], dict[tuple[str, str], Mean]]:
    """By method and rank: retention of (task, the other task) in sets of two."""
    grouped: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        if row["tasks"] == 2:
            grouped.setdefault((method_label(row), row["rank"]), []).append(row)
    order = methods(row for group in grouped.values() for row in group)
    keys = sorted(grouped, key=lambda key: (order.index(key[0]), key[1]))
    return {key: means(grouped[key], lambda row: (row["task"], _partner(row))) for key in keys}


def front(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that nothing is both cheaper and better than, by cost."""
    best: list[tuple[float, float]] = []
    for cost, value in sorted(points, key=lambda point: (point[0], -point[1])):
        if not best or value > best[-1][1]:
            best.append((cost, value))
    return best


def _partner(row: Row) -> str:
    first, second = row["set"].split("+")
    return str(second if first == row["task"] else first)
