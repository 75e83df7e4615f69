"""Drawn data: true layouts, labels that the pixels show, the same bytes every time."""

from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest

from datamodules.sample.aerial import CLASSES, _country, _window, write_firerisk
from datamodules.sample.galaxies import OFFICIAL_COUNTS, write_galaxy10
from datamodules.sample.galaxy_model import draw_galaxy
from datamodules.sample.pool import generator


def _picture(path: Path) -> np.ndarray:
    image = cv2.imread(str(path))
    assert image is not None
    return image


def test_galaxy10_has_the_published_keys_proportions_and_defects(tmp_path: Path) -> None:
    path = write_galaxy10(tmp_path / "new", 240, seed=1, size=24)
    assert path.name == "Galaxy10_DECals.h5"
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    with h5py.File(path) as file:
        assert set(file) == {"images", "ans", "ra", "dec", "redshift", "pxscale"}
        images, answers = file["images"][:], file["ans"][:]
        places = np.stack([file["ra"][:], file["dec"][:]], axis=1)
    assert images.shape == (240, 24, 24, 3)
    assert images.dtype == np.uint8
    share = np.array(OFFICIAL_COUNTS) / sum(OFFICIAL_COUNTS)
    assert np.abs(np.bincount(answers, minlength=10) / 240 - share).max() < 0.02
    constant = [row for row in range(240) if np.ptp(images[row]) == 0]
    assert len(constant) == 1
    assert (images[constant] == 32).all()
    first_of: dict[bytes, int] = {}
    repeats = [(first_of.setdefault(images[row].tobytes(), row), row) for row in range(240)]
    repeats = [(first, row) for first, row in repeats if first != row]
    assert repeats
    assert all((places[first] == places[second]).all() for first, second in repeats)


def test_galaxy10_bytes_depend_on_the_seed_only(tmp_path: Path) -> None:
    one = write_galaxy10(tmp_path / "a", 24, seed=3, size=32).read_bytes()
    assert write_galaxy10(tmp_path / "b", 24, seed=3, size=32, workers=2).read_bytes() == one
    assert write_galaxy10(tmp_path / "c", 24, seed=4, size=32).read_bytes() != one


@pytest.mark.parametrize(("kind", "low", "high"), [(2, 0.7, 1.0), (4, 0.0, 0.66), (8, 0.0, 0.5)])
def test_galaxy_shapes_are_those_of_their_class(kind: int, low: float, high: float) -> None:
    ratios = []
    for number in range(12):
        image = draw_galaxy(kind, generator(0, 99, number), 96).astype(float).mean(axis=2)[16:80, 16:80]
        light = np.clip(image - np.percentile(image, 70) - 12, 0, None)
        y, x = np.mgrid[:64, :64] - 31.5
        moments = np.cov(np.stack([x.ravel(), y.ravel()]), aweights=light.ravel() + 1e-9)
        small, large = np.linalg.eigvalsh(moments)
        ratios.append(np.sqrt(small / large))
    assert low <= np.median(ratios) <= high


def test_firerisk_tree_codes_coordinates_and_splits(tmp_path: Path) -> None:
    root = write_firerisk(tmp_path, 63, seed=1)
    files = sorted((root / "FireRisk").rglob("*.png"))
    assert len(files) == 63
    code_of = {name: code for name, code, _, _ in CLASSES}
    spots: dict[Path, tuple[float, float]] = {}
    shares: dict[int, list[float]] = {}
    for file in files:
        point, code, longitude, latitude = file.stem.split("_")
        assert point.isdigit()
        assert code_of[file.parent.name] == int(code)
        spots[file] = (float(longitude), float(latitude))
        image = _picture(file)
        assert image.shape == (320, 320, 3)
        shares.setdefault(int(code), []).append(float((image.mean(axis=2) < 85).mean()))
    for part in ("train", "val"):
        assert {file.parent.name for file in files if file.parent.parent.name == part} == set(code_of)
    # Plants, which are dark, cover more from degree to degree.
    assert np.median(shares[1]) + 0.1 < np.median(shares[3]) < np.median(shares[5]) - 0.1
    tones = {file: _picture(file).mean(axis=(0, 1)) for file in files if "Water" not in file.parts}
    near: list[float] = []
    far: list[float] = []
    for first in tones:
        for second in tones:
            if first < second:
                apart = np.hypot(*np.subtract(spots[first], spots[second]))
                (near if apart < 0.02 else far).append(np.abs(tones[first] - tones[second]).mean())
    assert np.mean(near) < 0.75 * np.mean(far)


def test_neighbouring_tiles_share_one_terrain() -> None:
    country = _country(0, 5)
    west = _window(country.cover, 0, 0)
    east = _window(country.cover, 0, 1)
    assert np.abs(west[:, -1] - east[:, 0]).max() < 0.1
    assert np.abs(west[:, 0] - east[:, 0]).max() > 0.5
