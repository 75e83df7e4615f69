"""Batches as pure functions of (seed, epoch, batch number), for any number of workers and devices."""

import hashlib
import math
from collections.abc import Iterator, Sequence, Sized
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from datamodules.transforms import Augment

Item = tuple[int, int]
Batch = dict[str, torch.Tensor]


def epoch_order(count: int, seed: int, epoch: int) -> np.ndarray:
    """Permutation of range(count), from raw PCG64 words: NumPy never changes their stream."""
    start = int.from_bytes(hashlib.sha256(f"order:{seed}:{epoch}".encode()).digest()[:16])
    return np.argsort(np.random.PCG64(start).random_raw(count), kind="stable")


class EpochOrder:
    """The order of the rows in an epoch, drawn once for all of its batches; that of the table where none is drawn."""

    def __init__(self, count: int, seed: int, shuffle: bool) -> None:
        self.count, self.seed, self.shuffle = count, seed, shuffle
        self._drawn: tuple[int, np.ndarray] | None = None

    def of(self, epoch: int) -> np.ndarray:
        """int64 (count,)."""
        if not self.shuffle:
            return np.arange(self.count)
        if self._drawn is None or self._drawn[0] != epoch:
            self._drawn = epoch, epoch_order(self.count, self.seed, epoch)
        return self._drawn[1]


def train_bounds(count: int, batch_size: int) -> list[int]:
    """Borders of whole batches; the last, partial one is left out unless it is the only one."""
    whole = count // batch_size
    return [number * batch_size for number in range(whole + 1)] if whole else [0, count]


def eval_bounds(count: int, batch_size: int, world_size: int) -> list[int]:
    """Borders of batches that hold every example once.

    For several devices the batches are as even as they come and their number is a multiple of the devices',
    so that no example is scored twice. With fewer examples than devices some batches are empty here and hold
    the first example again.
    """
    if world_size == 1:
        return [*range(0, count, batch_size), count]
    rounds = math.ceil(count / (batch_size * world_size))
    batches = rounds * world_size
    return [number * count // batches for number in range(batches + 1)]


class PictureBatches(Dataset[Batch]):
    """A dataset whose items are whole batches: one fancy read of the memory map, then augmentation.

    Args:
        pixels: .npy file of uint8 (N, S, S, 3).
        rows: positions in it.
        targets: int64 (n,), float32 (n, 1) or float32 (n, K, 2), one for each of ``rows``.
        index: int64 (n,), what the batch reports as "index".
        bounds: borders of the batches in the epoch's order.
        seed: of order and augmentation.
        shuffle: a new order in each epoch; else that of ``rows``.
        augment: None for evaluation.
        move_points: targets are points that augmentation moves.
    """

    def __init__(
        self,
        pixels: Path,
        rows: np.ndarray,
        targets: np.ndarray,
        index: np.ndarray,
        bounds: Sequence[int],
        *,
        seed: int = 0,
        shuffle: bool = False,
        augment: Augment | None = None,
        move_points: bool = False,
    ) -> None:
        self.path, self.rows, self.targets, self.index = pixels, rows, targets, index
        self.bounds, self.seed = list(bounds), seed
        self.augment, self.move_points = augment, move_points
        self.order = EpochOrder(len(rows), seed, shuffle)

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def __getitem__(self, item: Item | int) -> Batch:
        """Batch (epoch, number); a bare number (Lightning's overfit_batches) is fixed, not augmented."""
        fixed = isinstance(item, int)
        epoch, number = (0, item) if isinstance(item, int) else item
        start, stop = self.bounds[number], self.bounds[number + 1]
        if start == stop:  # more devices than examples: each must have a batch
            start, stop = 0, 1
        chosen = self.order.of(epoch)[start:stop]
        # Mapped anew for each batch: pages once touched would go on counting as this process's memory.
        pixels = np.load(self.path, mmap_mode="r", allow_pickle=False)
        images = np.asarray(pixels[self.rows[chosen]])
        targets = self.targets[chosen]
        if self.augment is not None and not fixed:
            images, moved = self.augment(
                images, targets if self.move_points else None, f"augment:{self.seed}:{epoch}:{number}"
            )
            targets = moved if self.move_points else targets
        return {
            "image": torch.from_numpy(images),
            "target": torch.from_numpy(targets),
            "index": torch.from_numpy(self.index[chosen]),
        }


class BatchOrder(DistributedSampler[Item]):
    """Yields (round, batch number): device r of w takes the batches r, r + w, ...; a round is once through the data.

    An epoch is a round, or ``steps`` batches of rounds that follow one another, so that a small set beside larger
    ones comes in a new order and with new augmentation each time. A function of the epoch alone, as resuming asks.

    A DistributedSampler, so that Lightning neither replaces it nor wraps it, and calls ``set_epoch``. Every
    device gets the same number of batches: a remainder is left out in training; with fewer batches than devices
    they repeat.
    """

    def __init__(self, batches: Dataset[Batch], world_size: int = 1, rank: int = 0, epoch: int = 0) -> None:
        super().__init__(batches, num_replicas=world_size, rank=rank, shuffle=False)
        self.count = len(cast(Sized, batches))
        self.epoch = epoch
        self.steps: int | None = None
        self.skip = 0

    @property
    def round(self) -> int:
        """Batches of this device in one round."""
        return max(1, self.count // self.num_replicas) if self.count else 0

    def __len__(self) -> int:
        return self.round if self.steps is None or not self.count else self.steps

    def __iter__(self) -> Iterator[Item]:
        skip, self.skip = self.skip, 0
        for step in range(skip, len(self)):
            number, place = divmod(self.epoch * len(self) + step, self.round)
            yield number, (place * self.num_replicas + self.rank) % self.count


class TrainLoader(DataLoader[Batch]):
    """A loader that resumes in the middle of an epoch: Lightning keeps ``state_dict`` in its checkpoints.

    It starts its workers when the first batch is asked for: Lightning makes the iterator before it tells the
    sampler the epoch of a resumed run, and eager workers would already have fetched batches of epoch 0.
    """

    _given = 0

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        return self._lazy()

    def _lazy(self) -> Iterator[Batch]:
        order = self.sampler
        self._given = order.skip if isinstance(order, BatchOrder) else 0
        for batch in super().__iter__():
            self._given += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        return {"given": self._given}

    def load_state_dict(self, state: dict[str, int]) -> None:
        if isinstance(self.sampler, BatchOrder):
            self.sampler.skip = state["given"] % max(1, len(self.sampler))
