"""Drawn results: plausible rows, and run folders as train.py and merge.py leave them."""

import csv
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from reporting.rows import MERGE_COLUMNS, Row, merge_row

TASKS = {
    "age_class": ("accuracy", 0.73), "age_regression": ("rmse", 0.9), "emotion": ("accuracy", 0.47),
    "firerisk": ("accuracy", 0.75), "galaxy": ("accuracy", 0.8), "landmarks": ("nme", 8.4),
}  # fmt: skip
METHODS = {"cat": 0.05, "ties": 0.08, "gram": 0.02, "svd": 0.06}
BACKBONE, SIZE = "vit_tiny_patch16_224", 112


def merge_rows(count: int | None = None, methods: dict[str, float] = METHODS, seed: int = 0) -> list[dict[str, Any]]:
    """Pairs, triples and all six at two ranks and two seeds; the first ``count`` rows."""
    rng = np.random.default_rng(seed)
    rows = []
    sets = [members for size in (2, 3, 6) for members in itertools.combinations(TASKS, size)]
    for rank, run_seed, method, members in itertools.product((16, 64), (0, 1), methods, sets):
        seconds = float(rng.uniform(0.1, 0.2) * rank * len(members) * (4 if method == "gram" else 1))
        for task in members:
            metric, alone = TASKS[task]
            lost = methods[method] * (len(members) - 1) * (3 if "landmarks" in members else 1)
            retention = float(np.clip(1 - lost * rng.uniform(0.5, 1.3), 0.1, 1.2))
            score = alone * retention if metric == "accuracy" else alone / retention
            predicted = retention + float(rng.normal(0, 0.03))
            rows.append(
                {
                    "data": f"drawn_{task}", "backbone": f"{BACKBONE}@{SIZE}", "set": "+".join(members),
                    "method": method, "realign": "linear" if method == "gram" and rank == 64 else "none", "rank": rank,
                    "seed": run_seed, "task": task, "metric": metric, "score": score, "single": alone,
                    "head_only": alone * 0.8, "retention": retention, "images": 0 if method != "gram" else 256,
                    "seconds": seconds, "predicted": predicted, "low": predicted - 0.06, "high": predicted + 0.06,
                }
            )  # fmt: skip
    return rows[:count]


def row_of(**told: Any) -> Row:
    """The first of the drawn rows as a report reads it, with other values."""
    return merge_row(merge_rows(1)[0] | told)


def write_csv(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Rows as they are committed under docs/results."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = [*MERGE_COLUMNS, *(name for name in rows[0] if name not in MERGE_COLUMNS)]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    return path


def _common(what: str, name: str, digest: str, seed: int) -> dict[str, Any]:
    return {
        "schema_version": 1, "what": what, "run": name, "hash": digest, "seed": seed, "name": name.split("-")[1],
        "started": "2026-01-01T10:00:00+00:00", "ended": "2026-01-01T10:05:00+00:00",
        "versions": {"torch": "2.9.0"}, "git": {"commit": "c0ffee" + "0" * 34, "dirty": False}, "python": "3.11.2",
    }  # fmt: skip


def write_train_run(outputs: Path, task: str, rank: int, seed: int = 0, epochs: int = 6, **more: Any) -> Path:
    """A finished run folder of one adapter with its curve; ``more`` replaces keys of its result."""
    metric, alone = TASKS[task]
    digest = f"{abs(hash((task, rank, seed))) % 16**10:010x}" if not more.get("hash") else more["hash"]
    name = f"train-{task}-r{rank}-s{seed}-{digest}"
    score = alone * (0.8 if rank == 0 else 1 + 0.001 * rank + 0.01 * seed)
    metrics = {metric: score} | ({"macro_f1": 0.97 * score} if metric == "accuracy" else {})
    result = _common("train", name, digest, seed) | {
        "task": {"name": task, "kind": "classification", "metric": metric, "classes": ["a", "b"]},
        "data": {"name": f"drawn_{task}", "fingerprint": "d" * 64, "counts": {"train": 100}},
        "backbone": {"name": BACKBONE, "image_size": SIZE, "fingerprint": "b" * 64},
        "lora": {"rank": rank, "alpha": None, "parameters": rank * 1000}, "metric": metric, "score": score,
        "metrics": metrics, "epochs": epochs, "best_epoch": epochs, "seconds": {"fit": 12.5, "total": 20.0},
    }  # fmt: skip
    run = outputs / "runs" / name
    (run / "csv" / "version_0").mkdir(parents=True)
    (run / "result.json").write_text(json.dumps(result | more), encoding="utf-8")
    config = {"seed": seed, "lora": {"rank": rank}, "task": {"name": task}, "optimizer": {"lr": 5e-4}}
    (run / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    with (run / "csv" / "version_0" / "metrics.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["epoch", "step", f"train/{task}/loss", f"val/{task}/{metric}"])
        for epoch in range(epochs):
            writer.writerow([epoch, 10 * epoch, 1 / (epoch + 1), ""])
            writer.writerow([epoch, 10 * epoch, "", score * (1 - 0.5 / (epoch + 1))])
    return run


def write_merge_run(outputs: Path, rows: list[dict[str, Any]], digest: str = "0123456789", **more: Any) -> Path:
    """A finished run folder of a merge, with two example pictures."""
    name = f"merge-pairs-{digest}"
    run = outputs / "runs" / name
    (run / "examples").mkdir(parents=True)
    result = _common("merge", name, digest, 0) | {"rows": rows} | more
    (run / "result.json").write_text(json.dumps(result), encoding="utf-8")
    (run / "config.yaml").write_text(yaml.safe_dump({"merge": {"method": "cat"}, "seed": 0}), encoding="utf-8")
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(run / "examples" / "0.png")
    points = [[0.25, 0.5], [0.75, 0.5]]
    examples = [
        {"task": "galaxy", "image": "0.png", "target": "spiral", "single": "spiral", "merged": "round"},
        {"task": "landmarks", "image": "0.png", "target": points, "single": points, "merged": [[0.3, 0.5], [0.8, 0.6]]},
    ]
    (run / "examples" / "examples.json").write_text(json.dumps(examples), encoding="utf-8")
    return run


def write_outputs(outputs: Path, count: int | None = None) -> Path:
    """Six tasks at three ranks and two seeds, and merges of them."""
    for task, rank, seed in itertools.product(TASKS, (0, 16, 64), (0, 1)):
        write_train_run(outputs, task, rank, seed)
    rows = merge_rows(count)
    looks = [{"seconds": 10.0 * step, "mean_retention": 1 - 0.4 / (step + 1)} for step in range(5)]
    unknown = [{"seconds": 0.0, "mean_retention": None}]
    curves = dict.fromkeys(sorted({row["set"] for row in rows})[:3], looks) | {rows[-1]["set"]: unknown}
    write_merge_run(outputs, rows, curves=curves)
    return outputs
