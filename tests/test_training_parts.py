"""What a config asks for reaches the parts of a training, and the best epoch is what is tested and kept."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import safetensors.torch
import timm
import torch
from peft.tuners.lora import LoraLayer
from timm.layers import resample_abs_pos_embed

from datamodules.image_csv import ImageCsv
from launch.app import CONF
from launch.compose import Composer
from launch.config import first_config
from launch.errors import UserError
from launch.runs import describe_run, prepare
from launch.schema import TrainConfig
from launch.target import instantiate
from lightning_modules import building, training
from lightning_modules.adapter import load_bundle
from lightning_modules.backbone import create_backbone, split_qkv
from lightning_modules.building import (
    build_adapted,
    build_datamodule,
    build_head,
    build_task,
    build_trainer,
    plain_backbone,
)
from lightning_modules.lora import add_lora, init_seed, lora_config
from lightning_modules.model import MultiTaskModel
from lightning_modules.module import MultiTaskModule
from lightning_modules.tasks import Task
from lightning_modules.training import run_loggers, task_grams, task_robustness
from merging.grams import collect_grams
from merging.robustness import disturbed, measure_robustness
from tests.conftest import SIZE, TINY, randomize_lora
from tests.peft_bundle import apply_bundle
from tests.runs import draw_points, leaves, overrides, train_here, write_weights
from tests.wandb_file import read_records

MEAN, DEVIATION = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def composed(arguments: list[str]) -> TrainConfig:
    composer = Composer("train", CONF)
    return TrainConfig.model_validate(first_config(composer, composer.parse(arguments, multirun=False), TrainConfig))


def datamodule(config: TrainConfig) -> Any:
    return build_datamodule(config, instantiate(config.data.source, config.data.arguments()))


def dots(tmp_path: Path, *more: str) -> list[str]:
    """The command line of a task of two points."""
    root = tmp_path / "dots"
    if not root.exists():
        draw_points(root)
    task = ["task=keypoints", "name=dot", "data=image_csv", f"data.root={root}", "task.eye_corners=[1,0]"]
    return overrides(tmp_path, *task, "data.target_column=[x0,y0,x1,y1]", *more)


def level(tmp_path: Path, *more: str) -> list[str]:
    """The command line of a task of one number."""
    root = tmp_path / "dots"
    if not root.exists():
        draw_points(root)
    task = ["task=regression", "name=level", "data=image_csv", f"data.root={root}", "data.target_column=level"]
    return overrides(tmp_path, *task, *more)


def test_the_data_comes_as_the_config_and_the_backbone_want_it(tmp_path):
    name = "vit_small_patch16_224.dino"  # normalised otherwise than most
    flip = ["task.augment.hflip=true", "task.flip_index=[1,0]", "seed=3", "data.split_seed=5"]
    data = datamodule(composed(dots(tmp_path, f"backbone.name={name}", *flip)))
    known = timm.get_pretrained_cfg(name)
    assert (data.mean, data.std) == (known.mean, known.std) != ((0.5,) * 3, (0.5,) * 3)
    assert data.augment["hflip"]
    assert (list(data.flip_index), data.seed, data.split_seed) == ([1, 0], 3, 5)
    assert (data.image_size, data.batch_size, data.kind) == (SIZE, 8, "keypoints")


def test_a_task_is_measured_as_the_config_says(tmp_path):
    configs = [composed(dots(tmp_path)), composed(level(tmp_path, "task.units={hours: 24.0}"))]
    found = []
    for config in configs:
        data = datamodule(config)
        data.prepare_data()
        data.setup()
        found.append(build_task(config, data))
    assert found == [
        Task("dot", "keypoints", "nme", 4, eye_corners=(1, 0)),
        Task("level", "regression", "rmse", 1, units=(("hours", 24.0),)),
    ]


def test_the_adapter_is_the_one_that_the_config_describes(tmp_path):
    def drawn(seed):
        model = split_qkv(create_backbone(TINY, SIZE, tmp_path / "tiny.safetensors"))
        add_lora(model, lora_config(2, None, ["k", "mlp"]), seed)
        return {name: value for name, value in model.named_parameters() if ".lora_A" in name}

    for more, seed, scale in (
        (["lora.alpha=3", "lora.use_rslora=true", "lora.init_seed=per_task", "lora.train_a=false"], None, 3 / 2**0.5),
        (["lora.dropout=0.25"], 5, 1.0),
    ):
        config = composed(leaves(tmp_path, "seed=5", "lora.targets=[k,mlp]", *more))
        backbone, _, lora = build_adapted(config)
        layers = {name: module for name, module in backbone.named_modules() if isinstance(module, LoraLayer)}
        assert len(layers) == 3 * len(backbone.blocks)
        assert [layer.scaling["default"] for layer in layers.values()] == pytest.approx([scale] * len(layers))
        assert lora.lora_dropout == config.lora.dropout
        expected = drawn(init_seed(5, "leaves", "per_task") if seed is None else seed)
        for name, value in expected.items():
            assert torch.equal(backbone.get_parameter(name), value)
            assert backbone.get_parameter(name).requires_grad == config.lora.train_a


@pytest.mark.parametrize(("weights", "antialias"), [("package", False), ("file", True)])
def test_position_embeddings_are_resampled_as_their_weights_want_it(tmp_path, monkeypatch, weights, antialias):
    file = write_weights(tmp_path / "tiny.safetensors")
    torch.manual_seed(0)
    own = create_backbone(TINY, SIZE, file).state_dict() | {"pos_embed": torch.randn(1, 1 + 16, 64)}  # of 64 pixels
    safetensors.torch.save_file(own, file)
    monkeypatch.setattr(building, "dinov2_small_weights", lambda _: file)
    config = composed(leaves(tmp_path)).backbone
    config.weights = "package" if weights == "package" else str(file)
    model, _ = plain_backbone(config, tmp_path)
    ways = [resample_abs_pos_embed(own["pos_embed"], [2, 2], antialias=way) for way in (antialias, not antialias)]
    torch.testing.assert_close(model.pos_embed.detach(), ways[0])
    assert not torch.allclose(*ways, atol=1e-3)


def test_checkpoints_and_early_stopping_follow_the_metric_in_its_direction(tmp_path):
    for mode, patience in (("min", 3), ("max", 2)):
        config = composed(leaves(tmp_path, f"early_stopping.patience={patience}"))
        trainer = build_trainer(config, [], tmp_path / "checkpoints", "val/leaves/x", mode)
        stop, (best, last) = trainer.early_stopping_callback, trainer.checkpoint_callbacks
        assert (stop.monitor, stop.mode, stop.patience) == ("val/leaves/x", mode, patience)
        assert (best.monitor, best.mode, best.filename) == ("val/leaves/x", mode, "best")
        assert (last.monitor, last.filename) == (None, "last")
    config = composed(leaves(tmp_path, "early_stopping.patience=null"))
    assert build_trainer(config, [], tmp_path / "checkpoints", "x", "min").early_stopping_callback is None


@pytest.mark.parametrize(("task", "metric"), [(leaves, "accuracy"), (level, "rmse")])
def test_the_epoch_of_the_best_metric_is_tested_and_kept(tmp_path, monkeypatch, task, metric):
    """The second epoch begins with answers that are far off, and the bundle's own answers are measured here."""
    begin = MultiTaskModule.on_train_epoch_start

    def spoil(self):
        begin(self)
        if self.current_epoch == 1:
            (head,) = self.model.heads.values()
            with torch.no_grad():
                head.output.bias[0] += 100.0

    monkeypatch.setattr(MultiTaskModule, "on_train_epoch_start", spoil)
    result, run = train_here(task(tmp_path, "trainer.precision=32-true", "optimizer.lr=1e-2"))
    curves = pd.read_csv(run.path / "csv" / "version_0" / "metrics.csv").groupby("epoch").max(numeric_only=True)
    curve = curves[f"val/{result['task']['name']}/{metric}"]
    assert curve[0] > curve[1] if metric == "accuracy" else curve[0] < curve[1]
    assert (result["best_epoch"], result["epochs"]) == (1, 2)
    assert result["validation"][metric] == pytest.approx(curve[0], rel=1e-5)
    config = TrainConfig.model_validate(run.config)
    data = datamodule(config)
    data.setup()
    kept = split_qkv(create_backbone(TINY, SIZE, tmp_path / "tiny.safetensors"))
    backbone, head = apply_bundle(kept, load_bundle(Path(result["bundle"])))
    for split, told in (("val", result["validation"][metric]), ("test", result["score"])):
        measured = build_task(config, data).metrics()[metric]
        for batch in data.plain_dataloader(split):
            output = head(backbone(data.on_after_batch_transfer(batch, 0)["image"]))
            measured.update(output.argmax(1) if metric == "accuracy" else output, batch["target"])
        assert float(measured.compute()) == pytest.approx(told, rel=1e-3)


def test_what_merges_go_by_is_measured_on_normalised_pictures_of_the_right_split(tmp_path, vit):
    source = ImageCsv(root=draw_points(tmp_path / "dots"), target_column="level", kind="regression")
    data = building.ImageDataModule(
        source, "regression", image_size=SIZE, mean=MEAN, std=DEVIATION, augment={"brightness": 0.3}, batch_size=4,
        cache_root=tmp_path / "cache",
    )  # fmt: skip
    data.prepare_data()
    data.setup()
    add_lora(split_qkv(vit), lora_config(2, None, ["k", "v"]), init_seed=0)
    randomize_lora(vit)
    cpu = torch.device("cpu")

    def pictures(split, count=None):
        rows = torch.cat([batch["index"] for batch in data.plain_dataloader(split, count)]).numpy()
        assert set(data.table["split"][rows]) == {split}
        images = (torch.from_numpy(data.pictures(rows)) / 255 - torch.tensor(MEAN)) / torch.tensor(DEVIATION)
        return images.permute(0, 3, 1, 2), torch.tensor(data.table["target"].to_numpy("float32")[rows])[:, None]

    images, _ = pictures("train", 10)
    assert len(images) == 10
    found, expected = task_grams(vit, data, 10, cpu), collect_grams(vit, [images])
    assert found.keys() == expected.keys()
    for name, gram in expected.items():
        torch.testing.assert_close(found[name], gram, rtol=1e-4, atol=1e-4)

    task = Task("level", "regression", "rmse", 1)
    torch.manual_seed(0)
    head = build_head(64, task, data)
    torch.nn.init.normal_(head.output.weight)
    model = MultiTaskModel(vit, {"level": head}).eval()
    images, targets = pictures("val")

    def answers(strength):
        with torch.no_grad(), disturbed(model, strength):
            return model(images)["level"]

    expected = measure_robustness(answers, task, targets)
    assert task_robustness(model, task, data, cpu) == pytest.approx(expected, rel=1e-3)
    assert len(set(expected)) > 1


def test_a_number_is_learned_in_the_unit_of_its_head_and_with_the_seed_of_the_run(tmp_path, monkeypatch):
    begun: dict[str, Any] = {}

    def begin(trainer, module, *_):
        begun.update(trainer=trainer, module=module)
        raise KeyboardInterrupt

    table = pd.read_csv(draw_points(tmp_path / "dots") / "labels.csv")
    table.assign(level=1e4 * table["level"]).to_csv(tmp_path / "dots" / "labels.csv", index=False)
    monkeypatch.setattr(training, "fit", begin)
    with pytest.raises(KeyboardInterrupt):
        train_here(level(tmp_path, "seed=4"))
    module = begun["module"]
    assert module.units == {"level": module.model.heads["level"].scale}
    assert module.units["level"] == pytest.approx(0.75e4, rel=0.2)
    assert module.seed == 4
    best, _ = begun["trainer"].checkpoint_callbacks
    assert (best.monitor, best.mode) == ("val/level/rmse", "min")


def test_loggers_are_those_of_the_config_and_know_the_sweep(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "staging"))
    config = composed(leaves(tmp_path, "logger=[wandb,tensorboard]", "logger.wandb.mode=offline"))
    run = describe_run("train", config.title, config.model_dump(mode="json", by_alias=True), "sweep1")
    prepare(run)
    with run_loggers(run, config, ["leaves", "r2"]) as loggers:
        kinds = {type(logger).__name__ for logger in loggers}
        loggers[-1].log_metrics({"loss": 1.0}, step=0)
    assert kinds == {"CSVLogger", "TensorBoardLogger", "WandbLogger"}
    (told,) = [record.run for record in read_records(run.path)[1] if record.HasField("run")][:1]
    assert (told.run_group, told.job_type, list(told.tags)) == ("sweep1", "train", ["leaves", "r2"])
    assert (told.run_id, told.display_name) == (run.hash, run.name)


def test_a_training_whose_bundle_could_not_be_written_is_not_trained_again(tmp_path, monkeypatch, caplog):
    def full(*_):
        raise UserError("the disk is full")

    monkeypatch.setattr(training, "keep", full)
    with pytest.raises(UserError):
        train_here(leaves(tmp_path))
    monkeypatch.undo()
    caplog.set_level("INFO")
    result, _ = train_here(leaves(tmp_path))
    assert "resuming after epoch 2" in caplog.text
    assert result["epochs"] == 2
    assert (tmp_path / "out/adapters/leaves/r2-s0/card.json").is_file()
