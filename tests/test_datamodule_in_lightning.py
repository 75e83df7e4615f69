"""The data module under a real Lightning trainer: resuming, predicting, overfitting."""

from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch

from tests.picture_files import folder_data


class Recorder(L.LightningModule):
    """Learns one number and keeps what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[tuple[int, int, torch.Tensor, float]] = []
        self.predicted: list[torch.Tensor] = []

    def training_step(self, batch, batch_idx):
        assert batch["image"].dtype == torch.float32
        assert batch["image"].shape[1:] == (3, 16, 16)
        self.seen.append((self.current_epoch, batch_idx, batch["index"].clone(), batch["image"].sum().item()))
        return (self.weight - batch["image"].mean()) ** 2

    def validation_step(self, batch, batch_idx):
        assert batch["image"].dtype == torch.float32

    def predict_step(self, batch, batch_idx):
        self.predicted.append(batch["index"])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(tmp_path: Path, **options) -> L.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return L.Trainer(
        **(quiet | {"max_epochs": 3, "enable_checkpointing": False, "default_root_dir": tmp_path} | options)
    )


def same(one: list, other: list) -> bool:
    return len(one) == len(other) and all(
        left[:2] == right[:2] and torch.equal(left[2], right[2]) and left[3] == right[3]
        for left, right in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("steps", [6, 8])
def test_a_resumed_run_sees_the_same_bytes(tmp_path: Path, workers: int, steps: int) -> None:
    """From a checkpoint of Lightning at the end of an epoch (6 steps) or in the middle of one."""
    whole = Recorder()
    trainer(tmp_path).fit(whole, datamodule=folder_data(tmp_path))
    assert [(epoch, step) for epoch, step, *_ in whole.seen] == [
        (epoch, step) for epoch in range(3) for step in range(6)
    ]

    first = Recorder()
    keeper = L.pytorch.callbacks.ModelCheckpoint(tmp_path / "kept", every_n_train_steps=steps, save_top_k=-1)
    options = {"enable_checkpointing": True, "callbacks": [keeper]}
    trainer(tmp_path, max_steps=steps, **options).fit(first, datamodule=folder_data(tmp_path))
    (checkpoint,) = (tmp_path / "kept").glob("*.ckpt")
    second = Recorder()
    trainer(tmp_path).fit(second, datamodule=folder_data(tmp_path, num_workers=workers), ckpt_path=checkpoint)
    assert same(first.seen + second.seen, whole.seen)
    assert torch.equal(second.weight, whole.weight)


def test_lightning_predicts_and_overfits(tmp_path: Path) -> None:
    data = folder_data(tmp_path)
    model = Recorder()
    trainer(tmp_path).predict(model, datamodule=data, return_predictions=False)
    assert torch.cat(model.predicted).tolist() == np.flatnonzero(data.table["split"] == "test").tolist()
    trainer(tmp_path, overfit_batches=2).fit(model, datamodule=data)
    assert [(epoch, step) for epoch, step, *_ in model.seen] == [
        (epoch, step) for epoch in range(3) for step in range(2)
    ]
    assert len({(step, total) for _, step, _, total in model.seen}) == 2  # the same two batches in each epoch
