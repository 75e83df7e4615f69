"""``make demo`` command by command, with a tiny backbone and few pictures."""

import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from reporting.load import collect
from tests.commands import ROOT, run_command
from tests.runs import overrides, read_results


def recipe() -> list[list[str]]:
    """What ``make demo`` runs once everything is installed: script and arguments of each command."""
    shown = subprocess.run(
        ["make", "--dry-run", "demo", "BIN=BIN"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    lines = shown.stdout.replace("\\\n", " ").splitlines()
    return [shlex.split(line)[1:] for line in lines if re.match(r"BIN/python \w+\.py", line)]


def smaller(script: str, arguments: list[str], place: Path) -> list[str]:
    """The same command for a few seconds."""
    if script == "prepare.py":
        return [text.replace("count=320", "count=48").replace("image_size=98", "image_size=32") for text in arguments]
    if script == "train.py":
        tiny = overrides(place, "trainer.max_epochs=1", "feature_views=1", "gram_images=16")
        return [*arguments, *(text for text in tiny if not text.startswith(("lora", "logger", "paths")))]
    return [*arguments, "device=cpu"] if script in ("merge.py", "predict.py") else arguments


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the demo has been run, every command having succeeded."""
    folder = tmp_path_factory.mktemp("demo")
    for script, *arguments in recipe():
        done = run_command(script, smaller(script, arguments, folder), folder, timeout=600)
        assert done.returncode == 0, f"{script} {arguments}\n{done.stderr[-3000:]}"
    return folder


def test_it_trains_head_and_adapter_of_each_task_on_data_that_says_it_is_drawn(place: Path) -> None:
    trained = [result for result in read_results(place / "outputs") if result["what"] == "train"]
    found = {(result["task"]["name"], result["lora"]["rank"], result["data"]["name"]) for result in trained}
    data = {"galaxy": "drawn_galaxy10", "age_class": "drawn_utkface", "landmarks": "drawn_wflw"}
    assert found == {(task, rank, name) for task, name in data.items() for rank in (0, 8)}


def test_advice_comes_before_every_pair_is_merged_by_both_methods(place: Path) -> None:
    scripts = [(script, "advise=true" in arguments, "-m" in arguments) for script, *arguments in recipe()]
    assert scripts.index(("merge.py", True, False)) < scripts.index(("merge.py", False, True))
    merged = [result for result in read_results(place / "outputs") if result["what"] == "merge"]
    rows = [row for result in merged if "retention" in result["rows"][0] for row in result["rows"]]
    pairs = {(row["set"], row["method"], row["realign"]) for row in rows if row["set"].count("+") == 1}
    assert len(pairs) == 3 * 2 * 2
    assert all(row["predicted"] > 0 and row["retention"] > 0 for row in rows)


def test_what_it_says_to_open_is_there(place: Path) -> None:
    shown = subprocess.run(["make", "--dry-run", "demo"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    paths = [word for word in shown[shown.index("Open next") :].split() if word.startswith(("outputs/", "'outputs/"))]
    assert len(paths) == 3
    for path in paths:
        assert (place / path).exists()
    pictures = list((place / "outputs" / "predictions" / "demo").glob("*.jpg"))
    assert pictures
    collected = collect([place / "outputs"])
    assert {item["task"] for item in collected.examples if item["merged"] is not None} == {
        "age_class", "galaxy", "landmarks",
    }  # fmt: skip
    card = json.loads((place / "outputs" / "models" / "demo" / "card.json").read_text())
    assert sorted(card["tasks"]) == ["age_class", "galaxy", "landmarks"]
