"""The shipped tasks through the shipped recipe of Table I, on drawn data."""

import json
import math
from pathlib import Path

import pytest
import yaml

from datamodules.sample.drawn import draw_set
from launch.app import CONF
from tests.commands import run_command
from tests.runs import overrides

COUNT = 48
RANKS = (0, 2)


def shipped() -> dict[str, str]:
    """Each task with a dataset of its own, and that dataset."""
    found = {}
    for file in sorted((CONF / "task").glob("*.yaml")):
        for default in yaml.safe_load(file.read_text()).get("defaults", []):
            if isinstance(default, dict) and (data := default.get("override /data@_global_.data")):
                found[file.stem] = data
    return found


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Result by task and rank of one sweep over all of them."""
    folder = tmp_path_factory.mktemp("recipes")
    for name in sorted(set(shipped().values())):
        draw_set(name, folder / "data" / name, COUNT, seed=0, workers=1)
    own = overrides(
        folder, f"paths.data={folder / 'data'}", "trainer=debug", "lora.rank=0,2", "seed=0", "feature_views=1"
    )
    own = [text for text in own if not text.startswith("trainer.max_epochs")]
    done = run_command("train.py", ["-m", "experiment=table1", *own, "trainer.accelerator=cpu"], timeout=3600)
    assert done.returncode == 0, done.stderr[-4000:]
    found = {}
    for path in (folder / "out" / "runs").glob("*/result.json"):
        result = json.loads(path.read_text())
        found[result["task"]["name"], result["lora"]["rank"]] = result | {"folder": path.parent}
    return found


def test_every_shipped_task_is_in_the_recipe_and_trains_at_every_rank(results):
    assert set(results) == {(task, rank) for task in shipped() for rank in RANKS}
    assert len(shipped()) == 6
    for (task, rank), result in results.items():
        assert math.isfinite(result["score"])
        assert result["score"] == result["metrics"][result["metric"]]
        assert (result["lora"]["parameters"] > 0) == (rank > 0)
        assert json.loads((Path(result["folder"]) / "adapter" / "card.json").read_text())["task"]["name"] == task


def test_age_is_told_in_years_too(results):
    metrics = results["age_regression", 2]["metrics"]
    assert metrics["rmse_years"] == pytest.approx(10 * metrics["rmse"], rel=1e-5)


def test_landmarks_are_told_over_the_six_subsets(results):
    metrics = results["landmarks", 2]["metrics"]
    told = {name.removeprefix("nme_") for name in metrics if name.startswith("nme_")}
    assert told
    assert told <= {"pose", "expression", "illumination", "make_up", "occlusion", "blur"}


def test_every_run_has_its_pictures(results):
    kinds = {"classification": "confusion", "regression": "scatter", "keypoints": "landmarks"}
    for result in results.values():
        drawn = {path.stem for path in (result["folder"] / "pictures").glob("*.png")}
        assert {kinds[result["task"]["kind"]], "worst"} <= drawn
