"""Frozen features, computed once: head-only training then never passes an image through the backbone again."""

from collections.abc import Iterable

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from datamodules.batches import Batch, BatchOrder, EpochOrder, Item, TrainLoader, eval_bounds, train_bounds
from datamodules.datamodule import ImageDataModule, normalize
from launch.progress import track


class FeatureBatches(Dataset[Batch]):
    """Whole batches of features; epoch e reads view e modulo the number of views.

    Args:
        views: one (features (n, d), targets (n, ...)) per view, rows in the same order.
        index: int64 (n,), what the batch reports as "index".
        bounds: borders of the batches in the epoch's order.
        seed: of the order, as of ``PictureBatches``.
        shuffle: a new order in each epoch; else that of the rows.
    """

    def __init__(
        self,
        views: list[tuple[Tensor, Tensor]],
        index: Tensor,
        bounds: list[int],
        *,
        seed: int = 0,
        shuffle: bool = False,
    ) -> None:
        self.views, self.index, self.bounds = views, index, bounds
        self.order = EpochOrder(len(index), seed, shuffle)

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def __getitem__(self, item: Item | int) -> Batch:
        """Batch (epoch, number); a bare number (Lightning's overfit_batches) is of the first view and order."""
        epoch, number = (0, item) if isinstance(item, int) else item
        rows = torch.from_numpy(self.order.of(epoch)[self.bounds[number] : self.bounds[number + 1]])
        features, targets = self.views[epoch % len(self.views)]
        return {"image": features[rows], "target": targets[rows], "index": self.index[rows]}


class FeatureDataModule(L.LightningDataModule):
    """The splits of an ``ImageDataModule`` as features of a frozen backbone, for a model without one.

    Batches hold the same examples in the same order as when images are passed, with "image" (B, d) float32.
    Augmentation is of the same kind but drawn otherwise: by an example's place in the table, not in the epoch's order.

    Args:
        backbone: images to features (B, d), frozen.
        data: set up.
        views: augmented versions of each training image; without augmentation one is made, whatever is asked for.
        device: where the backbone computes.
        dtype: of its autocast; None for float32.
    """

    def __init__(
        self,
        backbone: nn.Module,
        data: ImageDataModule,
        views: int,
        device: torch.device,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.batch_size, self.seed = data.batch_size, data.seed
        backbone = backbone.to(device).eval()

        def features(loader: DataLoader[Batch], text: str) -> tuple[Tensor, Tensor, Tensor]:
            batches = track(loader, f"Frozen features of {text}", len(loader))
            return frozen_features(backbone, batches, data, device, dtype)

        count = views if data.augment else 1
        passes = [features(data.view_dataloader(view), f"train, view {view + 1} of {count}") for view in range(count)]
        self.train_views = [(view, targets) for view, targets, _ in passes]
        self.train_index = passes[0][2]
        self.val, self.test = (features(data.plain_dataloader(split), split) for split in ("val", "test"))

    def train_dataloader(self) -> DataLoader[Batch]:
        bounds = train_bounds(len(self.train_index), self.batch_size)
        batches = FeatureBatches(self.train_views, self.train_index, bounds, seed=self.seed, shuffle=True)
        epoch = self.trainer.current_epoch if self.trainer is not None else 0
        return TrainLoader(batches, sampler=BatchOrder(batches, epoch=epoch), batch_size=None)

    def val_dataloader(self) -> DataLoader[Batch]:
        return self._plain(self.val)

    def test_dataloader(self) -> DataLoader[Batch]:
        return self._plain(self.test)

    def _plain(self, split: tuple[Tensor, Tensor, Tensor]) -> DataLoader[Batch]:
        features, targets, index = split
        batches = FeatureBatches([(features, targets)], index, eval_bounds(len(index), self.batch_size, 1))
        return DataLoader(batches, sampler=BatchOrder(batches), batch_size=None)


@torch.no_grad()
def frozen_features(
    backbone: nn.Module,
    batches: Iterable[Batch],
    data: ImageDataModule,
    device: torch.device,
    dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Features (n, d) float32, targets and indices of all batches, on the CPU."""
    features, targets, index = [], [], []
    for batch in batches:
        images = normalize(batch["image"].to(device), data.mean, data.std)
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            features.append(backbone(images).float().cpu())
        targets.append(batch["target"])
        index.append(batch["index"])
    return torch.cat(features), torch.cat(targets), torch.cat(index)
