"""Two or three adapters of a tiny backbone, trained for a moment on drawn pictures, and merges of them."""

from pathlib import Path
from typing import Any

from launch.app import CONF
from launch.compose import Composer
from launch.config import first_config
from launch.merge_schema import MergeConfig
from launch.runs import Run, describe_run, prepare
from merging.workbench import Workbench
from tests.runs import draw_folder, draw_points, overrides, train_here


def train_members(tmp_path: Path, *more: str) -> Path:
    """Adapters ``leaves`` (classes), ``level`` (a number) and ``dots`` (points), rank 2, seed 0; the outputs folder."""
    draw_folder(tmp_path / "leaves", 40)
    draw_points(tmp_path / "dots", 60)
    shared = ("trainer.max_epochs=1", "gram_images=32", *more)
    csv = ["data=image_csv", f"data.root={tmp_path / 'dots'}"]
    commands = (
        ["task=classification", "name=leaves", "data=image_folder", f"data.root={tmp_path / 'leaves'}"],
        ["task=regression", "name=level", *csv, "data.target_column=level"],
        ["task=keypoints", "name=dots", *csv, "task.eye_corners=[0,1]", "data.target_column=[x0,y0,x1,y1]"],
    )
    for command in commands:
        train_here(overrides(tmp_path, *command, *shared))
    return tmp_path / "out"


def merge_config(arguments: list[str]) -> MergeConfig:
    composer = Composer("merge", CONF)
    command = composer.parse(arguments, multirun=False)
    assert not command.faults
    return MergeConfig.model_validate(first_config(composer, command))


def open_here(arguments: list[str]) -> tuple[MergeConfig, Workbench]:
    """A merge's config and the workbench that it would be made on."""
    from launch.bundles import find_bundles
    from merging.run import open_bench

    config = merge_config(arguments)
    return config, open_bench(config, find_bundles(config)).bench


def merge_here(arguments: list[str]) -> tuple[dict[str, Any], Run]:
    """Merges in this process, without the launch layer's bookkeeping."""
    from launch.bundles import find_bundles
    from merging.run import merge

    config = merge_config(arguments)
    run = describe_run("merge", config.title, config.model_dump(mode="json", by_alias=True))
    prepare(run)
    return merge(config, run, find_bundles(config)), run


def command(outputs: Path, *more: str) -> list[str]:
    return [
        f"paths.outputs={outputs}",
        "lora.rank=2",
        "images=24",
        "device=cpu",
        "logger=csv",
        "precision=32-true",
        *more,
    ]
