"""How well retention is predicted without an image, from stored Grams and robustness:

    python benchmarks/advice_grams.py rows OUTPUTS docs/results    predicts for adapters in OUTPUTS
    python benchmarks/advice_grams.py tell docs/results            the table of docs/measured.md

``rows`` writes ``advice_grams.csv``: pairs, triples and all tasks in one, of every rank and seed of which all adapters
tell their robustness. Retention, heads untouched, is that of the committed rows; merges without one are left out.
"""

import argparse
import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd
import yaml  # type: ignore[import-untyped]

from benchmarks.advice import USABLE, spearman
from benchmarks.collect_rows import write
from benchmarks.why import TASKS, there
from launch.bundles import bundle_path
from launch.progress import track
from merging.advisor import expected_by_error
from merging.members import read_member
from reporting.load import collect

FILE = "advice_grams.csv"
METHODS = ("average", "cat", "gram", "peft_linear", "ties", "tsv")
KEYS = ("rank", "seed", "set", "method", "task")
COLUMNS = (*KEYS, "retention", "predicted", "low", "high")


def predicted_rows(outputs: Path, tasks: Iterable[str]) -> list[dict[str, Any]]:
    """Rows without retention."""
    tasks = sorted(tasks)
    sets = [names for size in (2, 3, len(tasks)) for names in itertools.combinations(tasks, size)]
    found = []
    for rank, seed in there(outputs, tasks):
        members = {task: read_member(bundle_path(outputs, task, rank, seed)) for task in tasks}
        if any(member.bundle.card.get("robustness") is None for member in members.values()):
            continue
        for names in track(sets, f"Sets of rank {rank}, seed {seed}", len(sets)):
            rows = expected_by_error({name: members[name] for name in names}, METHODS)
            found += [row | {"rank": rank, "seed": seed, "set": "+".join(names)} for row in rows]
    return found


def tell(table: pd.DataFrame) -> str:
    """Number, rank correlation, mean error where usable and the share of intervals that hold, by kinds of rows."""
    size = table["set"].str.count(r"\+") + 1
    parts = {"all": table}
    for name, column in (("members", size), ("rank", table["rank"]), ("seed", table["seed"]), ("", table["method"])):
        parts |= {f"{name} {key}".strip(): rows for key, rows in table.groupby(column)}
    lines = ["| rows | number | Spearman | MAE | MAE where usable | held |", "|---|---|---|---|---|---|"]
    for name, rows in parts.items():
        off = (rows["predicted"] - rows["retention"]).abs()
        held = ((rows["low"] <= rows["retention"]) & (rows["retention"] <= rows["high"])).mean()
        order = spearman(rows["predicted"], rows["retention"])
        usable = off[rows["retention"] >= USABLE].mean()
        lines.append(f"| {name} | {len(rows)} | {order:.2f} | {off.mean():.3f} | {usable:.3f} | {held:.0%} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    rows = commands.add_parser("rows")
    rows.add_argument("outputs", type=Path, help="folder of runs")
    for command in (rows, commands.add_parser("tell")):
        command.add_argument("results", type=Path, help="folder of the CSV files")
    options = parser.parse_args()
    if options.command == "rows":
        stands_for = yaml.safe_load(TASKS.read_text(encoding="utf-8"))
        kept = {
            tuple(row[key] for key in KEYS): row["retention"]
            for row in collect([options.results]).merges
            if row["realign"] == "none" and not row.get("lora") and row["retention"] is not None
        }
        made = predicted_rows(options.outputs, stands_for.values())
        known = [row | {"retention": kept[key]} for row in made if (key := tuple(row[key] for key in KEYS)) in kept]
        write(options.results / FILE, COLUMNS, sorted(known, key=lambda row: [str(row[key]) for key in KEYS]))
    print(tell(pd.read_csv(options.results / FILE)))


if __name__ == "__main__":
    main()
