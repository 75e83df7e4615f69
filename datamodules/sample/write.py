"""What draws each set, in the layout of the set it stands for."""

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
