"""A decision to stop early outlives the process that took it."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from lightning_modules.callbacks import training_callbacks
from lightning_modules.training import fit

# Worse from the third epoch on, so that patience 2 ends in the fourth; the sixth would be the best of all.
SCORES = (0.5, 0.6, 0.4, 0.3, 0.2, 0.9, 0.1, 0.1, 0.1, 0.1)


class Told(L.LightningModule):
    """Logs ``SCORES``, one an epoch."""

    def __init__(self, dies_in: int | None = None, scores: tuple[float, ...] = SCORES) -> None:
        super().__init__()
        self.scores = scores
        self.linear = torch.nn.Linear(1, 1)
        self.dies_in = dies_in

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        if self.current_epoch == self.dies_in:
            raise ConnectionAbortedError("killed")
        return self.linear(batch[0]).sum()

    def validation_step(self, batch: list[torch.Tensor], index: int) -> None:
        self.log("val/score", self.scores[self.current_epoch])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Numbers(L.LightningDataModule):
    def train_dataloader(self) -> Any:
        return DataLoader(TensorDataset(torch.ones(2, 1)))

    val_dataloader = train_dataloader


def epochs(folder: Path, min_epochs: int | None, dies_in: int | None = None, scores: tuple[float, ...] = SCORES) -> int:
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=len(SCORES), min_epochs=min_epochs, logger=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=training_callbacks(str(folder), "val/score", "max", 2, bar=False),
    )  # fmt: skip
    return fit(trainer, Told(dies_in, scores), Numbers(), folder)


@pytest.mark.parametrize(("min_epochs", "dies_in", "expected"), [(None, 3, 4), (5, 4, 5), (7, 4, 7), (7, 5, 7)])
def test_a_resumed_run_ends_where_it_would_have(
    tmp_path: Path, min_epochs: int | None, dies_in: int, expected: int
) -> None:
    assert epochs(tmp_path / "whole", min_epochs) == expected
    with pytest.raises(ConnectionAbortedError):
        epochs(tmp_path / "killed", min_epochs, dies_in)
    assert epochs(tmp_path / "killed", min_epochs) == expected


@pytest.mark.parametrize(("scores", "ended"), [(SCORES, 4), ((float("nan"), *SCORES), 1)])
def test_a_run_that_had_stopped_is_trained_no_further(tmp_path: Path, scores: tuple[float, ...], ended: int) -> None:
    assert epochs(tmp_path, None, scores=scores) == ended
    before = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    assert epochs(tmp_path, None, scores=scores) == ended
    after = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(before[name], after[name]) for name in before)
