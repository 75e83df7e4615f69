"""One training run of several tasks: one adapter for all, a head for each. What merging is measured against."""

import logging
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import Logger
from peft import LoraConfig

from datamodules.base import Source
from datamodules.joint import JointDataModule
from launch.provenance import provenance
from launch.publishing import kept_bundle, publish
from launch.runs import Run, require_finite
from launch.schema import JointConfig
from lightning_modules.adapter import save_bundle
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
from lightning_modules.callbacks import BEST
from lightning_modules.examples import log_examples, save_examples
from lightning_modules.lineage import log_bundle
from lightning_modules.model import MultiTaskModel, require_names
from lightning_modules.module import MultiTaskModule
from lightning_modules.tracking import define_metrics
from lightning_modules.training import (
    end_group,
    fit,
    load_best,
    log_best,
    log_pictures,
    of_stage,
    run_loggers,
    to_answers,
)

log = logging.getLogger(__name__)


def train_joint(config: JointConfig, run: Run, sources: Mapping[str, Source]) -> dict[str, Any]:
    """Trains, tests and saves one adapter with a head for each task; resumes as ``training.train`` does.

    Data, splits and metrics of each task are those of its single run. The best epoch is the one of the highest mean
    ``Task.skill`` on the validation sets.

    Args:
        sources: by task.

    Returns:
        The content of ``result.json``; ``tasks`` has for each what a single run's has at its top. In the further
        processes of a distributed run less, since they publish nothing.
    """
    started = time.perf_counter()
    quiet_lightning()
    L.seed_everything(config.seed, workers=True, verbose=False)
    require_names(sources)
    checkpoints, singles = run.path / "checkpoints", config.singles()
    images, tasks, heads, subsets = {}, {}, {}, {}
    for name, single in singles.items():
        images[name] = build_datamodule(single, sources[name])
        images[name].prepare_data()
        images[name].setup()
        tasks[name] = build_task(single, images[name])
        subsets[name] = build_subsets(single, images[name])
    backbone, backbone_card, lora = build_adapted(config)
    parameters = sum(parameter.numel() for parameter in backbone.parameters() if parameter.requires_grad)
    for name, task in tasks.items():
        torch.manual_seed(config.seed)  # each head starts as it does alone
        heads[name] = build_head(int(backbone.num_features), task, images[name])
    constants = {
        stage: {
            name: task.constant_score(images[name].targets("train"), images[name].targets(stage))
            for name, task in tasks.items()
        }
        for stage in ("val", "test")
    }
    # A loss of points is a hundredth of one of classes: added up as they come, they would hardly be learned.
    units = None
    if config.task.balance == "relative":
        units = {name: task.constant_loss(images[name].targets("train")) or 1.0 for name, task in tasks.items()}
    with run_loggers(run, config, [*tasks, "joint", f"r{config.lora.rank}"]) as opened:
        trainer = build_trainer(config, opened, checkpoints, "val/skill", "max")
        begun = time.perf_counter()
        model, data = MultiTaskModel(backbone, heads), JointDataModule(images)
        module = MultiTaskModule(
            model,
            tasks,
            seed=config.seed,
            subsets=subsets,
            units=units,
            constants=constants,
            fingerprints={name: part.fingerprint for name, part in images.items()},
            **config.optimizer.model_dump(),
        )
        define_metrics(opened, tasks)
        epochs = fit(trainer, module, data, checkpoints)
        seconds = time.perf_counter() - begun
        dry = bool(config.trainer.get("fast_dev_run"))
        best_epoch, validation = load_best(module, checkpoints / f"{BEST}.ckpt", dry)
        loaders = trainer.test(module, datamodule=data, verbose=False)
        logged = {key: value for loader in loaders for key, value in loader.items()}
        parts: dict[str, dict[str, Any]] = {
            name: {
                "task": {"name": name, "kind": task.kind, "metric": task.metric, "classes": task.classes},
                "data": data_card(images[name]),
                "metric": task.metric,
                "score": logged[f"test/{name}/{task.metric}"],
                "metrics": of_stage(logged, f"test/{name}/"),
                "validation": of_stage(validation, f"val/{name}/"),
                "constant": constants["test"][name],
            }
            for name, task in tasks.items()
        }
        result = {
            "tasks": parts,
            "backbone": backbone_card,
            "lora": config.lora.model_dump() | {"parameters": parameters},
            "balance": config.task.balance,
            "metric": "skill",
            "score": float(logged["test/skill"]),
            "best_epoch": best_epoch,
            "epochs": epochs,
            "precision": str(trainer.precision),
            "seconds": {"fit": seconds, "total": time.perf_counter() - started},
        }
        end_group()
        if not trainer.is_global_zero:
            return result
        if not dry:
            require_finite(run, result)
            result["bundle"] = str(keep_joint(run, config, model, lora, result, opened))
            for name, task in tasks.items():
                log_pictures(opened, run.path / "pictures" / name, task, module.answers[name], images[name])
            answers = {name: to_answers(module.answers[name]) for name in tasks}
            tested = {name: (task, answers[name], images[name].pictures) for name, task in tasks.items()}
            log_examples(opened, run.path / "examples", save_examples(run.path / "examples", tested))
        log_best(opened, validation, "val/")
    shutil.rmtree(checkpoints, ignore_errors=True)
    scores = ", ".join(f"{name} {part['metric']} {part['score']:.4f}" for name, part in parts.items())
    log.info("%s, rank %d: test %s (epoch %s of %d)", config.name, config.lora.rank, scores, best_epoch, epochs)
    return result


def keep_joint(
    run: Run,
    config: JointConfig,
    model: MultiTaskModel,
    lora: LoraConfig | None,
    result: dict[str, Any],
    loggers: list[Logger],
) -> Path:
    """Writes a bundle for each task, all with the same adapter, into the run and publishes them in one folder.

    Each is loaded as a single task's; all appear together or not at all, so that no head stands beside another
    training's adapter. They hold no Grams: such an adapter is not meant to be merged.
    """
    kept = kept_bundle(run)
    shared = {key: result[key] for key in ("backbone", "lora")} | {
        "seed": config.seed, "run": run.name, "config_hash": run.hash, "provenance": provenance(),
        "joint": list(result["tasks"]),
    }  # fmt: skip
    for name, single in config.singles().items():
        plain = single.model_dump(mode="json", by_alias=True)
        save_bundle(kept / name, model, name, lora, shared | result["tasks"][name] | {"config": plain})
    newest = publish(run, config)
    if newest is not None:
        log_bundle(loggers, kept, config.title, {"score": result["score"]})
    return newest or kept
