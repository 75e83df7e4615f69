"""Lightning callbacks of a training run."""

import logging
import time
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint, RichProgressBar

from lightning_modules.lora import NormCap

log = logging.getLogger(__name__)
BEST, LAST = "best", "last"


class EpochLog(Callback):
    """One line an epoch, which stays when the progress bar has gone."""

    def __init__(self, monitor: str) -> None:
        self.monitor = monitor
        self.started = 0.0

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.started = time.perf_counter()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        values = {
            name: float(value)
            for name, value in trainer.callback_metrics.items()
            if name == self.monitor or (name.startswith("train/") and name.endswith("/loss"))
        }
        text = ", ".join(f"{name} {value:.4f}" for name, value in sorted(values.items()))
        seconds = time.perf_counter() - self.started
        log.info("epoch %d/%s: %s (%.1f s)", trainer.current_epoch + 1, trainer.max_epochs, text, seconds)


class CapNorms(Callback):
    """Holds the adapter under ``NormCap`` after each step."""

    def __init__(self, share: float) -> None:
        self.share = share

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.cap = NormCap(pl_module, self.share)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *rest: Any) -> None:
        self.cap()


class MovableCheckpoint(ModelCheckpoint):
    """Remembers its best score where the run's folder was moved, too; Lightning's forgets it in another folder."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        def here(path: str) -> str:
            return str(Path(str(self.dirpath), Path(path).name)) if path else path

        paths = ("best_model_path", "kth_best_model_path", "last_model_path")
        moved = {name: here(state_dict[name]) for name in paths}
        kept = {here(path): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict(state_dict | moved | {"dirpath": self.dirpath, "best_k_models": kept})


class Bar(RichProgressBar):
    """Lightning's bar on stderr, where the log goes; epochs count from 1 as there, without the logger's version."""

    def __init__(self) -> None:
        super().__init__(leave=False, console_kwargs={"stderr": True})

    def _get_train_description(self, current_epoch: int) -> str:
        return f"Epoch {current_epoch + 1}/{self.trainer.max_epochs}"

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        return {name: value for name, value in super().get_metrics(trainer, pl_module).items() if name != "v_num"}


class FinalEarlyStopping(EarlyStopping):
    """Early stopping whose decision outlives the process.

    Lightning keeps it in ``Trainer.should_stop`` alone: a run that was killed after it, or while ``min_epochs`` had
    still to be met, would train on when resumed.
    """

    decided = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        trainer.should_stop = trainer.should_stop or self.decided

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        before = trainer.should_stop
        super().on_train_epoch_end(trainer, pl_module)
        self.decided = self.decided or (trainer.should_stop and not before)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "decided": self.decided}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.decided = state_dict["decided"]


def training_callbacks(folder: str, monitor: str, mode: str, patience: int | None, bar: bool) -> list[Callback]:
    """Early stopping, the best and the last checkpoint by the end of each training epoch, and progress.

    The order matters for resuming: ``last`` is written after the others have seen the epoch, so that their state in
    it is that epoch's.
    """
    callbacks: list[Callback] = []
    if patience is not None:
        callbacks.append(FinalEarlyStopping(monitor, mode=mode, patience=patience, check_on_train_epoch_end=True))
    checkpoint = partial(
        MovableCheckpoint, dirpath=folder, save_top_k=1, save_on_train_epoch_end=True, enable_version_counter=False
    )
    callbacks += [
        checkpoint(filename=BEST, monitor=monitor, mode=mode),
        checkpoint(filename=LAST, monitor=None),
        EpochLog(monitor),
    ]
    if bar:
        callbacks.append(Bar())
    return callbacks
