"""``merge.py`` on drawn pictures: rows, realignment, resuming and saving."""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from peft import PeftModel
from PIL import Image

from datamodules.datamodule import normalize
from launch.bundles import find_bundles
from launch.errors import AdapterError
from launch.files import write_json
from launch.publishing import look_for_models
from launch.runs import finish
from lightning_modules.backbone import create_backbone, split_qkv
from merging.bundle import read_parts
from merging.evaluate import COLUMNS
from merging.linear import cat
from merging.members import read_member
from merging.methods import merge_function, require_delta
from merging.model import load
from merging.run import _open as open_
from merging.run import open_bench
from reporting.examples import read_examples
from tests.commands import run_command
from tests.conftest import SIZE, TINY
from tests.merge_cases import SHIPPED
from tests.merge_runs import command, merge_config, merge_here

SMALL = {  # so that methods which take minutes take a moment
    "distill": ["merge.steps=2", "merge.batch=4", "merge.images=100"],
    "gram_seq": ["merge.images=8"],
    "regress": ["merge.images=16"],
    "ladder": ["merge.rungs=[tsv,{svd:{rank:2}}]", "merge.after=none"],
    "search": ["merge.images=20", "merge.cat_shares=[0.0,1.0]", "merge.candidates=[tsv]"],
}
LOOKED_AT = {"distill": 100, "gram_seq": 8, "regress": 16, "search": 20}


@pytest.mark.parametrize("method", SHIPPED)
def test_every_shipped_method_merges_a_pair(outputs: Path, method: str) -> None:
    members = ["leaves"] if method == "frozen" else ["level", "leaves"]
    more = [f"merge={method}", f"tasks=[{','.join(members)}]", "save=false", *SMALL.get(method, [])]
    result, _ = merge_here(command(outputs, *more))
    rows = result["rows"]
    assert [row["task"] for row in rows] == sorted(members)
    for row in rows:
        assert set(COLUMNS) <= set(row)
        assert row["set"] == "+".join(sorted(members))
        assert row["method"].partition("(")[0] == method
        better = row["score"] / row["single"] if row["metric"] == "accuracy" else row["single"] / row["score"]
        assert row["retention"] == pytest.approx(better)
        assert row["low"] <= row["high"]
        assert row["images"] == LOOKED_AT.get(method, 0)


def test_weights_by_block_serve_what_is_merged_block_by_block(outputs: Path) -> None:
    given = ["merge=gram_seq", "merge.images=8", "tasks=[leaves,level]"]
    changes = []
    for weights in ("null", "{leaves:{blocks.0:0.0},level:{blocks.0:0.0}}"):
        config = merge_config(command(outputs, *given, f"merge.weights={weights}"))
        delta = merge_function(config.merge)(open_bench(config, find_bundles(config)).bench, ["leaves", "level"]).delta
        assert delta is not None
        changes.append({module: float((b @ a).norm()) for module, (b, a) in delta.items()})
    assert changes[0].keys() == changes[1].keys()
    for module, size in changes[1].items():
        assert (size == 0) == module.startswith("blocks.0.")
        assert changes[0][module] > 0


def test_a_head_on_deep_features_is_no_member(outputs: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(outputs / "adapters" / "leaves" / "r2-s0", tmp_path / "deep")
    card = json.loads((folder / "card.json").read_text()) | {"features": "deep"}
    (folder / "card.json").write_text(json.dumps(card))
    with pytest.raises(AdapterError, match="trained on deep features"):
        merge_here(command(outputs, "merge=frozen", "tasks=[leaves]", f"+adapters.leaves={folder}", "save=false"))


def test_rows_tell_how_their_adapters_were_trained_otherwise(outputs: Path, tmp_path: Path) -> None:
    given = command(outputs, "merge=cat", "tasks=[leaves,level]", "save=false")
    assert {row["lora"] for row in merge_here(given)[0]["rows"]} == {""}
    folder = shutil.copytree(outputs / "adapters" / "leaves" / "r2-s0", tmp_path / "capped")
    card = json.loads((folder / "card.json").read_text())
    card["lora"]["max_norm"] = 0.1
    (folder / "card.json").write_text(json.dumps(card))
    result, _ = merge_here([*given, f"+adapters.leaves={folder}"])
    assert {row["lora"] for row in result["rows"]} == {"default + max_norm=0.1"}


def test_models_of_other_adapters_stand_side_by_side(outputs: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(outputs / "adapters" / "leaves" / "r2-s0", tmp_path / "other")
    _scale(folder, 2.0)
    given = command(outputs, "merge=cat", "tasks=[leaves,level]")
    (plain,), (other,) = (merge_here([*given, *more])[0]["models"] for more in ([], [f"+adapters.leaves={folder}"]))
    assert Path(other).name.startswith(f"{Path(plain).name}-")
    assert Path(plain).is_dir()
    assert Path(other).is_dir()


def test_rows_tell_a_rank_and_a_seed_that_are_not_the_commands(outputs: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(outputs / "adapters" / "leaves" / "r2-s0", tmp_path / "other")
    given = command(outputs, "merge=cat", "tasks=[leaves]", f"+adapters.leaves={folder}", "save=false")
    result, _ = merge_here([*given, "lora.rank=16", "seed=7"])
    assert {row["lora"] for row in result["rows"]} == {"rank=2,seed=0"}


def test_an_adapter_that_was_trained_again_is_merged_again(outputs: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(outputs / "adapters" / "leaves" / "r2-s0", tmp_path / "leaves")
    given = command(outputs, "merge=cat", "tasks=[leaves,level]", f"+adapters.leaves={folder}", "save=false")
    assert "Started" in run_command("merge.py", given).stderr
    _scale(folder, 2.0)
    assert "Started" in run_command("merge.py", given).stderr


def test_a_bundle_that_changes_while_it_is_merged_is_not_taken_for_a_member(
    outputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from merging import run as module

    folder = shutil.copytree(outputs / "adapters" / "leaves" / "r2-s0", tmp_path / "leaves")
    plain = module.score_set
    monkeypatch.setattr(module, "score_set", lambda *given: _scale(folder, 2.0) or plain(*given))
    given = command(outputs, "merge=cat", "tasks=[leaves,level]", f"+adapters.leaves={folder}", "name=torn")
    with pytest.raises(AdapterError, match="leaves was written anew while it was being merged"):
        merge_here(given)
    assert not (outputs / "models" / "torn").exists()


def _scale(folder: Path, factor: float) -> None:
    file = folder / "adapter_model.safetensors"
    tensors = {name: factor * value for name, value in safetensors.torch.load_file(file).items()}
    safetensors.torch.save_file(tensors, file, metadata={"format": "pt"})


def test_a_head_of_other_data_is_no_baseline(outputs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shutil.copytree(outputs / "adapters", tmp_path / "adapters")
    folder = shutil.copytree(tmp_path / "adapters" / "leaves" / "r2-s0", tmp_path / "adapters" / "leaves" / "r0-s0")
    card = json.loads((folder / "card.json").read_text())
    given = command(tmp_path, "merge=cat", "tasks=[leaves]", "save=false")
    assert [row["head_only"] for row in merge_here(given)[0]["rows"]] != [None]
    card["data"]["fingerprint"] = "0" * 64
    (folder / "card.json").write_text(json.dumps(card))
    open_.cache_clear()
    result, _ = merge_here([*given, "realign=linear"])
    assert [row["head_only"] for row in result["rows"]] == [None]
    assert "r0-s0 was trained on another data than" in caplog.text


def test_a_retention_of_nothing_is_left_open(
    outputs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from merging import evaluate

    plain = evaluate.retention
    monkeypatch.setattr(
        evaluate, "retention", lambda metric, *more: float("inf") if metric == "accuracy" else plain(metric, *more)
    )
    result, run = merge_here(command(outputs, "merge=cat", "tasks=[leaves,level]", "images=25", "name=nothing"))
    kept = {row["task"]: row["retention"] for row in result["rows"]}
    assert kept["leaves"] is None
    assert result["score"] == result["worst"] == kept["level"]
    assert "of 1 members" in capsys.readouterr().out
    finish(run, {}, result, "")
    (line,) = [line for line in (outputs / "models/nothing/README.md").read_text().splitlines() if "| leaves |" in line]
    assert line.endswith("| ? |")


def test_models_of_other_settings_stand_side_by_side(outputs: Path) -> None:
    given = command(outputs, "merge=svd", "tasks=[leaves,level]", "name=null")
    kept = [Path(merge_here([*given, *more])[0]["models"][0]) for more in ([], ["merge.rank=1"], ["merge.rank=3"])]
    assert kept[0].name == "leaves+level-svd-none-r2-s0"
    assert len({(path / "backbone.safetensors").read_bytes() for path in kept}) == 3
    again, _ = merge_here([*given, "merge.rank=1"])
    assert again["models"] == [str(kept[1])]


def test_scores_have_the_units_that_training_reported_in(outputs: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(outputs / "adapters" / "level" / "r2-s0", tmp_path / "level")
    card = json.loads((folder / "card.json").read_text())
    card["config"]["task"]["units"] = {"years": 10.0}
    (folder / "card.json").write_text(json.dumps(card))
    result, _ = merge_here(command(outputs, "merge=cat", "tasks=[level]", f"+adapters.level={folder}", "save=false"))
    (row,) = result["rows"]
    assert row["scores"]["rmse_years"] == pytest.approx(10 * row["score"])


def test_a_set_of_one_is_the_adapter_itself(outputs: Path) -> None:
    for realign in ("none", "linear", "deep", "head"):
        result, _ = merge_here(command(outputs, "merge=cat", "tasks=[level]", "save=false", f"realign={realign}"))
        (row,) = result["rows"]
        assert row["score"] == pytest.approx(row["single"], rel=1e-4)
        assert row["predicted"] == pytest.approx(1, abs=1e-3)
        assert row["images"] == (0 if realign == "none" else 24)


def test_a_sweep_goes_on_where_it_stopped(outputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = ["merge=cat", "sweep=pairs", "sweep.of=[leaves,level,dots]"]
    result, run = merge_here(command(outputs, *sweep))
    assert [row["set"] for row in result["rows"][::2]] == ["dots+leaves", "dots+level", "leaves+level"]
    (run.path / "sets" / "dots+level.json").unlink()
    merged: list[Any] = []
    from merging import run as module

    plain = module.merge_set
    monkeypatch.setattr(module, "merge_set", lambda *given: merged.append(given[1]) or plain(*given))
    again, _ = merge_here(command(outputs, *sweep))
    assert merged == [("dots", "level")]

    def without_times(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]

    assert without_times(again["rows"]) == without_times(result["rows"])


def test_the_merged_model_is_a_plain_timm_model_and_a_peft_adapter(outputs: Path) -> None:
    result, _ = merge_here(command(outputs, "merge=cat", "tasks=[leaves,level]", "realign=[none,deep]", "name=null"))
    plain, deep = (Path(path) for path in result["models"])
    card, state, heads = read_parts(plain)
    assert set(heads) == {"leaves", "level"}
    assert card["recipe"]["method"] == "cat"
    assert read_parts(deep)[2]["level"].hidden.in_features == 8 * heads["level"].hidden.in_features
    import timm

    model = timm.create_model(TINY, num_classes=0, img_size=SIZE).eval()
    model.load_state_dict(state)
    images = torch.randn(3, 3, SIZE, SIZE)
    frozen = create_backbone(TINY, SIZE, outputs.parent / "tiny.safetensors")
    members = {name: read_member(outputs / "adapters" / name / "r2-s0") for name in ("leaves", "level")}
    delta = cat({name: require_delta(member) for name, member in members.items()})
    key = "blocks.3.attn.qkv"
    b, a = delta[f"{key}.v"]
    width = b.shape[0]
    expected = frozen.state_dict()[f"{key}.weight"][2 * width :] + b @ a
    torch.testing.assert_close(state[f"{key}.weight"][2 * width :], expected)
    torch.testing.assert_close(state[f"{key}.weight"][:width], frozen.state_dict()[f"{key}.weight"][:width])
    adapted = PeftModel.from_pretrained(split_qkv(frozen), str(plain))
    torch.testing.assert_close(adapted(images), model(images), atol=1e-5, rtol=1e-4)


def test_the_same_merge_gives_the_same_bytes(outputs: Path, tmp_path: Path) -> None:
    files: list[dict[str, bytes]] = []
    for name in ("one", "two"):
        result, _ = merge_here(command(outputs, "merge=gram", "tasks=[leaves,level]", "realign=linear", f"name={name}"))
        folder = Path(result["models"][0])
        files.append({path.name: path.read_bytes() for path in folder.glob("*.safetensors")})
    assert files[0] == files[1]


def test_what_validation_images_show_is_neither_predicted_nor_said_of_the_test_set(
    outputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result, _ = merge_here(command(outputs, "merge=cat", "tasks=[leaves,level]", "split=val", "save=false"))
    assert {row["predicted"] for row in result["rows"]} == {None}
    told = capsys.readouterr().out
    assert "a loss that the validation set can show" in told
    assert "test set" not in told


def test_bf16_scores_are_near_float32(outputs: Path) -> None:
    pair = ["merge=cat", "tasks=[leaves,level]", "save=false"]
    exact, _ = merge_here(command(outputs, *pair))
    rounded, _ = merge_here([*command(outputs, *pair)[:-4], "precision=bf16-mixed", *pair])
    for one, two in zip(exact["rows"], rounded["rows"], strict=True):
        assert two["score"] == pytest.approx(one["score"], rel=0.1)


def test_a_done_merge_tells_of_models_that_are_gone_or_others_by_now(
    outputs: Path, caplog: pytest.LogCaptureFixture
) -> None:
    result, run = merge_here(command(outputs, "merge=cat", "tasks=[dots,leaves]", "realign=deep"))
    (model,) = map(Path, result["models"])
    write_json(run.result_file, result)
    look_for_models(None, run)
    assert not caplog.text
    kept = model.rename(model.with_suffix(".kept"))
    merge_here(command(outputs, "merge=cat", "tasks=[dots,leaves]", "realign=deep", "images=12"))
    look_for_models(None, run)
    assert f"{model} holds another merge by now; resume=restart" in caplog.text
    shutil.rmtree(model)
    kept.rename(model)
    caplog.clear()
    look_for_models(None, run)
    assert not caplog.text
    card = json.loads((model / "card.json").read_text())
    for change in (lambda card: card["recipe"].update(realign="none"), lambda card: card["tasks"].pop("dots")):
        other = copy.deepcopy(card)
        change(other)
        write_json(model / "card.json", other)
        caplog.clear()
        look_for_models(None, run)
        assert "holds another merge by now" in caplog.text
    write_json(model / "card.json", card)
    with (model / "members" / "dots" / "head.safetensors").open("ab") as file:
        file.write(b" ")  # an adapter trained anew
    caplog.clear()
    look_for_models(None, run)
    assert "holds another merge by now" in caplog.text
    shutil.rmtree(model)
    look_for_models(None, run)
    assert f"Its model {model} is gone; resume=restart" in caplog.text


def test_sets_are_sorted_and_each_is_taken_once() -> None:
    config = merge_config(["sets=[[galaxy,emotion],[emotion,galaxy],[firerisk,emotion,galaxy]]"])
    assert config.chosen_sets() == [("emotion", "galaxy"), ("emotion", "firerisk", "galaxy")]
    assert len(merge_config(["sweep=pairs"]).chosen_sets()) == 15
    assert len(merge_config(["sweep=triples"]).chosen_sets()) == 4
    assert len(merge_config(["sweep=triples_all"]).chosen_sets()) == 20
    assert len(merge_config(["sweep=all"]).chosen_sets()) == 57


def test_rows_are_logged_to_wandb_offline(outputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    _, run = merge_here(command(outputs, "tasks=[leaves,level]", "merge=cat", "logger=wandb", "seed=0", "save=false"))
    (table,) = run.path.glob("wandb/offline-run-*/files/media/table/rows*.json")
    content = json.loads(table.read_text())
    assert content["columns"][: len(COLUMNS)] == list(COLUMNS)
    assert [row[COLUMNS.index("task")] for row in content["data"]] == ["leaves", "level"]


def test_a_single_set_shows_both_models_answers_on_test_pictures(outputs: Path, tmp_path: Path) -> None:
    told = ["merge=cat", "tasks=[leaves,level,dots]", "realign=[none,head]"]
    result, run = merge_here(command(outputs, *told))
    merged = load(Path(result["models"][-1]))
    folder = run.path / "examples"
    examples = json.loads((folder / "examples.json").read_text())
    assert {item["task"] for item in examples} == {"leaves", "level", "dots"}
    counts = [sum(item["task"] == task for item in examples) for task in ("leaves", "level", "dots")]
    assert min(counts) > 3
    assert max(counts) <= 12
    for item in examples:
        assert {item["set"], item["method"], item["realign"]} == {"dots+leaves+level", "cat", "head"}
        picture = np.asarray(Image.open(folder / item["image"]))
        images = normalize(torch.tensor(picture[None]), merged.mean, merged.std)
        answer = merged(images)[item["task"]][0]
        if item["task"] == "leaves":
            assert {item["target"], item["single"]} <= {"dark", "light"}
            assert item["merged"] == ("dark", "light")[int(answer.argmax())]
        elif item["task"] == "level":
            assert item["merged"] == pytest.approx(float(answer), abs=1e-3)
        else:
            assert np.array(item["merged"]).ravel() == pytest.approx(answer.numpy(), abs=1e-3)
            assert len(item["target"]) == len(item["single"]) == 2
    trained = read_member(outputs / "adapters" / "level" / "r2-s0").bundle.card["run"]
    alone = json.loads((outputs / "runs" / trained / "examples" / "examples.json").read_text())
    own = [item for item in examples if item["task"] == "level"]
    assert [item["target"] for item in own] == [item["target"] for item in alone]
    assert [item["single"] for item in own] == pytest.approx([item["single"] for item in alone], abs=0.01)
    left_out: list[tuple[str, str]] = []
    assert [item["merged"] for item in read_examples(run.path, 0, left_out)] == [item["merged"] for item in examples]
    assert left_out == []
    _, swept = merge_here(command(outputs, "merge=cat", "sets=[[leaves,level],[dots,level]]", "save=true"))
    assert not (swept.path / "examples").exists()


def test_predicted_retention_stands_beside_the_measured_one(
    outputs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    result, _ = merge_here(command(outputs, "merge=cat", "tasks=[leaves,level]", "save=false"))
    lines = capsys.readouterr().out.splitlines()
    start = next(number for number, line in enumerate(lines) if line.split()[:2] == ["task", "realign"])
    assert lines[start - 2].strip() == "leaves+level"  # above a heading of two lines
    assert lines[start].split()[-2:] == ["predicted", "retention"]
    for line, row in zip(lines[start + 1 :], result["rows"], strict=False):
        assert line.split()[-2:] == [f"{row['predicted']:.3f}", f"{row['retention']:.3f}"]
    off = sum(abs(row["predicted"] - row["retention"]) for row in result["rows"]) / 2
    assert f"off by {off:.3f} on average" in " ".join(lines)


def test_nothing_is_predicted_where_no_advice_images_are_given(
    outputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = command(outputs, "merge=average", "tasks=[leaves,level]", "save=false")
    result, _ = merge_here([*given, "advice_images=null"])
    assert "predictions were off" not in capsys.readouterr().out
    told = {row["task"]: (row["predicted"], row["low"], row["high"], row["drift"]) for row in result["rows"]}
    assert told == dict.fromkeys(("leaves", "level"), (None, None, None, None))
