"""Whole training runs on drawn images: own data by command line, what a run leaves, and resuming after SIGKILL."""

import json
import re
import shutil
import signal
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import safetensors.torch
import timm
import torch

from datamodules.datamodule import ImageDataModule
from datamodules.image_folder import ImageFolder
from launch.errors import CommandError, DataError, UserError
from launch.publishing import publish_again, shortened
from launch.runs import content_hash
from launch.schema import TrainConfig
from lightning_modules import building, training
from lightning_modules.adapter import load_bundle
from lightning_modules.backbone import create_backbone, fingerprint, split_qkv
from lightning_modules.building import autocast_type, resolve_precision
from lightning_modules.lora import folded_state_dict
from lightning_modules.model import MultiTaskModel
from lightning_modules.module import MultiTaskModule
from lightning_modules.training import task_grams
from merging.answer_files import columns
from merging.grams import load_grams
from merging.robustness import LEVELS
from tests.commands import Command, run_command
from tests.conftest import SIZE, TINY
from tests.peft_bundle import apply_bundle
from tests.runs import draw_points, leaves, overrides, read_results, train_here
from train import weights_content


def reloaded_scores(tmp_path, name, rank=2):
    """Answers of the saved bundle on two images: peft's way and folded into plain timm."""
    path = tmp_path / "out" / "adapters" / name / f"r{rank}-s0"
    vit = create_backbone(TINY, SIZE, tmp_path / "tiny.safetensors")
    bundle = load_bundle(path, fingerprint(vit))
    backbone, head = apply_bundle(split_qkv(vit), bundle)
    images = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    folded = timm.create_model(TINY, num_classes=0, img_size=SIZE).eval()
    folded.load_state_dict(folded_state_dict(backbone))
    with torch.no_grad():
        return MultiTaskModel(backbone, {name: head})(images)[name], head(folded(images))


def test_a_folder_of_classes(tmp_path):
    result, run = train_here(leaves(tmp_path, "trainer.max_epochs=6", "optimizer.lr=5e-3"))
    assert result["metric"] == "accuracy"
    assert result["score"] == result["metrics"]["accuracy"] > 0.8
    assert result["task"]["classes"] == ("dark", "light")
    assert sum(sum(split.values()) for split in result["data"]["counts"].values()) == 48
    assert result["lora"]["parameters"] == 6 * 2 * (64 + 64) * 2
    assert 1 <= result["best_epoch"] <= result["epochs"] <= 6
    assert not (run.path / "checkpoints").exists()
    peft, folded = reloaded_scores(tmp_path, "leaves")
    assert peft.shape == (2, 2)
    torch.testing.assert_close(peft, folded, rtol=0, atol=1e-4)
    card = json.loads((tmp_path / "out/adapters/leaves/r2-s0/card.json").read_text())
    grams = load_grams(tmp_path / "out/adapters/leaves/r2-s0/grams.safetensors")
    assert {gram.shape for gram in grams.values()} == {(64, 64)}
    assert len(grams) == 6
    assert card["config_hash"] == run.hash
    assert card["data"]["fingerprint"] == result["data"]["fingerprint"]


@pytest.mark.parametrize("unit", [1.0, 1e5])
def test_a_csv_of_numbers(tmp_path, unit):
    root = draw_points(tmp_path / "days")
    table = pd.read_csv(root / "labels.csv")
    table.assign(level=table["level"] * unit).to_csv(root / "labels.csv", index=False)
    arguments = ["task=regression", "name=level", "data=image_csv", f"data.root={root}", "+data.target_column=level"]
    result, _ = train_here(overrides(tmp_path, *arguments, "trainer.max_epochs=8", "optimizer.lr=5e-3"))
    spread = 0.75 * unit  # standard deviation of uniform(20, 150) / 50
    assert result["metric"] == "rmse"
    assert result["score"] < spread
    peft, folded = reloaded_scores(tmp_path, "level")
    assert peft.shape == (2, 1)
    torch.testing.assert_close(peft, folded, rtol=1e-3, atol=1e-4)
    assert 20 / 50 * unit < peft.mean() < 150 / 50 * unit  # the bundle's head answers in the labels' unit


def test_a_csv_of_points(tmp_path):
    root = draw_points(tmp_path / "dots")
    arguments = ["task=keypoints", "name=dot", "data=image_csv", f"data.root={root}", "task.eye_corners=[0,1]"]
    result, _ = train_here(overrides(tmp_path, *arguments))
    assert result["metric"] == "nme"
    assert set(result["metrics"]) >= {"nme", "failure_rate", "auc"}
    assert reloaded_scores(tmp_path, "dot")[0].shape == (2, 4)


def test_rank_zero_trains_the_head_alone(tmp_path):
    result, _ = train_here(leaves(tmp_path, "lora.rank=0"))
    assert result["lora"]["parameters"] == 0
    bundle = load_bundle(tmp_path / "out/adapters/leaves/r0-s0")
    assert bundle.config is None
    assert not bundle.tensors


def test_same_seed_same_bytes(tmp_path):
    train_here(leaves(tmp_path))
    bundle = tmp_path / "out/adapters/leaves/r2-s0"
    files = ("adapter_model.safetensors", "adapter_config.json", "head.safetensors")
    first = {name: (bundle / name).read_bytes() for name in files}
    train_here(leaves(tmp_path))
    assert {name: (bundle / name).read_bytes() for name in files} == first
    train_here(leaves(tmp_path, "seed=1"))
    other = tmp_path / "out/adapters/leaves/r2-s1"
    assert (other / "head.safetensors").read_bytes() != first["head.safetensors"]


def test_impossible_rank_and_points_are_refused(tmp_path):
    with pytest.raises(CommandError, match=r"lora\.rank=65"):
        train_here(leaves(tmp_path, "lora.rank=65"))
    root = draw_points(tmp_path / "dots")
    arguments = ["task=keypoints", "name=dot", "data=image_csv", f"data.root={root}", "task.eye_corners=[0,7]"]
    with pytest.raises(DataError, match="eye_corners"):
        train_here(overrides(tmp_path, *arguments))


def test_eye_corners_that_are_one_point_are_told_before_training(tmp_path):
    root = draw_points(tmp_path / "dots")
    table = pd.read_csv(root / "labels.csv")
    table["x1"] = table["x0"]
    table.to_csv(root / "labels.csv", index=False)
    arguments = ["task=keypoints", "name=dot", "data=image_csv", f"data.root={root}", "task.eye_corners=[0,1]"]
    arguments.append("data.target_column=[x0,y0,x1,y1]")
    with pytest.raises(DataError, match=r"in 6 pictures of its val split the points 0 and 1 are one .*\.png, \.\.\."):
        train_here(overrides(tmp_path, *arguments))


def test_nothing_is_published_of_a_result_that_is_not_finite(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "data_card", lambda _: {"share": float("nan")})
    with pytest.raises(UserError, match=r"not finite: data\.share=nan"):
        train_here(leaves(tmp_path, "trainer.max_epochs=1"))
    assert not (tmp_path / "out/adapters").exists()


def test_killed_in_the_middle_of_an_epoch_and_resumed_bit_for_bit(tmp_path):
    """SIGKILL after two epochs were checkpointed; the second attempt ends where an undisturbed run ends."""
    arguments = leaves(tmp_path, "trainer.max_epochs=5", "lora.dropout=0.1")
    train_here([*arguments, f"paths.outputs={tmp_path / 'undisturbed'}"])

    killed = Command("train.py", arguments)
    wait_for(lambda: any("epoch 2/5" in log.read_text() for log in tmp_path.glob("out/runs/*/run.log")), killed)
    killed.kill()
    assert killed.end().returncode == -signal.SIGKILL
    assert not read_results(tmp_path / "out"), "it ended before it could be killed"

    done = run_command("train.py", [*arguments, "resume=auto"])
    assert done.returncode == 0, done.stderr
    assert "resuming after epoch" in done.stderr
    assert "is not empty" not in done.stderr
    assert len(read_results(tmp_path / "out")) == 1
    for name in ("adapter_model.safetensors", "head.safetensors"):
        resumed = safetensors.torch.load_file(tmp_path / "out/adapters/leaves/r2-s0" / name)
        expected = safetensors.torch.load_file(tmp_path / "undisturbed/adapters/leaves/r2-s0" / name)
        assert resumed.keys() == expected.keys()
        assert all(torch.equal(resumed[key], expected[key]) for key in expected)

    shutil.rmtree(tmp_path / "out/adapters")
    again = run_command("train.py", arguments)
    assert again.returncode == 0
    assert (tmp_path / "out/adapters/leaves/r2-s0/card.json").is_file()
    assert "result.json" in again.stderr
    assert "epoch" not in again.stderr

    with (tmp_path / "tiny.safetensors").open("ab") as file:
        file.write(b" ")
    other = run_command("train.py", arguments)
    assert other.returncode == 1, "of other weights nothing was trained yet"
    assert "tiny.safetensors is not a readable safetensors file" in other.stderr


def test_data_that_changed_meanwhile_is_not_gone_on_with(tmp_path, monkeypatch):
    def stop(self):
        if self.current_epoch == 1:
            raise ZeroDivisionError

    monkeypatch.setattr(MultiTaskModule, "on_validation_end", stop)
    with pytest.raises(ZeroDivisionError):
        train_here(leaves(tmp_path))
    monkeypatch.undo()
    next((tmp_path / "leaves" / "dark").iterdir()).unlink()
    with pytest.raises(DataError, match=r"data of leaves is no longer .* resume=restart"):
        train_here(leaves(tmp_path))
    assert train_here(leaves(tmp_path, "resume=restart"))[0]["epochs"] == 2


def test_a_run_cut_short_publishes_nothing(tmp_path, caplog):
    train_here(leaves(tmp_path))
    card = tmp_path / "out/adapters/leaves/r2-s0/card.json"
    real = card.read_bytes()
    result, run = train_here(leaves(tmp_path, "trainer.limit_train_batches=2", "trainer.limit_test_batches=1.0"))
    assert card.read_bytes() == real
    assert result["bundle"] == str(run.path / "adapter")
    assert (run.path / "adapter/card.json").is_file()
    assert "since trainer.limit_train_batches=2 cut it short" in caplog.text


def test_what_cuts_a_run_short():
    whole = {"limit_train_batches": 1.0, "limit_val_batches": None, "overfit_batches": 0.0, "max_epochs": 1}
    assert shortened(whole) == []
    cuts = {"limit_train_batches": 1, "limit_test_batches": 0.5, "overfit_batches": 2, "fast_dev_run": True}
    assert shortened(cuts) == [
        "trainer.limit_train_batches=1", "trainer.limit_test_batches=0.5", "trainer.overfit_batches=2",
        "trainer.fast_dev_run=true",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["values", "images", *(column for column, _ in columns({}))])
def test_a_name_that_is_taken_is_refused(tmp_path, name):
    with pytest.raises(CommandError, match=f"name={name}: torch or the files of answers have a use for this name"):
        train_here(leaves(tmp_path, f"name={name}"))


def test_the_last_weights_do_not_pass_for_a_best_checkpoint_that_is_gone(tmp_path, monkeypatch):
    fit = training.fit

    def lost(trainer, module, data, checkpoints):
        epochs = fit(trainer, module, data, checkpoints)
        (checkpoints / "best.ckpt").unlink()
        return epochs

    monkeypatch.setattr(training, "fit", lost)
    with pytest.raises(DataError, match=r"best\.ckpt: the best checkpoint is gone; .* resume=restart"):
        train_here(leaves(tmp_path))
    assert not (tmp_path / "out/adapters").exists()
    monkeypatch.setattr(training, "fit", fit)
    result, _ = train_here(leaves(tmp_path, "trainer.fast_dev_run=true"))
    assert result["best_epoch"] is None


def test_a_done_run_publishes_its_adapter_again(tmp_path):
    published = tmp_path / "out/adapters/leaves/r2-s0"

    def files():
        return {path.name: path.read_bytes() for path in published.iterdir()}

    _, run = train_here(leaves(tmp_path, "trainer.max_epochs=1"))
    config, bundle = TrainConfig.model_validate(run.config), files()
    before = published.stat().st_ino
    publish_again(config, run)
    assert published.stat().st_ino == before, "it lay there still"
    train_here(leaves(tmp_path, "optimizer.lr=1e-2", "trainer.max_epochs=1"))
    assert files() != bundle
    publish_again(config, run)
    assert files() == bundle
    shutil.rmtree(tmp_path / "out/adapters")
    publish_again(config, run)
    assert files() == bundle


def test_other_weights_in_the_same_file_make_another_run(tmp_path):
    _, run = train_here(leaves(tmp_path, "trainer.max_epochs=1"))
    config = TrainConfig.model_validate(run.config)
    file = Path(config.backbone.weights)
    first, again = weights_content(config), weights_content(config)
    assert first == again
    assert content_hash("train", run.config, first) != content_hash("train", run.config)
    file.write_bytes(file.read_bytes() + b" ")
    assert weights_content(config) != first
    for source in ("hub", "package"):
        config.backbone.weights = source
        assert weights_content(config) == {}


def wait_for(condition, running, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert running.running(), running.end().stderr
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("amx", "avx512", "vendor", "expected"),
    [
        (True, True, "GenuineIntel", "bf16-mixed"),
        (False, True, "AuthenticAMD", "bf16-mixed"),
        (False, True, "GenuineIntel", "32-true"),
        (False, True, "Intel64 Family 6 Model 207 Stepping 2, GenuineIntel", "32-true"),
        (False, False, "AuthenticAMD", "32-true"),
    ],
)
def test_auto_precision_follows_the_processor(monkeypatch, amx, avx512, vendor, expected):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(building, "_processor_vendor", lambda: vendor)
    assert resolve_precision("auto", "cpu") == expected
    assert resolve_precision("16-mixed", "cpu") == "16-mixed"


@pytest.mark.parametrize(("native", "expected"), [(True, torch.bfloat16), (False, None)])
def test_what_is_not_trained_with_a_scaler_never_computes_in_float16(monkeypatch, native, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native)
    assert autocast_type("auto", "cuda") is expected
    assert autocast_type("32-true", "cuda") is None


def test_bf16_training_runs_and_saves_float32(tmp_path):
    result, _ = train_here(leaves(tmp_path, "trainer.precision=bf16-mixed"))
    assert result["precision"] == "bf16-mixed"
    tensors = load_bundle(tmp_path / "out/adapters/leaves/r2-s0").tensors
    assert {value.dtype for value in tensors.values()} == {torch.float32}


def test_on_a_terminal_too_there_is_no_bar_unless_wanted(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    result, _ = train_here(leaves(tmp_path, "trainer.enable_progress_bar=false", "trainer.max_epochs=1"))
    assert result["epochs"] == 1


def test_two_processes_leave_what_one_would(tmp_path):
    """The first alone measures and publishes, over all images and not over its share of them."""
    arguments = leaves(tmp_path, "trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2")
    done = run_command("train.py", [*arguments, "trainer.precision=32-true"])
    assert done.returncode == 0, done.stderr
    (result,) = read_results(tmp_path / "out")
    assert len(result["robustness"]) == len(LEVELS)
    assert done.stderr.count("rank 2, on leaves: test ") == 1
    losses = re.findall(r"epoch (\d)/2: .*loss (\d\.\d+)", done.stderr)
    assert len(losses) == 4
    assert len(set(losses)) == 2, "each process told the loss of its own share"
    vit = create_backbone(TINY, SIZE, tmp_path / "tiny.safetensors")
    bundle = load_bundle(tmp_path / "out/adapters/leaves/r2-s0", fingerprint(vit))
    data = ImageDataModule(
        ImageFolder(root=tmp_path / "leaves"), "classification", image_size=SIZE, cache_root=tmp_path / "out/cache"
    )
    data.setup()
    expected = task_grams(apply_bundle(split_qkv(vit), bundle)[0], data, 256, torch.device("cpu"))
    found = load_grams(bundle.path / "grams.safetensors")
    for name, gram in expected.items():
        torch.testing.assert_close(found[name], gram, rtol=0, atol=1e-3 * float(gram.abs().max()))


def test_hardware_that_is_not_there_is_named_without_a_traceback(tmp_path, monkeypatch):
    for kind in ("cuda.CUDAAccelerator", "mps.MPSAccelerator"):
        monkeypatch.setattr(f"lightning.pytorch.accelerators.{kind}.is_available", lambda: False)
    with pytest.raises(CommandError, match=r"trainer: Lightning cannot run so on this machine: .*gpu"):
        train_here(leaves(tmp_path, "trainer.accelerator=gpu"))
