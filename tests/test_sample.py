"""Drawn data: true layouts, labels that the pixels show, the same bytes every time."""

from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest

from datamodules.sample.aerial import CLASSES, SIDE, _country, _window, write_firerisk
from datamodules.sample.galaxies import OFFICIAL_COUNTS, _tables, write_galaxy10
from datamodules.sample.galaxy_model import draw_galaxy
from datamodules.sample.pool import generator


def _picture(path: Path) -> np.ndarray:
    image = cv2.imread(str(path))
    assert image is not None
    return image


def _roundness(image: np.ndarray) -> float:
    """Short axis of the light in the middle by its long one."""
    edge = len(image) // 6
    grey = image.astype(float).mean(axis=2)[edge:-edge, edge:-edge]
    light = np.clip(grey - np.percentile(grey, 70) - 12, 0, None) + 1e-9
    y, x = np.mgrid[: len(grey), : len(grey)]
    small, large = np.linalg.eigvalsh(np.cov(np.stack([x.ravel(), y.ravel()]), aweights=light.ravel()))
    return float(np.sqrt(small / large))


@pytest.fixture(scope="module")
def firerisk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_firerisk(tmp_path_factory.mktemp("firerisk"), 63, seed=1)


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
    pictures = []
    for name in ("a", "c"):
        with h5py.File(tmp_path / name / "Galaxy10_DECals.h5") as file:
            pictures.append({image.tobytes() for image in file["images"][:]})
    assert len(pictures[0] & pictures[1]) == 1  # the constant one


@pytest.mark.parametrize(
    ("kind", "low", "high"), [(2, 0.8, 1.0), (3, 0.55, 0.8), (4, 0.0, 0.5), (8, 0.0, 0.5), (9, 0.0, 0.6)]
)
def test_galaxy_shapes_are_those_of_their_class(kind: int, low: float, high: float) -> None:
    ratios = [_roundness(draw_galaxy(kind, generator(0, 99, number), 96)) for number in range(12)]
    assert low <= np.median(ratios) <= high


def test_old_stars_are_red_and_spiral_arms_are_blue() -> None:
    def redness(kind: int) -> float:
        middles = [draw_galaxy(kind, generator(0, 99, number), 96)[36:60, 36:60] for number in range(8)]
        red, _, blue = np.mean(middles, axis=(0, 1, 2))
        return float(red - blue)

    assert redness(2) > 20
    assert redness(7) < redness(2) - 20


def test_galaxy10_answers_are_of_the_pictures_beside_them(tmp_path: Path) -> None:
    with h5py.File(write_galaxy10(tmp_path, 80, seed=2, size=64)) as file:
        images, answers = file["images"][:], file["ans"][:]
    shown = {kind: np.median([_roundness(image) for image in images[answers == kind]]) for kind in (2, 3, 8)}
    assert shown[8] < 0.55 < shown[3] < 0.8 < shown[2]


def test_repeats_in_galaxy10_disagree_every_other_time_and_three_rows_are_constant() -> None:
    table, origin, blank = _tables(4000, seed=0)
    repeats = np.flatnonzero(origin != np.arange(4000))
    assert len(repeats) == 14
    assert (table["ans"][repeats] == table["ans"][origin[repeats]]).sum() in range(7, 11)  # some agree by chance
    assert len(blank) == 3
    assert not set(blank) & {*repeats, *origin[repeats]}


def test_firerisk_tree_codes_coordinates_and_splits(firerisk: Path) -> None:
    files = sorted((firerisk / "FireRisk").rglob("*.png"))
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


def test_tiles_are_at_the_coordinates_of_their_names(firerisk: Path) -> None:
    files = sorted((firerisk / "FireRisk").rglob("*.png"), key=lambda file: file.name)
    spots = np.array([file.stem.split("_")[2:] for file in files], float)
    longitude, latitude = spots.T
    assert ((longitude > -125) & (longitude < -66)).all()
    assert ((latitude > 24) & (latitude < 49)).all()
    # Tiles are drawn block by block, each as three rows of three, and a pixel is a metre.
    metres = spots * 110_540 * np.stack([np.cos(np.radians(latitude)), np.ones(63)], axis=1)
    blocks = metres.reshape(-1, 3, 3, 2)
    assert np.abs(np.diff(blocks, axis=2) - [SIDE, 0]).max() < 2  # eastwards
    assert np.abs(np.diff(blocks[..., 1], axis=1) + SIDE).max() < 2  # southwards
    assert np.abs(np.diff(blocks[:, 0, 0, 1])).min() > 10 * SIDE


def test_about_a_quarter_of_the_tiles_is_held_out(firerisk: Path) -> None:
    held_out = len(list((firerisk / "FireRisk" / "val").rglob("*.png")))
    assert 0.19 < held_out / 63 < 0.28


def test_only_tiles_of_water_are_bluer_than_they_are_red(firerisk: Path) -> None:
    blueness: dict[str, list[float]] = {name: [] for name, *_ in CLASSES}
    for file in (firerisk / "FireRisk").rglob("*.png"):
        blue, _, red = _picture(file).mean(axis=(0, 1))
        blueness[file.parent.name].append(blue - red)
    assert np.median(blueness.pop("Water")) > 0
    assert max(max(values) for values in blueness.values()) < 0


def test_firerisk_depends_on_the_seed_only_and_repeats_no_tile(tmp_path: Path) -> None:
    def tiles(name: str, seed: int) -> dict[str, bytes]:
        root = write_firerisk(tmp_path / name, 4, seed=seed)
        return {file.relative_to(root).as_posix(): file.read_bytes() for file in root.rglob("*.png")}

    first, other = tiles("a", 2), tiles("c", 3)
    assert first == tiles("b", 2)
    assert len({*first.values(), *other.values()}) == 8
    assert not set(first) & set(other)
    grey = [_picture(tmp_path / "a" / name).mean(axis=2).ravel() for name in first]
    assert np.triu(np.corrcoef(grey), 1).max() < 0.2  # nor do plants stand in the same places


def test_every_block_of_every_seed_is_a_country_of_its_own() -> None:
    countries = [_country(seed, block) for seed in (0, 1) for block in (0, 1)]
    assert len({country.relief.tobytes() for country in countries}) == 4
    assert len({country.heading for country in countries}) == 4


def test_tiles_to_the_south_share_the_terrain_too() -> None:
    country = _country(0, 5)
    north, south = _window(country.relief, 0, 1), _window(country.relief, 1, 1)
    assert np.abs(north[-1] - south[0]).max() < 0.1
    assert np.abs(north[0] - south[0]).max() > 0.5
