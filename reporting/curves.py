"""Curves of runs: of a training, validation metrics from the CSV logger's files; of a merge, what its steps kept."""

import csv
import math
from pathlib import Path
from typing import Any

from reporting.rows import backbone_name

MAX_POINTS = 120  # of one curve: more than a figure can show


def read_curves(run: Path, result: dict[str, Any], origin: int) -> list[dict[str, Any]]:
    """The task's metric by epoch, from all attempts of the run; a later attempt wins.

    Returns:
        One dict with ``points`` [[epoch, value], ...], epochs from 1; nothing when no curve was logged.
    """
    task, metric = result["task"]["name"], result["metric"]
    name = f"val/{task}/{metric}"
    values: dict[int, float] = {}
    files = {path.parent.name.removeprefix("version_"): path for path in (run / "csv").glob("version_*/metrics.csv")}
    for version in sorted((name for name in files if name.isdecimal()), key=int):
        for line in _lines(files[version]):
            try:
                epoch, value = int(float(line["epoch"])), float(line[name])
            except (KeyError, TypeError, ValueError):
                continue
            if math.isfinite(value):
                values[epoch + 1] = value
    if not values:
        return []
    epochs = sorted(values)
    step = math.ceil(len(epochs) / MAX_POINTS)
    kept = epochs[::-1][::step][::-1]  # the last one always
    return [
        {
            "task": task, "metric": metric, "rank": result["lora"]["rank"], "seed": result["seed"],
            "data": result["data"]["name"], "backbone": backbone_name(result["backbone"]), "origin": origin,
            "best": result.get("best_epoch"), "points": [[epoch, round(values[epoch], 6)] for epoch in kept],
        }
    ]  # fmt: skip


def refinement_curves(result: dict[str, Any], origin: int) -> list[dict[str, Any]]:
    """Retention against seconds of merges that are trained: mean over the members, expected on held-out images.

    Returns:
        One dict for each set, ``points`` [[seconds, retention], ...]; nothing where retention is not known.
    """
    found = []
    for members, curve in result.get("curves", {}).items():
        row = next(row for row in result["rows"] if row["set"] == members)
        told = [look for look in curve if look["mean_retention"] is not None]
        points = [[look["seconds"], round(look["mean_retention"], 6)] for look in told]
        named = {name: row[name] for name in ("set", "method", "rank", "seed", "data", "backbone")}
        if points:
            found.append(named | {"origin": origin, "points": points})
    return found


def _lines(file: Path) -> list[dict[str, str]]:
    try:
        with file.open(encoding="utf-8", newline="") as stream:
            return list(csv.DictReader(stream))
    except (OSError, UnicodeDecodeError, csv.Error):
        return []  # a curve is an extra: the numbers are in result.json
