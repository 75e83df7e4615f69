"""Speed of the data path as ratios within one run:  python benchmarks/data_speed.py

- epoch: an epoch through the pixel cache, against torchvision's ImageFolder that decodes, crops and resizes each JPEG
  anew; the same augmentation, batch size and number of processes (one) for both;
- build: building the pixel cache on all processors, against on one;
- tasks: what one process delivers with each task's augmentation, and how many of them a GPU needs that trains
  ``--gpu`` images per second.

All ways are measured in turn, round by round, and the median of the rounds' ratios counts, since the machine's speed
drifts. Pictures are drawn galaxies (256 px), as large JPEGs for the first two (``--side``).
"""

import argparse
import json
import logging
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import yaml
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder as TorchvisionFolder
from torchvision.transforms import CenterCrop, Compose, Resize

from datamodules.batches import BatchOrder, PictureBatches
from datamodules.cache import open_or_build
from datamodules.hashes import cpu_count
from datamodules.image_folder import ImageFolder
from datamodules.pipeline import make_pixels
from datamodules.sample.galaxy_model import draw_galaxy
from datamodules.sample.pool import generator
from datamodules.transforms import Augment
from launch.prepare_schema import CONF, tasks_of
from launch.schema import Task


def draw(root: Path, count: int, side: int) -> None:
    """``count`` JPEGs of ``side`` pixels in two classes."""
    drawn = [draw_galaxy(number % 10, generator(0, 77, number), 256) for number in range(min(count, 64))]
    for number in range(count):
        folder = root / f"class {number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        picture = np.roll(drawn[number % len(drawn)], number, axis=(0, 1))
        large = cv2.resize(picture, (side, side), interpolation=cv2.INTER_CUBIC)
        done, coded = cv2.imencode(".jpg", large[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])
        assert done
        (folder / f"{number:05d}.jpg").write_bytes(coded.tobytes())


class Decoding(torch.utils.data.Dataset[tuple[np.ndarray, int]]):
    """What everybody writes: decode, resize, crop, augment, one picture at a time."""

    def __init__(self, root: Path, size: int, augment: Augment) -> None:
        self.pictures = TorchvisionFolder(str(root), transform=Compose([Resize(size), CenterCrop(size)]))
        self.augment = augment

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        picture, label = self.pictures[index]
        images, _ = self.augment(np.asarray(picture)[None], None, f"{index}")
        return images[0], label


def decoding_epoch(root: Path, size: int, augment: Augment) -> Iterator[Any]:
    """Batches of uint8 (64, S, S, 3)."""
    yield from DataLoader(Decoding(root, size, augment), batch_size=64, shuffle=True, num_workers=0)


def cached_epoch(pixels: Path, count: int, augment: Augment | None, points: int | None = None) -> Iterator[Any]:
    """The same from the cache."""
    rows = np.arange(count)
    targets: np.ndarray = np.zeros(count, np.int64)
    if points is not None:
        targets = np.random.default_rng(0).random((count, points, 2)).astype(np.float32)
    bounds = [*range(0, count, 64), count]
    batches = PictureBatches(
        pixels, rows, targets, rows, bounds, shuffle=True, augment=augment, move_points=points is not None
    )
    yield from DataLoader(batches, sampler=BatchOrder(batches), batch_size=None, num_workers=0)


def seconds(work: Callable[[], Any]) -> float:
    """How long ``work`` takes."""
    start = time.perf_counter()
    result = work()
    if isinstance(result, Iterator):
        for _ in result:
            pass
    return time.perf_counter() - start


def compare(rounds: int, ways: dict[str, Callable[[], Any]]) -> dict[str, list[float]]:
    """Seconds of each way, in turn."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, work in ways.items():
            taken[name].append(seconds(work))
    return taken


def ratio(taken: dict[str, list[float]], slow: str, fast: str) -> float:
    """Median of the rounds' ratios."""
    return statistics.median(one / other for one, other in zip(taken[slow], taken[fast], strict=True))


def on_processors(count: int, work: Callable[[], Any]) -> None:
    """Runs ``work`` on the first ``count`` processors only."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(allowed)[:count])
    try:
        work()
    finally:
        os.sched_setaffinity(0, allowed)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=1024, help="pictures")
    parser.add_argument("--side", type=int, default=500, help="pixels of a side of the JPEGs")
    parser.add_argument("--size", type=int, default=224, help="pixels of a side in the cache")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--gpu", type=float, default=2000.0, help="images per second to keep up with")
    options = parser.parse_args()
    logging.disable(logging.INFO)
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    told: dict[str, Any] = {"load": os.getloadavg()[0], "processors": cpu_count(), **vars(options)}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "pictures"
        draw(root, options.count, options.side)
        source = ImageFolder(root)
        made = make_pixels(
            source, "classification", target=None, classes=None, size="full", split=(0.1, 0.1), split_seed=0,
            fit=None, image_size=options.size, cache_root=Path(folder) / "cache",
        )  # fmt: skip
        pixels, count = made.cache.path, len(made.cache.keys)

        tasks: dict[str, Task] = {}
        for file in sorted((CONF / "data").glob("*.yaml")):
            tasks |= tasks_of(yaml.safe_load(file.read_text(encoding="utf-8"))["_target_"])
        augments = {}
        for name, task in tasks.items():
            points = None if task.flip_index is None else len(task.flip_index)
            settings = {} if task.augment is None else task.augment.model_dump()
            augments[name] = Augment(settings, task.flip_index, points), points

        augment = augments["age_class"][0]
        taken = compare(
            options.rounds,
            {
                "decode": lambda: decoding_epoch(root, options.size, augment),
                "cache": lambda: cached_epoch(pixels, count, augment),
                "decode, plain": lambda: decoding_epoch(root, options.size, Augment({}, None, None)),
                "cache, plain": lambda: cached_epoch(pixels, count, None),
            },
        )
        told["epoch"] = ratio(taken, "decode", "cache")
        told["epoch, without augmentation"] = ratio(taken, "decode, plain", "cache, plain")

        number = iter(range(10**6))

        def build() -> None:
            open_or_build(
                Path(folder) / f"built-{next(number)}", source, made.prepared.table, size=options.size, fit="crop",
                points=False,
            )  # fmt: skip

        taken = compare(
            options.rounds, {"one": lambda: on_processors(1, build), "all": lambda: on_processors(cpu_count(), build)}
        )
        told["build"] = ratio(taken, "one", "all")
        told["build, images/s"] = count / statistics.median(taken["all"])

        taken = compare(
            options.rounds,
            {
                name: (lambda found=found: cached_epoch(pixels, count, *found))  # type: ignore[misc]
                for name, found in augments.items()
            },
        )
        rates = {name: count / statistics.median(values) for name, values in taken.items()}
        told["tasks, images/s of one process"] = rates
        told["tasks, processes for the GPU"] = {name: math.ceil(options.gpu / rate) for name, rate in rates.items()}
    print(json.dumps(told, indent=2))


if __name__ == "__main__":
    main()
