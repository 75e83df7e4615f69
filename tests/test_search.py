"""``merge=search``: which candidates it tries, on which images it judges them, and which one it takes."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from launch.errors import CommandError
from merging import search as module
from merging.gram import gram
from merging.methods import Outcome, merge_function
from merging.predict import output_drift
from merging.realign import choose_readout, fold_readout
from merging.workbench import Workbench
from merging.workbench import outputs as answers_of
from tests.merge_runs import command, merge_here, open_here

PAIR = ["dots", "level"]
IMAGES = 30  # the last 6 of them judge


def given(outputs: Path, *more: str) -> list[str]:
    return command(outputs, "merge=search", "tasks=[dots,level]", f"merge.images={IMAGES}", *more)


def opened(outputs: Path, *more: str) -> tuple[dict[str, Any], Workbench]:
    config, bench = open_here(given(outputs, *more))
    return config.merge, bench


def test_it_tells_the_curve_and_all_seconds_of_what_it_tried(outputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = module.merge_members

    def resumed(*given: Any) -> Outcome:
        return plain(*given)._replace(curve=[{"step": 1.0}], images=700, earlier=1000.0)

    drifts = iter([0.5, 0.5, 0.2, 0.2, 0.3, 0.3])  # of both members: gram, average, tsv
    monkeypatch.setattr(module, "merge_members", resumed)
    monkeypatch.setattr(module, "_drifts", lambda *_: next(drifts))
    settings, bench = opened(outputs, "merge.cat_shares=[0.0]", "merge.scales=[]", "merge.candidates=[average,tsv]")
    outcome = merge_function(settings)(bench, PAIR)
    assert (outcome.choice, outcome.earlier, outcome.images) == ("average", 2000.0, 700)
    assert outcome.curve == [{"step": 1.0}]


def test_it_takes_the_candidate_with_the_nearest_answers(
    outputs: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plain, drifts = module._drifts, []

    def watched(*given: Any) -> float:
        drifts.append(plain(*given))
        return drifts[-1]

    monkeypatch.setattr(module, "_drifts", watched)
    with caplog.at_level("INFO"):
        merge_here(given(outputs, "save=false", "merge.cat_shares=[0.0,1.0]", "merge.candidates=[regress,average]"))
    *told, last = (record.getMessage() for record in caplog.records if record.name == "merging.search")
    worst = [max(pair) for pair in zip(drifts[::2], drifts[1::2], strict=True)]
    names = [text.partition(":")[0] for text in told]
    assert told == [f"{name}: worst drift {drift:.4f}" for name, drift in zip(names, worst, strict=True)]
    assert names[:2] == ["cat_share 0.0", "cat_share 1.0"]
    assert names[3:] == ["regress", "average"]
    assert last == f"Chosen for dots+level: {names[worst.index(min(worst))]}"  # of equal ones the first


@pytest.mark.parametrize(
    ("candidate", "message"),
    [
        ("regres", r"There is no merge regres\. Did you mean 'regress'"),
        ("search", "merges other than search, ladder and frozen"),
        ("ladder", "merges other than search, ladder and frozen"),
        ("frozen", "merges other than search, ladder and frozen"),
    ],
)
def test_candidates_that_are_no_merges_to_try_are_refused(outputs: Path, candidate: str, message: str) -> None:
    with pytest.raises(CommandError, match=message):
        merge_here(given(outputs, "save=false", f"merge.candidates=[{candidate}]"))


def test_candidates_see_no_image_that_they_are_judged_on(outputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, seen = module.merge_members, []

    def watched(settings: Any, *given: Any) -> Outcome:
        seen.append(settings.get("images"))
        return plain(settings, *given)

    monkeypatch.setattr(module, "merge_members", watched)
    settings, bench = opened(outputs, "merge.scales=[]", "merge.candidates=[regress,gram_seq,tsv]")
    merge_function(settings)(bench, PAIR)
    assert seen == [24, 24, None]


def test_the_worst_member_decides(outputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drifts = iter([0.1, 0.5, 0.4, 0.4])  # gram is nearer on average, average at its worst
    monkeypatch.setattr(module, "_drifts", lambda *_: next(drifts))
    settings, bench = opened(outputs, "merge.cat_shares=[0.0]", "merge.scales=[]", "merge.candidates=[average]")
    assert merge_function(settings)(bench, PAIR).choice == "average"


def test_scales_are_tried_at_the_best_share_and_weights_reach_every_candidate(
    outputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grams, others, plain = [], [], module.merge_members

    def watched(deltas: Any, weights: Any, **given: Any) -> Any:
        grams.append((weights, given["cat_share"]))
        return gram(deltas, weights, **given)

    def other(settings: Any, *given: Any) -> Outcome:
        others.append(settings["weights"])
        return plain(settings, *given)

    drifts = {0.0: 0.5, 0.3: 0.2, 1.0: 0.4}
    monkeypatch.setattr(module, "gram", watched)
    monkeypatch.setattr(module, "merge_members", other)
    monkeypatch.setattr(module, "_drifts", lambda *_: drifts[grams[-1][1]])
    monkeypatch.setattr(module, "_loudest", lambda *_: "dots")
    grid = ["merge.cat_shares=[0.0,0.3,1.0]", "merge.scales=[0.8]", "merge.candidates=[average]"]
    settings, bench = opened(outputs, *grid, "merge.weights={dots:{blocks:0.5,k:2.0},level:0.9}")
    merge_function(settings)(bench, PAIR)
    assert grams[-1] == ({"dots": {"blocks": 0.4, "k": 2.0}, "level": 0.9}, 0.3)
    assert others == [{"dots": {"blocks": 0.5, "k": 2.0}, "level": 0.9}]


def test_what_is_scaled_is_the_adapter_that_disturbs_the_others_most(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"a": 1.0, "b": 3.0, "c": 2.0}
    deltas = {name: {"k": (size * torch.ones(4, 1), torch.ones(1, 4))} for name, size in sizes.items()}
    drifts = iter([2.0] * 3 + [1.0] * 3)  # the scaled ones are taken
    monkeypatch.setattr(module, "_drifts", lambda *_: next(drifts))
    bench: Any = SimpleNamespace(members=dict.fromkeys(sizes), groups=lambda *_: torch.arange(IMAGES))
    found = module.search(
        deltas, bench=bench, grams={name: {"k": torch.eye(4)} for name in sizes}, cat_shares=[0.0], scales=[0.5],
        candidates=[], after="none", images=IMAGES, normalise="trace", ridge=1e-3,
    )  # fmt: skip
    assert found.choice == "cat_share 0.0, b x 0.5"


@pytest.mark.parametrize("after", ["none", "linear", "deep"])
def test_a_candidate_is_judged_on_the_last_fifth_by_a_readout_of_the_others(outputs: Path, after: str) -> None:
    _, bench = opened(outputs)
    member = bench.members["dots"]
    merged = {name: (2 * b, a) for name, (b, a) in bench.members["level"].delta.items()}
    single = bench.single("dots", "train", IMAGES)
    features = bench.features(merged, "dots", "train", IMAGES, deep=after == "deep")
    head = member.head if after == "none" else fold_readout(member.head, choose_readout(features[:24], single[:24])[0])
    wanted = output_drift(member.task, answers_of(member.head, single[24:]), answers_of(head, features[24:]))
    assert module._drifts(bench, merged, "dots", after, IMAGES) == pytest.approx(wanted, rel=1e-4)
