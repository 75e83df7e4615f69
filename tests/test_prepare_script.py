"""``prepare.py`` as a user calls it, on drawn data; and what it says before and after."""

import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules.galaxy10 import Galaxy10
from datamodules.preparing import announce, open_source
from datamodules.sample import drawn
from datamodules.sample.drawn import draw_set
from launch.app import CONF
from launch.compose import Composer
from launch.config import find_faults, first_config
from launch.errors import UserError
from launch.prepare_schema import PrepareConfig, tasks_of
from tests.commands import ROOT, run_command
from tests.picture_files import write_picture

SETS = ("firerisk", "utkface", "expw", "wflw", "galaxy10")


def prepare(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run_command("prepare.py", list(arguments), folder)


def faults(*arguments: str) -> list[str]:
    composer = Composer("prepare", CONF)
    return find_faults(composer, PrepareConfig, composer.parse(list(arguments), multirun=False), multirun=False)


def config(*arguments: str) -> PrepareConfig:
    composer = Composer("prepare", CONF)
    command = composer.parse(list(arguments), multirun=False)
    assert find_faults(composer, PrepareConfig, command, multirun=False) == []
    return PrepareConfig.model_validate(first_config(composer, command))


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    folder = tmp_path_factory.mktemp("sample")
    done = prepare(folder, "data=sample", "sets=[galaxy10,wflw]", "count=60", "image_size=32", "logger=wandb")
    assert done.returncode == 0, done.stderr
    return folder, done


def test_sample_draws_caches_counts_and_shows(sample: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, done = sample
    assert sorted(path.name for path in (folder / "data" / "sample").iterdir() if path.is_dir()) == ["galaxy10", "wflw"]
    cached = {path.name.rsplit("-", 1)[0] for path in (folder / "outputs" / "cache").glob("[!.]*")}
    assert cached == {"drawn_galaxy10", "drawn_wflw", "hashes"}
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert "drawn_galaxy10: galaxy" in lines
    assert "read 60" in lines
    assert "left out: constant picture 1" in lines
    assert any(line.startswith("left out: class not in data.classes") for line in lines)
    (total,) = (line for line in lines if line.startswith("all ") and len(line.split()) == 5 and line.endswith(" 58"))
    assert sum(map(int, total.split()[1:4])) == 58
    for name in ("drawn_galaxy10", "drawn_wflw"):
        with Image.open(folder / "outputs" / "previews" / f"{name}.png") as picture:
            assert picture.width > 1000
    assert not (folder / "outputs" / "runs").exists()


def test_the_preview_goes_to_wandb(sample: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, _ = sample
    kept = list((folder / "outputs" / "previews" / "wandb").glob("offline-run-*"))
    assert len(kept) == 1
    assert len(list((kept[0] / "files" / "media" / "images" / "preview").glob("drawn_*.png"))) == 2


def test_what_is_done_is_not_done_again_but_what_is_gone_is(
    sample: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(sample[0], folder, symlinks=True)
    arguments = ("data=sample", "sets=[wflw]", "count=60", "image_size=32")
    again = prepare(folder, *arguments)
    assert again.returncode == 0
    assert "is drawn already" in again.stderr
    assert "Caching" not in again.stderr
    (cache,) = (folder / "outputs" / "cache").glob("drawn_wflw-*")
    shutil.rmtree(cache)
    (folder / "outputs" / "previews" / "drawn_wflw.png").unlink()
    again = prepare(folder, *arguments)
    assert again.returncode == 0
    assert cache.is_dir()
    assert (folder / "outputs" / "previews" / "drawn_wflw.png").is_file()


def test_train_finds_the_cache_that_prepare_made(sample: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    from datamodules.datamodule import ImageDataModule

    folder, _ = sample
    (cache,) = (folder / "outputs" / "cache").glob("drawn_galaxy10-*")
    before = cache.stat().st_mtime_ns
    settings = config("task=galaxy").data
    assert settings is not None
    source = Galaxy10(root=folder / "data" / "sample" / "galaxy10", name="drawn_galaxy10")
    data = ImageDataModule(
        source, "classification", classes=settings.classes, size=settings.size, image_size=32,
        cache_root=folder / "outputs" / "cache",
    )  # fmt: skip
    data.prepare_data()
    data.setup()
    assert [path.name for path in (folder / "outputs" / "cache").glob("drawn_galaxy10-*")] == [cache.name]
    assert cache.stat().st_mtime_ns == before


def test_a_set_that_cannot_be_had_does_not_stop_the_others(tmp_path: Path) -> None:
    draw_set("galaxy10", tmp_path / "galaxies", 40, seed=0, workers=1)
    done = prepare(
        tmp_path, "data=all", "sets=[expw,galaxy10]", "datasets.galaxy10.root=galaxies", "image_size=32",
    )  # fmt: skip
    assert done.returncode == 1
    assert "ExpW was not found in data/expw" in done.stderr
    assert "1 of 2 datasets are not ready: expw" in done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "outputs" / "previews" / "drawn_galaxy10.png").is_file()


def test_the_only_set_that_cannot_be_had_is_told_once(tmp_path: Path) -> None:
    done = prepare(tmp_path, "data=expw")
    assert done.returncode == 1
    assert done.stderr.count("ExpW was not found") == 1
    assert "image/origin.7z.001" in done.stderr
    assert "by hand" in done.stderr


def test_pictures_are_not_drawn_in_place_of_others(tmp_path: Path) -> None:
    write_picture(tmp_path / "galaxies" / "mine.png", np.zeros((8, 8, 3), np.uint8))
    done = prepare(tmp_path, "data=sample", "sets=[galaxy10]", "datasets.galaxy10.root=galaxies", "count=40")
    assert done.returncode == 1
    assert "The folder galaxies is written as a whole and holds something else (mine.png)" in done.stderr
    assert (tmp_path / "galaxies" / "mine.png").is_file()


def test_a_sweep_of_sets(tmp_path: Path) -> None:
    draw_set("galaxy10", tmp_path / "data" / "galaxy10", 40, seed=0, workers=1)
    done = prepare(tmp_path, "-m", "data=galaxy10,wflw", "image_size=32")
    assert done.returncode == 1
    assert "1 done, 1 failed" in done.stdout
    (summary,) = (tmp_path / "outputs" / "sweeps").glob("*/1/summary.json")
    told = [(record["state"], record["run"], record["score"]) for record in json.loads(summary.read_text())]
    assert told == [("done", None, 38.0), ("failed", None, None)]


@pytest.mark.parametrize(
    ("arguments", "texts"),
    [
        ((), ["data is missing: give data=galaxy10, data=all, data=sample or another.", "data.root is missing"]),
        (("data=sampl",), ["data=sampl: no such option. Did you mean 'sample'?"]),
        (("data=sample", "sets=[galaxi10]"), ["sets=[galaxi10]: there is no set galaxi10. Did you mean 'galaxy10'?"]),
        (("data=wflw", "sets=[wflw]"), ["sets=[wflw]: only data=all and data=sample have several sets."]),
        (("data=image_csv", "data.root=x"), ["task is missing: what is learned from this data?"]),
        (("data=image_folder", "data.root=x"), ["task is missing: what is learned from this data?"]),
        (("data=all", "datasets.wflw.boxscale=2"), ["datasets.wflw.boxscale=2: unknown argument of data source Wflw."]),
        (("data=sample", "count=3"), ["count=3: must be a number of examples, 20 to 100000."]),
    ],
)
def test_faults_are_told(arguments: tuple[str, ...], texts: list[str]) -> None:
    found = faults(*arguments)
    for text in texts:
        assert any(fault.startswith(text) for fault in found), found
    assert len(found) == len(texts), "and nothing that only follows from them"


def test_what_a_refused_option_would_have_set_is_not_called_missing() -> None:
    for wrong in ("data=sampel", "data=null", "task=galxy"):
        (text,) = faults(wrong)
        assert text.startswith(f"{wrong}: ")


@pytest.mark.parametrize("data", ["all", "sample"])
def test_only_prepare_takes_several_sets(data: str) -> None:
    composer = Composer("train", CONF)
    assert composer.parse([f"data={data}"], multirun=False).faults[0].startswith(f"data={data}: no such option.")
    assert tuple(config(f"data={data}").chosen()) == SETS


def test_own_pictures_need_only_their_task() -> None:
    found = config("data=image_csv", "task=keypoints", "data.root=x", "task.eye_corners=[0,1]")
    assert found.data is not None
    assert list(found.tasks(found.data)) == ["keypoints"]
    assert config("task=landmarks").title == "wflw"


def test_drawn_sets_never_bear_the_real_name(tmp_path: Path) -> None:
    for name, data in config("data=sample").chosen().items():
        assert open_source(data, download=False).name == f"drawn_{name}"
    draw_set("galaxy10", tmp_path, 20, seed=0, workers=1)
    assert Galaxy10(root=tmp_path).name == "drawn_galaxy10"
    assert Galaxy10(root=tmp_path, name="drawn_for_me").name == "drawn_for_me"
    assert Galaxy10(root=tmp_path.parent).name == "galaxy10"


def test_every_shipped_set_has_its_tasks() -> None:
    tasks = {name: sorted(tasks_of(data.source)) for name, data in config("data=all").chosen().items()}
    assert tasks == {
        "firerisk": ["firerisk"], "utkface": ["age_class", "age_regression"], "expw": ["emotion"],
        "wflw": ["landmarks"], "galaxy10": ["galaxy"],
    }  # fmt: skip


def test_the_config_can_be_shown(tmp_path: Path) -> None:
    done = prepare(tmp_path, "--cfg", "job", "data=sample")
    assert done.returncode == 0
    assert "name: drawn_wflw" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_fault_is_told_before_pandas_is_imported(tmp_path: Path) -> None:
    code = (
        "import sys; sys.path.insert(0, '.'); sys.argv = ['prepare.py', 'data=sampl']\n"
        "import prepare\nfrom launch.app import main\n"
        "try: main('prepare', prepare.PrepareConfig, prepare.job, keeps_run=False)\n"
        "except SystemExit as stop: print(stop.code, 'pandas' in sys.modules, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.stdout.split() == ["2", "False", "False"]


def test_what_is_fetched_is_announced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    source = Galaxy10(root=tmp_path, download=True)
    announce(source)
    (text,) = caplog.messages
    assert all(word in text for word in ("Galaxy10_DECals.h5", "2.54 GB", str(tmp_path), "MIT", "zenodo.org"))
    caplog.clear()
    (tmp_path / "Galaxy10_DECals.h5").touch()
    announce(source)
    assert caplog.messages == []


def test_download_is_asked_of_the_script_not_of_the_source() -> None:
    data = config("task=galaxy").data
    assert data is not None
    assert open_source(data, download=True).download  # type: ignore[attr-defined]
    assert not open_source(data, download=False).download  # type: ignore[attr-defined]


def test_a_set_is_drawn_once_for_each_count_and_seed(tmp_path: Path) -> None:
    root = tmp_path / "galaxy10"
    assert draw_set("galaxy10", root, 20, seed=0, workers=1)
    first = (root / "Galaxy10_DECals.h5").read_bytes()
    assert not draw_set("galaxy10", root, 20, seed=0, workers=1)
    assert draw_set("galaxy10", root, 20, seed=1, workers=1)
    assert (root / "Galaxy10_DECals.h5").read_bytes() != first
    assert draw_set("galaxy10", root, 20, seed=0, workers=1)
    assert (root / "Galaxy10_DECals.h5").read_bytes() == first


def test_a_set_is_drawn_anew_for_another_count_and_by_other_drawing_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: list[int] = []
    monkeypatch.setitem(drawn.WRITERS, "wflw", lambda folder, count, seed, workers: counts.append(count))
    for count in (20, 20, 30):
        draw_set("wflw", tmp_path / "wflw", count, seed=0, workers=1)
    assert counts == [20, 30]
    monkeypatch.setattr(drawn, "_code", lambda: "of the next version")
    assert draw_set("wflw", tmp_path / "wflw", 30, seed=0, workers=1)


def test_a_drawing_that_is_interrupted_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "wflw"
    draw_set("wflw", root, 20, seed=0, workers=1)
    before = sorted(path.relative_to(root) for path in root.rglob("*"))

    def breaks(folder: Path, *rest: object, **more: object) -> None:
        (folder / "half").touch()
        raise UserError("no room")

    monkeypatch.setitem(drawn.WRITERS, "wflw", breaks)
    with pytest.raises(UserError, match="no room"):
        draw_set("wflw", root, 30, seed=0, workers=1)
    assert sorted(path.relative_to(root) for path in root.rglob("*")) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == [".wflw.lock", "wflw"]
