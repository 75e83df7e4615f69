"""Merges whose last blocks are not shared by all tasks."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from launch.bundles import find_bundles
from launch.errors import CommandError
from lightning_modules.backbone import create_backbone
from merging.branch import Branching, branch
from merging.evaluate import merge_set
from merging.methods import Outcome
from merging.run import branching_of, open_bench
from tests.conftest import SIZE, TINY
from tests.merge_runs import command, merge_config, merge_here, train_members

DEPTH = 12


def _delta(value: float) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    part = torch.full((2, 2), value)
    return {f"blocks.{block}.attn.qkv.k": (part, part) for block in range(DEPTH)}


OWN = {"a": _delta(1.0), "b": _delta(2.0), "c": _delta(3.0)}


def _summed(names):
    return _delta(sum(float(OWN[name]["blocks.0.attn.qkv.k"][0][0, 0]) for name in names))


def _values(way):
    return [float(way[f"blocks.{block}.attn.qkv.k"][0][0, 0]) for block in range(DEPTH)]


def test_the_branched_task_has_its_own_last_blocks_and_leaves_those_of_the_others() -> None:
    ways, passes = branch(["a", "b", "c"], _summed("abc"), _summed, OWN, Branching(9, ("c",)), DEPTH)
    assert _values(ways["c"]) == [6.0] * 9 + [3.0] * 3
    assert _values(ways["a"]) == _values(ways["b"]) == [6.0] * 9 + [3.0] * 3  # 1 + 2, without c's 3
    assert passes == pytest.approx(1 + 3 / 12)


@pytest.mark.parametrize(("at", "passes"), [(12, 1.0), (6, 2.0), (0, 3.0)])
def test_all_tasks_branch_where_none_is_named(at: int, passes: float) -> None:
    ways, cost = branch(["a", "b", "c"], _summed("abc"), _summed, OWN, Branching(at), DEPTH)
    assert cost == passes
    for name, value in (("a", 1.0), ("b", 2.0), ("c", 3.0)):
        assert _values(ways[name]) == [6.0] * at + [value] * (DEPTH - at)


def test_a_lone_task_beside_the_branched_ones_keeps_its_own_last_blocks() -> None:
    ways, passes = branch(["a", "b"], _summed("ab"), _summed, OWN, Branching(11, ("a",)), DEPTH)
    assert _values(ways["b"])[-1] == 2.0
    assert passes == pytest.approx(1 + 1 / 12)


def test_tasks_that_share_a_merge_of_nothing_have_the_bare_backbone() -> None:
    ways, passes = branch(["a", "b", "c"], None, lambda _: None, OWN, Branching(9, ("c",)), DEPTH)
    assert (ways["a"], ways["b"]) == ({}, {})
    assert list(ways["c"]) == [f"blocks.{block}.attn.qkv.k" for block in (9, 10, 11)]
    assert passes == pytest.approx(1 + 3 / 12)


def test_a_set_without_the_branched_tasks_is_merged_once() -> None:
    def again(names):
        raise AssertionError(names)

    assert branch(["a", "b"], _summed("ab"), again, OWN, Branching(9, ("c",)), DEPTH) == ({}, 1.0)


def test_a_branching_splits_where_a_task_of_the_set_has_blocks_of_its_own() -> None:
    assert Branching(9, ("c",)).splits(["a", "c"], DEPTH)
    assert not Branching(9, ("c",)).splits(["a", "b"], DEPTH)
    assert Branching(9).splits(["a", "b"], DEPTH)
    assert not Branching(DEPTH).splits(["a", "b"], DEPTH)


def test_more_blocks_than_there_are_are_refused_before_anything_is_merged(tmp_path: Path) -> None:
    config = merge_config(command(train_members(tmp_path), "tasks=[dots,leaves]", "branch_at=13", "save=false"))
    bench = open_bench(config, find_bundles(config)).bench

    def never(names: Sequence[str]) -> Outcome:
        raise AssertionError(names)

    with pytest.raises(CommandError, match=f"branch_at=13: the backbone has {bench.depth} blocks"):
        merge_set(bench, ["dots", "leaves"], never, ["none"], 24, branching_of(config))


def test_what_the_merge_of_a_branch_needed_and_chose_is_told_too() -> None:
    members = {name: SimpleNamespace(delta=delta, head=None) for name, delta in OWN.items()}
    bench: Any = SimpleNamespace(depth=DEPTH, members=members, clock=lambda: 7.0)
    told = {"abc": ("cat", 0, 100.0), "ab": ("regress", 512, 20.0)}

    def merge(names: Sequence[str]) -> Outcome:
        choice, images, earlier = told["".join(names)]
        return Outcome(_summed(names), choice=choice, images=images, earlier=earlier)

    (merged,) = merge_set(bench, ["a", "b", "c"], merge, ["none"], 24, Branching(9, ("c",)))
    assert (merged.outcome.choice, merged.images, merged.seconds) == ("cat and regress", 512, 120.0)


def test_nothing_shared_is_the_adapters_alone_and_all_shared_is_the_merge(tmp_path: Path) -> None:
    outputs = train_members(tmp_path)
    pair = ["tasks=[leaves,dots]", "merge=cat", "save=false"]
    apart, _ = merge_here(command(outputs, *pair, "branch_at=0"))
    assert [row["retention"] for row in apart["rows"]] == [1.0, 1.0]
    assert {row["passes"] for row in apart["rows"]} == {2.0}
    assert {row["method"] for row in apart["rows"]} == {"cat_branched_at_0"}
    plain, _ = merge_here(command(outputs, *pair))
    depth = len(create_backbone(TINY, SIZE).blocks)
    shared, _ = merge_here(command(outputs, *pair, f"branch_at={depth}"))
    assert [row["score"] for row in shared["rows"]] == [row["score"] for row in plain["rows"]]
    assert {row["passes"] for row in shared["rows"]} == {1.0}
