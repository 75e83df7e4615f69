"""``predict.py``'s job on small pictures: cropped as in training, streamed, and nothing hostile ends it."""

import csv
import json
import os
import re
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import Tensor

from datamodules.crop import crop_region, crop_resize
from datamodules.decode import read_image
from launch.app import CONF
from launch.compose import Composer
from launch.config import find_faults, first_config
from launch.errors import AdapterError, CommandError, DataError, UserError
from launch.predict_schema import PredictConfig
from lightning_modules.tasks import Task
from merging import predicting
from merging.answer_files import answer_file, columns
from merging.answers import Sight, answer, look, sights
from merging.model import load
from merging.predicting import predict
from merging.views import View
from tests.commands import ROOT
from tests.conftest import SIZE
from tests.drawn_face import scene
from tests.model_cases import merged
from tests.picture_files import noise, write_picture


def config(tmp_path: Path, model: Path, images: object, *more: str) -> PredictConfig:
    composer = Composer("predict", CONF)
    given = [f"model={model}", f"images={images}", f"paths.outputs={tmp_path / 'out'}", *more]
    if not any(text.startswith("precision=") for text in more):
        given.append("precision=32-true")
    command = composer.parse(given, multirun=False)
    assert find_faults(composer, PredictConfig, command, multirun=False) == []
    return PredictConfig.model_validate(first_config(composer, command))


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def bomb(path: Path) -> None:
    """A PNG of a few bytes that says it has 10^10 pixels."""
    head = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(b"\0" * 1000)), (b"IEND", b"")]
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


def test_answers_are_the_models_on_pictures_cropped_as_in_training(tmp_path: Path) -> None:
    model = merged(tmp_path, ["age", "leaves", "points"], fit="pad")
    for number in range(5):
        write_picture(tmp_path / "in" / f"{number}.png", noise(number, 50, 70 + number))
    told = predict(config(tmp_path, model, tmp_path / "in", "batch_size=2"))
    output = Path(told.pop("output"))
    assert told == {"passes": 1, "pictures": 5, "answers": 5, "unreadable": 0, "without_face": 0}
    found = rows(output)
    assert [Path(row["file"]).name for row in found] == [f"{number}.png" for number in range(5)]
    loaded = load(model)
    for number, row in enumerate(found):
        picture = read_image(tmp_path / "in" / f"{number}.png")
        region = crop_region(picture.shape[1], picture.shape[0], None, "pad")
        crop = torch.from_numpy(np.array(crop_resize(picture, region, SIZE)))[None]
        wanted: dict[str, Tensor] = loaded(crop)
        probabilities = wanted["leaves"].softmax(1)[0]
        assert row["leaves"] == ("oak", "elm", "ash")[int(probabilities.argmax())]
        assert float(row["leaves_probability"]) == pytest.approx(float(probabilities.max()), abs=1e-4)
        assert float(row["age_years"]) == pytest.approx(10 * float(wanted["age"]), abs=1e-2)
        x = float(wanted["points"][0, 2]) * (region[2] - region[0]) + region[0]
        assert float(row["points_x1"]) == pytest.approx(x, abs=0.05)
    assert [*(tmp_path / "out" / "predictions").iterdir()] == [output]


def test_tasks_share_a_pass_only_where_they_see_the_same(tmp_path: Path) -> None:
    face = {"_target_": "datamodules.utkface.UtkFace", "crop": "face", "face_scale": 1.3}
    views = dict(load(merged(tmp_path, ["leaves", "stone"])).tasks)
    views |= load(merged(tmp_path, ["age"], source=face, folder="faces")).tasks
    views |= load(merged(tmp_path, ["galaxy"], fit="squash", folder="squashed")).tasks
    assert sights(views, faces=False) == {
        Sight("crop", None, False): ["age", "leaves", "stone"],  # no second pass for how a JPEG is decoded
        Sight("squash", None, True): ["galaxy"],
    }
    plain = {name: view for name, view in views.items() if name != "age"}
    assert sights(plain, faces=False) == {
        Sight("crop", None, True): ["leaves", "stone"],
        Sight("squash", None, True): ["galaxy"],
    }
    assert sights(views, faces=True)[Sight("crop", 1.3, False)] == ["age"]
    assert sights({"leaves": views["leaves"]}, faces=True) == {Sight("crop", 1.0, False): ["leaves"]}


def test_ways_of_seeing_share_the_pass_of_a_square_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(merged(tmp_path, ["leaves", "points", "stone"]))
    for name, fit in (("points", "pad"), ("stone", "squash")):
        model.tasks[name] = replace(model.tasks[name], fit=fit)
    for name, (height, width) in {"square": (200, 200), "wide": (200, 280)}.items():
        write_picture(tmp_path / f"{name}.jpg", noise(0, height, width))
    wanted = sights(model.tasks, faces=False)
    seen = [look(tmp_path / f"{name}.jpg", name, [*wanted], SIZE)[0] for name in ("square", "wide")]
    apart = [answer(model, [one], {sight: names})[0].answers for one in seen for sight, names in wanted.items()]
    passes: list[tuple[int, list[str]]] = []
    features = model.features

    def counted(images: Tensor, names: Iterable[str]) -> Tensor:
        passes.append((len(images), sorted(names)))
        return features(images, names)

    monkeypatch.setattr(model, "features", counted)
    square, wide = (told.answers for told in answer(model, seen, wanted))
    assert len(wanted) == 3
    assert passes == [(1, ["leaves", "points", "stone"]), (1, ["leaves"]), (1, ["points"]), (1, ["stone"])]
    for found, parts in ((square, apart[:3]), (wide, apart[3:])):
        for part in parts:
            assert {name: found[name] for name in part} == part


def test_tasks_of_cut_pictures_warn_of_whole_ones(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    face = {"_target_": "datamodules.utkface.UtkFace", "crop": "face", "face_scale": 1.3}
    model = merged(tmp_path, ["age"], source=face)
    write_picture(tmp_path / "pictures" / "a.png", noise(1))
    for faces, warned in (("none", True), ("detect", False)):
        caplog.clear()
        predict(config(tmp_path, model, tmp_path / "pictures", f"faces={faces}"))
        assert ("age learned from pictures cut around a box" in caplog.text) is warned


def test_every_face_of_a_picture_is_answered_and_drawn(tmp_path: Path) -> None:
    face = {"_target_": "datamodules.utkface.UtkFace", "crop": "face", "face_scale": 1.3}
    model = merged(tmp_path, ["age", "points"], source=face)
    write_picture(tmp_path / "in" / "two.png", np.stack([scene(600, 300, (0, 50, 200), (250, 40, 200))] * 3, -1))
    write_picture(tmp_path / "in" / "none.png", noise(0, 90, 90))
    told = predict(config(tmp_path, model, tmp_path / "in", "faces=detect", f"pictures={tmp_path / 'drawn'}"))
    found = rows(Path(told["output"]))
    assert (told["without_face"], told["answers"], told["unreadable"]) == (1, 2, 0)
    assert [(Path(row["file"]).name, row["face"], row["error"]) for row in found] == [
        ("none.png", "", "no face found"), ("two.png", "0", ""), ("two.png", "1", ""),
    ]  # fmt: skip
    assert found[0]["age_years"] == "" != found[1]["age_years"] != found[2]["age_years"] != ""
    assert float(found[1]["right"]) < float(found[2]["left"]) + 80
    drawn = sorted((tmp_path / "drawn").iterdir())
    assert [path.name for path in drawn] == ["0000000-none.jpg", "0000001-two.jpg", "drawings.json"]
    page = np.asarray(Image.open(drawn[1])).astype(int)
    green = (page[..., 1] > page[..., 0] + 80) & (page[..., 1] > page[..., 2] + 40)
    assert green[:300, :220].any()
    assert green[:300, 260:].any()
    assert page.shape[0] > 300 + 4 * 20  # a line for each of two answers on two faces


def test_hostile_files_are_named_and_the_others_answered(tmp_path: Path) -> None:
    model, folder = merged(tmp_path, ["leaves"]), tmp_path / "in"
    write_picture(folder / "good.png", noise(0))
    (folder / "text.jpg").write_text("no picture")
    (folder / "empty.png").write_bytes(b"")
    (folder / "cut.png").write_bytes((folder / "good.png").read_bytes()[:-200])
    (folder / "eps.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    bomb(folder / "bomb.png")
    (folder / "linked.png").symlink_to(tmp_path / "nowhere.png")
    (folder / "readme.txt").write_text("passed over")
    told = predict(config(tmp_path, model, folder))
    found = {Path(row["file"]).name: row for row in rows(Path(told["output"]))}
    assert set(found) == {"good.png", "text.jpg", "empty.png", "cut.png", "eps.jpg", "bomb.png", "linked.png"}
    assert found["good.png"]["error"] == "" != found["good.png"]["leaves"]
    assert (
        "10000000000" in found["bomb.png"]["error"].replace(",", "") or "100000 x 100000" in found["bomb.png"]["error"]
    )
    assert all(row["error"] and not row["leaves"] for name, row in found.items() if name != "good.png")
    assert (told["pictures"], told["unreadable"]) == (7, 6)


def test_tasks_that_would_share_a_column_are_refused(tmp_path: Path) -> None:
    task = Task("age", "regression", "rmse", 1)
    views = {"age": View(task, "crop", unit="years"), "age_years": View(replace(task, name="age_years"), "crop")}
    for suffix in ("csv", "parquet"):
        output = tmp_path / f"x.{suffix}"
        with (
            pytest.raises(AdapterError, match="age and age_years would both answer in the column age_years of a table"),
            answer_file(output, views),
        ):
            pass
        assert not [*tmp_path.iterdir()]
    with answer_file(tmp_path / "x.jsonl", views):
        pass
    points = {"points": View(Task("points", "keypoints", "nme", 4), "pad")}
    assert [name for name, _ in columns(points)][6:-1] == ["points_x0", "points_y0", "points_x1", "points_y1"]


def test_formats_hold_the_same_answers(tmp_path: Path) -> None:
    model = merged(tmp_path, ["age", "leaves", "points"])
    write_picture(tmp_path / "a.png", noise(1))
    (tmp_path / "b.png").write_text("broken")
    images = f"[{tmp_path / 'a.png'},{tmp_path / 'b.png'}]"
    for suffix in ("csv", "jsonl", "parquet"):
        predict(config(tmp_path, model, images, f"output={tmp_path / f'x.{suffix}'}"))
    table = pd.read_csv(tmp_path / "x.csv")
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "x.parquet"), table, check_dtype=False, rtol=1e-5)
    good, bad = (json.loads(line) for line in (tmp_path / "x.jsonl").read_text().splitlines())
    assert good["answers"]["leaves"]["class"] == table["leaves"][0]
    assert good["answers"]["age"] == {"value": pytest.approx(table["age_years"][0], abs=1e-3), "unit": "years"}
    assert good["answers"]["points"]["points"][1][1] == pytest.approx(table["points_y1"][0], abs=0.01)
    assert (bad["answers"], bad["error"]) == ({}, "not a picture of a known format")


def test_a_file_name_that_is_no_text_is_told_alike_in_all_formats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It need not be on the disk, since some systems take no such name: what cannot be read is told by name, too."""
    model = merged(tmp_path, ["leaves"])
    listed = [tmp_path / "in" / name for name in ("caf\u00e9.png", os.fsdecode(b"caf\xe9.png"))]
    monkeypatch.setattr("merging.predicting.list_pictures", lambda *_: iter(listed))
    write_picture(tmp_path / "in" / "caf\u00e9.png", noise(2))
    named = [str(tmp_path / "in" / name) for name in ("caf\u00e9.png", r"caf\xe9.png")]
    for suffix in ("csv", "jsonl", "parquet"):
        predict(config(tmp_path, model, tmp_path / "in", f"output={tmp_path / f'x.{suffix}'}"))
    assert list(pd.read_csv(tmp_path / "x.csv")["file"]) == named
    assert list(pd.read_parquet(tmp_path / "x.parquet")["file"]) == named
    lines = (tmp_path / "x.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["file"] for line in lines] == named


def test_globs_and_csv_files_name_pictures(tmp_path: Path) -> None:
    model = merged(tmp_path, ["leaves"])
    for name in ("a/1.png", "a/b/2.png", "c/3.png"):
        write_picture(tmp_path / "in" / name, noise(0))
    (tmp_path / "in" / "list.csv").write_text("name,n\nc/3.png,1\na/1.png,2\nnone.png,3\n")
    told = predict(config(tmp_path, model, f"'{tmp_path}/in/a/**/*.png'"))
    assert told["pictures"] == 2
    told = predict(config(tmp_path, model, tmp_path / "in" / "list.csv", "column=name"))
    found = rows(Path(told["output"]))
    assert [Path(row["file"]).name for row in found] == ["3.png", "1.png", "none.png"]
    assert found[2]["error"] == "file is missing"
    with pytest.raises(DataError, match="no column 'file' but: name, n"):
        predict(config(tmp_path, model, tmp_path / "in" / "list.csv"))
    (tmp_path / "in" / "list.csv").write_text("name ; n\nc/3.png ;1\n;2\n a/1.png;3\n")  # as data=image_csv takes it
    found = rows(Path(predict(config(tmp_path, model, tmp_path / "in" / "list.csv", "column=name"))["output"]))
    assert [Path(row["file"]).name for row in found] == ["3.png", "1.png"]


@pytest.mark.parametrize(
    ("script", "arguments", "told"),
    [
        ("predict", ["model=modle", "images=x"], "model=modle: there is no such folder"),
        ("predict", ["model=model", "images=list.csv"], "has no column 'file' but: name, n."),
        ("predict", ["model=model", "images=model", "output=list.csv"], "that predict.py has not written"),
        ("predict", ["model=model", "images=model", "pictures=model"], "lies in it, so that the same command would"),
        ("predict", ["model=model", "images=model", "pictures=."], "holds something else (list.csv, model, outputs)"),
        ("predict", ["model=model", "images=nowhere.jpg"], "images=nowhere.jpg: there is no such file"),
        ("export", ["model=modle"], "Did you mean 'model'?"),
        ("serve", ["model=modle"], "Did you mean 'model'?"),
        (
            "export",
            ["model=model", "output=."],
            "holds something else (list.csv, model, outputs)",
        ),
        ("predict", ["model=.", "images=x"], "the folder has no card.json and is no model. Below it: model."),
    ],
)
def test_what_is_not_there_is_told_before_torch_is_imported(
    tmp_path: Path, script: str, arguments: list[str], told: str
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "card.json").write_text("{}")
    (tmp_path / "list.csv").write_text("name;n\n")
    command = [sys.executable, "-X", "importtime", str(ROOT / f"{script}.py"), *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode in (1, 2)
    assert told in done.stderr
    assert not re.search(r"\|\s+torch\n", done.stderr)


def test_what_cannot_work_says_so_and_leaves_no_file(tmp_path: Path) -> None:
    model = merged(tmp_path, ["leaves"])
    write_picture(tmp_path / "in" / "good.png", noise(0))
    with pytest.raises(CommandError, match="Did you mean 'in'"):
        predict(config(tmp_path, model, tmp_path / "inn"))
    with pytest.raises(CommandError, match="nothing matches"):
        predict(config(tmp_path, model, f"'{tmp_path}/in/*.tiff'"))
    with pytest.raises(CommandError, match="Did you mean 'leaves'"):
        predict(config(tmp_path, model, tmp_path / "in", "tasks=[leaf]"))
    (tmp_path / "in" / "good.png").write_text("no more")
    with pytest.raises(DataError, match="Not one of 1 pictures"):
        predict(config(tmp_path, model, tmp_path / "in"))
    (tmp_path / "in" / "good.png").unlink()
    with pytest.raises(DataError, match="no pictures in it"):
        predict(config(tmp_path, model, tmp_path / "in"))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="Cannot write"):
        predict(config(tmp_path, model, tmp_path / "in", f"output={tmp_path / 'file' / 'x.csv'}"))
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".csv", ".tmp")]


def test_pictures_are_taken_as_they_are_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = merged(tmp_path, ["leaves"])
    write_picture(tmp_path / "good.png", noise(0))
    taken, seen_after = [], []

    def endless(*_: object) -> object:
        for number in range(400):
            taken.append(number)
            yield tmp_path / "good.png"

    def counting(*arguments: object) -> object:
        seen_after.append(len(taken))
        return answer(*arguments)

    monkeypatch.setattr(predicting, "list_pictures", endless)
    monkeypatch.setattr(predicting, "answer", counting)
    predict(config(tmp_path, model, tmp_path / "good.png", "batch_size=10"))
    assert len(seen_after) == 40
    assert seen_after[0] < 200


def test_an_output_of_another_kind_is_a_fault_of_the_command(tmp_path: Path) -> None:
    composer = Composer("predict", CONF)
    command = composer.parse(["model=m", "images=i", "output=x.txt", "faces=find"], multirun=False)
    faults = find_faults(composer, PredictConfig, command, multirun=False)
    assert [fault.split(":")[0] for fault in faults] == ["faces=find", "output=x.txt"]


def test_a_picture_is_never_an_exception(tmp_path: Path) -> None:
    (seen,) = look(b"\x00" * 100, "x", [Sight("crop", None, True)], 32)
    assert (seen.crops, seen.fault) == ({}, "not a picture of a known format")
    write_picture(tmp_path / "thin.png", noise(0, 1, 50))
    (seen,) = look(tmp_path / "thin.png", "x", [Sight("pad", None, False)], 32)
    assert seen.fault == "only 50 x 1 pixels"


def test_low_precision_stays_in_the_backbone(tmp_path: Path) -> None:
    """Points in bfloat16 would lie on a grid of 1/256 of the crop or coarser."""
    model = merged(tmp_path, ["points"])
    for number in range(6):
        write_picture(tmp_path / "in" / f"{number}.png", noise(number, 512, 512))
    found = {}
    for precision in ("32-true", "bf16-mixed"):
        output = tmp_path / f"{precision}.csv"
        predict(config(tmp_path, model, tmp_path / "in", f"precision={precision}", f"output={output}"))
        table = pd.read_csv(output).filter(like="points").to_numpy() / 512
        found[precision] = table
        assert np.mean(np.abs(table * 256 - np.round(table * 256)) < 0.01) < 0.2
    assert np.abs(found["32-true"] - found["bf16-mixed"]).max() > 0
