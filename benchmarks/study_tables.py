"""The study's Tables II to VIII beside ours, and all our methods:  python benchmarks/study_tables.py docs/results

Reads the folder's result rows (``merges_*.csv``, ``table1.csv``) and writes ``study_tables.md``, ``methods.md``
and the table of merges and readouts, ``realigned.md``, there. ``--tasks FILE`` says which of our tasks stands in for
which of the study's; ``--page docs/measured.md`` puts the lines of some merges and the missed targets into that page,
``--summary docs/merging.md`` what users choose from into that one. Ours are measured on other data, so what compares is
the share that is left of each adapter's own score ("of alone"), not the score.
"""

import argparse
import io
import itertools
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import matplotlib
import yaml  # type: ignore[import-untyped]
from matplotlib.figure import Figure

from launch.files import atomic_write
from reporting.figures import COLORS, STYLE
from reporting.load import collect
from reporting.realigned import (
    SUMMARY,
    TARGETS,
    kinds_of_sets,
    merges_of,
    realigned_markdown,
    summary_markdown,
    targets_markdown,
    with_lines,
    with_table,
)
from reporting.rows import STUDY_METHOD, Collected, Row, higher_is_better, method_label
from reporting.study import TITLES, Number, study_numbers
from reporting.tables import NONE, PERCENT, Cell, Table, format_score, to_markdown

TASKS = Path(__file__).with_name("stand_ins") / "study.yaml"
METHODS = {STUDY_METHOD: "concatenation", "peft_linear": "linear"}  # ours -> the study's name
# on the page of measurements; *_fixed are of distill before its rate went by the start
SHOWN = (
    "ladder",
    "ladder_fixed",
    "distill",
    "distill_fixed",
    "joint",
    "regress",
    "gram",
    "cat",
    "knots_ties",
    "tsv",
    "frozen",
)
WAYS = (  # on the page for users
    ("cat", "none"),
    ("cat", "deep"),
    ("tsv", "deep"),
    ("tsv", "head"),
    ("regress", "none"),
    ("regress", "deep"),
    ("distill", "none"),
    ("distill", "deep"),
)
KEEP = {  # what each member should keep, by merge ("": of all others) and size of the set
    "": {2: 0.96, 3: 0.95, 6: 0.92},
    "distill": {2: 0.99, 3: 0.98, 6: 0.98, 10: 0.96},
}


def study_markdown(found: Collected, stands_for: Mapping[str, str]) -> str:
    """Tables II to VIII, for each backbone of ours.

    Args:
        stands_for: the study's task to ours.
    """
    rows = merges_of(found, stands_for.values())
    told = [
        "# The study's tables II to VIII, and ours on other data",
        f"Ours: mean ± standard deviation over seeds (number of seeds); {NONE} is not measured, or illegible in the "
        f"study. Methods, heads untouched: {', '.join(f'`{ours}` = {name}' for ours, name in METHODS.items())}. "
        "Accuracy and macro F1 in percent, RMSE in decades, NME in percent of the eye distance. Of alone: score / "
        "score of the adapter alone (inverse for RMSE and NME). Ours were measured on the data and with the metric "
        "that each line names: the shares compare, the scores do not.",
    ]
    backbones = sorted({row["backbone"] for row in rows}) or [NONE]
    data = {(row["backbone"], row["task"]): row["data"] for row in found.trains}
    for backbone in backbones:
        here = [row for row in rows if row["backbone"] == backbone]
        named = {task: f"{ours} ({data.get((backbone, ours), 'data unknown')})" for task, ours in stands_for.items()}
        tables = [_study_table(name, here, stands_for, named) for name in TITLES if name != "I"]
        told += [f"Ours with `{backbone}`:", to_markdown(tables).strip()]
        told += [
            _neighbours(f"Ours beside each other, `{method}`, rank {rank}", some)
            for method in METHODS
            for rank in sorted({row["rank"] for row in here})
            if (some := [row for row in here if (method_label(row), row["rank"], row["tasks"]) == (method, rank, 2)])
        ]
    return "\n\n".join(told) + "\n"


def methods_markdown(found: Collected, stands_for: Mapping[str, str]) -> str:
    """Mean and minimum retention over the members of all pairs and of triples, by method and rank.

    Args:
        stands_for: the study's task to ours.
    """
    rows = [row for row in merges_of(found, stands_for.values()) if row["retention"] is not None]
    kinds = {kind: told for kind, told in kinds_of_sets(stands_for, ()).items() if told[0] in (2, 3)}
    told = [
        "# What merging keeps",
        "Retention: score / score of the adapter alone (inverse for RMSE and NME). Mean and minimum over all members "
        "of all sets of a seed, then mean ± standard deviation over seeds (number of seeds). Images: unlabeled ones "
        "per task. Rows over fewer sets do not compare with those over all. Realigned heads were fitted anew and may "
        "read more: compare them with `frozen`, realigned alike, in the rows.",
    ]
    for backbone in sorted({row["backbone"] for row in rows}):
        tables = []
        for kind, (size, belongs) in kinds.items():
            own = [row for row in rows if row["tasks"] == size and belongs(row["set"].split("+"))]
            for rank in sorted({row["rank"] for row in own}):
                some = [row for row in own if (row["backbone"], row["rank"]) == (backbone, rank)]
                if some:
                    tables.append(_methods_table(f"{kind[0].upper()}{kind[1:]}, rank {rank}", some))
        told += [f"## `{backbone}`", *tables]
    return "\n\n".join(told) + "\n"


def draw_members(found: Collected, tasks: Iterable[str], rank: int) -> bytes | None:
    """An SVG of each member's retention, by merge and readout, in pairs and in the one set of all tasks.

    Drawn are the merges that were measured on all pairs, and on the large set those of one backbone pass.

    Returns:
        None where there is no such row.
    """
    known = set(tasks)
    rows = [row for row in merges_of(found, known) if row["rank"] == rank and row["retention"] is not None]
    panels = {"pairs": [row for row in rows if row["tasks"] == 2]}
    panels["all in one"] = [row for row in rows if row["tasks"] == len(known) and (row.get("passes") or 1) == 1]
    labels = {name: _whole(some, len(known)) for name, some in panels.items()}
    if not any(labels.values()):
        return None
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8, 1.6 + 0.19 * sum(map(len, labels.values()))), layout="constrained")
        heights = [len(some) or 1 for some in labels.values()]
        for axis, (name, some) in zip(
            figure.subplots(2, 1, sharex=True, height_ratios=heights), panels.items(), strict=True
        ):
            for place, label in enumerate(reversed(labels[name])):
                own = [row for row in some if method_label(row) == label]
                lost = [None if (high := row.get("retention_high")) is None else high < 1 for row in own]
                for shown, color in ((None, "#bbbbbb"), (False, COLORS[0]), (True, COLORS[1])):
                    kept = [row["retention"] for row, is_lost in zip(own, lost, strict=True) if is_lost is shown]
                    axis.plot(kept, [place] * len(kept), "|", color=color, ms=8, alpha=0.8)
                axis.plot([statistics.fmean(row["retention"] for row in own)], [place], "o", color="#333333", ms=3)
            axis.set_yticks(range(len(labels[name])), list(reversed(labels[name])))
            axis.axvline(1, color="#999999", linewidth=0.8)
            axis.set_title(f"{name}, rank {rank}", loc="left")
        told = "retention of each member (dot: mean; orange: a loss that a test set can show; grey: unknown)"
        figure.supxlabel(told, fontsize=STYLE["font.size"])
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def _whole(rows: Sequence[Row], tasks: int) -> list[str]:
    """Labels of what was measured on all sets of its size, the best mean first."""
    means = {}
    for label in {method_label(row) for row in rows}:
        own = [row for row in rows if method_label(row) == label]
        sets = {row["set"] for row in own}
        if len(sets) == math.comb(tasks, own[0]["tasks"]):
            means[label] = statistics.fmean(row["retention"] for row in own)
    return sorted(means, key=lambda label: (-means[label], label))


def _study_table(name: str, rows: Sequence[Row], stands_for: Mapping[str, str], named: Mapping[str, str]) -> Table:
    numbers = [number for number in study_numbers() if number.table == name]
    headings = ["study: task", "merged with", "rank", "score", "of alone"]
    headings += ["ours: task (data)", "merged with", "metric"]
    for method in METHODS:
        headings += [f"ours, `{method}`", "of alone"]
    body = []
    for number in numbers:
        others = [task for task in number.adapters.split("+") if task != number.task]
        members = "+".join(sorted(stands_for[task] for task in number.adapters.split("+")))
        ours = [
            row
            for row in rows
            if (row["set"], row["task"], row["rank"]) == (members, stands_for[number.task], number.rank)
        ]
        measured = sorted({row["metric"] for row in ours})
        metric = number.metric if number.metric in measured or not measured else measured[0]
        line = [
            number.task, " + ".join(others), str(number.rank), *_study_cells(number), named[number.task],
            " + ".join(named[task] for task in others), metric if measured else NONE,
        ]  # fmt: skip
        for method in METHODS:
            own = [row for row in ours if method_label(row) == method and row["metric"] == metric]
            scale = 100 if metric in PERCENT else 1
            line += [
                _spread([scale * row["score"] for row in own], 1 if metric in PERCENT else 3),
                _spread([row["retention"] for row in own if row["retention"] is not None], 2),
            ]
        body.append([Cell(text) for text in line])
    notes = [f"{item.adapters}, rank {item.rank}: {item.note}." for item in numbers if item.note]
    metrics = sorted({number.metric for number in numbers})
    return Table(name, f"{TITLES[name]} (study: {', '.join(metrics)})", headings, body, notes)


def _neighbours(title: str, rows: Sequence[Row]) -> str:
    """What each task keeps beside each other one, mean over seeds; the last line is what it leaves of the others."""
    kept = defaultdict(list)
    for row in rows:
        if row["retention"] is not None:
            (other,) = set(row["set"].split("+")) - {row["task"]}
            kept[row["task"], other].append(row["retention"])
    tasks = sorted({task for task, _ in kept})

    def cell(own: Iterable[str], others: Iterable[str]) -> str:
        values = [value for key in itertools.product(own, others) for value in kept.get(key, [])]
        return f"{statistics.fmean(values):.2f}" if values else NONE

    seeds = " ".join(map(str, sorted({row["seed"] for row in rows})))
    lines = [f"| keeps | {' | '.join(f'beside {task}' for task in tasks)} | mean |", "|---" * (len(tasks) + 2) + "|"]
    for task in tasks:
        lines.append(f"| {task} | {' | '.join(cell([task], [other]) for other in tasks)} | {cell([task], tasks)} |")
    lines.append(f"| mean | {' | '.join(cell(tasks, [task]) for task in tasks)} | {cell(tasks, tasks)} |")
    return f"### {title}, seeds {seeds}\n\n" + "\n".join(lines)


def _study_cells(number: Number) -> tuple[str, str]:
    """The study's number, and its share of its own Table I."""
    alone = next(
        (
            item.value
            for item in study_numbers()
            if (item.table, item.task, item.metric, item.rank) == ("I", number.task, number.metric, number.rank)
        ),
        None,
    )
    if number.value is None:
        return NONE, NONE
    percent = number.metric in PERCENT
    text = format_score(number.metric, number.value / 100 if percent else number.value)
    if not alone:
        return text, NONE
    return text, f"{number.value / alone if higher_is_better(number.metric) else alone / number.value:.2f}"


def _methods_table(title: str, rows: Sequence[Row]) -> str:
    by_way: dict[tuple[str, int], dict[int, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        by_way[method_label(row), row["images"] or 0][row["seed"]].append(row)
    lines = []
    for (label, images), by_seed in by_way.items():
        counts = sorted({len({row["set"] for row in some}) for some in by_seed.values()})
        kept = [[row["retention"] for row in some] for some in by_seed.values()]
        mean, least = [statistics.fmean(some) for some in kept], [min(some) for some in kept]
        sets = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        text = f"| {label} | {images} | {sets} | {_spread(mean, 3)} | {_spread(least, 3)} |"
        lines.append((-counts[-1], -statistics.fmean(mean), text))
    return "\n".join(
        [f"### {title}", "", "| method | images | sets | mean retention | minimum |", "|---|---|---|---|---|"]
        + [text for *_, text in sorted(lines)]
    )


def _spread(values: Sequence[float], digits: int) -> str:
    """Mean ± deviation (number)."""
    if not values:
        return NONE
    text = f"{statistics.fmean(values):.{digits}f}"
    return text + (f" ± {statistics.stdev(values):.{digits}f} ({len(values)})" if len(values) > 1 else " (1)")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("results", type=Path, help="folder of the CSV files")
    parser.add_argument("--tasks", type=Path, default=TASKS, help="YAML: the study's task to ours")
    parser.add_argument("--page", type=Path, help="a Markdown page whose table of merges is made anew")
    parser.add_argument("--summary", type=Path, help="a Markdown page whose table of ways to merge is made anew")
    parser.add_argument("--draw", type=Path, help="an SVG of every member's retention")
    parser.add_argument("--rank", type=int, default=16, help="that is drawn")
    options = parser.parse_args()
    stands_for = yaml.safe_load(options.tasks.read_text(encoding="utf-8"))
    found = collect([options.results])
    for path, reason in found.left_out:
        print(f"left out: {path}: {reason}")
    atomic_write(options.results / "study_tables.md", study_markdown(found, stands_for))
    atomic_write(options.results / "methods.md", methods_markdown(found, stands_for))
    realigned = realigned_markdown(found, stands_for)
    atomic_write(options.results / "realigned.md", realigned)
    if options.page:
        page = options.page.read_text(encoding="utf-8")
        targets = targets_markdown(found, stands_for, [*WAYS[1:], ("cat", "head"), ("regress", "head")], KEEP)
        atomic_write(options.page, with_table(with_lines(page, realigned, SHOWN), TARGETS, targets))
    if options.summary:
        page = options.summary.read_text(encoding="utf-8")
        atomic_write(options.summary, with_table(page, SUMMARY, summary_markdown(found, stands_for, WAYS)))
    drawn = draw_members(found, stands_for.values(), options.rank) if options.draw else None
    if drawn is not None:
        atomic_write(options.draw, drawn)


if __name__ == "__main__":
    main()
