"""A merge as cheap as its members allow: rung after rung, until validation images say that every member holds."""

import functools
import logging
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from launch.errors import CommandError
from launch.merge_schema import Realign
from merging.delta import Delta, Weights, require, require_held_out
from merging.evaluate import merge_set, predict_set
from merging.methods import Outcome, merge_function, shipped
from merging.workbench import Workbench

log = logging.getLogger(__name__)


def ladder(
    deltas: Mapping[str, Delta],
    weights: Weights | None = None,
    *,
    bench: Workbench,
    rungs: Sequence[str | Mapping[str, Mapping[str, Any]]],
    keep: float,
    after: Realign,
    images: int,
    advice_images: int,
) -> Outcome:
    """The first of ``rungs`` whose every member is predicted to keep ``keep``.

    Where none is: the last of those that validation images cannot tell from the one whose worst member is predicted
    best (``high`` of its own worst member reaches it). A few hundred images tell two or three per cent apart; within
    them the dearer merge is the safer one. Retention is predicted (``predict.predict_retention``) as ``advise=true``
    does; no test image is read. The outcome's ``choice`` is the rung that was taken.

    Args:
        rungs: merges as their yaml ships them, cheapest and weakest first; or ``{merge: {argument: value}}`` of one.
        keep: predicted retention that is enough.
        after: what the heads will be realigned by; choose the same as ``realign``.
        images: unlabeled training images per task that readouts are fitted on, at most.
        advice_images: validation images per task, at most.

    Raises:
        CommandError: no rung, an unknown one or one that merges nothing, or ``after`` is no realignment.
    """
    settings = dict(_settings(rung) for rung in rungs)
    require(bool(settings) and len(settings) == len(rungs), "rungs", list(rungs), "different merges, cheapest first")
    require("ladder" not in settings, "rungs", list(rungs), "merges other than ladder")
    require(after in get_args(Realign), "after", after, "none, linear, deep or head")
    require_held_out(images)
    require(advice_images >= 2, "advice_images", advice_images, "a whole number from 2")
    tasks = sorted(deltas)
    tried: list[tuple[float, float, Outcome]] = []
    needed, earlier = 0, 0.0
    for name, own in settings.items():
        given = own if own.get("weights") is not None else own | {"weights": weights}
        function = functools.partial(merge_function(given), bench)
        (merged,) = merge_set(bench, tasks, function, [after], images)
        if merged.delta is None:
            raise CommandError(f"merge.rungs={list(rungs)}: {name} merges nothing.")
        rows = predict_set(bench, [merged], advice_images)
        worst = min(rows, key=lambda row: float(row["predicted"]))
        told = "%s: %s is predicted to keep %.3f (up to %.3f), the others more"
        log.info(told, name, worst["task"], worst["predicted"], worst["high"])
        tried.append((worst["predicted"], worst["high"], merged.outcome._replace(choice=name)))
        needed, earlier = max(needed, merged.images), earlier + merged.outcome.earlier
        if worst["predicted"] >= keep:
            break
    else:
        best = max(predicted for predicted, _, _ in tried)
        tried = [rung for rung in tried if rung[1] >= best]
    chosen = tried[-1][2]._replace(images=needed, earlier=earlier)
    log.info("Chosen for %s: %s", "+".join(tasks), chosen.choice)
    return chosen


def _settings(rung: str | Mapping[str, Mapping[str, Any]]) -> tuple[str, dict[str, Any]]:
    """A rung's name and its ``merge`` section.

    Raises:
        CommandError: there is no such merge, it takes no such argument, or the rung is neither of the two forms.
    """
    given: Mapping[str, Any] = {rung: {}} if isinstance(rung, str) else rung
    if len(given) != 1 or not isinstance(more := next(iter(given.values())), Mapping):
        raise CommandError(
            f"merge.rungs: {rung} is no rung. Give the name of a merge, or {{name: {{argument: value}}}}."
        )
    name = next(iter(given))
    settings = shipped(name)
    if unknown := sorted(set(more) - set(settings)):
        raise CommandError(f"merge.rungs: {name} takes no {unknown[0]}. It takes: {', '.join(sorted(settings))}.")
    return name, settings | dict(more)
