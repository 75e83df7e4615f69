"""Merges that are chosen: the ladder and advice, neither of which may read a test picture."""

import functools
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from datamodules.datamodule import ImageDataModule
from launch.bundles import find_bundles
from launch.errors import AdapterError, CommandError
from launch.merge_schema import Realign
from launch.runs import describe_run
from merging import ladder
from merging.advisor import advise
from merging.bundle import read_parts
from merging.evaluate import Merged, merge_set, predict_set
from merging.features import read_features
from merging.methods import merge_function
from merging.realign import VIEWS
from tests.merge_runs import command, merge_config, merge_here, open_here


@pytest.fixture
def no_test_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever reads a picture or a label of the test set fails."""
    plain = ImageDataModule._rows

    def watched(self: ImageDataModule, split: str) -> Any:
        assert split != "test"
        return plain(self, split)

    monkeypatch.setattr(ImageDataModule, "_rows", watched)  # of pictures and of labels


def test_the_ladder_ends_at_the_first_rung_that_holds(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["merge=ladder", "merge.rungs=[average,tsv]", "merge.after=none", "tasks=[dots,level]", "name=climbed"]
    result, _ = merge_here(command(outputs, *given, "merge.keep=0"))
    assert {row["choice"] for row in result["rows"]} == {"average"}
    assert "dots+level, by average" in capsys.readouterr().out
    card, *_ = read_parts(outputs / "models" / "climbed")
    assert card["recipe"]["choice"] == "average"


@pytest.mark.parametrize(
    ("told", "chosen"),
    [
        ({"average": (0.9, 0.97), "cat": (0.8, 0.95), "tsv": (0.7, 0.85)}, "cat"),  # tsv is worse for sure
        ({"average": (0.9, 0.97), "cat": (0.95, 0.97), "tsv": (0.8, 0.85)}, "cat"),
        ({"average": (0.96, 0.97), "cat": (0.7, 0.8), "tsv": (0.8, 0.85)}, "average"),
        ({"average": (0.9, 0.97), "cat": (0.9, 0.95), "tsv": (0.89, 0.95)}, "tsv"),
        ({"average": (0.9, 0.97), "cat": (0.99, 1.0), "tsv": (1.0, 1.0)}, "cat"),  # holds: tsv is not tried
    ],
)
def test_a_ladder_takes_the_dearest_that_cannot_be_told_from_the_best(
    outputs: Path,
    no_test_picture: None,
    monkeypatch: pytest.MonkeyPatch,
    told: dict[str, tuple[float, float]],
    chosen: str,
) -> None:
    given = ["merge=ladder", f"merge.rungs=[{','.join(told)}]", "merge.after=none", "merge.images=24"]
    config, bench = open_here(command(outputs, *given, "merge.keep=0.98", "tasks=[dots,level]"))
    rungs = iter(told.values())

    def predicted(*_: Any) -> list[dict[str, Any]]:
        value, high = next(rungs)
        return [{"task": "dots", "predicted": 1.0, "high": 1.0}, {"task": "level", "predicted": value, "high": high}]

    monkeypatch.setattr("merging.ladder.predict_set", predicted)
    assert merge_function(config.merge)(bench, ["dots", "level"]).choice == chosen


def test_the_rung_taken_passes_its_pictures_once(outputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = ["merge=ladder", "merge.rungs=[average]", "merge.after=deep", "merge.images=24", "merge.advice_images=24"]
    config, bench = open_here(command(outputs, *given, "tasks=[dots,level]"))
    passed: list[bool] = []

    def counted(*args: Any, **more: Any) -> Any:
        passed.append(more["deep"])
        return read_features(*args, **more)

    monkeypatch.setattr("merging.workbench.read_features", counted)
    merge = functools.partial(merge_function(config.merge), bench)
    merges = merge_set(bench, ["dots", "level"], merge, ["none", "deep"], 24)
    rows = predict_set(bench, merges, 24)
    assert len(rows) == 4
    assert sorted(passed) == [False] * 4 + [True] * 4  # each task alone and merged, training and validation


def test_kept_features_are_charged_to_each_merge_once(outputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second merge takes as long as the first, though the adapters' own passes are not made again."""
    config, bench = open_here(command(outputs, "merge=average", "tasks=[dots,level]"))
    now = 0.0
    monkeypatch.setattr("merging.workbench.time.perf_counter", lambda: now)

    def slow(*args: Any, **more: Any) -> Any:
        nonlocal now
        now += 1000.0
        return read_features(*args, **more)

    monkeypatch.setattr("merging.workbench.read_features", slow)
    merge = functools.partial(merge_function(config.merge), bench)
    ways: list[Realign] = ["none", "linear", "deep", "head"]
    seconds = []
    for _ in range(2):
        bench.start_clock()
        merges = merge_set(bench, ["dots", "level"], merge, ways, 20)  # of which no other test reads
        seconds.append([merged.seconds for merged in merges])
    passes = [0, 4, 4, 4 + 2 * 2 * VIEWS]  # of each task alone and merged
    assert seconds == [[1000.0 * count for count in passes]] * 2


def test_a_ladder_predicts_from_advice_images_and_counts_what_killed_rungs_took(
    outputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ["merge=ladder", "merge.rungs=[average,cat]", "merge.after=none", "merge.images=24", "merge.keep=2.0"]
    config, bench = open_here(command(outputs, *given, "merge.advice_images=17", "tasks=[dots,level]"))
    plain, counts = ladder.merge_set, []

    def resumed(*given: Any) -> list[Merged]:
        return [replace(merged, outcome=merged.outcome._replace(earlier=100.0)) for merged in plain(*given)]

    def predicted(_: Any, __: Any, count: int) -> list[dict[str, Any]]:
        counts.append(count)
        return [{"task": "dots", "predicted": 0.5, "high": 0.6}]

    monkeypatch.setattr(ladder, "merge_set", resumed)
    monkeypatch.setattr(ladder, "predict_set", predicted)
    outcome = merge_function(config.merge)(bench, ["dots", "level"])
    assert counts == [17, 17]
    assert outcome.earlier == 200.0


@pytest.mark.parametrize(
    ("rungs", "message"),
    [
        ("[]", "different merges"),
        ("[cat,cat]", "different merges"),
        ("[ladder]", "other than ladder"),
        ("[frozen]", "frozen merges nothing"),
        ("[caat]", "no merge caat. Did you mean 'cat'"),
        ("[{cat:{rank:2}}]", "cat takes no rank"),
        ("[{cat:2}]", "is no rung"),
    ],
)
def test_a_ladder_that_leads_nowhere_is_refused(outputs: Path, rungs: str, message: str) -> None:
    with pytest.raises(CommandError, match=message):
        merge_here(command(outputs, "merge=ladder", f"merge.rungs={rungs}", "tasks=[dots,level]", "save=false"))


def advise_here(arguments: list[str]) -> dict[str, Any]:
    config = merge_config(arguments)
    run = describe_run("merge", config.title, config.model_dump(mode="json", by_alias=True))
    return advise(config, run, find_bundles(config))


def test_advice_tells_a_branch_that_shares_everything_once(outputs: Path) -> None:
    depth = open_here(command(outputs, "tasks=[leaves,level]"))[1].depth
    given = command(outputs, "advise=true", "tasks=[leaves,level]", "candidates=[cat]")
    for at, passes in ((depth, [1.0] * 2), (0, [1.0] * 2 + [2.0] * 2)):
        rows = advise_here([*given, f"branch_at={at}"])["rows"]
        assert [row["passes"] for row in rows] == passes
        assert [row["recommended"] for row in rows] == [count == 1.0 for count in passes]  # not what branches, too


def test_advice_reads_no_test_picture_and_names_a_merge(outputs: Path, no_test_picture: None) -> None:
    result = advise_here(command(outputs, "advise=true", "tasks=[leaves,level]", "realign=[none,deep,head]", "seed=0"))
    assert len(result["rows"]) == 4 * 3 * 2  # candidates, realignments, members
    chosen = {(row["method"], row["realign"]) for row in result["rows"] if row["recommended"]}
    assert len(chosen) == 1
    kept = [row["predicted"] for row in result["rows"] if row["recommended"]]
    assert result["score"] == min(kept) < max(kept)
    assert all(row["reason"] and row["low"] <= row["predicted"] <= row["high"] for row in result["rows"])


def test_advice_by_images_needs_no_grams(outputs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "leaves"
    shutil.copytree(outputs / "adapters" / "leaves" / "r2-s0", folder)
    (folder / "grams.safetensors").unlink()
    given = ["advise=true", "tasks=[leaves,level]", f"+adapters.leaves={folder}"]
    rows = advise_here(command(outputs, *given, "candidates=[cat]"))["rows"]
    assert {row["reason"] for row in rows} == {"unknown: an adapter has no Grams"}
    with pytest.raises(AdapterError, match="leaves"):
        advise_here(command(outputs, *given, "candidates=[gram]"))


def test_a_rungs_own_weights_are_its_own(outputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    plain = merge_function

    def watched(settings: Any) -> Any:
        seen.append(settings.get("weights"))
        return plain(settings)

    monkeypatch.setattr("merging.ladder.merge_function", watched)
    rungs = "merge.rungs=[{cat:{weights:{dots:0.5,level:1.0}}},average]"
    given = ["merge=ladder", rungs, "merge.after=none", "merge.keep=2.0", "merge.weights={dots:1.0,level:0.9}"]
    config, bench = open_here(command(outputs, *given, "tasks=[dots,level]"))
    merge_function(config.merge)(bench, ["dots", "level"])
    assert seen == [{"dots": 0.5, "level": 1.0}, {"dots": 1.0, "level": 0.9}]


def test_advice_without_images_opens_no_data(outputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("merging.advisor.open_bench", lambda *_: pytest.fail("images were opened"))
    blind = command(outputs, "advise=true", "advice_images=null", "tasks=[leaves,level]")
    result = advise_here([*blind, "candidates=[cat,average,regress]"])
    assert [(row["method"], row["task"]) for row in result["rows"]] == [
        ("cat", "leaves"), ("cat", "level"), ("average", "leaves"), ("average", "level"),
    ]  # fmt: skip
    assert all(row["reason"] and row["low"] <= row["predicted"] <= row["high"] for row in result["rows"])
    with pytest.raises(CommandError, match="candidates=regress: each of them looks at images"):
        advise_here([*blind, "candidates=[regress]"])
