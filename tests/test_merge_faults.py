"""Merge commands that would change nothing, fail late or judge by another measure: told before anything is opened."""

import pytest

from launch.app import CONF
from launch.compose import Composer
from launch.config import find_faults
from launch.merge_schema import MergeConfig

COMPOSER = Composer("merge", CONF)


def faults(*given: str) -> list[str]:
    return find_faults(COMPOSER, MergeConfig, COMPOSER.parse(list(given), multirun=False), multirun=False)


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        (["merge.weights={levle:0.5}"], "merge.weights={levle:0.5}: levle is in no set. Did you mean 'level'?"),
        (["merge.weights=0.5"], "merge.weights=0.5: must be null or a mapping {adapter: number}."),
        (["merge.weights={level:half}"], "that of level is neither"),
        (["merge.weights={level:.inf}"], "that of level is neither"),
        (["merge.weights={level:{blocks.1:half}}"], "that of level is neither"),
        (["branch_at=2", "branch=[levle]"], "branch=[levle]: levle is in no set. Did you mean 'level'?"),
        (["merge=ladder", "merge.rungs=[cta]", "realign=deep"], "there is no merge cta. Did you mean 'cat'?"),
        (["merge=ladder", "merge.rungs=[{svd:{rank:2}},{tsw:{rank:2}}]", "realign=deep"], "there is no merge tsw."),
        (["merge=search", "merge.candidates=[cta]", "realign=deep"], "there is no merge cta. Did you mean 'cat'?"),
        (["merge=ladder"], "realign=none: the merge is chosen by what is left after realign=deep."),
        (["merge=ladder", "realign=deep", "images=200"], "images=200: the ladder foretells heads that are fitted to"),
        (
            ["merge=ladder", "realign=deep", "branch_at=2"],
            "branch_at=2: the ladder foretells a merge of one pass.",
        ),
        (["backbone.weights=nope.safetensors"], "backbone.weights=nope.safetensors: no such file (looked in"),
        (["merge=search", "realign=[none,linear]"], "realign=[none,linear]: the merge is chosen by"),
    ],
)
def test_a_setting_without_effect_is_a_fault(given: list[str], fault: str) -> None:
    told = faults("tasks=[leaves,level]", *given)
    assert len(told) == 1
    assert fault in told[0]


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        (["sweep=triples", "sweep.of=[leaves,level,dots]"], "is not in sweep.of=[leaves,level,dots], so no set holds"),
        (["sweep.sizes=[3]", "sweep.of=[leaves,level]"], "sweep.sizes=[3]: of 2 tasks there is no such set."),
        (
            ["sweep.sizes=[1]", "sweep.of=[leaves,level]", "sweep.including=[leaves,level]"],
            "of 2 tasks there is no such set with [leaves,level] in each.",
        ),
        (["sweep=pairs", "sweep.of=[a,b]", "merge.weights={c:0}"], "c is in no set. Known: a, b."),
    ],
)
def test_a_sweep_of_nothing_is_a_fault(given: list[str], fault: str) -> None:
    told = faults(*given)
    assert len(told) == 1
    assert fault in told[0]


@pytest.mark.parametrize(
    ("method", "setting", "wanted"),
    [
        ("ties", "density=2", "a number from 0 to 1"),
        ("knots_ties", "density=-0.5", "a number from 0 to 1"),
        ("dare_linear", "rank=0", "a whole number from 1 or null (= exact, full rank)"),
        ("svd", "rank=0", "a whole number from 1 or null (= the largest of the set)"),
        ("wudi", "ridge=-1.0", "a number from 1e-8, or 0"),
        ("distill", "seconds=0", "a number above 0, or null"),
        ("regress", "stride=0", "a whole number from 1"),
    ],
)
def test_a_number_out_of_bounds_is_a_fault(method: str, setting: str, wanted: str) -> None:
    told = faults("tasks=[leaves,level]", f"merge={method}", f"merge.{setting}")
    assert told == [f"merge.{setting}: must be {wanted}."]


@pytest.mark.parametrize("setting", ["merge.seconds=null", "merge.seconds=60", "merge.rank=8"])
def test_a_number_within_bounds_is_none(setting: str) -> None:
    assert faults("tasks=[leaves,level]", "merge=distill", setting) == []


@pytest.mark.parametrize("method", ["cat", "ladder", "search"])
def test_shipped_merges_have_no_fault(method: str) -> None:
    branched = [] if method == "ladder" else ["branch=[c]", "branch_at=1"]
    for given in (
        ["tasks=[a,b]"],
        ["sweep=pairs", "sweep.of=[a,b,c]"],
        ["sets=[[a,b],[b,c]]", *branched],
    ):
        assert faults(f"merge={method}", "realign=[none,deep]", "merge.weights={b:{blocks.1:0.5}}", *given) == []
