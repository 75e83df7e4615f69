"""One training run from a checked config: data, backbone, adapter, fit, test, bundle."""

import logging
import shutil
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import Logger
from peft import LoraConfig
from torch import Tensor, nn

from datamodules.base import Source
from datamodules.datamodule import ImageDataModule, normalize
from launch.errors import DataError
from launch.progress import track
from launch.provenance import provenance
from launch.publishing import kept_bundle, publish
from launch.runs import Run, require_finite
from launch.schema import TrainConfig, Training
from lightning_modules.adapter import save_bundle
from lightning_modules.backbone import hold_frozen_weights
from lightning_modules.building import (
    build_adapted,
    build_datamodule,
    build_head,
    build_subsets,
    build_task,
    build_trainer,
    data_card,
    quiet_lightning,
)
from lightning_modules.callbacks import BEST, LAST
from lightning_modules.examples import log_examples, save_examples
from lightning_modules.features import FeatureDataModule
from lightning_modules.lineage import log_bundle
from lightning_modules.model import MultiTaskModel, require_names
from lightning_modules.module import AUTOCAST, MultiTaskModule
from lightning_modules.pictures import Answers, draw_pictures
from lightning_modules.tasks import Task
from lightning_modules.tracking import define_metrics, log_picture, log_summary, open_loggers
from merging.features import DeepFeatures
from merging.grams import collect_grams
from merging.robustness import IMAGES as ROBUST_IMAGES
from merging.robustness import disturbed, measure_robustness

log = logging.getLogger(__name__)


def train(config: TrainConfig, run: Run, source: Source) -> dict[str, Any]:
    """Trains, tests and saves one adapter with its head; goes on from the run's last checkpoint when there is one.

    At rank 0 the backbone's features are computed once (``feature_views``) and the head is trained on them; it may
    read the deep ones (``features``).

    Returns:
        The content of ``result.json``; in the further processes of a distributed run less, since they publish nothing.
    """
    started = time.perf_counter()
    quiet_lightning()
    L.seed_everything(config.seed, workers=True, verbose=False)
    require_names([config.name])
    rank, checkpoints = config.lora.rank, run.path / "checkpoints"
    images = build_datamodule(config, source)  # before the backbone: a fault of the data should not wait for it
    images.prepare_data()
    images.setup()
    task = build_task(config, images)
    backbone, backbone_card, lora = build_adapted(config)
    parameters = sum(parameter.numel() for parameter in backbone.parameters() if parameter.requires_grad)
    subsets = {task.name: build_subsets(config, images)}
    torch.manual_seed(config.seed)
    reader = DeepFeatures(backbone) if config.features == "deep" else backbone
    head = build_head(int(reader.num_features), task, images)
    with run_loggers(run, config, [task.name, f"r{rank}"]) as opened:
        trainer = build_trainer(config, opened, checkpoints, f"val/{task.name}/{task.metric}", task.mode)
        begun = time.perf_counter()
        data: L.LightningDataModule = images
        model = MultiTaskModel(reader, {task.name: head})
        fitted = model
        dtype = AUTOCAST.get(str(trainer.precision))
        if rank == 0 and config.feature_views is not None and trainer.world_size == 1:
            if dtype is not None:
                hold_frozen_weights(backbone, dtype)
            data = FeatureDataModule(reader, images, config.feature_views, trainer.strategy.root_device, dtype)
            fitted = MultiTaskModel(nn.Identity(), {task.name: head})
        module = MultiTaskModule(
            fitted,
            {task.name: task},
            seed=config.seed,
            subsets=subsets,
            units={task.name: head.scale},
            fingerprints={task.name: images.fingerprint},
            **config.optimizer.model_dump(),
        )
        define_metrics(opened, module.tasks)
        epochs = fit(trainer, module, data, checkpoints)
        seconds = time.perf_counter() - begun
        dry = bool(config.trainer.get("fast_dev_run"))
        best_epoch, validation = load_best(module, checkpoints / f"{BEST}.ckpt", dry)
        (logged,) = trainer.test(module, datamodule=data, verbose=False)
        metrics = of_stage(logged, f"test/{task.name}/")
        result: dict[str, Any] = {
            "task": {"name": task.name, "kind": task.kind, "metric": task.metric, "classes": task.classes},
            "data": data_card(images),
            "backbone": backbone_card,
            "lora": config.lora.model_dump() | {"parameters": parameters},
            "features": config.features,
            "metric": task.metric,
            "score": metrics[task.metric],
            "metrics": metrics,
            "validation": of_stage(validation, f"val/{task.name}/"),
            "best_epoch": best_epoch,
            "epochs": epochs,
            "precision": str(trainer.precision),
            "seconds": {"fit": seconds, "total": time.perf_counter() - started},
        }
        end_group()
        if not trainer.is_global_zero:
            return result
        images.trainer = None  # with it the loaders would still share the pictures out among processes
        if not dry:
            grams = None
            if lora is not None and config.gram_images is not None:
                device = trainer.strategy.root_device
                with torch.autocast(device.type, dtype, enabled=dtype is not None):
                    grams = task_grams(model.backbone.to(device).eval(), images, config.gram_images, device)
                    result["robustness"] = task_robustness(model.to(device).eval(), task, images, device)
            require_finite(run, result)
            result["bundle"] = str(keep(run, config, model, lora, grams, result, opened))
            log_pictures(opened, run.path / "pictures", task, module.answers[task.name], images)
            tested = {task.name: (task, to_answers(module.answers[task.name]), images.pictures)}
            log_examples(opened, run.path / "examples", save_examples(run.path / "examples", tested))
        log_best(opened, validation, f"val/{task.name}/")
    shutil.rmtree(checkpoints, ignore_errors=True)
    scores = ", ".join(f"{name} {value:.4f}" for name, value in sorted(metrics.items()))
    log.info("%s, rank %d, on %s: test %s (epoch %s of %d)", config.name, rank, source.name, scores, best_epoch, epochs)
    if "bundle" in result:
        log.info("Adapter and head: %s", result["bundle"])
    return result


def log_pictures(
    loggers: list[Logger], folder: Path, task: Task, answers: tuple[Tensor, Tensor, Tensor], data: ImageDataModule
) -> None:
    """Draws what the model said of the test set into ``folder`` and hands the pictures to the loggers."""
    title = f"{task.name} on {data.source.name}"
    for path in draw_pictures(folder, task, to_answers(answers), data.pictures, title):
        log_picture(loggers, f"test/{task.name}/{path.stem}", path)


def to_answers(tensors: tuple[Tensor, Tensor, Tensor]) -> Answers:
    """Output, target and index of a tested module as arrays."""
    output, target, index = (part.numpy() for part in tensors)
    return Answers(output, target, index)


def run_loggers(run: Run, config: Training, tags: list[str]) -> AbstractContextManager[list[Logger]]:
    """The loggers that a config asks for, in the run's folder."""
    return open_loggers(
        run.path,
        run.name,
        run.config,
        run_id=run.hash,
        group=run.group,
        tags=tags,
        wandb=None if config.logger.wandb is None else config.logger.wandb.model_dump(),
        tensorboard=config.logger.tensorboard,
    )


def of_stage(logged: Mapping[str, float], prefix: str) -> dict[str, float]:
    return {name.removeprefix(prefix): float(value) for name, value in logged.items() if name.startswith(prefix)}


def fit(trainer: L.Trainer, module: MultiTaskModule, data: L.LightningDataModule, checkpoints: Path) -> int:
    """Fits from the beginning or from the last checkpoint, and returns the number of epochs of the whole run."""
    last = checkpoints / f"{LAST}.ckpt"
    if not last.exists():
        trainer.fit(module, datamodule=data)
        return trainer.current_epoch
    epoch = torch.load(last, weights_only=True, map_location="cpu")["epoch"] + 1
    log.info("resuming after epoch %d from %s", epoch, last)
    trainer.fit(module, datamodule=data, ckpt_path=last, weights_only=True)
    return max(trainer.current_epoch, int(epoch))  # where nothing was left to do Lightning counts one too few


def end_group() -> None:
    """Parts the processes of a distributed run: what follows is the first one's work, and none waits for it.

    Inside the group its metrics would wait for those of processes that have ended.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def load_best(module: MultiTaskModule, path: Path, dry: bool) -> tuple[int | None, dict[str, float]]:
    """Puts the best checkpoint's adapter and heads into the module.

    Args:
        dry: whether the trainer keeps no checkpoints (``fast_dev_run``): then the weights stay.

    Returns:
        Its epoch (from 1) and its validation metrics.

    Raises:
        DataError: the checkpoint is gone; the last weights must not pass for the best.
    """
    if dry:
        return None, {}
    if not path.exists():
        raise DataError(f"{path}: the best checkpoint is gone; train anew with resume=restart.")
    checkpoint = torch.load(path, weights_only=True, map_location="cpu")
    module.on_load_checkpoint(checkpoint)
    module.load_state_dict(checkpoint["state_dict"], strict=False)
    return checkpoint["epoch"] + 1, checkpoint["metrics"]


def log_best(loggers: list[Logger], validation: Mapping[str, float], prefix: str) -> None:
    """The best epoch's validation metrics as ``best/...`` of the summary: W&B loses its own when a run is resumed.

    Test scores stand there as ``test/...`` alone: whoever chooses a run by ``best/...`` has not looked at test images.
    """
    log_summary(loggers, {f"best/{name}": value for name, value in of_stage(validation, prefix).items()})


def task_grams(backbone: nn.Module, data: ImageDataModule, count: int, device: torch.device) -> dict[str, Tensor]:
    """Grams of the adapted backbone over ``count`` training images without augmentation."""
    loader = data.plain_dataloader("train", count)
    pictures = (batch["image"] for batch in track(loader, "Collecting Grams", len(loader)))
    return collect_grams(backbone, (normalize(images.to(device), data.mean, data.std) for images in pictures))


@torch.no_grad()
def task_robustness(model: MultiTaskModel, task: Task, data: ImageDataModule, device: torch.device) -> list[float]:
    """``merging.robustness.measure_robustness`` on validation images."""

    def answers(level: float) -> Tensor:
        with disturbed(model, level):
            batches = data.plain_dataloader("val", ROBUST_IMAGES)
            pictures = (normalize(batch["image"].to(device), data.mean, data.std) for batch in batches)
            return torch.cat([model(images)[task.name].float().cpu() for images in pictures])

    return measure_robustness(answers, task, data.targets("val", ROBUST_IMAGES))


def keep(
    run: Run,
    config: TrainConfig,
    model: MultiTaskModel,
    lora: LoraConfig | None,
    grams: dict[str, Tensor] | None,
    result: dict[str, Any],
    loggers: list[Logger],
) -> Path:
    """Writes the adapter bundle into the run and publishes it; returns where it is to be found."""
    card = {
        key: result[key]
        for key in ("task", "data", "backbone", "lora", "features", "metric", "score", "metrics", "validation")
    }
    card["robustness"] = result.get("robustness")
    card |= {"seed": config.seed, "run": run.name, "config_hash": run.hash, "provenance": provenance()}
    card["config"] = run.config
    kept = kept_bundle(run)
    save_bundle(kept, model, config.name, lora, card, grams)
    newest = publish(run, config)
    if newest is not None:
        log_bundle(loggers, kept, config.title, {"score": result["score"]})
    return newest or kept
