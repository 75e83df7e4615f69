"""How well retention is predicted:

    python benchmarks/advice.py look OUTPUTS DUMPS --rank 16 --seed 0   merges pairs, keeps the answers on val and test
    python benchmarks/advice.py rows DUMPS docs/results/advice.csv      predicts from val, measures on test
    python benchmarks/advice.py tell docs/results/advice.csv --draw docs/advice.svg

Test labels are read for what is measured alone. ``rows`` predicts anew by the present code, so a change of the
predictor needs no merge.
"""

import argparse
import csv
import functools
import io
import random
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import torch
import yaml  # type: ignore[import-untyped]
from matplotlib.figure import Figure

from launch.app import CONF
from launch.bundles import find_bundles
from launch.checks import ROOT
from launch.compose import Composer
from launch.config import first_config
from launch.files import atomic_write
from launch.merge_schema import MergeConfig
from lightning_modules.tasks import Task
from merging.evaluate import merge_set
from merging.features import class_token
from merging.methods import merge_function
from merging.paired import retention
from merging.predict import LEVEL, measurement_noise, predict_retention
from merging.run import open_bench
from merging.workbench import outputs
from reporting.figures import COLORS, MARKERS, STYLE

COLUMNS = (
    "set",
    "method",
    "realign",
    "rank",
    "seed",
    "task",
    "retention",
    "predicted",
    "low",
    "high",
    "noise",
    "unlabeled",
)
METHODS = ("cat", "gram")
USABLE = 0.8
ROUNDS = 1000
Row = dict[str, Any]


def look(folder: Path, dumps: Path, tasks: Sequence[str], rank: int, seed: int, images: int) -> None:
    """Writes the outputs of single and merged models on val and test, after each pair, in an order that mixes tasks."""
    composer = Composer("merge", CONF)
    command = composer.parse(
        [
            "sweep=pairs", f"sweep.of=[{','.join(tasks)}]", f"lora.rank={rank}", f"seed={seed}", f"images={images}",
            "realign=[none,linear,deep]", f"paths.outputs={folder}", "logger=csv",
        ],
        multirun=False,
    )  # fmt: skip
    config = MergeConfig.model_validate(first_config(composer, command))
    bench = open_bench(config, find_bundles(config)).bench
    kept: dict[str, Any] = {"rank": rank, "seed": seed, "members": {}, "rows": []}
    for task in tasks:
        member = bench.members[task]
        kept["members"][task] = {"task": asdict(member.task), "known": member.bundle.card["validation"]} | {
            split: {
                "single": outputs(member.head, bench.single(task, split)),
                "targets": bench.targets(task, split),
                "groups": bench.groups(task, split),
            }
            for split in ("val", "test")
        }
    sets = config.chosen_sets()
    random.Random(0).shuffle(sets)
    for names in sets:
        for method in METHODS:
            settings = yaml.safe_load((ROOT / "conf" / "merge" / f"{method}.yaml").read_text(encoding="utf-8"))
            merges = merge_set(
                bench, names, functools.partial(merge_function(settings), bench), config.realigns, images
            )
            for task in names:
                for split in ("val", "test"):
                    features = bench.features(merges[0].delta, task, split, deep=True)
                    for merged in merges:
                        given = features if merged.deep else class_token(features, bench.width)
                        key = {"set": "+".join(names), "method": method, "realign": merged.realign, "task": task}
                        kept["rows"].append(key | {"split": split, "merged": outputs(merged.heads[task], given)})
        buffer = io.BytesIO()
        torch.save(kept, buffer)
        atomic_write(dumps / f"r{rank}-s{seed}.pt", buffer.getvalue())


def recompute(file: Path) -> list[Row]:
    """Rows of one file of ``look``, in ``COLUMNS``."""
    kept = torch.load(file, weights_only=True)
    found: dict[tuple[str, ...], dict[str, torch.Tensor]] = {}
    for row in kept["rows"]:
        key = tuple(row[name] for name in ("set", "method", "realign", "task"))
        found.setdefault(key, {})[row["split"]] = row["merged"]
    rows = []
    for key, merged in found.items():
        member = kept["members"][key[-1]]
        task = Task(**member["task"])
        val, test = member["val"], member["test"]
        predicted, low, high = predict_retention(
            task, val["single"], merged["val"], member["known"], val["targets"], len(test["single"]), val["groups"]
        )
        unlabeled, _, _ = predict_retention(task, val["single"], merged["val"], member["known"])
        before, after = (_score(task, answers, test["targets"]) for answers in (test["single"], merged["test"]))
        rows.append(
            dict(zip(("set", "method", "realign", "task"), key, strict=True))
            | {
                "rank": kept["rank"],
                "seed": kept["seed"],
                "retention": retention(task.metric, after, before),
                "predicted": predicted,
                "low": low,
                "high": high,
                "noise": measurement_noise(task, test["single"], merged["test"], test["targets"], test["groups"]),
                "unlabeled": unlabeled,
            }
        )
    return rows


def _score(task: Task, answers: torch.Tensor, targets: torch.Tensor) -> float:
    metric = task.metrics()[task.metric]
    metric.update(task.predict(answers), targets)
    return float(metric.compute())


def write_rows(file: Path, rows: Sequence[Row]) -> None:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: f"{value:.6g}" if isinstance(value, float) else value for key, value in row.items()})
    atomic_write(file, buffer.getvalue())


def read_rows(file: Path) -> list[Row]:
    """Rows with a prediction; numbers as numbers. The control, where nothing is merged, is left out."""
    with file.open(encoding="utf-8", newline="") as lines:
        rows = [dict(row) for row in csv.DictReader(lines)]
    numbers = ("retention", "predicted", "low", "high", "noise", "unlabeled")
    return [
        row | {name: float(row[name]) for name in numbers if row.get(name)}
        for row in rows
        if row["predicted"] and row["method"] != "frozen"
    ]


def spearman(first: Iterable[float], second: Iterable[float]) -> float:
    """Rank correlation, ties at their mean rank; nan where one side is constant. Pairs with a nan are left out."""
    both = pd.DataFrame({"first": list(first), "second": list(second)})
    return float(both.corr(method="spearman").loc["first", "second"])


def correlation(rows: Sequence[Row]) -> float:
    return spearman([row["retention"] for row in rows], [row["predicted"] for row in rows])


def mean_error(rows: Sequence[Row]) -> float:
    """Mean absolute error where the merge is usable; nan where it never is."""
    errors = [abs(row["predicted"] - row["retention"]) for row in rows if row["retention"] >= USABLE]
    return statistics.fmean(errors) if errors else float("nan")


def coverage(rows: Sequence[Row], scale: float = 1.0) -> float:
    """Share of measured values within intervals whose half-widths are multiplied by ``scale``."""
    return statistics.fmean(_stretch(row) <= scale for row in rows)


def _stretch(row: Row) -> float:
    """By what its interval's half-width must be multiplied to reach the measured value."""
    off = row["retention"] - row["predicted"]
    half = row["high"] - row["predicted"] if off > 0 else row["predicted"] - row["low"]
    return 0.0 if off == 0 else abs(off) / half if half > 0 else float("inf")


def needed_scale(rows: Sequence[Row]) -> float:
    """The conformal quantile: the least scale that holds ``LEVEL`` of the rows and one more."""
    stretches = sorted(_stretch(row) for row in rows)
    place = int(np.ceil(LEVEL * (len(stretches) + 1))) - 1
    return stretches[min(place, len(stretches) - 1)]


def left_out(rows: Sequence[Row]) -> dict[str, tuple[float, float]]:
    """By task: the scale that the other tasks' rows need, and the coverage that it gives on this task's."""
    found = {}
    for task in sorted({row["task"] for row in rows}):
        scale = needed_scale([row for row in rows if row["task"] != task])
        found[task] = scale, coverage([row for row in rows if row["task"] == task], scale)
    return found


def null(rows: Sequence[Row], rounds: int = ROUNDS, seed: int = 0) -> tuple[float, float]:
    """Predictions dealt out anew within each task: share of rounds that correlate as well, and their 95 % of |rho|."""
    generator = np.random.default_rng(seed)
    groups: dict[str, list[int]] = {}
    for place, row in enumerate(rows):
        groups.setdefault(row["task"], []).append(place)
    measured, told = (np.array([row[name] for row in rows]) for name in ("retention", "predicted"))
    values = []
    for _ in range(rounds):
        dealt = told.copy()
        for places in groups.values():
            dealt[places] = told[generator.permutation(places)]
        values.append(spearman(measured, dealt))
    real = spearman(measured, told)
    return (1 + sum(value >= real for value in values)) / (1 + rounds), float(np.quantile(np.abs(values), 0.95))


def interval(
    rows: Sequence[Row], statistic: Callable[[Sequence[Row]], float], rounds: int = ROUNDS, seed: int = 0
) -> tuple[float, float]:
    """95 % of a statistic over the choice of sets: rows of one set stay together."""
    generator = np.random.default_rng(seed)
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row["set"], []).append(row)
    names = sorted(groups)
    values = [
        statistic([row for name in generator.choice(names, len(names)) for row in groups[name]]) for _ in range(rounds)
    ]
    low, high = np.nanquantile(values, [0.025, 0.975])
    return float(low), float(high)


def ceiling(rows: Sequence[Row], rounds: int = ROUNDS, seed: int = 0) -> tuple[float, float] | None:
    """Spearman and mean error of a perfect prediction: if the predicted were the truth, measured on such test sets."""
    if any(not row.get("noise") and row.get("noise") != 0 for row in rows):
        return None
    generator = np.random.default_rng(seed)
    drawn = []
    for _ in range(rounds):
        noise = generator.standard_normal(len(rows))
        shown = [row | {"retention": row["predicted"] + row["noise"] * e} for row, e in zip(rows, noise, strict=True)]
        drawn.append((correlation(shown), mean_error(shown)))
    rho, error = np.nanmean(drawn, axis=0)
    return float(rho), float(error)


def table(rows: Sequence[Row]) -> str:
    """Markdown: a line for all rows, for each rank, realignment and task."""
    outside = left_out(rows) if len({row["task"] for row in rows}) > 1 else {}
    groups: dict[str, list[Row]] = {"all": list(rows)}
    for name in ("rank", "realign", "task"):
        for value in sorted({str(row[name]) for row in rows}):
            groups[f"{name} {value}"] = [row for row in rows if str(row[name]) == value]
    lines = [
        "| rows | number | Spearman (95 % by set) | null: p, 95 % | MAE where usable (95 %) | held | held, left out "
        "| best possible Spearman, MAE |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for title, group in groups.items():
        low, high = interval(group, correlation)
        best, worst = interval(group, mean_error)
        chance, usual = null(group)
        limit = ceiling(group)
        apart = [_stretch(row) <= outside[row["task"]][0] for row in group if outside]
        cells = [
            title,
            str(len(group)),
            f"{correlation(group):.2f} ({low:.2f} to {high:.2f})",
            f"{chance:.3f}, {usual:.2f}",
            f"{mean_error(group):.3f} ({best:.3f} to {worst:.3f})",
            f"{coverage(group):.0%}",
            f"{statistics.fmean(apart):.0%}" if apart else "",
            "" if limit is None else f"{limit[0]:.2f}, {limit[1]:.3f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", *(f"scale without {task}: {scale:.2f}" for task, (scale, _) in outside.items())]
    if all("unlabeled" in row for row in rows):
        blind = [row | {"predicted": row["unlabeled"]} for row in rows]
        lines.append(f"without validation labels: Spearman {correlation(blind):.2f}, MAE {mean_error(blind):.3f}")
    return "\n".join([*lines, f"scale over all: {needed_scale(rows):.2f}"])


def draw(rows: Sequence[Row], file: Path) -> None:
    """Predicted retention with its interval against the measured one, a colour and a marker per task."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.5, 5.0), layout="constrained")
        axis = figure.subplots()
        for place, task in enumerate(sorted({row["task"] for row in rows})):
            own = [row for row in rows if row["task"] == task]
            x, y = [row["retention"] for row in own], [row["predicted"] for row in own]
            ends = [[row["predicted"] - row["low"] for row in own], [row["high"] - row["predicted"] for row in own]]
            axis.errorbar(
                x, y, ends, fmt=MARKERS[place], ms=3, color=COLORS[place], elinewidth=0.4, alpha=0.7, label=task
            )
        limits = [min(row["retention"] for row in rows), max(row["retention"] for row in rows)]
        axis.plot(limits, limits, "--", color="#555555", linewidth=0.8)
        axis.set(xlabel="measured retention", ylabel="predicted retention, 90 %")
        axis.legend()
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    atomic_write(file, buffer.getvalue())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    what = parser.add_subparsers(dest="what", required=True)
    looking = what.add_parser("look")
    looking.add_argument("outputs", type=Path)
    looking.add_argument("dumps", type=Path)
    looking.add_argument("--tasks", default="age_class,age_regression,emotion,galaxy_gz,land_use,landmarks68")
    looking.add_argument("--rank", type=int, default=16)
    looking.add_argument("--seed", type=int, default=0)
    looking.add_argument("--images", type=int, default=600, help="unlabeled, that readouts are fitted on")
    again = what.add_parser("rows")
    again.add_argument("dumps", type=Path)
    again.add_argument("file", type=Path)
    telling = what.add_parser("tell")
    telling.add_argument("file", type=Path)
    telling.add_argument("--draw", type=Path)
    options = parser.parse_args()
    if options.what == "look":
        options.dumps.mkdir(parents=True, exist_ok=True)
        look(options.outputs, options.dumps, options.tasks.split(","), options.rank, options.seed, options.images)
    elif options.what == "rows":
        rows = [row for file in sorted(options.dumps.glob("*.pt")) for row in recompute(file)]
        write_rows(options.file, sorted(rows, key=lambda row: [str(row[name]) for name in COLUMNS[:6]]))
    else:
        rows = read_rows(options.file)
        print(table(rows))
        if options.draw is not None:
            draw(rows, options.draw)


if __name__ == "__main__":
    main()
