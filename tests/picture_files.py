"""Small picture trees, and a data module of one, for the tests of datamodules."""

from pathlib import Path

import numpy as np
from PIL import Image

from datamodules.datamodule import ImageDataModule
from datamodules.image_folder import ImageFolder

AUGMENT = {"hflip": True, "rotate": 90, "scale": 0.1, "brightness": 0.2}


def noise(seed: int, height: int = 24, width: int = 24) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def write_picture(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def write_classes(root: Path, counts: dict[str, int], size: int = 24) -> Path:
    """``root/<class>/<number>.png`` of noise, every picture another."""
    seed = 0
    for name, count in counts.items():
        for number in range(count):
            write_picture(root / name / f"{number:03d}.png", noise(seed, size, size))
            seed += 1
    return root


def folder_data(tmp_path: Path, **options) -> ImageDataModule:
    root = tmp_path / "leaves"
    if not root.exists():
        write_classes(root, {"ash": 40, "oak": 30, "elm": 4})
    defaults = {"image_size": 16, "batch_size": 8, "cache_root": tmp_path / "cache", "augment": AUGMENT}
    data = ImageDataModule(ImageFolder(root), "classification", **(defaults | options))
    data.prepare_data()
    data.setup()
    return data
