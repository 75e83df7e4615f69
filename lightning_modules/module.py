"""Lightning's view of a model with one or more heads."""

import math
from collections.abc import Mapping
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import Metric, MetricCollection

from launch.errors import DataError
from lightning_modules.backbone import hold_frozen_weights, set_fused_attention
from lightning_modules.metrics import Collected
from lightning_modules.model import MultiTaskModel
from lightning_modules.tasks import Task

AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}  # by Lightning's name of the precision
Batch = Mapping[str, Tensor]


class MultiTaskModule(L.LightningModule):
    """Trains adapter and heads of a ``MultiTaskModel``.

    A batch is ``{task: {"image", "target", "index"}}``, as Lightning's ``CombinedLoader`` gives it, or the inner dict
    alone when there is one task. In evaluation each task has a dataloader of its own, in the order of ``tasks``.

    Attributes:
        answers: after a test, by task: outputs shaped as targets are (logits for classes), targets and "index" of the
            whole set, on the CPU.

    What the defaults leave off is set by ``conf/train.yaml``.

    Args:
        lr: peak learning rate of the adapter.
        head_lr: peak learning rate of the heads.
        weight_decay: decoupled decay of the heads (AdamW); 0 is plain Adam.
        b_weight_decay: the same of the adapter's B, which bounds the norm of its delta; A is not decayed.
        warmup: fraction of all steps over which the rates rise from 0; a half cosine leads them back to 0.
        subsets: for some tasks, by name: bool (N,) over "index": which test examples get a score of their own.
        units: of some losses, by task: each loss is divided by its unit before they are added up; None for 1.
        constants: by stage and task, ``Task.constant_score``; given, ``<stage>/skill``, the mean of the tasks'
            skills, is logged: the criterion by which several tasks choose a checkpoint.
        seed: with the epoch's number it seeds torch's generator, so that a resumed run draws what the first one drew.
        fingerprints: of the data, by task: a checkpoint that was made on other data is refused.
    """

    # Checkpoints hold adapter and heads only.
    strict_loading = False

    def __init__(
        self,
        model: MultiTaskModel,
        tasks: Mapping[str, Task],
        lr: float,
        head_lr: float,
        weight_decay: float = 0.0,
        b_weight_decay: float = 0.0,
        warmup: float = 0.0,
        seed: int = 0,
        subsets: Mapping[str, Mapping[str, Tensor]] | None = None,
        units: Mapping[str, float] | None = None,
        constants: Mapping[str, Mapping[str, float]] | None = None,
        fingerprints: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.tasks = dict(tasks)
        self.lr, self.head_lr = lr, head_lr
        self.weight_decay, self.b_weight_decay = weight_decay, b_weight_decay
        self.warmup, self.seed = warmup, seed
        self.units, self.constants = dict(units or {}), constants or {}
        self.fingerprints = dict(fingerprints or {})
        stages = ("val", "test")
        self.stage_metrics = torch.nn.ModuleDict(
            {f"{stage}_{name}": task.metrics() for stage in stages for name, task in self.tasks.items()}
        )
        self.collected = torch.nn.ModuleDict({name: Collected() for name in self.tasks})
        self.answers: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
        self.subsets = {name: dict((subsets or {}).get(name, {})) for name in self.tasks}
        self.subset_metrics = torch.nn.ModuleDict(
            {name: torch.nn.ModuleDict(task.subset_metrics(self.subsets[name])) for name, task in self.tasks.items()}
        )

    def setup(self, stage: str) -> None:
        dtype = AUTOCAST.get(str(self.trainer.precision))
        if dtype is not None:
            hold_frozen_weights(self.model.backbone, dtype)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return self.model(images)

    def on_fit_start(self) -> None:
        # Lightning trains modules in the mode they come in, and the backbone comes in evaluation mode: no dropout.
        self.model.train()

    def on_train_epoch_start(self) -> None:
        torch.manual_seed(self.seed * 1_000_003 + self.current_epoch)
        self._choose_attention(training=True)

    def on_validation_start(self) -> None:
        self._choose_attention(training=False)

    def on_validation_end(self) -> None:
        self._choose_attention(training=self.trainer.state.fn == TrainerFn.FITTING)

    def on_fit_end(self) -> None:
        self._choose_attention(training=False)

    def _choose_attention(self, training: bool) -> None:
        # On a CPU the backward of torch's fused attention costs more than its forward saves.
        set_fused_attention(self.model.backbone, fused=not (training and self.device.type == "cpu"))

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        batches: dict[str, Batch] = {next(iter(self.tasks)): batch} if "image" in batch else dict(batch)
        sizes = [len(part["image"]) for part in batches.values()]
        images = [part["image"] for part in batches.values()]
        # One pass for all tasks; each head then reads its own rows.
        features = self.model.backbone(images[0] if len(images) == 1 else torch.cat(images)).split(sizes)
        losses = {
            name: self.tasks[name].loss(self.model.heads[name](rows), part["target"])
            for (name, part), rows in zip(batches.items(), features, strict=True)
        }
        for (name, loss), size in zip(losses.items(), sizes, strict=True):
            self.log(f"train/{name}/loss", loss.detach(), on_step=False, on_epoch=True, batch_size=size, sync_dist=True)
        return torch.stack([loss / self.units.get(name, 1.0) for name, loss in losses.items()]).sum()

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._evaluate("val", batch, dataloader_idx)

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._evaluate("test", batch, dataloader_idx)

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        return {name: self.tasks[name].predict(output) for name, output in self.model(batch["image"]).items()}

    def _evaluate(self, stage: str, batch: Batch, dataloader_idx: int) -> None:
        name, task = list(self.tasks.items())[dataloader_idx]
        output = self.model(batch["image"], [name])[name]
        self.log(
            f"{stage}/{name}/loss", task.loss(output, batch["target"]),
            on_step=False, on_epoch=True, batch_size=len(output), add_dataloader_idx=False, sync_dist=True,
        )  # fmt: skip
        predicted = task.predict(output)
        self._metrics(stage, name).update(predicted, batch["target"])
        if stage == "test":
            collected = self.collected[name]
            assert isinstance(collected, Collected)
            collected.update(task.shape(output), batch["target"], batch["index"])
            metrics = self._subset_metrics(name).values()
            for mask, metric in zip(self.subsets[name].values(), metrics, strict=True):
                rows = mask.to(output.device)[batch["index"]]
                # torchmetrics cannot count no classes; a list of errors wants a part, however empty, from each process
                if rows.any() or task.kind != "classification":
                    metric.update(predicted[rows], batch["target"][rows])

    def on_validation_epoch_end(self) -> None:
        self._log_metrics("val")

    def on_test_epoch_end(self) -> None:
        self._log_metrics("test")
        for name in self.tasks:
            collected = self.collected[name]
            assert isinstance(collected, Collected)
            self.answers[name] = collected.compute()
            collected.reset()
            index = self.answers[name][2]
            metrics = self._subset_metrics(name).items()
            for mask, (metric, accumulated) in zip(self.subsets[name].values(), metrics, strict=True):
                if mask[index].any():  # none of it may be in a test that limit_test_batches cut short
                    self.log(f"test/{name}/{metric}", accumulated.compute())
                accumulated.reset()

    def _subset_metrics(self, name: str) -> dict[str, Metric]:
        metrics = self.subset_metrics[name]
        assert isinstance(metrics, torch.nn.ModuleDict)
        return cast(dict[str, Metric], dict(metrics.items()))

    def _metrics(self, stage: str, name: str) -> MetricCollection:
        metrics = self.stage_metrics[f"{stage}_{name}"]
        assert isinstance(metrics, MetricCollection)
        return metrics

    def _log_metrics(self, stage: str) -> None:
        skills = []
        for name, task in self.tasks.items():
            metrics = self._metrics(stage, name)
            values = metrics.compute()
            for metric, value in values.items():
                self.log(f"{stage}/{name}/{metric}", value, prog_bar=metric == task.metric)
            if stage in self.constants:
                skills.append(task.skill(float(values[task.metric]), self.constants[stage][name]))
                self.log(f"{stage}/{name}/skill", skills[-1])
            metrics.reset()
        if skills:
            self.log(f"{stage}/skill", sum(skills) / len(skills), prog_bar=True)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        named = [(name, value) for name, value in self.model.backbone.named_parameters() if value.requires_grad]
        ups = [value for name, value in named if ".lora_B" in name]
        others = [value for name, value in named if ".lora_B" not in name]
        heads = list(self.model.heads.parameters())
        groups = [
            {
                "params": [value for value in heads if value.ndim > 1],
                "lr": self.head_lr,
                "weight_decay": self.weight_decay,
            },
            # a decayed bias would draw numbers and points from their mean to 0
            {"params": [value for value in heads if value.ndim < 2], "lr": self.head_lr, "weight_decay": 0.0},
            {"params": others, "lr": self.lr, "weight_decay": 0.0},
            {"params": ups, "lr": self.lr, "weight_decay": self.b_weight_decay},
        ]
        optimizer = AdamW([group for group in groups if group["params"]])
        steps = int(self.trainer.estimated_stepping_batches)
        rate = warmup_cosine(steps, self.warmup)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": LambdaLR(optimizer, rate), "interval": "step"},
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["state_dict"] = {f"model.{name}": value for name, value in self.model.trainable_state_dict().items()}
        checkpoint["data"] = self.fingerprints
        checkpoint["metrics"] = {name: float(value) for name, value in self.trainer.callback_metrics.items()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # strict_loading is off for the frozen part that is not saved; what is saved has to fit all the same.
        expected = {f"model.{name}" for name in self.model.trainable_state_dict()}
        found = set(checkpoint["state_dict"])
        if expected != found:
            raise RuntimeError(f"checkpoint of another model: differing tensors {sorted(expected ^ found)[:3]}")
        before = checkpoint.get("data", {})
        if changed := [name for name, mark in self.fingerprints.items() if before.get(name) != mark]:
            raise DataError(
                f"The data of {', '.join(changed)} is no longer what this run was trained on so far. "
                "Put it back as it was, or begin anew with resume=restart."
            )


def warmup_cosine(steps: int, warmup: float) -> Any:
    """step -> factor of the peak rate: linear from 0 over ``warmup * steps``, then half a cosine down to 0."""
    rise = max(1, round(warmup * steps))

    def factor(step: int) -> float:
        if step < rise:
            return (step + 1) / rise
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - rise) / max(1, steps - rise))))

    return factor
