"""Branching: the first blocks are shared by all tasks of a merge, and tasks that conflict get last blocks of their own.

A branch runs the blocks from ``at`` on once more, so B branches cost 1 + (B - 1) (L - at) / L passes of L blocks.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from launch.errors import CommandError
from merging.delta import Delta


@dataclass(frozen=True)
class Branching:
    """Where a merge branches.

    Attributes:
        at: blocks that are shared; 0 shares nothing, L everything.
        tasks: those with last blocks of their own; None: all. The others share theirs.
    """

    at: int
    tasks: tuple[str, ...] | None = None

    def require(self, depth: int) -> None:
        """Cheap, so that nothing is merged in vain.

        Raises:
            CommandError: a backbone of ``depth`` blocks cannot branch there.
        """
        if not 0 <= self.at <= depth:
            raise CommandError(
                f"branch_at={self.at}: the backbone has {depth} blocks; give a number from 0 to {depth}."
            )

    def splits(self, tasks: Sequence[str], depth: int) -> bool:
        """Whether any block of a backbone of ``depth`` is left that the tasks of a set would not share."""
        return self.at < depth and bool(self.apart(tasks))

    def apart(self, tasks: Sequence[str]) -> list[str]:
        """Those of a set that get last blocks of their own."""
        return [task for task in tasks if self.tasks is None or task in self.tasks]


def branch(
    tasks: Sequence[str],
    merged: Delta | None,
    merge: Callable[[Sequence[str]], Delta | None],
    own: Mapping[str, Delta | None],
    branching: Branching,
    depth: int,
) -> tuple[dict[str, Delta], float]:
    """For each task the delta of its way through the backbone, and the passes that all ways cost together.

    Tasks that share their last blocks are merged there among themselves, so the branched ones no longer disturb them.

    Args:
        merged: of all tasks; the first ``at`` blocks take it.
        merge: of some tasks, for the last blocks of those that share them.
        own: the single adapters' deltas.
        depth: blocks of the backbone, L.
    """
    apart = branching.apart(tasks)
    if not apart:
        return {}, 1.0
    sharing = [task for task in tasks if task not in apart]
    together = merge(sharing) if len(sharing) > 1 else None
    ways = {}
    for task in tasks:
        last = own[task] if task in apart or len(sharing) == 1 else together
        ways[task] = _join(merged or {}, last or {}, branching.at)
    branches = len(apart) + bool(sharing)
    return ways, 1 + (branches - 1) * (depth - branching.at) / depth


def _join(first: Delta, last: Delta, at: int) -> Delta:
    return {module: pair for module, pair in first.items() if _block(module) < at} | {
        module: pair for module, pair in last.items() if _block(module) >= at
    }


def _block(module: str) -> int:
    return int(module.split(".")[1])  # blocks.<number>.attn.qkv.k
