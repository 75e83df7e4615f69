"""Drawn galaxies in the file format of Galaxy10 DECaLS (``Galaxy10_DECals.h5``).

The same seed gives the same bytes on one machine and one version of numpy, OpenCV and HDF5; another processor
may round single pixels differently.
"""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from datamodules.sample.galaxy_model import draw_galaxy
from datamodules.sample.pool import draw_all, generator
from launch.errors import UserError

FILE_NAME = "Galaxy10_DECals.h5"
# Official class counts of the published file, index 0 to 9.
OFFICIAL_COUNTS = (1081, 1853, 2645, 2027, 334, 2043, 1829, 2628, 1423, 1873)
CONSTANT_BYTE = 32
STREAM = 5


def _quotas(count: int) -> NDArray[np.int64]:
    # Largest remainders, but every class at least once as soon as there is room for all.
    share = np.array(OFFICIAL_COUNTS) / sum(OFFICIAL_COUNTS) * count
    quota = np.floor(share).astype(np.int64)
    order = np.argsort(quota - share, kind="stable")
    quota[order[: count - quota.sum()]] += 1
    for missing in np.flatnonzero(quota == 0) if count >= len(quota) else ():
        quota[np.argmax(quota)] -= 1
        quota[missing] = 1
    return quota


def _draw(job: tuple[int, int, int, int]) -> NDArray[np.uint8]:
    seed, number, kind, size = job
    return draw_galaxy(kind, generator(seed, STREAM, number), size)


def _tables(count: int, seed: int) -> tuple[dict[str, NDArray[Any]], NDArray[Any], NDArray[Any]]:
    rng = generator(seed, STREAM)
    answers = np.repeat(np.arange(10), _quotas(count))
    rng.shuffle(answers)
    ra, dec = (
        rng.uniform(0, 360, count),
        np.degrees(np.arcsin(rng.uniform(-0.2, 0.98, count))),
    )
    redshift = np.minimum(rng.gamma(3.0, 0.03, count) + 0.004, 0.4)
    # The published rows hold about 0.35 % repeated pictures, at the same place, often under another class,
    # and three constant pictures; small samples get at least one of each.
    surplus = max(1, round(count * 0.0035)) if count >= 20 else 0
    blanks = (3 if count >= 600 else 1) if count >= 20 else 0
    picked = rng.permutation(count)[: 2 * surplus + blanks]
    source, copy, blank = (
        picked[:surplus],
        picked[surplus : 2 * surplus],
        picked[2 * surplus :],
    )
    origin = np.arange(count)
    origin[copy] = source
    ra, dec, redshift = ra[origin], dec[origin], redshift[origin]
    agree = copy[1::2]
    answers[agree] = answers[origin[agree]]
    table: dict[str, NDArray[Any]] = {
        "ans": answers.astype(np.uint8), "ra": ra, "dec": dec, "redshift": redshift,
        "pxscale": np.full(count, 0.262),
    }  # fmt: skip
    return table, origin, blank


def write_galaxy10(root: Path, count: int, seed: int, size: int = 256, workers: int = 1) -> Path:
    """Draws galaxies of all ten classes, in about the official proportions.

    From 20 rows on, some rows repeat another one (same pixels, same place; every other time under another
    class) and one to three are constant, as in the published file.

    Args:
        root: Folder to write to; made when missing.
        count: Rows, duplicates and constants included.
        seed: Same seed, same rows.
        size: Side of the pictures in pixels; 256 is the published one.
        workers: Processes that draw.

    Returns:
        Path of the HDF5 file: ``images`` (N, size, size, 3) uint8 RGB, ``ans`` uint8, and float64 ``ra``,
        ``dec`` in degrees, ``redshift``, ``pxscale`` in arcsec per pixel.

    Raises:
        UserError: the file cannot be written.
    """
    table, origin, blank = _tables(count, seed)
    kinds = table["ans"].astype(int)
    path = root / FILE_NAME
    temporary = root / f".{FILE_NAME}.tmp"
    own = np.flatnonzero(origin == np.arange(count))
    jobs = [(seed, int(number), int(kinds[number]), size) for number in own]
    try:
        root.mkdir(parents=True, exist_ok=True)
        with h5py.File(temporary, "w") as file:
            for key, values in table.items():
                file.create_dataset(key, data=values)
            images = file.create_dataset("images", (count, size, size, 3), np.uint8)
            for number, image in zip(own, draw_all(_draw, jobs, "drawing galaxies", workers), strict=True):
                images[number] = image
            for number in np.flatnonzero(origin != np.arange(count)):
                images[number] = images[origin[number]]
            for number in blank:
                images[number] = CONSTANT_BYTE
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"Cannot write {path}: {error}. Free space or choose another folder.") from error
    finally:
        temporary.unlink(missing_ok=True)
    return path
