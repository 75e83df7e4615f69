"""Why members of pairs lose: what adapters and their stored Grams tell, beside what merges keep.

    python benchmarks/why.py OUTPUTS docs/results

Reads adapters in OUTPUTS and the merge rows in the results folder; writes ``disturbance.csv`` (rows of adapters that
are not in OUTPUTS stay) and ``why.md`` there. No image is read.
"""

import argparse
import itertools
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import yaml  # type: ignore[import-untyped]

from benchmarks.advice import spearman
from benchmarks.collect_rows import earlier_rows, write
from launch.bundles import CARD, bundle_path
from launch.files import atomic_write
from launch.progress import track
from merging.advisor import disturbances
from merging.members import read_member
from reporting.load import collect
from reporting.tables import NONE

TASKS = Path(__file__).with_name("stand_ins") / "study.yaml"
KEYS = ("rank", "seed", "task", "by")
COLUMNS = (*KEYS, "interference", "conflict")
SHOWN = {"cat, raw": ("cat", "none"), "cat, deep": ("cat", "deep"), "regress, deep": ("regress", "deep")}


def there(outputs: Path, tasks: Sequence[str]) -> list[tuple[int, int]]:
    """Rank and seed of which all tasks' adapters are in a folder of runs."""
    names = [path.parent.name for path in (outputs / "adapters" / tasks[0]).glob(f"r*-s*/{CARD}")]
    pairs = [tuple(map(int, found.groups())) for name in names if (found := re.fullmatch(r"r([1-9]\d*)-s(\d+)", name))]
    return [
        (rank, seed)
        for rank, seed in sorted(pairs)
        if all((bundle_path(outputs, task, rank, seed) / CARD).is_file() for task in tasks)
    ]


def disturbance_rows(outputs: Path, tasks: Iterable[str]) -> list[dict[str, Any]]:
    """A row for each member of each pair, rank and seed of which all adapters are there."""
    tasks = sorted(tasks)
    found = []
    for rank, seed in there(outputs, tasks):
        members = {task: read_member(bundle_path(outputs, task, rank, seed)) for task in tasks}
        pairs = list(itertools.combinations(tasks, 2))
        for pair in track(pairs, f"Pairs of rank {rank}, seed {seed}", len(pairs)):
            for task, told in disturbances({name: members[name] for name in pair}).items():
                row = {"rank": rank, "seed": seed, "task": task, "by": told.by}
                found.append(row | {"interference": told.interference, "conflict": told.conflict})
    return found


def why_markdown(disturbed: pd.DataFrame, merges: Sequence[Mapping[str, Any]]) -> str:
    """How well the two numbers order what merges keep, and the members that lose after ``cat`` with the deep readout.

    Args:
        disturbed: in ``COLUMNS``.
        merges: rows of the report.
    """
    table = disturbed.copy()
    names = {**SHOWN, "distill, deep": ("distill", "deep")}
    for name, (method, realign) in names.items():
        rows = [row for row in merges if _is(row, method, realign)]
        kept = {(row["rank"], row["seed"], row["task"], _other(row)): row for row in rows}
        found = [kept.get(key) for key in zip(*(table[key] for key in KEYS), strict=True)]
        table[name] = [None if row is None else row["retention"] for row in found]
        if name == "cat, deep":
            table["lost"] = [row is not None and (row.get("retention_high") or 1) < 1 for row in found]
    told = [
        "# Why members lose",
        "`interference`: |dW_by X| / |dW X| on the member's inputs X, root mean square over modules. `conflict`: the "
        "share of both members' outputs that no merged matrix can give. Both are of the adapters and their stored "
        "Grams, no image is read (`merging/advisor.py`). Retention as in the rows.",
        "## Rank correlation (Spearman) with what each member keeps",
        "Within a task: of its partners and seeds, mean over the tasks. All: of all members at once.",
        _correlations(table),
        "## Members of pairs that lose after `cat` with the deep readout",
        "Means over seeds; `lost` says in how many of them the test set shows a loss.",
        _losers(table, list(names)),
    ]
    return "\n\n".join(told) + "\n"


def _is(row: Mapping[str, Any], method: str, realign: str) -> bool:
    plain = row["tasks"] == 2 and not row.get("lora") and row["retention"] is not None
    return plain and row["realign"] == realign and row["method"].partition("(")[0] == method


def _other(row: Mapping[str, Any]) -> str:
    (other,) = set(row["set"].split("+")) - {row["task"]}
    return str(other)


def _correlations(table: pd.DataFrame) -> str:
    lines = [f"| rank | by | among | {' | '.join(SHOWN)} |", "|---" * (len(SHOWN) + 3) + "|"]
    for rank, rows in table.groupby("rank"):
        for by, (among, groups) in itertools.product(
            ("interference", "conflict"), {"a task's": [own for _, own in rows.groupby("task")], "all": [rows]}.items()
        ):
            found = [[spearman(own[by], own[name]) for own in groups] for name in SHOWN]
            cells = " | ".join(f"{statistics.fmean(values):.2f}" for values in found)
            lines.append(f"| {rank} | {by} | {among} | {cells} |")
    return "\n".join(lines)


def _losers(table: pd.DataFrame, names: Sequence[str]) -> str:
    heads = ["rank", "task", "beside", "lost", "interference", "conflict", *names]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for (rank, task, by), rows in table.groupby(["rank", "task", "by"]):
        if not rows["lost"].any():
            continue
        numbers = [f"{rows[name].mean():.2f}" for name in ("interference", "conflict")]
        kept = [values for name in names for values in [list(rows[name].dropna())]]
        cells = [f"{statistics.fmean(values):.3f}" if values else NONE for values in kept]
        lost = f"{rows['lost'].sum()} of {rows['cat, deep'].notna().sum()}"
        lines.append(f"| {rank} | {task} | {by} | {lost} | {' | '.join([*numbers, *cells])} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("outputs", type=Path, help="folder of runs")
    parser.add_argument("results", type=Path, help="folder of the CSV files")
    options = parser.parse_args()
    tasks = list(yaml.safe_load(TASKS.read_text(encoding="utf-8")).values())
    file = options.results / "disturbance.csv"
    made = disturbance_rows(options.outputs, tasks)
    rows = sorted([*earlier_rows(file, KEYS, made), *made], key=lambda row: [str(row[key]) for key in KEYS])
    write(file, COLUMNS, rows)
    merges = [row for row in collect([options.results]).merges if set(row["set"].split("+")) <= set(tasks)]
    atomic_write(options.results / "why.md", why_markdown(pd.read_csv(file), merges))


if __name__ == "__main__":
    main()
