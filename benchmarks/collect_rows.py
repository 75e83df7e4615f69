"""Rows of finished runs as the CSV files that are committed: python benchmarks/collect_rows.py OUTPUTS ... docs/results

``merges_rank*_seed*.csv``, a file per rank and seed of the members, have a row for each member of each merged set
(scored on the test split, also of sweeps that are still running), as method ``joint``, of each joint training of N
tasks, compared with the adapters alone of 1/N of its rank: the same total, and, as ``head_only``, of each head on the
frozen backbone.
``table1.csv`` has a row for each training. Rows that the CSV files hold already stay unless they are made anew, so that
folders of runs can be cleared away. No path of this machine enters them.
"""

import argparse
import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from launch.files import atomic_write
from launch.labels import lora_settings
from merging.evaluate import COLUMNS, FURTHER, PREDICTED
from reporting.rows import (
    HEAD_ONLY,
    MERGE_DEMANDED,
    backbone_name,
    fill_retention,
    head_only_rows,
    joint_rows,
    merge_row,
)
from reporting.rows import train_rows as report_train_rows

MERGES = "merges_rank{}_seed{}.csv"
TRAINED = ("data", "backbone", "task", "rank", "lora", "seed", "metric", "score", "validation", "best_epoch", "epochs")


def merge_rows(folders: Iterable[Path]) -> list[dict[str, Any]]:
    """Every set's rows, each once, the newest run's; of merges that were scored on the test split alone."""
    rows = []
    runs = [run for outputs in folders for run in outputs.glob("runs/merge-*")]
    for run in sorted(runs, key=lambda run: ((run / "config.yaml").stat().st_mtime, run.name)):
        if yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))["split"] != "test":
            continue
        for file in sorted(run.glob("sets/*.json")):
            rows += json.loads(file.read_text(encoding="utf-8"))["rows"]
    return list({_place(row): row for row in rows if "predicted" in row}.values())


_KEYS = ("backbone", "rank", "seed", "lora", "method", "realign", "images", "set", "task", "data")


def _place(row: Mapping[str, Any]) -> tuple[str, ...]:
    return _key(row, _KEYS)


def _key(row: Mapping[str, Any], names: Iterable[str]) -> tuple[str, ...]:
    return tuple("" if row.get(name) is None else str(row[name]) for name in names)


def earlier_rows(path: Path, names: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows of a CSV file that none of ``rows`` replaces.

    Args:
        names: of the columns that tell rows apart.
    """
    if not path.is_file():
        return []
    made = {_key(row, names) for row in rows}
    with path.open(encoding="utf-8", newline="") as stream:
        return [row for row in csv.DictReader(stream) if _key(row, names) not in made]


def training_results(folders: Iterable[Path]) -> list[dict[str, Any]]:
    """What each finished training says."""
    files = [file for outputs in folders for file in sorted(outputs.glob("runs/train-*/result.json"))]
    return [json.loads(file.read_text(encoding="utf-8")) for file in files]


def compared_rows(results: Sequence[Mapping[str, Any]], trained: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows of joint trainings and of heads on the frozen backbone, those that the adapters alone can be told of."""
    heads = [{**row, "set": row["task"], "method": HEAD_ONLY, "realign": "none"} for row in trained if not row["rank"]]
    found = [merge_row({name: head[name] for name in MERGE_DEMANDED}) for head in heads]
    for result in results:
        if "tasks" in result:
            chosen = {name: part["metric"] for name, part in result["tasks"].items()}
            found += [row for row in joint_rows(result) if row["metric"] == chosen[row["task"]]]
        elif result.get("features") == "deep":
            found += [row for row in head_only_rows(result) if row["metric"] == result["metric"]]
    trains = [row for given in trained for row in report_train_rows(given) if row["primary"]]
    return [row for row in fill_retention(found, trains) if row["single"] is not None]


def train_rows(results: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The row of each training of one task with all its test metrics; heads on deep features are no such."""
    rows = []
    for result in results:
        if "tasks" in result or result.get("features") == "deep":
            continue
        rows.append(
            {
                "data": result["data"]["name"],
                "backbone": backbone_name(result["backbone"]),
                "task": result["name"],
                "rank": result["lora"]["rank"],
                "lora": lora_settings(result["lora"]),
                "seed": result["seed"],
                "metric": result["metric"],
                "score": result["score"],
                "validation": result["validation"][result["metric"]],
                "best_epoch": result["best_epoch"],
                "epochs": result["epochs"],
                **{name: value for name, value in sorted(result["metrics"].items()) if name != result["metric"]},
            }
        )
    return rows


def write(path: Path, columns: Iterable[str], rows: Iterable[Mapping[str, Any]]) -> None:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(columns), extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: f"{value:.6g}" if isinstance(value, float) else value for key, value in row.items()})
    atomic_write(path, buffer.getvalue())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("outputs", type=Path, nargs="+", help="folders of runs")
    parser.add_argument("results", type=Path)
    options = parser.parse_args()
    results = training_results(options.outputs)
    trained = train_rows(results)
    plain = [row for row in trained if not row["lora"]]
    table = options.results / "table1.csv"
    names = ("backbone", "task", "rank", "lora", "seed")
    all_trained = sorted([*earlier_rows(table, names, trained), *trained], key=lambda row: _key(row, names))
    further = sorted({key for row in all_trained for key in row} - set(TRAINED))
    write(table, (*TRAINED, *further), all_trained)
    merged = merge_rows(options.outputs)
    merged += compared_rows(results, plain)
    for table in sorted(options.results.glob(MERGES.format("*", "*"))):
        merged += earlier_rows(table, _KEYS, merged)
    for place in sorted({(str(row["rank"]), str(row["seed"])) for row in merged}):
        rows = sorted((row for row in merged if (str(row["rank"]), str(row["seed"])) == place), key=_place)
        write(options.results / MERGES.format(*place), (*COLUMNS, *FURTHER, *PREDICTED, "lora"), rows)


if __name__ == "__main__":
    main()
