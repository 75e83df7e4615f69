"""Calling the merge that a config names, on members alone or on members with images at hand."""

import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from launch.checks import known
from launch.errors import AdapterError, CommandError, nearest
from launch.labels import shipped_merges
from launch.merge_schema import method_file
from merging.delta import Delta
from merging.members import Member

if TYPE_CHECKING:
    from merging.workbench import Workbench


class Outcome(NamedTuple):
    """What a merge gives.

    Attributes:
        delta: None where nothing is merged (``frozen``).
        choice: the merge that was taken by one that tries others; None of all else.
        curve: of a merge that is trained, a dict for each look at held-out images (``distill.CURVE``).
        images: unlabeled training images per task that it looked at, at most.
        earlier: seconds that attempts took which were killed and from which it went on.
    """

    delta: Delta | None
    choice: str | None = None
    curve: Sequence[Mapping[str, float | None]] = ()
    images: int = 0
    earlier: float = 0.0


def method_of(config: Mapping[str, Any]) -> Callable[..., Any]:
    """The function that ``merge._target_`` names.

    Raises:
        CommandError: it is not one of ours.
    """
    target = str(config.get("_target_"))
    file, name = method_file(target)
    found = None
    if file is not None and file.is_file():
        found = getattr(importlib.import_module(target.rpartition(".")[0]), name, None)
    if not callable(found) or "deltas" not in inspect.signature(found).parameters:
        raise CommandError(f"merge._target_={target}: no such merge of ours.")
    return found


def shipped(name: str) -> dict[str, Any]:
    """The ``merge`` section of a shipped yaml.

    Raises:
        CommandError: there is none of this name.
    """
    merges = shipped_merges()
    if name not in merges:
        raise CommandError(f"There is no merge {name}.{nearest(name, merges) or f' Known: {known(merges)}.'}")
    return dict(merges[name])


def needs_images(config: Mapping[str, Any]) -> bool:
    """Whether the merge looks at images, so that adapters alone do not make it again."""
    return "bench" in inspect.signature(method_of(config)).parameters


def merge_members(
    config: Mapping[str, Any], members: Mapping[str, Member], bench: "Workbench | None" = None
) -> Outcome:
    """Members merged by the function and the arguments that ``merge`` names.

    Args:
        config: the ``merge`` section.
        members: by task.
        bench: for merges that look at images.

    Raises:
        CommandError: the function is not one of ours.
        AdapterError: a member has rank 0.
    """
    function = method_of(config)
    wanted = inspect.signature(function).parameters
    given = {key: value for key, value in config.items() if key not in ("_target_", "_partial_", "weights")}
    if "grams" in wanted:
        given["grams"] = {task: member.grams or {} for task, member in members.items()}
    if "bench" in wanted:
        given["bench"] = bench
    weights = config.get("weights")
    if weights is not None:
        weights = {task: weights.get(task, 1.0) for task in members}
    deltas = {task: require_delta(member) for task, member in members.items()}
    merged: Outcome | Delta | None = function(deltas, weights=weights, **given)
    if isinstance(merged, Outcome):
        return merged
    return Outcome(merged, images=int(given.get("images", 0)))


def merge_function(config: Mapping[str, Any]) -> Callable[["Workbench", Sequence[str]], Outcome]:
    """``merge_members`` of a workbench's members, by their tasks.

    Raises:
        CommandError: the function is not one of ours.
    """
    method_of(config)
    return lambda bench, tasks: merge_members(config, {task: bench.members[task] for task in tasks}, bench)


def require_delta(member: Member) -> Delta:
    """The member's delta.

    Raises:
        AdapterError: it has rank 0.
    """
    if member.delta is None:
        raise AdapterError(
            f"{member.bundle.path} has rank 0: a head on the frozen backbone, nothing to merge. Take lora.rank=16."
        )
    return member.delta
