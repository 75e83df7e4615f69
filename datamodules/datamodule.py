"""Lightning's view of a dataset: from a source to batches on the device."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import lightning as L
import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader

from datamodules.base import SPLITS, Source
from datamodules.batches import (
    Batch,
    BatchOrder,
    PictureBatches,
    TrainLoader,
    epoch_order,
    eval_bounds,
    train_bounds,
)
from datamodules.cache import PixelCache
from datamodules.classes import ClassMap
from datamodules.crop import Fit
from datamodules.decode import MAX_PIXELS
from datamodules.hashes import cpu_count
from datamodules.pipeline import Pixels, default_fit, make_pixels
from datamodules.prepare import Kind, split_counts
from datamodules.transforms import Augment
from launch.errors import DataError

log = logging.getLogger(__name__)


class ImageDataModule(L.LightningDataModule):
    """Prepares one source for one task and serves its splits.

    Batches are ``{"image": uint8 (B, S, S, 3), "target": int64 (B,) | float32 (B, 1) | float32 (B, K, 2) in
    crop coordinates, "index": int64 (B,)}``; ``on_after_batch_transfer`` makes the image float32
    (B, 3, S, S), normalised, on the device. "index" is the row in ``table``. Order and augmentation depend on
    seed, epoch and batch number alone; evaluation goes through the table in order.

    Attributes (after ``setup``):
        table: the examples that are used, with their split; sorted by key.
        classes: names by class index, None for other kinds.
        num_outputs: number of classes | 1 | 2 K.
        fingerprint: of the prepared table.
        counts: split -> class (or "all") -> examples.
        dropped: reason -> examples left out.
        broken: key -> reason of each picture that could not be used (also counted in ``dropped``).
        notes: what a reader of the results should know.
        target_mean: mean train target, ``num_outputs`` floats (regression, keypoints), else None.
        target_scale: standard deviation of the train targets (regression) where it is below 0.1 or above 10, else 1.
        fit: the fit in use.

    Args:
        source: the dataset.
        kind: classification | regression | keypoints.
        target: column of the records; None is label, value or points.
        classes: see ``classes.map_classes``.
        size: examples to use, or "full".
        val_fraction, test_fraction, split_seed: see ``splits.assign_splits``.
        fit: crop | pad | squash; None is pad for keypoints (no point is cut off), crop for the rest.
        image_size: side S in pixels.
        mean, std: of the backbone's normalisation, RGB in [0, 1].
        augment: see ``transforms.Augment``; None for none.
        flip_index: order of the points after a mirror image.
        batch_size: per device. In training the last partial batch is left out if there is a full one.
        num_workers: processes that prepare batches, or "auto": on a GPU up to 8. On the CPU none: there a
            worker takes a core from training, and a batch costs some percent of a step. "auto" never starts
            any for evaluation, which is one copy from the memory map.
        seed: of order and augmentation.
        cache_root: folder of pixel caches and content hashes.
        max_pixels: larger pictures count as broken.
        max_broken: tolerated fraction of broken pictures.
    """

    def __init__(
        self,
        source: Source,
        kind: Kind,
        *,
        target: str | None = None,
        classes: ClassMap = None,
        size: int | Literal["full"] = "full",
        val_fraction: float = 0.15,
        test_fraction: float = 0.15,
        split_seed: int = 0,
        fit: Fit | None = None,
        image_size: int = 224,
        mean: Sequence[float] = (0.5, 0.5, 0.5),
        std: Sequence[float] = (0.5, 0.5, 0.5),
        augment: Mapping[str, Any] | None = None,
        flip_index: Sequence[int] | None = None,
        batch_size: int = 64,
        num_workers: int | Literal["auto"] = "auto",
        seed: int = 0,
        cache_root: str | Path = "data/cache",
        max_pixels: int = MAX_PIXELS,
        max_broken: float = 0.01,
    ) -> None:
        super().__init__()
        self.source, self.kind, self.target, self.class_map = source, kind, target, classes
        self.size, self.fractions, self.split_seed = size, (val_fraction, test_fraction), split_seed
        self.fit: Fit = fit or default_fit(kind)
        self.image_size, self.mean, self.std = image_size, tuple(mean), tuple(std)
        self.augment, self.flip_index = augment, flip_index
        self.batch_size, self.num_workers, self.seed = batch_size, num_workers, seed
        self.cache_root = Path(cache_root).expanduser()
        self.max_pixels, self.max_broken = max_pixels, max_broken
        self._made: Pixels | None = None
        self._ready = False

    def prepare_data(self) -> None:
        """Fetches, hashes and caches what is missing; one process per machine. A second call does nothing."""
        if self._made is None:
            self.source.prepare()
            self._made = self._make()

    def setup(self, stage: str | None = None) -> None:
        """Opens what ``prepare_data`` made.

        Raises:
            DataError: the data cannot be used, or val or test would be empty though a fraction was asked for.
        """
        if self._ready:
            return
        made = self._made or self._make()
        prepared, cache = made.prepared, made.cache
        table = prepared.table
        keep = table["key"].isin(set(cache.keys))
        self.table: pd.DataFrame = table[keep].reset_index(drop=True)
        self.classes = prepared.classes
        self.fingerprint = prepared.fingerprint
        self.counts = split_counts(self.table, self.classes)
        self.broken = cache.broken
        self.dropped = prepared.dropped | ({"broken picture": len(cache.broken)} if cache.broken else {})
        self.notes = prepared.notes
        self._targets = self._target_array(cache)
        self._pixels = cache.path
        self.num_outputs = len(self.classes) if self.classes is not None else int(np.prod(self._targets.shape[1:]))
        train = self._targets[(self.table["split"] == "train").to_numpy(bool)]
        means = train.reshape(len(train), -1).mean(0, dtype=np.float64)
        self.target_mean: list[float] | None = None if self.classes is not None else means.tolist()
        spread = float(train.std(dtype=np.float64)) if self.kind == "regression" else 1.0
        self.target_scale = spread if spread > 0 and not 0.1 <= spread <= 10 else 1.0
        for name, fraction in zip(("val", "test"), self.fractions, strict=True):
            if fraction > 0 and not sum(self.counts[name].values()):
                raise DataError(
                    f"{self.source.name} has too few examples ({len(self.table)}) for a {name} split: a class with "
                    "three groups (of one picture or more) is needed, or three classes with two."
                )
        self._ready = True

    def train_dataloader(self) -> DataLoader[Batch]:
        epoch = self.trainer.current_epoch if self.trainer is not None else 0
        auto = min(8, cpu_count()) if self._on_gpu() and self.augment else 0
        rows = self._rows("train")
        bounds = train_bounds(len(rows), self.batch_size)
        return self._loader(TrainLoader, self._train_batches(rows, bounds, shuffle=True), auto, epoch)

    def view_dataloader(self, view: int, count: int | None = None) -> DataLoader[Batch]:
        """The training examples of ``plain_dataloader``, in its order, augmented in their ``view``-th way."""
        rows = self._first("train", count)
        bounds = eval_bounds(len(rows), self.batch_size, self._world()[0])
        return self._loader(DataLoader, self._train_batches(rows, bounds, shuffle=False), 0, view)

    def _train_batches(self, rows: np.ndarray, bounds: list[int], shuffle: bool) -> PictureBatches:
        points = self._targets.shape[1] if self.kind == "keypoints" else None
        augment = Augment(self.augment, self.flip_index, points) if self.augment else None
        return PictureBatches(
            self._pixels, rows, self._targets[rows], rows, bounds,
            seed=self.seed, shuffle=shuffle, augment=augment, move_points=points is not None,
        )  # fmt: skip

    def plain_dataloader(self, split: str, count: int | None = None) -> DataLoader[Batch]:
        """Every example of a split once, without augmentation: all in the table's order, some in that of the draw.

        Args:
            split: train, val or test.
            count: only so many, drawn by ``split_seed``, so that they are the same in every run: a group after the
                other. Any part of them is a random one, as held-out images must be: tables are often sorted by class.
        """
        rows = self._first(split, count)
        bounds = eval_bounds(len(rows), self.batch_size, self._world()[0])
        return self._loader(DataLoader, PictureBatches(self._pixels, rows, self._targets[rows], rows, bounds), 0)

    def targets(self, split: str, count: int | None = None) -> torch.Tensor:
        """Targets of the examples that ``plain_dataloader`` gives, in its order, without reading a picture."""
        return torch.from_numpy(self._targets[self._first(split, count)])

    def groups(self, split: str, count: int | None = None) -> torch.Tensor:
        """int64 (n,) which examples of ``plain_dataloader`` tell of each other (one person, one picture), from 0 on."""
        return torch.from_numpy(pd.factorize(self.table["group"].to_numpy()[self._first(split, count)])[0])

    def _first(self, split: str, count: int | None) -> np.ndarray:
        rows = self._rows(split)
        if count is None:
            return rows
        groups, names = pd.factorize(self.table["group"].to_numpy()[rows])
        place = np.argsort(epoch_order(len(names), self.split_seed, 0), kind="stable")
        return rows[np.argsort(place[groups], kind="stable")[:count]]

    def pictures(self, rows: np.ndarray) -> np.ndarray:
        """uint8 (n, S, S, 3) of some rows of the table, as the model sees them without augmentation."""
        return np.asarray(np.load(self._pixels, mmap_mode="r", allow_pickle=False)[rows])

    def val_dataloader(self) -> DataLoader[Batch]:
        return self.plain_dataloader("val")

    def test_dataloader(self) -> DataLoader[Batch]:
        return self.plain_dataloader("test")

    def predict_dataloader(self) -> DataLoader[Batch]:
        return self.plain_dataloader("test")

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        return batch | {"image": normalize(batch["image"], self.mean, self.std)}

    def _make(self) -> Pixels:
        return make_pixels(
            self.source, self.kind, target=self.target, classes=self.class_map, size=self.size, split=self.fractions,
            split_seed=self.split_seed, fit=self.fit, image_size=self.image_size, cache_root=self.cache_root,
            max_pixels=self.max_pixels, max_broken=self.max_broken,
        )  # fmt: skip

    def _target_array(self, cache: PixelCache) -> np.ndarray:
        if cache.points is not None:
            return cache.points
        targets = self.table["target"]
        if self.kind == "classification":
            return targets.to_numpy("int64")
        return targets.to_numpy("float32")[:, None]

    def _rows(self, split: str) -> np.ndarray:
        if split not in SPLITS:
            raise DataError(f"'{split}' is not a split; there are {', '.join(SPLITS)}.")
        return np.flatnonzero((self.table["split"] == split).to_numpy(bool)).astype(np.int64)

    def _world(self) -> tuple[int, int]:
        return (1, 0) if self.trainer is None else (self.trainer.world_size, self.trainer.global_rank)

    def _on_gpu(self) -> bool:
        return self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"

    def _loader(
        self, kind: type[DataLoader[Batch]], batches: PictureBatches, auto: int, epoch: int = 0
    ) -> DataLoader[Batch]:
        workers = auto if self.num_workers == "auto" else self.num_workers
        return kind(
            batches,
            sampler=BatchOrder(batches, *self._world(), epoch=epoch),
            batch_size=None,  # an item of the dataset is a batch already
            num_workers=workers,
            pin_memory=self._on_gpu(),
            persistent_workers=workers > 0,
        )


def normalize(images: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """uint8 (B, H, W, 3) to float32 (B, 3, H, W): (x / 255 - mean) / std. Float images pass unchanged."""
    if images.dtype != torch.uint8:
        return images
    scale = torch.tensor([1 / (255 * value) for value in std], device=images.device)
    shift = torch.tensor([-centre / value for centre, value in zip(mean, std, strict=True)], device=images.device)
    wide = images.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
    return wide.mul_(scale[:, None, None]).add_(shift[:, None, None])
