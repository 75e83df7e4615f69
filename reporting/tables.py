"""The study's Tables I to VIII with its numbers beside ours."""

import statistics
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from reporting.rows import STUDY_METHOD, Collected, Row, higher_is_better, is_control, method_label
from reporting.study import RANKS, TITLES, Number, study_numbers

PERCENT = ("accuracy", "macro_f1", "auc")  # fractions in rows, percent in tables, as in the study
NONE = "-"
NOTE = (
    "Accuracy and macro F1 in percent, RMSE in decades, NME in percent of the eye distance. Ours: mean ± standard "
    "deviation over seeds (number of runs). Best: chosen by the test score, so told too well, among our merges of the "
    "most seeds other than concatenation; adapters trained otherwise (lora) and controls do not take part."
)


@dataclass(frozen=True)
class Cell:
    """A number of ours and the rows behind it: ``kind`` is train or merge, ``rows`` places in its list."""

    text: str
    kind: str = ""
    rows: tuple[int, ...] = ()


@dataclass(frozen=True)
class Table:
    """One table as text; a row's cells stand under ``headings``."""

    name: str
    title: str
    headings: list[str]
    rows: list[list[Cell]]
    notes: list[str]


def study_tables(found: Collected) -> list[Table]:
    """Table I to VIII."""
    tables = [_alone(found)]
    for name in ("II", "III", "IV", "V", "VI", "VII", "VIII"):
        tables.append(_merged(name, found))
    return tables


def to_markdown(tables: Iterable[Table]) -> str:
    """All tables as Markdown, each under its heading."""
    parts = []
    for table in tables:
        lines = [
            f"## Table {table.name}. {table.title}",
            "",
            "| " + " | ".join(table.headings) + " |",
            "|" + "---|" * len(table.headings),
            *("| " + " | ".join(cell.text for cell in row) + " |" for row in table.rows),
            "",
            *table.notes,
        ]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def format_score(metric: str, value: float) -> str:
    """A score as tables show it: fractions in percent."""
    if metric in PERCENT:
        return f"{100 * value:.1f}"
    return f"{value:.3f}" if metric != "failure_rate" else f"{value:.1f}"


def summarize(metric: str, rows: list[tuple[int, Row]], kind: str) -> Cell:
    """Mean, deviation and number of the rows' scores; of trainings that differ in more than the seed, their range."""
    if not rows:
        return Cell(NONE)
    scores = [row["score"] for _, row in rows]
    if kind == "train" and len({row["seed"] for _, row in rows}) < len(rows):
        ends = " to ".join(format_score(metric, end) for end in (min(scores), max(scores)))
        return Cell(f"{ends} ({len(scores)} settings)", kind, tuple(place for place, _ in rows))
    text = format_score(metric, statistics.fmean(scores))
    if len(scores) > 1:
        text += f" ± {format_score(metric, statistics.stdev(scores))}"
    return Cell(f"{text} ({len(scores)})", kind, tuple(place for place, _ in rows))


def _alone(found: Collected) -> Table:
    numbers = [number for number in study_numbers() if number.table == "I"]
    ranks = [16, 64, 0]
    further = sorted({row["rank"] for row in found.trains} - set(ranks))
    headings = ["task", "metric", "data", "backbone"]
    for rank in ranks:
        headings += [f"{_rank(rank)}: study", "ours"]
    headings += [f"{_rank(rank)}: ours" for rank in further]
    body = []
    for task, metric in _lines(numbers, found):
        some = [item for item in found.trains if (item["task"], item["metric"]) == (task, metric)]
        places = sorted({(item["data"], item["backbone"], item.get("lora") or "") for item in some})
        for data, backbone, lora in places or [(NONE, NONE, "")]:
            row = [Cell(f"{task} ({lora})" if lora else task), Cell(metric), Cell(data), Cell(backbone)]
            for rank in [*ranks, *further]:
                ours = [
                    (place, item)
                    for place, item in enumerate(found.trains)
                    if (item["task"], item["metric"], item["rank"]) == (task, metric, rank)
                    and (item["data"], item["backbone"], item.get("lora") or "") == (data, backbone, lora)
                ]
                if rank in ranks:
                    row.append(_study(numbers, task, metric, task, rank))
                row.append(summarize(metric, ours, "train"))
            body.append(row)
    return Table("I", TITLES["I"], headings, body, [])


def _lines(numbers: list[Number], found: Collected) -> list[tuple[str, str]]:
    """Task and metric of each line: the study's, then those that only we have."""
    lines = list(dict.fromkeys((number.task, number.metric) for number in numbers))
    tasks = {task for task, _ in lines}
    ours = sorted({(row["task"], row["metric"]) for row in found.trains if row["task"] not in tasks and row["primary"]})
    return lines + ours


def _merged(name: str, found: Collected) -> Table:
    numbers = [number for number in study_numbers() if number.table == name]
    triples = name == "VIII"  # of the others, the title names the task
    headings = ["merged", *(["task"] if triples else []), "metric", "data", "backbone"]
    for rank in RANKS:
        headings += [f"r={rank}: study", f"ours, {STUDY_METHOD}", "ours, best", "by"]
    body = []
    for adapters, task, metric in dict.fromkeys((item.adapters, item.task, item.metric) for item in numbers):
        members = "+".join(sorted(adapters.split("+")))
        ours = [
            (place, row)
            for place, row in enumerate(found.merges)
            if row["set"] == members and row["task"] == task and row["rank"] in RANKS
        ]
        used = _metric_used(metric, [row for _, row in ours])
        ours = [(place, row) for place, row in ours if row["metric"] == used]
        for data, backbone in _places([row for _, row in ours], task, used) or [(NONE, NONE)]:
            here = [(place, row) for place, row in ours if (row["data"], row["backbone"]) == (data, backbone)]
            label = metric if used == metric else f"{metric}; ours {used}"
            row = [Cell(_named(adapters, None if triples else task)), *([Cell(task)] if triples else [])]
            row += [Cell(label), Cell(data), Cell(backbone)]
            for rank in RANKS:
                at_rank = [(place, item) for place, item in here if item["rank"] == rank]
                row.append(_study(numbers, task, metric, adapters, rank))
                row += _ours(used, at_rank)
            body.append(row)
    notes = [f"{item.adapters}, r={item.rank}: {item.note}." for item in numbers if item.note]
    return Table(name, TITLES[name], headings, body, notes)


def _named(adapters: str, task: str | None) -> str:
    members = adapters.split("+")
    return " + ".join(members) if task is None else "with " + " + ".join(name for name in members if name != task)


def _ours(metric: str, rows: list[tuple[int, Row]]) -> list[Cell]:
    by_method: dict[str, list[tuple[int, Row]]] = {}
    for place, row in rows:
        by_method.setdefault(method_label(row), []).append((place, row))
    own = summarize(metric, by_method.pop(STUDY_METHOD, []), "merge")
    merges = {name: some for name, some in by_method.items() if not (some[0][1].get("lora") or is_control(some[0][1]))}
    if not merges:
        return [own, Cell(NONE), Cell(NONE)]
    seeds = {name: len({row["seed"] for _, row in some}) for name, some in merges.items()}
    most = [name for name in merges if seeds[name] == max(seeds.values())]
    choose = max if higher_is_better(metric) else min
    best = choose(most, key=lambda name: statistics.fmean(row["score"] for _, row in by_method[name]))
    return [own, summarize(metric, by_method[best], "merge"), Cell(best)]


def _metric_used(wanted: str, rows: list[Row]) -> str:
    """The study's metric when we have it, else the first that we have."""
    measured = list(dict.fromkeys(row["metric"] for row in rows))
    return wanted if wanted in measured or not measured else measured[0]


def _places(rows: Iterable[Row], task: str, metric: str) -> list[tuple[str, str]]:
    """Data and backbone of the rows of one task, each once."""
    return sorted({(r["data"], r["backbone"]) for r in rows if r["task"] == task and r["metric"] == metric})


def _study(numbers: list[Number], task: str, metric: str, adapters: str, rank: int) -> Cell:
    return Cell(next(_values(numbers, task, metric, adapters, rank), NONE))


def _values(numbers: list[Number], task: str, metric: str, adapters: str, rank: int) -> Iterator[str]:
    for item in numbers:
        same = (item.task, item.metric, item.adapters, item.rank) == (task, metric, adapters, rank)
        if same and item.value is not None:
            yield f"{item.value:.1f}" if metric in PERCENT else f"{item.value:.3f}"


def _rank(rank: int) -> str:
    return "head only" if rank == 0 else f"r={rank}"
