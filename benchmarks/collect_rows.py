"""Rows of finished runs as the two CSV files that are committed: python benchmarks/collect_rows.py OUTPUTS docs/results

``merges.csv`` has a row for each member of each merged set (also of sweeps that are still running), ``table1.csv`` one
for each training. No path of this machine enters them.
"""

import argparse
import csv
import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from launch.files import atomic_write
from merging.evaluate import COLUMNS, PAIRED, PREDICTED

TRAINED = ("data", "backbone", "task", "rank", "seed", "metric", "score", "validation", "best_epoch", "epochs")


def merge_rows(outputs: Path) -> list[dict[str, Any]]:
    """Every set's rows, sorted."""
    rows = []
    for file in sorted(outputs.glob("runs/merge-*/sets/*.json")):
        rows += json.loads(file.read_text(encoding="utf-8"))["rows"]
    kept = {tuple(str(row.get(key)) for key in _KEYS): row for row in rows if "predicted" in row}
    return [row for _, row in sorted(kept.items())]


_KEYS = ("backbone", "rank", "seed", "method", "realign", "images", "set", "task")


def train_rows(outputs: Path) -> list[dict[str, Any]]:
    """Every training's row with all its test metrics, sorted."""
    rows = []
    for file in sorted(outputs.glob("runs/train-*/result.json")):
        result = json.loads(file.read_text(encoding="utf-8"))
        rows.append(
            {
                "data": result["data"]["name"],
                "backbone": f"{result['backbone']['name']}@{result['backbone']['image_size']}",
                "task": result["name"],
                "rank": result["lora"]["rank"],
                "seed": result["seed"],
                "metric": result["metric"],
                "score": result["score"],
                "validation": result["validation"][result["metric"]],
                "best_epoch": result["best_epoch"],
                "epochs": result["epochs"],
                **{name: value for name, value in sorted(result["metrics"].items()) if name != result["metric"]},
            }
        )
    return sorted(rows, key=lambda row: (row["backbone"], row["task"], row["rank"], row["seed"]))


def write(path: Path, columns: Iterable[str], rows: Iterable[Mapping[str, Any]]) -> None:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(columns), extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: f"{value:.6g}" if isinstance(value, float) else value for key, value in row.items()})
    atomic_write(path, buffer.getvalue())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("outputs", type=Path)
    parser.add_argument("results", type=Path)
    options = parser.parse_args()
    trained = train_rows(options.outputs)
    further = sorted({key for row in trained for key in row} - set(TRAINED))
    write(options.results / "table1.csv", (*TRAINED, *further), trained)
    write(options.results / "merges.csv", (*COLUMNS, *PAIRED, *PREDICTED, "init_seed"), merge_rows(options.outputs))


if __name__ == "__main__":
    main()
