"""Models for other programs answer as the original does, or are not written."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import safetensors.torch
import timm
import torch

from launch.app import CONF
from launch.compose import Composer
from launch.config import find_faults, first_config
from launch.export_schema import ExportConfig
from merging import exporting
from merging.exporting import ExportError, export
from merging.model import load
from tests.conftest import SIZE, TINY
from tests.merge_runs import merge_here, train_members
from tests.model_cases import merged
from tests.picture_files import noise, write_picture


def config(tmp_path: Path, model: Path, *more: str) -> ExportConfig:
    composer = Composer("export", CONF)
    given = [f"model={model}", f"paths.outputs={tmp_path / 'out'}", *more]
    command = composer.parse(given, multirun=False)
    assert find_faults(composer, ExportConfig, command, multirun=False) == []
    return ExportConfig.model_validate(first_config(composer, command))


def pictures(tmp_path: Path, count: int = 5) -> Path:
    for number in range(count):
        write_picture(tmp_path / "in" / f"{number}.png", noise(number, 40, 50))
    return tmp_path / "in"


def batch(size: int) -> torch.Tensor:
    return torch.randn(size, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(size))


@pytest.mark.parametrize("realign", ["none", "deep"])
def test_onnx_has_an_output_for_each_task_at_any_batch_size(tmp_path: Path, realign: str) -> None:
    model = merged(tmp_path, ["age", "leaves", "points"], realign=realign)
    told = export(config(tmp_path, model, f"images={pictures(tmp_path)}"))
    folder = Path(told["output"])
    assert sorted(path.name for path in folder.iterdir()) == ["card.json", "model.onnx"]
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
    assert [output.name for output in session.get_outputs()] == ["age", "leaves", "points"]
    loaded = load(model)
    for size in (1, 3, 7):
        found = session.run(["points", "age"], {"images": batch(size).numpy()})
        wanted = loaded(batch(size))
        np.testing.assert_allclose(found[0], wanted["points"].numpy(), atol=1e-4, rtol=1e-4)
        np.testing.assert_allclose(found[1], wanted["age"].numpy(), atol=1e-4, rtol=1e-4)
    meta = {prop.key: json.loads(prop.value) for prop in onnx.load(folder / "model.onnx").metadata_props}
    assert (meta["image_size"], meta["mean"], meta["std"]) == (SIZE, [0.5] * 3, [0.5] * 3)
    assert meta["tasks"]["leaves"] | {"face_scale": None} == {
        "kind": "classification", "classes": ["oak", "elm", "ash"], "fit": "crop", "face_scale": None, "factor": 1.0,
        "unit": "",
    }  # fmt: skip
    assert meta["tasks"]["age"]["unit"] == "years"
    card = json.loads((folder / "card.json").read_text())
    assert card["files"]["model.onnx"] == (folder / "model.onnx").stat().st_size
    assert card["checked_on"] == {"images": 5, "source": "pictures"}
    assert max(card["difference"].values()) < 1e-4
    assert set(card["images_per_second"]) == {"pytorch", "onnx"}


def test_int8_is_smaller_and_says_what_it_changed(tmp_path: Path) -> None:
    model = merged(tmp_path, ["age", "leaves"])
    plain = export(config(tmp_path, model, "count=8"))
    small = export(config(tmp_path, model, "count=8", "int8=true"))
    assert small["output"].endswith("model-onnx-int8")
    assert small["files"]["model.onnx"] < 0.5 * plain["files"]["model.onnx"]
    assert small["difference"]["age"] > plain["difference"]["age"]
    assert 0 <= small["agreement"]["leaves"] <= 1 == plain["agreement"]["leaves"]
    assert sorted(path.name for path in Path(small["output"]).iterdir()) == ["card.json", "model.onnx"]


@pytest.mark.parametrize("realign", ["none", "deep"])
def test_torch_export_answers_alike_at_any_batch_size(tmp_path: Path, realign: str) -> None:
    model = merged(tmp_path, ["age", "leaves"], realign=realign)
    told = export(config(tmp_path, model, "format=torch_export", "count=3"))
    program = torch.export.load(Path(told["output"]) / "model.pt2").module()
    for size in (1, 5):
        age, leaves = program(batch(size))
        torch.testing.assert_close({"age": age, "leaves": leaves}, load(model)(batch(size)), rtol=1e-4, atol=1e-4)


def test_the_timm_checkpoint_is_one_that_timm_loads(tmp_path: Path) -> None:
    model = merged(tmp_path, ["age", "leaves"])
    folder = Path(export(config(tmp_path, model, "format=timm", "count=3"))["output"])
    vit = timm.create_model(
        TINY, img_size=SIZE, num_classes=0, checkpoint_path=str(folder / "backbone.safetensors")
    ).eval()
    heads = safetensors.torch.load_file(folder / "heads.safetensors")
    with torch.no_grad():
        hidden = torch.relu(vit(batch(2)) @ heads["age.hidden.weight"].T + heads["age.hidden.bias"])
        age = hidden @ heads["age.output.weight"].T + heads["age.output.bias"]
    torch.testing.assert_close(age, load(model)(batch(2))["age"], rtol=1e-4, atol=1e-4)


def test_an_export_that_answers_otherwise_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def off(*arguments: object, **options: object) -> object:
        run = write(*arguments, **options)
        return lambda images: {name: value + 0.01 for name, value in run(images).items()}

    write = exporting.write_onnx
    monkeypatch.setattr(exporting, "write_onnx", off)
    with pytest.raises(ExportError, match="is not written: its answers differ"):
        export(config(tmp_path, merged(tmp_path, ["leaves"]), "count=2"))
    assert not list((tmp_path / "out").rglob("*.*"))


def test_int8_is_for_onnx_alone(tmp_path: Path) -> None:
    composer = Composer("export", CONF)
    command = composer.parse(["model=m", "format=timm", "int8=true"], multirun=False)
    faults = find_faults(composer, ExportConfig, command, multirun=False)
    assert faults == ["int8=true: only for format=onnx, not for format=timm."]


def test_int8_costs_are_told_as_scores_where_the_data_is_at_hand(tmp_path: Path) -> None:
    outputs = train_members(tmp_path)
    names = ["leaves", "level", "dots"]
    told = [f"paths.outputs={outputs}", "lora.rank=2", f"tasks=[{','.join(names)}]", "device=cpu", "logger=csv"]
    result, _ = merge_here([*told, "merge=cat", "precision=32-true"])
    (model,) = map(Path, result["models"])
    (tmp_path / "leaves").rename(tmp_path / "moved")
    card = export(config(tmp_path, model, "int8=true", "count=4"))
    assert sorted(card["scores"]) == ["dots", "level"]
    assert "roots.leaves=DIR" in card["not_scored"]["leaves"]
    alike = {row["task"]: row["score"] for row in result["rows"]}
    for task, scored in card["scores"].items():
        assert scored["images"] == 9
        assert scored["pytorch"] == pytest.approx(alike[task], rel=1e-4)
        assert scored["export"] == pytest.approx(scored["pytorch"], rel=0.3)
    assert any(scored["export"] != scored["pytorch"] for scored in card["scores"].values())
    assert all(0 < drift < 1 for drift in card["drift"].values())
    assert json.loads((Path(card["output"]) / "card.json").read_text())["scores"] == card["scores"]
    card = export(
        config(tmp_path, model, "int8=true", "count=4", f"roots.leaves={tmp_path / 'moved'}", "score_images=5")
    )
    assert card["not_scored"] == {}
    assert card["scores"]["leaves"]["pytorch"] in [right / 5 for right in range(6)]
    assert "scores" not in export(config(tmp_path, model, "int8=true", "count=4", "score_images=null"))
