"""Small images on disk, and training runs on them with a tiny backbone."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from PIL import Image

from launch.app import CONF
from launch.compose import Composer
from launch.config import find_faults, first_config
from launch.runs import Run, describe_run, prepare
from launch.schema import JointConfig, TrainConfig
from lightning_modules.backbone import create_backbone
from tests.conftest import SIZE, TINY
from train import job


def draw_folder(root: Path, count: int = 24) -> Path:
    """``root/{dark,light}/*.png``: brightness tells the class."""
    rng = np.random.default_rng(0)
    for label, level in (("dark", 60), ("light", 180)):
        (root / label).mkdir(parents=True)
        for index in range(count):
            pixels = rng.normal(level, 40, (40, 48, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / label / f"{index:03}.png")
    return root


def draw_points(root: Path, count: int = 40) -> Path:
    """A CSV of pictures with a bright dot, its place, and the picture's brightness as a number."""
    rng = np.random.default_rng(1)
    root.mkdir()
    rows = []
    for index in range(count):
        level = rng.uniform(20, 150)
        pixels = rng.normal(level, 10, (40, 40, 3)).clip(0, 200).astype(np.uint8)
        x, y = rng.integers(8, 32, 2)
        pixels[y - 3 : y + 3, x - 3 : x + 3] = 255
        Image.fromarray(pixels).save(root / f"{index:03}.png")
        rows.append([f"{index:03}.png", level / 50, x, y, x + 6, y])
    with (root / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["file", "level", "x0", "y0", "x1", "y1"], *rows])
    return root


def write_weights(path: Path) -> Path:
    """A safetensors file of the tiny backbone, the same each time."""
    torch.manual_seed(7)
    safetensors.torch.save_file(dict(create_backbone(TINY, SIZE).state_dict()), path)
    return path


def overrides(tmp_path: Path, *more: str) -> list[str]:
    """A command line for a run of a few seconds below ``tmp_path``; weights are written when they are missing."""
    weights = tmp_path / "tiny.safetensors"
    if not weights.exists():
        write_weights(weights)
    common = [
        f"backbone.name={TINY}", f"backbone.weights={weights}", f"backbone.image_size={SIZE}", "lora.rank=2",
        "logger=csv", "trainer=cpu", "trainer.max_epochs=2", "data.batch_size=8", f"paths.outputs={tmp_path / 'out'}",
    ]  # fmt: skip
    keys = {text.partition("=")[0] for text in more}
    return [text for text in common if text.partition("=")[0] not in keys] + list(more)


def leaves(tmp_path: Path, *more: str) -> list[str]:
    """The command line of a two-class task on ``draw_folder``'s images."""
    root = tmp_path / "leaves"
    if not root.exists():
        draw_folder(root)
    task = ["task=classification", "name=leaves", "data=image_folder", f"data.root={root}"]
    return overrides(tmp_path, *task, *more)


def train_here(arguments: list[str], conf: Path | None = None) -> tuple[dict[str, Any], Run]:
    """Trains in this process, without the launch layer's bookkeeping; ``conf`` is a ``--config-dir``."""
    composer = Composer("train", CONF, None if conf is None else str(conf))
    command = composer.parse(arguments, multirun=False)
    assert not find_faults(composer, TrainConfig, command, multirun=False)
    plain = first_config(composer, command, TrainConfig)
    schema = JointConfig if "members" in plain else TrainConfig
    config = schema.model_validate(plain)
    run = describe_run("train", config.title, config.model_dump(mode="json", by_alias=True))
    prepare(run)
    return job(config, run), run


def read_results(outputs: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(outputs.glob("runs/*/result.json"))]
