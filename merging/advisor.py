"""Advice before a merge: what each member will keep, why, and which merge to take. No test image is read."""

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from launch.errors import CommandError
from launch.merge_schema import MergeConfig
from launch.progress import track
from launch.runs import Run
from merging.conflict import conflict, interference
from merging.evaluate import merge_set, predict_set
from merging.members import Member, read_member
from merging.methods import merge_function, merge_members, needs_images, require_delta, shipped
from merging.robustness import predict_by_error, relative_errors, require_robustness
from merging.run import Bench, branching_of, check_alike, open_bench

log = logging.getLogger(__name__)
QUIET, TOLD_APART = 0.25, 0.1  # below these, interference is harmless and a conflict small


@dataclass(frozen=True)
class Disturbance:
    """What the adapters alone tell of one member.

    Attributes:
        by: the member that acts most on this one's inputs.
        interference: |dW_by X| / |dW X| on this one's inputs X, root mean square over modules; None where unknown.
        conflict: the share of the members' outputs that no merged matrix can give, mean over modules.
    """

    by: str | None
    interference: float | None
    conflict: float | None

    @property
    def reason(self) -> str:
        """In plain words."""
        if self.interference is None or self.conflict is None:
            return "unknown: an adapter has no Grams"
        if self.by is None:
            return "it is alone"
        if self.interference < QUIET:
            return f"{self.by} hardly acts on its inputs (interference {self.interference:.2f})"
        acts = f"{self.by} acts on its inputs ({self.interference:.2f} of its own output)"
        if self.conflict < TOLD_APART:
            return f"{acts}, but the inputs can be told apart (conflict {self.conflict:.2f}): gram helps"
        return f"{acts} and wants other outputs for the same inputs (conflict {self.conflict:.2f}): realign or distil"


def disturbances(members: Mapping[str, Member]) -> dict[str, Disturbance]:
    """For each member what the stored factors and Grams tell; seconds, no image.

    Raises:
        AdapterError: a member has no Grams.
    """
    names = sorted(members)
    if len(names) == 1:
        return {names[0]: Disturbance(None, 0.0, 0.0)}
    deltas = {name: require_delta(member) for name, member in members.items()}
    grams = {name: member.grams or {} for name, member in members.items()}
    table = torch.stack(list(interference(deltas, grams).values()))  # (L, T, T): row disturbs column
    rms = torch.where(table.isfinite(), table, 0.0).square().mean(0).sqrt()
    found = {}
    for place, name in enumerate(names):
        others = rms[:, place].clone()
        others[place] = -1
        worst = int(others.argmax())
        pair = {key: deltas[key] for key in (name, names[worst])}
        shares = conflict(pair, {key: grams[key] for key in pair})
        found[name] = Disturbance(names[worst], float(others[worst]), sum(shares.values()) / len(shares))
    return found


def advise(config: MergeConfig, run: Run, bundles: Mapping[str, Path]) -> dict[str, Any]:
    """Predicts each member's retention for each candidate merge and realignment, and recommends one per set.

    Recommended is the merge whose worst member is predicted best. Without images (``advice_images`` None) those
    candidates are looked at that need none themselves, from stored Grams and each task's robustness.

    Returns:
        The content of ``result.json``: ``rows`` with predicted retention, its interval and the reason.

    Raises:
        CommandError: no images, and no candidate that does without.
    """
    expected, members, backbone = _predictor(config, bundles)
    rows: list[dict[str, Any]] = []
    sets = config.chosen_sets()
    for tasks in track(sets, "Looking ahead", len(sets)):
        some = {task: members[task] for task in tasks}
        if config.advice_images is not None and not all(member.grams for member in some.values()):
            told = dict.fromkeys(tasks, Disturbance(None, None, None))  # images predict without
        else:
            told = disturbances(some)
        own = [
            {"set": "+".join(tasks), "rank": config.lora.rank, "seed": config.seed}
            | row
            | asdict(told[row["task"]])
            | {"reason": told[row["task"]].reason}
            for row in expected(tasks)
        ]
        best = recommended(own)
        rows += [row | {"recommended": _is(row, best)} for row in own]
        show(rows[-len(own) :], best)
    chosen = [row["predicted"] for row in rows if row["recommended"]]
    return {"metric": "predicted retention", "score": min(chosen), "rows": rows, "backbone": backbone}


def recommended(rows: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """(method, realign) whose worst member is predicted best in one pass; ties go to what stands first."""
    worst: dict[tuple[str, str], float] = {}
    least = min(row["passes"] for row in rows)
    for row in rows:
        if row["passes"] > least:
            continue
        key = (row["method"], row["realign"])
        worst[key] = min(worst.get(key, float("inf")), row["predicted"])
    return max(worst, key=lambda key: round(worst[key], 3))


def _is(row: Mapping[str, Any], best: tuple[str, str]) -> bool:
    return (row["method"], row["realign"]) == best and row["passes"] == 1


def show(rows: Sequence[Mapping[str, Any]], best: tuple[str, str]) -> None:
    """Prints the prediction of the recommended merge for each member, and the others' worst."""
    table = Table(title=f"{rows[0]['set']}: take merge={best[0]} realign={best[1]}", box=None, title_justify="left")
    for heading in ("task", "predicted retention", "5 % to 95 %", "why"):
        table.add_column(heading, overflow="fold")
    for row in rows:
        if _is(row, best):
            table.add_row(
                row["task"], f"{row['predicted']:.3f}", f"{row['low']:.3f} to {row['high']:.3f}", row["reason"]
            )
    console = Console()
    console.print(table)
    worst: dict[tuple[str, str, float], float] = {}
    for row in rows:
        key = (row["method"], row["realign"], row["passes"])
        worst[key] = min(worst.get(key, float("inf")), row["predicted"])
    lines = [
        f"  {method:10} {realign:7} worst member {value:.3f}"
        + (f" for {passes:.2f} passes of the backbone, branched" if passes > 1 else "")
        for (method, realign, passes), value in worst.items()
    ]
    keep = shipped("ladder")["keep"]
    if min(row["predicted"] for row in rows if _is(row, best)) < keep:
        lines.append(
            f"  None of these with one pass is predicted to keep {keep} of every member. "
            "merge=distill realign=deep takes minutes and no label, and keeps more; merge=ladder sees by itself."
        )
    console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)


def _predictor(
    config: MergeConfig, bundles: Mapping[str, Path]
) -> tuple[Callable[[Sequence[str]], list[dict[str, Any]]], Mapping[str, Member], dict[str, Any]]:
    """What predicts the rows of a set, the members, and the backbone's card."""
    if config.advice_images is not None:
        opened = open_bench(config, bundles)
        opened.bench.scratch = None  # of an earlier merge of this process
        return functools.partial(_expected, config, opened), opened.bench.members, opened.backbone
    members = {task: read_member(path) for task, path in bundles.items()}
    check_alike(list(members.values()))
    methods = [name for name in config.candidates if not needs_images(shipped(name))]
    if not methods:
        raise CommandError(
            f"candidates={','.join(config.candidates)}: each of them looks at images, so nothing is known of them "
            "without (advice_images=null). Give candidates=[cat,gram], or advice_images=64 or more."
        )
    if left := [name for name in config.candidates if name not in methods]:
        log.info("Without images nothing is known of %s", ", ".join(left))
    card = next(iter(members.values())).bundle.card["backbone"]
    return lambda tasks: expected_by_error({task: members[task] for task in tasks}, methods), members, card


def expected_by_error(members: Mapping[str, Member], methods: Sequence[str]) -> list[dict[str, Any]]:
    """Rows as ``evaluate.predict_set`` gives them, with ``method``, from stored Grams and robustness alone.

    Raises:
        AdapterError: a member has no Grams or tells no robustness.
    """
    robust = {task: require_robustness(task, member.bundle.card) for task, member in members.items()}
    deltas = {task: require_delta(member) for task, member in members.items()}
    grams = {task: member.grams or {} for task, member in members.items()}
    rows = []
    for method in methods:
        merged = merge_members(shipped(method), members).delta or {}
        for task, error in relative_errors(merged, deltas, grams).items():
            predicted, low, high = predict_by_error(robust[task], error)
            told = {"predicted": predicted, "low": low, "high": high, "passes": 1.0}
            rows.append({"method": method, "realign": "none", "task": task, "metric": members[task].task.metric} | told)
    return rows


def _expected(config: MergeConfig, opened: Bench, tasks: Sequence[str]) -> list[dict[str, Any]]:
    assert config.advice_images is not None  # which is what asks for this
    rows = []
    for method in config.candidates:
        function = functools.partial(merge_function(shipped(method)), opened.bench)
        branched = branching_of(config)
        for branching in (
            (None, branched) if branched is not None and branched.splits(tasks, opened.bench.depth) else (None,)
        ):
            merges = merge_set(opened.bench, tasks, function, config.realigns, config.images, branching)
            told = {"method": method, "passes": merges[0].passes}
            rows += [row | told for row in predict_set(opened.bench, merges, config.advice_images)]
    return rows
