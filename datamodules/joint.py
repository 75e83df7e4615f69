"""Several datasets side by side: one batch of each in every training step."""

from collections.abc import Mapping
from typing import Any, cast

import lightning as L
from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import DataLoader

from datamodules.batches import Batch, BatchOrder
from datamodules.datamodule import ImageDataModule


class JointDataModule(L.LightningDataModule):
    """Training batches are ``{task: batch of its datamodule}``; evaluation goes through one task after the other.

    An epoch has as many steps as the largest set has batches. The others go on in the next round of theirs when one is
    over: every task counts the same, whatever its size.

    Args:
        members: by task, set up; for the same backbone.
    """

    def __init__(self, members: Mapping[str, ImageDataModule]) -> None:
        super().__init__()
        self.members = dict(members)

    def train_dataloader(self) -> CombinedLoader:
        loaders = {name: self._own(name).train_dataloader() for name in self.members}
        orders = [cast(BatchOrder, loader.sampler) for loader in loaders.values()]
        steps = max(order.round for order in orders)
        for order in orders:
            order.steps = steps
        return CombinedLoader(loaders, "min_size")  # all are of one length

    def val_dataloader(self) -> list[DataLoader[Batch]]:
        return [self._own(name).val_dataloader() for name in self.members]

    def test_dataloader(self) -> list[DataLoader[Batch]]:
        return [self._own(name).test_dataloader() for name in self.members]

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        if "image" in batch:
            return next(iter(self.members.values())).on_after_batch_transfer(batch, dataloader_idx)
        return {name: self.members[name].on_after_batch_transfer(part, 0) for name, part in batch.items()}

    def _own(self, name: str) -> ImageDataModule:
        member = self.members[name]
        member.trainer = self.trainer  # its epoch and number of devices
        return member
