"""Drawn aerial tiles in the layout of FireRisk.

Tiles come in blocks of neighbours that share ground, trees, light and terrain, so that a random split leaks as it
does in the real set, and a split by coordinates does not. From Very_Low to Very_High the same country gets denser,
drier and steeper, step by step, with overlap. The same seed gives the same pixels on one machine; the PNG bytes
may differ between builds of OpenCV.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from datamodules.sample.pool import draw_all, generator
from launch.files import atomic_folder

Array = NDArray[Any]

STREAM = 1
SIDE = 320  # pixels, and metres
BLOCK = 3  # tiles along the side of a block of neighbours
# Folder, grid code, official train and val counts.
CLASSES = (
    ("Very_Low", 1, 21757, 8448), ("Low", 2, 10705, 2599), ("Moderate", 3, 8617, 1772), ("High", 4, 6296, 1609),
    ("Very_High", 5, 3268, 1438), ("Non-burnable", 6, 17959, 5091), ("Water", 7, 1729, 584),
)  # fmt: skip
DEGREES = 110_540.0  # metres in a degree of latitude

SOIL = np.array([[0.62, 0.53, 0.42], [0.70, 0.62, 0.50], [0.52, 0.42, 0.33], [0.60, 0.56, 0.48]], np.float32)
GRASS = np.array([[0.48, 0.52, 0.32], [0.62, 0.57, 0.36], [0.40, 0.49, 0.30]], np.float32)
TREES = np.array([[0.17, 0.26, 0.15], [0.22, 0.29, 0.17], [0.14, 0.22, 0.17]], np.float32)
ROOFS = np.array(
    [[0.55, 0.53, 0.52], [0.48, 0.32, 0.26], [0.74, 0.73, 0.72], [0.33, 0.33, 0.35], [0.60, 0.50, 0.40]], np.float32
)


@dataclass(frozen=True)
class Country:
    """What the tiles of one block have in common."""

    soil: Array
    grass: Array
    tree: Array
    canopy: float  # radius of a tree crown, metres
    sun: float
    heading: float  # of roads, fields and ridges
    relief: Array  # coarse heights over the block
    cover: Array  # coarse field that says where plants thrive
    shore: Array


def _shade(colours: Array, spread: float, rng: Generator) -> Array:
    return (colours[rng.integers(len(colours))] + rng.normal(0, spread, 3)).astype(np.float32)


def _country(seed: int, block: int) -> Country:
    rng = generator(seed, STREAM, 1, block)
    cells = 5 * BLOCK + 4
    fields = [rng.standard_normal((cells, cells), dtype=np.float32) for _ in range(3)]
    return Country(
        soil=_shade(SOIL, 0.03, rng), grass=_shade(GRASS, 0.03, rng),
        tree=_shade(TREES, 0.015, rng), canopy=float(rng.uniform(2.2, 4.5)),
        sun=float(rng.uniform(0, 2 * np.pi)), heading=float(rng.uniform(0, np.pi)),
        relief=fields[0], cover=fields[1], shore=cv2.GaussianBlur(fields[2], (0, 0), 1.2),
    )  # fmt: skip


def _window(coarse: Array, row: int, column: int) -> Array:
    # The tile's part of a field of the whole block: neighbours meet without a seam.
    axis = (np.arange(SIDE, dtype=np.float32) + 0.5) / SIDE * 5
    x, y = np.meshgrid(axis + 5 * column + 1.5, axis + 5 * row + 1.5)
    return cv2.remap(coarse, x, y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101)


def _grain(rng: Generator, sigma: float) -> Array:
    # Smooth noise of unit variance; coarse grains are made small and enlarged.
    step = max(int(sigma / 1.5), 1)
    side = SIDE // step + 4
    field = cv2.GaussianBlur(rng.standard_normal((side, side), dtype=np.float32), (0, 0), sigma / step)
    field = cv2.resize(field, (side * step, side * step), interpolation=cv2.INTER_LINEAR)[:SIDE, :SIDE]
    mean, deviation = cv2.meanStdDev(field)
    return (field - np.float32(mean[0, 0])) / np.float32(deviation[0, 0] + 1e-6)


def _lit(height: Array, sun: float, strength: float) -> Array:
    dy, dx = np.gradient(height)
    return np.clip(1 + np.float32(strength) * (dx * np.float32(np.cos(sun)) + dy * np.float32(np.sin(sun))), 0.35, 1.6)


def _blend(image: Array, mask: Array, colour: Array) -> None:
    image += mask[..., None] * (np.asarray(colour, np.float32) - image)


def _plants(image: Array, country: Country, rng: Generator, share: Array, dry: float) -> None:
    """Crowns of trees and shrubs over ``share`` (320, 320) of the ground, with shadows."""
    field = 0.8 * _grain(rng, country.canopy) + 0.45 * _grain(rng, country.canopy * 3.5)
    # Quantile of the standard normal distribution, by the logistic approximation.
    share = np.clip(share, 0.004, 0.996)
    level = np.log(share / (1 - share)) / np.float32(1.7)
    crown = np.clip((field + level) * np.float32(3.2) + np.float32(0.5), 0, 1)
    offset = (2.2 * country.canopy * np.cos(country.sun + np.pi), 2.2 * country.canopy * np.sin(country.sun + np.pi))
    moved = np.array([[1, 0, offset[0] * 0.5], [0, 1, offset[1] * 0.5]], np.float32)
    shadow = cv2.warpAffine(crown, moved, (SIDE, SIDE), borderMode=cv2.BORDER_REPLICATE)
    image *= (1 - np.float32(0.45) * shadow)[..., None]
    straw = np.array([0.40, 0.34, 0.20], np.float32)
    tone = country.tree + (straw - country.tree) * np.float32(0.75 * dry)
    leaves = tone * (_lit(field, country.sun, 1.5) * (1 + np.float32(0.1) * _grain(rng, 1.0)))[..., None]
    image += crown[..., None] * (leaves - image)


def _line(rng: Generator, heading: float, wobble: float) -> Array:
    along = np.linspace(-1, 1, 24) * SIDE
    bend = wobble * SIDE * np.cumsum(rng.normal(0, 0.12, 24))
    middle = rng.uniform(0.1, 0.9, 2) * SIDE
    cos, sin = np.cos(heading), np.sin(heading)
    return np.stack([middle[0] + along * cos - bend * sin, middle[1] + along * sin + bend * cos], axis=1)


def _road(image: Array, points: Array, width: float, colour: Array) -> None:
    mask = np.zeros((SIDE, SIDE), np.uint8)
    cv2.polylines(mask, [np.round(points * 16).astype(np.int32)], False, 255, max(1, round(width)), cv2.LINE_AA, 4)
    _blend(image, mask.astype(np.float32) / 255 * np.float32(0.9), colour)


def _house(image: Array, country: Country, rng: Generator, at: Array, size: Array, heading: float) -> None:
    cos, sin = np.cos(heading), np.sin(heading)
    turn = np.array([[cos, sin], [-sin, cos]])
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * size / 2
    shade = np.array([np.cos(country.sun + np.pi), np.sin(country.sun + np.pi)]) * rng.uniform(3, 6)
    roof = ROOFS[rng.integers(len(ROOFS))] * rng.uniform(0.85, 1.12)
    halves = (corners[[0, 1]], corners[[2, 3]])
    middle = np.array([[-1, 0], [1, 0]]) * size / 2
    shapes = [(corners @ turn + at + shade, np.array([0.12, 0.12, 0.13]), 0.6)]
    light = 0.16 * np.cos(country.sun - heading - np.pi / 2)
    for half, gain in zip(halves, (1 - light, 1 + light), strict=True):
        ridge = middle if half is halves[1] else middle[::-1]
        shapes.append((np.concatenate([half, ridge]) @ turn + at, roof * gain, 1.0))
    for shape, colour, alpha in shapes:
        low = np.clip(np.floor(shape.min(axis=0)).astype(int) - 1, 0, SIDE)
        high = np.clip(np.ceil(shape.max(axis=0)).astype(int) + 2, 0, SIDE)
        if (high <= low).any():
            continue
        mask = np.zeros((high[1] - low[1], high[0] - low[0]), np.uint8)
        cv2.fillPoly(mask, [np.round((shape - low) * 16).astype(np.int32)], 255, cv2.LINE_AA, 4)
        _blend(image[low[1] : high[1], low[0] : high[0]], mask.astype(np.float32) / 255 * np.float32(alpha), colour)


def _ground(country: Country, rng: Generator, green: Array, dry: float, row: int, column: int, steep: float) -> Array:
    # Soil with grass, and the hills' light and shade.
    straw = np.array([0.66, 0.57, 0.36], np.float32)
    grass = country.grass + (straw - country.grass) * np.float32(dry)
    mix = np.clip(green + 0.22 * _grain(rng, 7.0) + 0.12 * _grain(rng, 1.2), 0, 1)[..., None]
    image = country.soil + (grass - country.soil) * mix
    image *= (1 + 0.05 * _grain(rng, 0.8) + 0.05 * _grain(rng, 22.0))[..., None]
    hills = _window(country.relief, row, column) + 0.12 * _grain(rng, 14.0)
    image *= _lit(hills, country.sun, 9.0 * steep)[..., None]
    return image


def _wild(country: Country, rng: Generator, degree: float, row: int, column: int) -> Array:
    """Burnable land; ``degree`` runs from 0 (Very_Low) to 4 (Very_High)."""
    rise = float(np.clip(degree / 4, -0.1, 1.1))
    dry = float(np.clip(0.15 + 0.75 * rise + rng.normal(0, 0.12), 0, 1))
    patchy = _window(country.cover, row, column)
    green = np.clip(0.45 + 0.3 * patchy, 0, 1)
    image = _ground(country, rng, green, dry, row, column, 0.15 + 0.85 * max(rise, 0) * rng.uniform(0.6, 1.2))
    wooded = float(np.clip(0.06 + 0.72 * rise + rng.normal(0, 0.1), 0.01, 0.95))
    _plants(image, country, rng, wooded + 0.16 * patchy, 0.8 * dry * rng.uniform(0.5, 1.0))
    if rng.random() < 0.45 - 0.3 * rise:
        _road(image, _line(rng, country.heading, 0.8), rng.uniform(3, 7), country.soil * 1.15)
    for _ in range(rng.poisson(max(1.2 - 1.3 * rise, 0.05))):
        _house(image, country, rng, rng.uniform(30, 290, 2), rng.uniform(8, 20, 2), country.heading)
    return image


def _town(country: Country, rng: Generator, row: int, column: int) -> Array:
    image = _ground(country, rng, np.full((SIDE, SIDE), 0.6, np.float32), 0.25, row, column, 0.05)
    _plants(image, country, rng, np.full((SIDE, SIDE), rng.uniform(0.03, 0.4), np.float32), 0.1)
    heading, pitch = country.heading, rng.uniform(52, 90)
    asphalt = np.array([0.50, 0.50, 0.51]) * rng.uniform(0.75, 1.15)
    cos, sin = np.cos(heading), np.sin(heading)
    turn = np.array([[cos, sin], [-sin, cos]])
    centre = rng.uniform(0, pitch, 2) + SIDE / 2
    large = rng.random() < 0.3
    for step in range(-5, 6):
        for flip in (False, True):
            ends = np.array([[-300.0, step * pitch], [300.0, step * pitch]])
            if flip and step % 2 == 0:
                ends = ends[:, ::-1]
            elif flip:
                continue
            _road(image, ends @ turn + centre, 9, asphalt)
    for across in range(-5, 5):
        for along in np.arange(-250, 250, 46.0 if large else 21.0):
            if rng.random() < 0.2:
                continue
            for side in (0.3, 0.7):
                at = np.array([along + rng.normal(0, 1.5), (across + side) * pitch]) @ turn + centre
                if not (-12 < at[0] < SIDE + 12 and -12 < at[1] < SIDE + 12):
                    continue
                size = rng.uniform(20, 36, 2) if large else rng.uniform(9, 15, 2)
                _house(image, country, rng, at, size, heading)
    return image


def _fields(country: Country, rng: Generator, row: int, column: int) -> Array:
    image = _ground(country, rng, np.full((SIDE, SIDE), 0.3, np.float32), 0.3, row, column, 0.05)
    y, x = np.mgrid[:SIDE, :SIDE].astype(np.float32)
    cos, sin = np.float32(np.cos(country.heading)), np.float32(np.sin(country.heading))
    u, v = cos * x + sin * y, cos * y - sin * x
    edge = float(rng.uniform(-60, 60))
    for first in (u < 150 + edge, u >= 150 + edge):
        for second in (v < edge + 20, v >= edge + 20):
            crop = np.array([[0.36, 0.46, 0.24], [0.60, 0.54, 0.38], [0.48, 0.40, 0.31], [0.66, 0.62, 0.42]])[
                rng.integers(4)
            ]
            rows = 1 + 0.07 * np.sin((v if rng.random() < 0.6 else u) * np.float32(2 * np.pi / rng.uniform(4, 9)))
            tone = crop * (rows * (1 + 0.04 * _grain(rng, 10.0)))[..., None]
            _blend(image, (first & second).astype(np.float32) * np.float32(0.9), tone)
    _road(image, _line(rng, country.heading, 0.0), rng.uniform(4, 7), country.soil * 1.1)
    return image


def _bare(country: Country, rng: Generator, row: int, column: int) -> Array:
    image = _ground(country, rng, np.full((SIDE, SIDE), -0.1, np.float32), 0.4, row, column, 0.7)
    image *= (1 + 0.06 * _grain(rng, 4.0))[..., None]
    _plants(image, country, rng, np.full((SIDE, SIDE), rng.uniform(0.005, 0.12), np.float32), 0.5)
    _road(image, _line(rng, country.heading + 1.0, 1.2), rng.uniform(5, 14), country.soil * 1.2)
    return image


def _lake(country: Country, rng: Generator, row: int, column: int) -> Array:
    image = _wild(country, rng, rng.uniform(0, 2.5), row, column)
    shore = _window(country.shore, row, column) + 0.05 * _grain(rng, 9.0)
    wet = np.clip((shore - np.quantile(shore, 1 - rng.uniform(0.55, 1.0))) * np.float32(18), 0, 1)
    deep = np.array([0.10, 0.19, 0.24]) * rng.uniform(0.6, 1.3) + rng.normal(0, 0.012, 3)
    shallow = np.array([0.30, 0.36, 0.30])
    near = np.clip(shore - shore.min(), 0, 1)[..., None]
    tone = (shallow + (deep - shallow) * np.clip(near * 2.2, 0, 1)) * (1 + 0.03 * _grain(rng, 2.0))[..., None]
    _blend(image, wet, tone)
    return image


def draw_tile(code: int, country: Country, rng: Generator, row: int = 0, column: int = 0) -> NDArray[np.uint8]:
    """One tile.

    Args:
        code: Grid code of FireRisk: 1 Very_Low to 5 Very_High, 6 Non-burnable, 7 Water.
        country: What it shares with its neighbours.
        rng: Source of the tile's own randomness.
        row: Place in the block, southwards; ``column`` eastwards.

    Returns:
        RGB, shape (320, 320, 3).
    """
    if code <= 5:
        image = _wild(country, rng, code - 1 + rng.normal(0, 0.7), row, column)
    elif code == 7:
        image = _lake(country, rng, row, column)
    else:
        kind = int(country.heading * 1000) % 4  # a block is town, fields or bare ground
        image = (_town, _town, _fields, _bare)[kind](country, rng, row, column)
    image = cv2.GaussianBlur(image, (0, 0), 0.7) * np.float32(rng.uniform(0.9, 1.08))
    image += rng.standard_normal((SIDE, SIDE, 1), dtype=np.float32) * np.float32(0.012)
    return np.clip(image * 255 + np.float32(0.5), 0, 255).astype(np.uint8)


def _draw(job: tuple[int, int, int]) -> bytes:
    seed, number, code = job
    block, place = divmod(number, BLOCK * BLOCK)
    rng = generator(seed, STREAM, 2, number)
    tile = draw_tile(code, _country(seed, block), rng, *divmod(place, BLOCK))
    done, coded = cv2.imencode(".png", tile[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 1])
    if not done:
        raise ValueError(f"OpenCV cannot encode a PNG of shape {tile.shape}")
    return coded.tobytes()


def _codes(rng: Generator, count: int) -> Array:
    # Shares half as uneven as the official ones, so that small samples hold every class; then an order in which
    # neighbours mostly have the same or the next code.
    official = np.array([train + val for _, _, train, val in CLASSES])
    share = 0.5 * official / official.sum() + 0.5 / len(official)
    codes = 1 + np.searchsorted(np.cumsum(share), (np.arange(count) + 0.5) / count).clip(0, 6)
    return codes[np.argsort(np.arange(count) + rng.normal(0, 0.02 * count + 2, count), kind="stable")]


def write_firerisk(root: Path, count: int, seed: int, workers: int = 1) -> Path:
    """Draws tiles of all seven classes, in both official splits (about 77 % train, 23 % val).

    Tiles lie in blocks of 3 x 3 neighbours at 320 m; the split is random within each class, as in the published
    set, so neighbours fall into both splits.

    Args:
        root: Folder that gets ``FireRisk/<train|val>/<Class>/<pointid>_<grid code>_<lon>_<lat>.png``; an earlier
            ``FireRisk`` is replaced as a whole.
        count: Tiles, train and val together.
        seed: Same seed, same tiles.
        workers: Processes that draw.

    Returns:
        ``root``.
    """
    rng = generator(seed, STREAM)
    codes = _codes(rng, count)
    blocks = -(-count // (BLOCK * BLOCK))
    west, north = rng.uniform(-123, -80, blocks), rng.uniform(30, 48, blocks)
    held_out = np.zeros(count, bool)
    for code in range(1, 8):
        members = rng.permutation(np.flatnonzero(codes == code))
        held_out[members[: max(round(0.234 * len(members)), 1) if len(members) > 1 else 0]] = True
    jobs = [(seed, number, int(code)) for number, code in enumerate(codes)]
    points = 27_000_000 + np.sort(rng.permutation(900_000)[:count])
    with atomic_folder(root / "FireRisk") as folder:
        for part in ("train", "val"):
            for name, *_ in CLASSES:
                (folder / part / name).mkdir(parents=True)
        for number, coded in enumerate(draw_all(_draw, jobs, "drawing FireRisk", workers)):
            block, place = divmod(number, BLOCK * BLOCK)
            row, column = divmod(place, BLOCK)
            latitude = north[block] - row * SIDE / DEGREES
            longitude = west[block] + column * SIDE / (DEGREES * np.cos(np.radians(north[block])))
            name, code = CLASSES[codes[number] - 1][:2]
            file = f"{points[number]}_{code}_{longitude:.12f}_{latitude:.13f}.png"
            (folder / ("val" if held_out[number] else "train") / name / file).write_bytes(coded)
    return root
