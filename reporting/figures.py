"""Static figures for papers, by matplotlib without a display. The page draws its own, which answer to filters."""

import io
import math
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure

from launch.files import atomic_write
from reporting.rows import Collected, Row, is_control, is_idle, method_label
from reporting.summaries import alike, front, means, methods, own_metric, pairs, widest

# Okabe and Ito's colours, apart for every common colour blindness; markers tell them apart in print.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#8A6D00", "#56B4E9", "#444444", "#7F3C8D")
MARKERS = "osD^vPX*<>"
STYLE: Any = {
    "svg.hashsalt": "lora-alloy", "svg.fonttype": "none", "font.size": 9, "axes.spines.top": False,
    "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25, "legend.frameon": False,
}  # fmt: skip
FIRST_LINES = 30  # of a heatmap that fits a page
FIRST_PANELS, FIRST_CURVES = 8, 12  # as many as the page shows at first; of more nobody could tell them apart
RETENTION = "retention (1.00 = as good as alone)"


def write_figures(found: Collected, folder: Path, formats: list[str]) -> list[str]:
    """Draws every figure that there are rows for; the same rows give the same bytes.

    Of several backbones, which nothing is averaged over, the commonest is drawn here, each other in a folder of its
    name.

    Returns:
        Names of the figures drawn.
    """
    rows = own_metric(found)
    counts = Counter(item["backbone"] for item in [*rows, *found.refinements, *found.curves])
    drawn = []
    for place, (backbone, _) in enumerate(counts.most_common()):
        some, refinements, curves = (
            [item for item in items if item["backbone"] == backbone]
            for items in (rows, found.refinements, found.curves)
        )
        below = "" if place == 0 else re.sub(r"[^\w.@-]", "_", backbone) + "/"
        named = backbone if len(counts) > 1 else ""
        drawn += [below + name for name in _write(some, refinements, curves, folder / below, formats, named)]
    return drawn


def _write(
    rows: list[Row], refinements: list[Row], curves: list[Row], folder: Path, formats: list[str], named: str
) -> list[str]:
    drawers: dict[str, Callable[[], Figure | None]] = {
        "pairs": lambda: pair_heatmaps(rows),
        "methods": lambda: method_heatmap(rows),
        "tasks": lambda: curve(rows, "tasks", "merged tasks"),
        "ranks": lambda: curve(rows, "rank", "rank"),
        "cost": lambda: cost(rows),
        "advisor": lambda: advisor(rows),
        "refinement": lambda: refinement(refinements),
        "curves": lambda: training(curves),
    }
    drawn = []
    with matplotlib.rc_context(STYLE):
        for name, draw in drawers.items():
            figure = draw()
            if figure is None:
                continue
            drawn.append(name)
            if named:
                figure.supxlabel(named, fontsize=7)
            for kind in formats:
                buffer = io.BytesIO()
                metadata = {"Date": None} if kind == "svg" else {"Software": None}
                figure.savefig(buffer, format=kind, dpi=200, bbox_inches="tight", metadata=metadata)
                atomic_write(folder / f"{name}.{kind}", buffer.getvalue())
    return drawn


def pair_heatmaps(rows: list[Row]) -> Figure | None:
    """Task by task, a panel for each of the first methods and ranks: how well the row's task does with the column's."""
    every = pairs(rows)
    if not every:
        return None
    panels = dict(list(every.items())[:FIRST_PANELS])
    tasks = sorted({row["task"] for row in rows if row["tasks"] == 2})
    columns = min(4, len(panels))
    lines = math.ceil(len(panels) / columns)
    side = 0.9 + 0.45 * len(tasks)
    figure = Figure(figsize=(columns * side + 1.2, lines * (side + 0.5)), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    norm = _diverging([mean.mean for panel in panels.values() for mean in panel.values()])
    picture: Any = None
    for axis, ((method, rank), panel) in zip(axes.flat, panels.items(), strict=False):
        values = [[panel[(a, b)].mean if (a, b) in panel else math.nan for b in tasks] for a in tasks]
        picture = _heatmap(axis, values, tasks, tasks, norm)
        axis.set_title(f"{method}, r={rank}", fontsize=9)
    figure.colorbar(picture, ax=axes, label=RETENTION, shrink=0.7)
    if len(every) > len(panels):
        figure.suptitle(f"{len(panels)} of {len(every)} methods and ranks", fontsize=8)
    return figure


def method_heatmap(rows: list[Row]) -> Figure | None:
    """Method by task: mean retention over all sets, ranks and seeds; those of the most sets on top, then the best.

    Methods compare where they were measured on the same sets.
    """
    if not rows:
        return None
    cells, overall = means(rows, lambda row: (method_label(row), row["task"])), means(rows, method_label)
    sets = Counter(label for label, _ in {(method_label(row), row["set"]) for row in rows})
    every = sorted(methods(rows), key=lambda name: (-sets[name], -overall[name].mean))
    order = every[:FIRST_LINES]
    tasks = sorted({row["task"] for row in rows})
    values = [
        [*(cells[(name, task)].mean if (name, task) in cells else math.nan for task in tasks), overall[name].mean]
        for name in order
    ]
    figure = Figure(figsize=(2.2 + 0.6 * len(tasks), 1.4 + 0.32 * len(order)), layout="constrained")
    axis = figure.subplots()
    picture = _heatmap(axis, values, order, [*tasks, "all"], _diverging([mean.mean for mean in cells.values()]))
    figure.colorbar(picture, ax=axis, label=RETENTION)
    if len(every) > len(order):
        axis.set_title(f"{len(order)} of {len(every)} methods: those of the most sets, then the best", fontsize=8)
    return figure


def curve(rows: list[Row], column: str, label: str) -> Figure | None:
    """Mean retention and its deviation against a column, a line per method: of many the longest, then the best.

    A line along the ranks is of those tasks in sets only that were measured at each of its ranks.
    """
    if column != "tasks":
        rows = [
            row for name in methods(rows) for row in alike((r for r in rows if method_label(r) == name), column)
        ]  # fmt: skip
    if not rows:
        return None
    figure, axis = _plain(label, RETENTION)
    ticks = sorted({row[column] for row in rows})
    lengths = Counter(name for name, _ in means(rows, lambda row: (method_label(row), row[column])))
    best = means(rows, method_label)
    first = sorted(lengths, key=lambda name: (-lengths[name], -best[name].mean))[:FIRST_CURVES]
    shown = [name for name in methods(rows) if name in first]
    for place, name in enumerate(shown):
        found = means([row for row in rows if method_label(row) == name], lambda row: row[column])
        xs = sorted(found)
        places = [ticks.index(x) + 0.03 * place for x in xs]
        axis.errorbar(
            places, [found[x].mean for x in xs], yerr=[found[x].deviation for x in xs], label=name, capsize=2,
            elinewidth=0.6, **_look(place),
        )  # fmt: skip
    axis.set_xticks(range(len(ticks)), [str(tick) for tick in ticks])
    if len(shown) < len(lengths):
        axis.set_title(f"{len(shown)} of {len(lengths)} methods: the longest lines, then the best", fontsize=8)
    _finish(axis)
    return figure


def _point(row: Row) -> tuple[str, int]:
    return method_label(row), row["rank"]


def cost(rows: list[Row]) -> Figure | None:
    """Mean retention against the seconds of a merge; the line joins what nothing beats in both.

    It is of merges that were measured on just the same sets and seeds, the most of them (``widest``). A colour per
    method, a marker per rank. Of many methods those on the line are named, and the others grey.
    """
    rows = [row for row in rows if row["seconds"] is not None and not is_idle(row)]
    seconds = means(rows, _point, "seconds")
    values = means(rows, _point)
    if not seconds:
        return None
    figure, axis = _plain("seconds of a merge", RETENTION)
    points = {key: (mean.mean, values[key].mean) for key, mean in seconds.items()}
    merges: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        if not is_control(row):
            merges.setdefault(_point(row), []).append(row)
    best = front([points[key] for key in widest(merges, ("set", "seed"))])
    order, ranks = methods(rows), sorted({rank for _, rank in points})
    if len(points) > FIRST_CURVES:
        named = [name for (name, _), point in points.items() if point in best]
        order = [name for name in order if name in named]
    for (name, rank), point in points.items():
        if len(points) > FIRST_CURVES and point not in best:
            axis.plot(*point, "o", color="#bbbbbb", markersize=3, zorder=1)
            continue
        marker = MARKERS[(ranks.index(rank) + len(ranks) * (order.index(name) // len(COLORS))) % len(MARKERS)]
        look = {**_look(order.index(name)), "marker": marker, "linestyle": "none"}
        axis.plot(*point, **look, label=f"{name}, r={rank}")
    axis.step([x for x, _ in best], [y for _, y in best], where="post", color="#888888", linewidth=0.8, zorder=0)
    if all(x > 0 for x, _ in points.values()):
        axis.set_xscale("log")
    _finish(axis)
    return figure


def advisor(rows: list[Row]) -> Figure | None:
    """Predicted retention with its interval against the measured one."""
    known = [row for row in rows if row.get("predicted") is not None]
    if not known:
        return None
    figure, axis = _plain("measured retention", "predicted retention")
    for row in known:
        if row.get("low") is not None and row.get("high") is not None:
            axis.plot([row["retention"]] * 2, [row["low"], row["high"]], color="#999999", linewidth=0.5)
    axis.plot([row["retention"] for row in known], [row["predicted"] for row in known], "o", color=COLORS[0], ms=3)
    ends = [min(row["retention"] for row in known), max(row["retention"] for row in known)]
    axis.plot(ends, ends, "--", color="#555555", linewidth=0.8)
    axis.set_title("predicted by the code that made each row; the interval is meant to hold 90 %", fontsize=8)
    return figure


def refinement(curves: list[dict[str, Any]]) -> Figure | None:
    """Expected retention against the seconds of a merge that is trained, a line per set and seed, a colour per rank."""
    if not curves:
        return None
    figure, axis = _plain("seconds of refinement", f"expected {RETENTION}")
    ranks = sorted({item["rank"] for item in curves})
    for rank in ranks:
        for number, item in enumerate(item for item in curves if item["rank"] == rank):
            xs, ys = zip(*item["points"], strict=True)
            label = f"r={rank}" if number == 0 else None
            axis.plot(xs, ys, color=COLORS[ranks.index(rank) % len(COLORS)], linewidth=1, label=label)
    _finish(axis)
    return figure


def training(curves: list[dict[str, Any]]) -> Figure | None:
    """Validation metric by epoch, a panel per task, a colour per rank."""
    if not curves:
        return None
    panels = sorted({(item["task"], item["metric"]) for item in curves})
    ranks = sorted({item["rank"] for item in curves})
    columns = min(3, len(panels))
    lines = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(3.2 * columns, 2.5 * lines), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    for axis, (task, metric) in zip(axes.flat, panels, strict=False):
        named: set[int] = set()
        for item in curves:
            if (item["task"], item["metric"]) != (task, metric):
                continue
            label = None if item["rank"] in named else f"r={item['rank']}"
            named.add(item["rank"])
            xs, ys = zip(*item["points"], strict=True)
            axis.plot(xs, ys, color=COLORS[ranks.index(item["rank"]) % len(COLORS)], linewidth=1, label=label)
        axis.set(title=task, xlabel="epoch", ylabel=metric)
        axis.legend(fontsize=7, loc="lower right")
    return figure


def _heatmap(axis: Axes, values: list[list[float]], rows: list[str], columns: list[str], norm: Any) -> Any:
    picture = axis.imshow(values, cmap="RdBu", norm=norm, aspect="auto")
    axis.set_xticks(range(len(columns)), columns, rotation=40, ha="right", rotation_mode="anchor")
    axis.set_yticks(range(len(rows)), rows)
    axis.grid(visible=False)
    for y, line in enumerate(values):
        for x, value in enumerate(line):
            if not math.isnan(value):
                dark = abs(norm(value) - 0.5) > 0.33
                axis.text(x, y, f"{value:.2f}", ha="center", va="center", fontsize=7, color="w" if dark else "k")
    return picture


def _diverging(values: list[float]) -> TwoSlopeNorm:
    """1.00 in the middle, as far to both sides as the farthest value, 0.05 to 0.5."""
    reach = min(0.5, max(0.05, *(abs(value - 1) for value in values), 0.05))
    return TwoSlopeNorm(1.0, 1 - reach, 1 + reach)


def _plain(x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(5.2, 3.4), layout="constrained")
    axis = figure.subplots()
    axis.set(xlabel=x, ylabel=y)
    return figure, axis


def _finish(axis: Axes) -> None:
    axis.axhline(1.0, color="#555555", linewidth=0.8, linestyle="--", zorder=0)
    axis.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.01, 0.5))


def _look(place: int) -> dict[str, Any]:
    return {
        "color": COLORS[place % len(COLORS)], "marker": MARKERS[place % len(MARKERS)], "markersize": 4,
        "linewidth": 1, "linestyle": ("-", "--", ":")[place // len(COLORS) % 3],
    }  # fmt: skip
