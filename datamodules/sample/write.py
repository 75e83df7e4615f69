"""All drawn sets at once, each in the layout of the set it stands for."""

import os
from collections.abc import Callable
from pathlib import Path

from datamodules.sample.aerial import write_firerisk
from datamodules.sample.faces import write_expw, write_utkface, write_wflw
from datamodules.sample.galaxies import write_galaxy10

WRITERS: dict[str, Callable[..., Path]] = {
    "firerisk": write_firerisk,
    "utkface": write_utkface,
    "expw": write_expw,
    "wflw": write_wflw,
    "galaxy10": write_galaxy10,
}


def write_all(root: Path, count_per_set: int, seed: int, workers: int | None = None) -> dict[str, Path]:
    """Draws ``count_per_set`` examples of every set.

    Args:
        root: Gets one folder a set: firerisk, utkface, expw, wflw, galaxy10.
        count_per_set: Tiles, chips, labelled faces, annotated faces, galaxies.
        seed: Same seed, same pictures.
        workers: Processes that draw; None means one for each core that this process may use.

    Returns:
        Name of the set to the folder to give as ``data.root``.
    """
    if workers is None:
        workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for name, write in WRITERS.items():
        write(root / name, count_per_set, seed, workers=workers)
    return {name: root / name for name in WRITERS}
