"""Merges that are chosen: the ladder, the search and advice, none of which may read a test picture."""

import functools
import shutil
from pathlib import Path
from typing import Any

import pytest

from datamodules.datamodule import ImageDataModule
from launch.bundles import find_bundles
from launch.errors import AdapterError, CommandError
from launch.merge_schema import Realign
from launch.runs import describe_run
from merging import search
from merging.advisor import advise
from merging.bundle import read_parts
from merging.evaluate import merge_set, predict_set
from merging.features import read_features
from merging.methods import Outcome, merge_function
from merging.realign import VIEWS
from merging.run import open_bench
from tests.merge_runs import command, merge_config, merge_here


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
    config = merge_config(command(outputs, *given, "merge.keep=0.98", "tasks=[dots,level]"))
    bench = open_bench(config, find_bundles(config)).bench
    rungs = iter(told.values())

    def predicted(*_: Any) -> list[dict[str, Any]]:
        value, high = next(rungs)
        return [{"task": "dots", "predicted": 1.0, "high": 1.0}, {"task": "level", "predicted": value, "high": high}]

    monkeypatch.setattr("merging.ladder.predict_set", predicted)
    assert merge_function(config.merge)(bench, ["dots", "level"]).choice == chosen


def test_the_rung_taken_passes_its_pictures_once(outputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = ["merge=ladder", "merge.rungs=[average]", "merge.after=deep", "merge.images=24", "merge.advice_images=24"]
    config = merge_config(command(outputs, *given, "tasks=[dots,level]"))
    bench = open_bench(config, find_bundles(config)).bench
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
    config = merge_config(command(outputs, "merge=average", "tasks=[dots,level]"))
    bench = open_bench(config, find_bundles(config)).bench
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


def test_search_tells_the_curve_and_all_seconds_of_what_it_tried(
    outputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = search.merge_members

    def resumed(*given: Any) -> Outcome:
        return plain(*given)._replace(curve=[{"step": 1.0}], images=700, earlier=1000.0)

    drifts = iter([0.5, 0.5, 0.2, 0.2, 0.3, 0.3])  # of both members: gram, average, tsv
    monkeypatch.setattr(search, "merge_members", resumed)
    monkeypatch.setattr(search, "_drifts", lambda *_: next(drifts))
    given = ["merge=search", "merge.cat_shares=[0.0]", "merge.scales=[]", "merge.candidates=[average,tsv]"]
    config = merge_config(command(outputs, *given, "tasks=[dots,level]"))
    bench = open_bench(config, find_bundles(config)).bench
    outcome = merge_function(config.merge)(bench, ["dots", "level"])
    assert (outcome.choice, outcome.earlier, outcome.images) == ("average", 2000.0, 700)
    assert outcome.curve == [{"step": 1.0}]


def test_search_takes_the_candidate_with_the_nearest_answers(outputs: Path, caplog: pytest.LogCaptureFixture) -> None:
    given = command(outputs, "merge=search", "tasks=[dots,level]", "merge.images=30", "save=false")
    with caplog.at_level("INFO"):
        merge_here([*given, "merge.cat_shares=[0.0,1.0]", "merge.candidates=[regress,average]"])
    told = [record.getMessage() for record in caplog.records if record.name == "merging.search"]
    drifts = {text: float(drift) for text, drift in (line.split(": worst drift ") for line in told[:-1])}
    assert list(drifts)[:2] == ["cat_share 0.0", "cat_share 1.0"]
    assert list(drifts)[3:] == ["regress", "average"]
    assert told[-1] == f"Chosen for dots+level: {min(drifts, key=drifts.__getitem__)}"
    with pytest.raises(CommandError, match=r"There is no merge regres\. Did you mean 'regress'"):
        merge_here([*given, "merge.candidates=[regres]"])
    for other in ("search", "ladder", "frozen"):
        with pytest.raises(CommandError, match="merges other than search, ladder and frozen"):
            merge_here([*given, f"merge.candidates=[{other}]"])


def test_candidates_see_no_image_that_they_are_judged_on(outputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, seen = search.merge_members, []

    def watched(settings: Any, *given: Any) -> Outcome:
        seen.append(settings.get("images"))
        return plain(settings, *given)

    monkeypatch.setattr(search, "merge_members", watched)
    given = ["merge=search", "merge.images=30", "merge.scales=[]", "merge.candidates=[regress,gram_seq,tsv]"]
    config = merge_config(command(outputs, *given, "tasks=[dots,level]"))
    merge_function(config.merge)(open_bench(config, find_bundles(config)).bench, ["dots", "level"])
    assert seen == [24, 24, None]


@pytest.fixture
def no_test_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever reads a picture or a label of the test set fails."""
    plain = ImageDataModule._rows

    def watched(self: ImageDataModule, split: str) -> Any:
        assert split != "test"
        return plain(self, split)

    monkeypatch.setattr(ImageDataModule, "_rows", watched)  # of pictures and of labels


def advise_here(arguments: list[str]) -> dict[str, Any]:
    config = merge_config(arguments)
    run = describe_run("merge", config.title, config.model_dump(mode="json", by_alias=True))
    return advise(config, run, find_bundles(config))


def test_advice_tells_a_branch_that_shares_everything_once(outputs: Path) -> None:
    config = merge_config(command(outputs, "tasks=[leaves,level]"))
    depth = open_bench(config, find_bundles(config)).bench.depth
    given = command(outputs, "advise=true", "tasks=[leaves,level]", "candidates=[cat]")
    for at, passes in ((depth, [1.0] * 2), (0, [1.0] * 2 + [2.0] * 2)):
        rows = advise_here([*given, f"branch_at={at}"])["rows"]
        assert [row["passes"] for row in rows] == passes


def test_advice_reads_no_test_picture_and_names_a_merge(outputs: Path, no_test_picture: None) -> None:
    result = advise_here(command(outputs, "advise=true", "tasks=[leaves,level]", "realign=[none,deep,head]", "seed=0"))
    assert len(result["rows"]) == 4 * 3 * 2  # candidates, realignments, members
    chosen = {(row["method"], row["realign"]) for row in result["rows"] if row["recommended"]}
    assert len(chosen) == 1
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
    config = merge_config(command(outputs, *given, "tasks=[dots,level]"))
    merge_function(config.merge)(open_bench(config, find_bundles(config)).bench, ["dots", "level"])
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
