"""What the static figures draw: means of rows, grouped."""

import statistics
from collections.abc import Callable, Hashable, Iterable
from typing import Any, NamedTuple

from reporting.rows import STUDY_METHOD, Collected, Row, method_label, primary_metrics


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
    """Labels of the methods: the study's own first, then by name."""
    labels = {method_label(row) for row in rows}
    return sorted(labels, key=lambda name: (name != STUDY_METHOD, name))


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
