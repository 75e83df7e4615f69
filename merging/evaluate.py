"""One merge of one set of tasks, scored: a row for each member and each kind of realignment."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from launch.merge_schema import Realign
from lightning_modules.model import MLPHead
from merging.branch import Branching, branch
from merging.delta import Delta
from merging.features import class_token
from merging.methods import Outcome
from merging.paired import retention, retention_interval
from merging.predict import output_drift, predict_retention
from merging.realign import VIEWS, choose_readout, fold_readout, refit_head
from merging.workbench import Workbench, outputs

DEEP = ("deep", "head")  # whose heads read deep features
COLUMNS = (
    "data", "backbone", "set", "method", "realign", "rank", "seed", "task", "metric", "score", "single", "head_only",
    "retention", "images", "seconds",
)  # fmt: skip

# the interval that the test set leaves; what the same readout scores on the bare backbone; passes of the backbone; what
# a merge that tries others took
FURTHER = ("retention_low", "retention_high", "control", "passes", "choice")
PREDICTED = ("predicted", "low", "high", "drift")


@dataclass(frozen=True)
class Merged:
    """A merged model before it is written.

    Attributes:
        outcome: of the merge, without readouts.
        heads: by task; those of ``deep`` and ``head`` read deep features.
        seconds: what making it took, readouts included.
        images: unlabeled images per task that it needed, at most, readouts included.
        ways: by task, what it has in place of ``delta`` where the merge branches.
        passes: of the backbone that all tasks together cost.
    """

    outcome: Outcome
    heads: dict[str, MLPHead]
    realign: Realign
    seconds: float
    images: int
    ways: Mapping[str, Delta] = field(default_factory=dict)
    passes: float = 1.0

    @property
    def delta(self) -> Delta | None:
        """None where nothing was merged (the control)."""
        return self.outcome.delta

    @property
    def deep(self) -> bool:
        """Whether its heads read deep features."""
        return self.realign in DEEP

    def delta_of(self, task: str) -> Delta | None:
        """What is folded into the backbone for this task's answer."""
        return self.ways.get(task, self.delta)


def merge_set(
    bench: Workbench,
    tasks: Sequence[str],
    merge: Callable[[Sequence[str]], Outcome],
    realigns: Sequence[Realign],
    images: int,
    branching: Branching | None = None,
) -> list[Merged]:
    """Merges one set and fits each kind of readout; deep and linear ones come from one pass over the images.

    Raises:
        CommandError: it branches beyond the backbone's last block.
    """
    if branching is not None:
        branching.require(bench.depth)
    begun = bench.clock()
    outcome = merge(tasks)
    delta = outcome.delta
    ways: dict[str, Delta] = {}
    passes = 1.0
    if branching is not None:
        own = {task: bench.members[task].delta for task in tasks}
        further: list[Outcome] = []

        def again(some: Sequence[str]) -> Delta | None:
            further.append(merge(some))
            return further[-1].delta

        ways, passes = branch(tasks, delta, again, own, branching, bench.depth)
        outcome = _together([outcome, *further])
    merging = outcome.earlier + bench.clock() - begun
    found: dict[Realign, Merged] = {}
    wanted: list[Realign] = [realign for realign in realigns if realign != "none"]
    heads: dict[Realign, dict[str, MLPHead]] = {realign: {} for realign in wanted}
    spent: dict[Realign, float] = dict.fromkeys(wanted, merging)
    for task in tasks if wanted else ():
        for realign, (head, seconds) in _realigned(bench, task, ways.get(task, delta), wanted, images).items():
            heads[realign][task] = head
            spent[realign] += seconds
    for realign in realigns:
        if realign == "none":
            own_heads = {task: bench.members[task].head for task in tasks}
            found[realign] = Merged(outcome, own_heads, realign, merging, outcome.images, ways, passes)
        else:
            needed = max(images, outcome.images)
            found[realign] = Merged(outcome, heads[realign], realign, spent[realign], needed, ways, passes)
    return [found[realign] for realign in realigns]


def _realigned(
    bench: Workbench, task: str, delta: Delta | None, realigns: Iterable[Realign], images: int
) -> dict[Realign, tuple[MLPHead, float]]:
    """A task's heads for the backbone with a delta (None: bare), and the seconds that each took by itself.

    Args:
        realigns: none of them ``none``.
    """
    head, found = bench.members[task].head, {}
    deep = any(realign in DEEP for realign in realigns)
    begun = bench.clock()
    single = bench.single(task, "train", images)
    features = bench.merged(delta, task, "train", images, deep=deep)
    groups = bench.groups(task, "train", images)
    reading = bench.clock() - begun
    for realign in realigns:
        begun = bench.clock()
        if realign == "head":
            views = range(1, VIEWS + 1)
            aims = [single, *(bench.single(task, "train", images, view=view) for view in views)]
            more = [bench.merged(delta, task, "train", images, deep=True, view=view) for view in views]
            made = refit_head(head, [features, *more], aims, groups)
        else:
            given = features if realign == "deep" else class_token(features, bench.width)
            made = fold_readout(head, choose_readout(given, single, groups)[0])
        found[realign] = made, reading + bench.clock() - begun
    return found


def _together(outcomes: Sequence[Outcome]) -> Outcome:
    """The first, with what the merges of its branches needed and chose, too."""
    choices = [one.choice for one in outcomes if one.choice is not None]
    return outcomes[0]._replace(
        choice=" and ".join(dict.fromkeys(choices)) or None,
        images=max(one.images for one in outcomes),
        earlier=sum(one.earlier for one in outcomes),
    )


def predict_set(bench: Workbench, merges: Sequence[Merged], count: int) -> list[dict[str, Any]]:
    """What to expect of merges that share one delta on the test set, of which nothing is read but its size.

    Args:
        count: validation images per task, at most; their labels are read, as training has read them.

    Returns:
        A row for each member and realignment.
    """
    rows = []
    deep = any(merged.deep for merged in merges)
    for task in merges[0].heads:
        member = bench.members[task]
        single = outputs(member.head, bench.single(task, "val", count))
        features = bench.merged(merges[0].delta_of(task), task, "val", count, deep=deep)
        targets = bench.targets(task, "val", count)
        sizes = ((member.bundle.card.get("data") or {}).get("counts") or {}).get("test") or {}
        for merged in merges:
            given = features if merged.deep else class_token(features, bench.width)
            answers = outputs(merged.heads[task], given)
            predicted, low, high = predict_retention(
                member.task,
                single,
                answers,
                member.validation,
                targets,
                sum(sizes.values()) or None,
                groups=bench.groups(task, "val", count),
            )
            rows.append(
                {
                    "realign": merged.realign,
                    "task": task,
                    "metric": member.task.metric,
                    "predicted": predicted,
                    "low": low,
                    "high": high,
                    "drift": output_drift(member.task, single, answers),
                }
            )
    return rows


def score_set(
    bench: Workbench, merges: Sequence[Merged], split: str, head_only: Mapping[str, MLPHead], images: int
) -> list[dict[str, Any]]:
    """Rows of merges that share one delta; the split's images pass the backbone once.

    Readouts are kept honest by their control, the same readout on the bare backbone.

    Args:
        head_only: heads trained on the bare backbone, by task, where there are any.
        images: unlabeled training images per task that readouts had, at most.
    """
    rows = []
    deep = any(merged.deep for merged in merges)
    for task in merges[0].heads:
        metric = bench.members[task].task.metric
        features = (
            bench.bare(task, split, deep=deep)
            if merges[0].delta_of(task) is None
            else bench.features(merges[0].delta_of(task), task, split, deep=deep)
        )
        own = outputs(bench.members[task].head, bench.single(task, split))
        single = bench.score(task, split, own)
        alone = _head_only(bench, task, split, head_only, deep)
        controls = _controls(bench, task, split, [merged.realign for merged in merges], images)
        for merged in merges:
            given = features if merged.deep else class_token(features, bench.width)
            answers = outputs(merged.heads[task], given)
            scores = bench.score(task, split, answers)
            low, high = retention_interval(
                bench.members[task].task, own, answers, bench.targets(task, split), bench.groups(task, split)
            )
            rows.append(
                {
                    "realign": merged.realign,
                    "task": task,
                    "metric": metric,
                    "score": scores[metric],
                    "single": single[metric],
                    "head_only": None if alone is None else alone[metric],
                    "retention": _known(retention(metric, scores[metric], single[metric])),
                    "retention_low": _known(low),
                    "retention_high": _known(high),
                    "control": controls.get(merged.realign),
                    "images": merged.images,
                    "passes": merged.passes,
                    "choice": merged.outcome.choice,
                    "seconds": round(merged.seconds, 3),
                    "scores": scores,
                }
            )
    return rows


def _known(value: float) -> float | None:
    """None for what JSON has no number for: a retention of a score of nothing."""
    return value if math.isfinite(value) else None


def _head_only(
    bench: Workbench, task: str, split: str, head_only: Mapping[str, MLPHead], deep: bool
) -> dict[str, float] | None:
    if task not in head_only:
        return None
    features: Tensor = class_token(bench.bare(task, split, deep=deep), bench.width)
    return bench.score(task, split, outputs(head_only[task], features))


def _controls(
    bench: Workbench, task: str, split: str, realigns: Iterable[Realign], images: int
) -> dict[Realign, float]:
    """What each kind of readout scores on the bare backbone, without any merge; worked out once for all sets."""
    wanted: list[Realign] = [realign for realign in realigns if realign != "none"]
    places = {realign: (task, split, realign, images) for realign in wanted}
    if missing := [realign for realign in wanted if places[realign] not in bench.controls]:
        features = bench.bare(task, split, deep=any(realign in DEEP for realign in wanted))
        for realign, (head, _) in _realigned(bench, task, None, missing, images).items():
            given = features if realign in DEEP else class_token(features, bench.width)
            scores = bench.score(task, split, outputs(head, given))
            bench.controls[places[realign]] = scores[bench.members[task].task.metric]
    return {realign: bench.controls[place] for realign, place in places.items()}
