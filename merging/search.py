"""A merge chosen without labels: whichever brings the members' answers nearest to their own on held-out images."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from launch.errors import CommandError
from merging.conflict import interference
from merging.delta import Delta, Weights, require, require_held_out
from merging.features import class_token
from merging.gram import Grams, Normalise, gram
from merging.held_out import held_out_start
from merging.methods import Outcome, merge_members, shipped
from merging.predict import output_drift
from merging.realign import choose_readout, fold_readout
from merging.workbench import Workbench, outputs

log = logging.getLogger(__name__)


def search(
    deltas: Mapping[str, Delta],
    weights: Weights | None = None,
    *,
    bench: Workbench,
    grams: Grams,
    cat_shares: Sequence[float],
    scales: Sequence[float],
    candidates: Sequence[str],
    after: Literal["none", "linear", "deep"],
    images: int,
    normalise: Normalise,
    ridge: float,
) -> Outcome:
    """The best of a grid between ``gram`` and ``cat``, of scales of the loudest adapter, and of other merges.

    A candidate costs one pass of ``images`` pictures per task. It is judged by its worst member: the distance of the
    head outputs to the single-adapter model's on the last fifth of the images (``predict.output_drift``), after a
    readout fitted on the others where ``after`` says so. Candidates that look at images get none of that fifth. The
    scales are tried at the best share.

    Args:
        cat_shares: of ``gram``; 1 is ``cat``.
        scales: weights of the dominating adapter, the one with the largest mean ``conflict.interference``.
        candidates: further merges, as their yaml ships them.
        after: what the heads will be realigned by; choose the same as ``realign``.
        images: unlabeled training images per task, at most.
        normalise, ridge: see ``gram``.

    Raises:
        CommandError: no candidate, an unknown merge, or ``after`` is none of the three.
    """
    others = {name: shipped(name) for name in candidates}
    barred = {"search", "ladder", "frozen"} & set(others)
    require(not barred, "candidates", list(candidates), "merges other than search, ladder and frozen")
    require(after in ("none", "linear", "deep"), "after", after, "none, linear or deep")
    require_held_out(images)
    if not cat_shares:
        raise CommandError("merge.cat_shares=[]: give at least one share from 0 (gram) to 1 (cat).")
    given = {name: 1.0 if weights is None else weights[name] for name in deltas}
    best: tuple[float, Outcome] | None = None

    def consider(merged: Delta, text: str, outcome: Outcome | None = None) -> bool:
        nonlocal best
        drift = max(_drifts(bench, merged, task, after, images) for task in deltas)
        log.info("%s: worst drift %.4f", text, drift)
        if best is not None and drift >= best[0]:
            return False
        best = (drift, (outcome or Outcome(merged))._replace(choice=text))
        return True

    share = float(cat_shares[0])
    for another, merged in _shares(deltas, given, grams, cat_shares, normalise, ridge):
        if consider(merged, f"cat_share {another}"):
            share = another
    loudest = _loudest(deltas, grams)
    for scale in scales if len(deltas) > 1 else ():
        scaled: dict[str, Any] = given | {loudest: _scaled(given[loudest], scale)}
        merged = gram(deltas, scaled, grams=grams, normalise=normalise, ridge=ridge, cat_share=share)
        consider(merged, f"cat_share {share}, {loudest} x {scale}")
    needed, earlier = images, 0.0
    fitted = min(_cut(bench.groups(task, "train", images)) for task in deltas)
    members = {task: bench.members[task] for task in deltas}
    for name, settings in others.items():
        if "images" in settings:
            settings["images"] = min(settings["images"], fitted)
        other = merge_members(settings | {"weights": weights}, members, bench)
        assert other.delta is not None  # frozen alone merges nothing
        consider(other.delta, name, other)
        needed, earlier = max(needed, other.images), earlier + other.earlier
    assert best is not None
    log.info("Chosen for %s: %s", "+".join(sorted(deltas)), best[1].choice)
    return best[1]._replace(images=needed, earlier=earlier)


def _shares(
    deltas: Mapping[str, Delta],
    weights: Weights,
    grams: Grams,
    shares: Sequence[float],
    normalise: Normalise,
    ridge: float,
) -> Iterator[tuple[float, Delta]]:
    for share in shares:
        yield (
            float(share),
            gram(deltas, weights, grams=grams, normalise=normalise, ridge=ridge, cat_share=float(share)),
        )


def _drifts(bench: Workbench, merged: Delta, task: str, after: str, images: int) -> float:
    member = bench.members[task]
    single = bench.single(task, "train", images)
    groups = bench.groups(task, "train", images)
    cut = _cut(groups)
    features = bench.merged(merged, task, "train", images, deep=after == "deep")
    head = member.head
    if after == "none":
        features = class_token(features, bench.width)
    else:
        head = fold_readout(head, choose_readout(features[:cut], single[:cut], groups[:cut])[0])
    return output_drift(member.task, outputs(member.head, single[cut:]), outputs(head, features[cut:]))


def _cut(groups: Tensor) -> int:
    """How many of a task's images fit; candidates are judged on the others."""
    return held_out_start(groups, max(1, len(groups) // 5))


def _loudest(deltas: Mapping[str, Delta], grams: Grams) -> str:
    names = sorted(deltas)
    table = torch.stack(list(interference(deltas, grams).values()))  # (L, T, T)
    finite = torch.where(table.isfinite(), table, 0.0).mean(0)
    return names[int((finite.sum(1) - finite.diagonal()).argmax())]


def _scaled(weight: float | Mapping[str, float], scale: float) -> Any:
    if not isinstance(weight, Mapping):
        return weight * scale
    return {**weight, "blocks": weight.get("blocks", 1.0) * scale}
