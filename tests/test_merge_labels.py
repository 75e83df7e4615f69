"""What result rows call a merge: the name of its yaml, and what was set otherwise."""

import pytest

from tests.merge_cases import SHIPPED
from tests.merge_runs import merge_config


@pytest.mark.parametrize("method", SHIPPED)
def test_a_shipped_method_goes_by_its_name(method: str) -> None:
    assert merge_config([f"merge={method}", "tasks=[level,leaves]"]).method_label == method


@pytest.mark.parametrize(
    ("given", "label"),
    [
        (["merge=ties", "merge.density=0.5"], "ties(density=0.5)"),
        (["merge=ties", "merge.scale=1"], "ties"),  # its yaml says 1.0
        (["merge=tsv", "merge.rank=4", "branch_at=2", "save=false"], "tsv(rank=4)_branched_at_2"),
        (["merge=cat", "branch_at=2", "branch=[level,leaves]", "save=false"], "cat_branched_at_2_leaves+level"),
        (["merge=cat", "merge.weights={level:2.0}"], "cat(weights={level:2.0})"),
        (["merge=distill", "merge.widen=[q]", "merge.steps=9"], "distill(steps=9,widen=[q])"),
        (["merge=ties", "merge.density=0.5", "method=half"], "half"),
    ],
)
def test_rows_tell_what_differs_from_the_methods_yaml(given: list[str], label: str) -> None:
    config = merge_config([*given, "tasks=[level,leaves]"])
    assert config.method_label == label
    assert "(" not in config.title  # of folders


def test_rows_tell_long_settings_apart() -> None:
    rungs = "merge.rungs=[cat,gram,regress,{distill:{steps:%d}}]"
    labels = [merge_config(["merge=ladder", rungs % steps, "tasks=[a,b]"]).method_label for steps in (400, 500, 400)]
    assert labels[0] == labels[2] != labels[1]
    assert all(len(label) < 30 and label.startswith("ladder(rungs=#") for label in labels)
