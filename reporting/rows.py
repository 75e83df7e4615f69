"""What a row of a report is: one score of one task, alone (train) or as a member of a merged set (merge).

Rows are plain dicts. ``origin`` is the place of the row's source in ``Collected.origins``.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from launch.checks import HIGHER_IS_BETTER
from launch.labels import lora_settings

MERGE_COLUMNS = (
    "data", "backbone", "set", "method", "realign", "rank", "seed", "task", "metric", "score", "single", "head_only",
    "retention", "images", "seconds",
)  # fmt: skip
MERGE_DEMANDED = ("data", "backbone", "set", "method", "rank", "seed", "task", "metric", "score")
MERGE_FURTHER = (
    "lora",
    "retention_low",
    "retention_high",
    "control",
    "predicted",
    "low",
    "high",
    "passes",
    "choice",
)  # only some merges know them
TRAIN_COLUMNS = ("data", "backbone", "task", "rank", "lora", "seed", "metric", "score", "primary", "epochs", "seconds")
TRAIN_DEMANDED = ("data", "backbone", "task", "rank", "seed", "metric", "score")
INTEGERS = ("rank", "seed", "images", "epochs")
NUMBERS = (
    "score", "single", "head_only", "control", "retention", "retention_low", "retention_high", "seconds", "predicted",
    "low", "high", "passes",
)  # fmt: skip
# what a row says of the answers that it is of alone, and of its own metric alone
_OF_ITS_ANSWERS = ("retention_low", "retention_high", "predicted", "low", "high")
_OF_ITS_METRIC = ("single", "head_only", "control", "retention", *_OF_ITS_ANSWERS)
STUDY_METHOD = "cat"  # what the study calls concatenation
# not merged, but what merging is measured against: one adapter trained on all tasks; a head on the frozen backbone;
# members' heads on the frozen backbone
JOINT, HEAD_ONLY, FROZEN = CONTROLS = ("joint", "head_only", "frozen")
Row = dict[str, Any]


class RowError(ValueError):
    """A row that cannot be used; the text says why."""


@dataclass
class Collected:
    """Everything that a report is made of.

    Attributes:
        trains: one row per run and metric.
        merges: one row per merged set, member task and metric.
        origins: file, run, config hash, commit, fingerprints, versions and config of each source of rows.
        curves: validation metrics by epoch: ``task, metric, rank, seed, data, backbone, origin`` and ``points``
            ``[[epoch, value], ...]``.
        refinements: retention by seconds of merges that are trained: ``set, method, rank, seed, data, backbone,
            origin`` and ``points`` ``[[seconds, retention], ...]``, expected on held-out images, mean over members.
        examples: pictures with predictions (see ``reporting.examples``).
        left_out: path and reason of whatever was found but not used.
    """

    trains: list[Row] = field(default_factory=list)
    merges: list[Row] = field(default_factory=list)
    origins: list[dict[str, Any]] = field(default_factory=list)
    curves: list[dict[str, Any]] = field(default_factory=list)
    refinements: list[dict[str, Any]] = field(default_factory=list)
    examples: list[dict[str, Any]] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)

    @property
    def empty(self) -> bool:
        """Nothing to show."""
        return not self.trains and not self.merges


def merge_row(given: Mapping[str, Any]) -> Row:
    """A checked merge row; further columns are kept as they are, a missing retention is worked out.

    Raises:
        RowError: a demanded column is missing or holds what it cannot.
    """
    row = {**dict.fromkeys(MERGE_COLUMNS), **_typed(given, MERGE_DEMANDED)}
    members = str(row["set"]).split("+")
    if row["task"] not in members:
        raise RowError(f"task={row['task']} is no member of set={row['set']}")
    row["set"], row["tasks"] = "+".join(sorted(members)), len(members)
    row["realign"] = row["realign"] or "none"
    if row["retention"] is None and row["single"] is not None:
        row["retention"] = _retention(row["metric"], row["score"], row["single"])
    return row


def _retention(metric: str, score: float, single: float) -> float | None:
    """As ``merging.paired.retention``, which needs torch; what is infinite there is None."""
    above, below = (score, single) if higher_is_better(metric) else (single, score)
    if below == 0:
        return 1.0 if above == 0 else None
    return above / below


def merge_rows(given: Mapping[str, Any]) -> Iterator[Row]:
    """The row itself, and one for each other metric in ``scores``; how the adapter alone did there is not known.

    Raises:
        RowError: as ``merge_row``.
    """
    scores = given.get("scores")
    row = merge_row({name: value for name, value in given.items() if name != "scores"})
    yield row
    for name, score in scores.items() if isinstance(scores, dict) else ():
        if _is_metric(name) and name != row["metric"]:
            yield {**row, **dict.fromkeys(_OF_ITS_METRIC), "metric": name, "score": _number(name, score)}


def joint_rows(result: Mapping[str, Any]) -> Iterator[Row]:
    """Rows of a training of one adapter on several tasks, as if its set had been merged by ``joint``.

    Where the losses were added up as they come, the method is ``joint(balance=sum)``.

    How each adapter does alone is not known to it: see ``fill_retention``.

    Raises:
        RowError: as ``merge_row``.
    """
    parts = result["tasks"]
    balanced = result.get("balance") == "relative"
    for name, part in parts.items():
        yield from merge_rows(
            {
                "data": "+".join(sorted({item["data"]["name"] for item in parts.values()})),
                "backbone": backbone_name(result["backbone"]), "set": "+".join(parts),
                "method": JOINT if balanced else f"{JOINT}(balance=sum)",
                "rank": result["lora"]["rank"], "lora": lora_settings(result["lora"]), "seed": result["seed"],
                "task": name, "metric": part["metric"],
                "score": part["score"], "scores": part["metrics"],
                "seconds": (result.get("seconds") or {}).get("fit"),
            }
        )  # fmt: skip


def head_only_rows(result: Mapping[str, Any]) -> Iterator[Row]:
    """Rows of a head trained on the frozen backbone's deep features, as if its task alone were merged and realigned.

    Raises:
        RowError: as ``merge_row``.
    """
    yield from merge_rows(
        {
            "data": result["data"]["name"], "backbone": backbone_name(result["backbone"]),
            "set": result["task"]["name"], "task": result["task"]["name"], "method": HEAD_ONLY, "realign": "deep",
            "rank": 0, "seed": result["seed"], "metric": result["metric"], "score": result["score"],
            "scores": result["metrics"], "seconds": (result.get("seconds") or {}).get("fit"),
        }
    )  # fmt: skip


def backbone_name(card: Mapping[str, Any]) -> str:
    """Name and image size, as merge rows have it: vit_base_patch16_224@224."""
    return f"{card['name']}@{card['image_size']}" if card.get("image_size") else str(card["name"])


def fill_retention(merges: Iterable[Row], trains: Sequence[Row]) -> Iterator[Row]:
    """The merge rows, those of joint trainings and of heads on the frozen backbone told how the adapters do alone.

    A merge made before a task's head was trained on the frozen backbone is told that head's score.
    A joint row of N tasks is compared with adapters of 1/N of its rank, which merge to the same total; where there are
    none, of its own rank. A head's row becomes one for each rank. Rows stay as they are where not just one adapter has
    the data, backbone, rank, seed and metric.
    """
    alone: dict[tuple[Any, ...], list[Row]] = {}
    for row in trains:
        alone.setdefault(_measured(row), []).append(row)
    ranks = sorted({row["rank"] for row in trains if row["rank"]})

    def score(row: Row, rank: int) -> float | None:
        data = row["data"].split("+")  # a joint row names the data of all its members
        wanted = row | {"rank": rank} | ({} if rank else {"lora": None})
        found = [one["score"] for one in alone.get(_measured(wanted), []) if one["data"] in data]
        return found[0] if len(found) == 1 else None

    def told(row: Row, asked: Iterable[int]) -> Iterator[Row]:
        for rank in asked:
            if (single := score(row, rank)) is not None:
                yield merge_row(row | {"single": single, "head_only": score(row, 0)})

    for row in merges:
        found: list[Row] = []
        method = row["method"].partition("(")[0] if row["single"] is None else ""
        if method == HEAD_ONLY:
            found = [one for rank in ranks for one in told(row | {"rank": rank}, [rank])]
        elif method == JOINT:
            found = list(told(row, [row["rank"] // row["tasks"], row["rank"]]))[:1]
        elif row["single"] is not None and row["head_only"] is None:
            found = [row | {"head_only": score(row, 0)}]
        yield from found or [row]


def control_rows(merges: Iterable[Row]) -> Iterator[Row]:
    """What the same readouts give on the bare backbone, as rows of ``frozen`` beside those of the merges.

    Those of merges that need the fewest images come first: their rows tell how many the readout had, others may tell
    how many the merge had.
    """
    unknown = ("control", "retention", *_OF_ITS_ANSWERS, "seconds", "drift", "choice")
    rows = list(merges)

    def merge(row: Row) -> tuple[Any, ...]:
        return tuple(row.get(name) for name in ("data", "backbone", "set", "method", "rank", "lora", "seed"))

    needed = {merge(row): row["images"] or 0 for row in rows if row["realign"] == "none"}
    for row in sorted(rows, key=lambda row: needed.get(merge(row), 0)):
        if row.get("control") is not None and row["method"] != FROZEN:
            told = {"method": FROZEN, "score": row["control"], "passes": 1.0}
            yield merge_row({**row, **dict.fromkeys(unknown), **told})


def _measured(row: Row) -> tuple[Any, ...]:
    return tuple(row.get(name) for name in ("backbone", "task", "rank", "lora", "seed", "metric"))


def train_rows(given: Mapping[str, Any]) -> Iterator[Row]:
    """One row for the metric that chose the checkpoint, one for each other metric that stands in a column.

    Raises:
        RowError: as ``merge_row``.
    """
    row = _typed(given, TRAIN_DEMANDED)
    others = {name: row.pop(name) for name in list(row) if _is_metric(name)}
    row = {**dict.fromkeys(TRAIN_COLUMNS), **row}
    is_primary = row.pop("primary", None)  # a report's own trains.csv tells, as text
    yield {**row, "primary": is_primary is None or str(is_primary) == "True"}
    for name, value in others.items():
        if name != row["metric"] and value not in (None, ""):
            yield {**row, "metric": name, "score": _number(name, value), "primary": False}


def method_label(row: Row) -> str:
    """``cat``, ``gram + linear (max_norm=0.1)``: the method, what was realigned after it, and unusual adapters."""
    label = row["method"] if row["realign"] == "none" else f"{row['method']} + {row['realign']}"
    return f"{label} ({row['lora']})" if row.get("lora") else str(label)


def is_control(row: Row) -> bool:
    """Whether a row is of what merges are measured against, and of no merge."""
    return row["method"].partition("(")[0] in CONTROLS


def is_idle(row: Row) -> bool:
    """Whether nothing was merged and no readout fitted: what seconds such a row has are chance."""
    return row["method"] == FROZEN and row["realign"] == "none"


def higher_is_better(metric: str) -> bool:
    """Also of a metric in another unit or over a subset (``rmse_years``, ``nme_pose``); of a foreign one: yes."""
    return HIGHER_IS_BETTER.get(_base(metric), True)


def _base(metric: str) -> str:
    """The metric whose unit or subset this is, or the name itself."""
    return next((name for name in HIGHER_IS_BETTER if metric.startswith(f"{name}_")), metric)


def _is_metric(name: str) -> bool:
    return _base(name) in HIGHER_IS_BETTER


def primary_metrics(found: Collected) -> dict[str, str]:
    """The metric of each task that figures show unless told otherwise: the one that chose its checkpoints."""
    order = list(HIGHER_IS_BETTER)
    measured: dict[str, list[str]] = {}
    for row in [*found.merges, *found.trains]:
        measured.setdefault(row["task"], []).append(row["metric"])
    chosen = {
        task: min(metrics, key=lambda name: order.index(name) if name in order else len(order))
        for task, metrics in measured.items()
    }
    merged = {(row["task"], row["metric"]) for row in found.merges}
    tasks = {task for task, _ in merged}
    for row in found.trains:
        if row["primary"] and ((row["task"], row["metric"]) in merged or row["task"] not in tasks):
            chosen[row["task"]] = row["metric"]
    return chosen


def _typed(given: Mapping[str, Any], demanded: tuple[str, ...]) -> Row:
    row = {str(name): (None if value in ("", None) else value) for name, value in given.items()}
    if absent := [name for name in demanded if row.get(name) is None]:
        raise RowError(f"no {', '.join(absent)}")
    for name in NUMBERS:
        if row.get(name) is not None:
            row[name] = _number(name, row[name])
    for name in INTEGERS:
        if row.get(name) is not None:
            number = _number(name, row[name])
            if number != int(number):
                raise RowError(f"{name}={row[name]} is no whole number")
            row[name] = int(number)
    return row


def _number(name: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise RowError(f"{name}={value!r} is no number") from None
    if not math.isfinite(number):
        raise RowError(f"{name}={value} is not finite")
    return number
