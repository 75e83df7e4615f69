"""Galaxies drawn from light profiles: Sersic spheroids, discs with logarithmic arms, bars, dust, tails.

Lengths are in pixels of a 256-pixel field. Light is summed in three linear bands (shown as red, green, blue),
blurred by the seeing, given noise, and shown through an asinh stretch (Lupton et al. 2004), as in the survey.
"""

from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Plane = NDArray[Any]

FIELD = 256.0
WARM = np.array([1.30, 1.00, 0.62], np.float32)
BLUE = np.array([0.78, 0.98, 1.32], np.float32)
NEUTRAL = np.array([1.05, 1.00, 0.88], np.float32)


@lru_cache(maxsize=4)
def _grid(side: int) -> tuple[Plane, Plane]:
    axis = ((np.arange(side) + 0.5) * (FIELD / side) - FIELD / 2).astype(np.float32)
    x, y = np.meshgrid(axis, axis)
    return x, y


def _turned(x: Plane, y: Plane, angle: float, axis_ratio: float) -> tuple[Plane, Plane]:
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return cos * x + sin * y, (cos * y - sin * x) / np.float32(axis_ratio)


def _sersic(radius: Plane, effective: float, index: float) -> Plane:
    b = 2 * index - 1 / 3
    # The centre is softened: a cusp falls between the pixels and would make brightness depend on the offset.
    soft = np.sqrt(radius * radius + np.float32(0.6))
    return np.exp(np.float32(-b) * ((soft / np.float32(effective)) ** np.float32(1 / index) - 1))


def _field(rng: Generator, cells: int, side: int) -> Plane:
    coarse = rng.standard_normal((cells, cells), dtype=np.float32)
    return cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC)


def _light(plane: Plane, brightness: float, colour: NDArray[np.float32]) -> Plane:
    return plane[..., None] * (np.float32(brightness) * colour)


def _tint(rng: Generator, colour: NDArray[np.float32], spread: float = 0.08) -> NDArray[np.float32]:
    # Starlight runs from red to blue; a shift the other way from warm would look green.
    shift = float(np.clip(rng.normal(0, spread), -1.2 * spread, 2.5 * spread))
    return colour * np.array([1 + shift, 1, 1 - shift], np.float32)


def _smooth(rng: Generator, x: Plane, y: Plane, size: float, ratio: float, index: float) -> Plane:
    u, v = _turned(x, y, rng.uniform(0, np.pi), ratio)
    # Boxy and discy isophotes: real ellipticals are not exact ellipses.
    power = rng.uniform(1.85, 2.2)
    radius = (np.abs(u) ** np.float32(power) + np.abs(v) ** np.float32(power)) ** np.float32(1 / power)
    colour = _tint(rng, WARM * 0.6 + NEUTRAL * 0.4, 0.14)
    return _light(_sersic(radius, size * 0.42, index), rng.uniform(0.1, 0.45), colour)


def _disc(
    rng: Generator,
    x: Plane,
    y: Plane,
    size: float,
    ratio: float,
    *,
    pitch: float,
    arms: int,
    contrast: float,
    bulge: float,
    bar: float = 0.0,
    ragged: float = 0.5,
) -> Plane:
    side = x.shape[0]
    angle = rng.uniform(0, np.pi)
    u, v = _turned(x, y, angle, ratio)
    sense = rng.choice([-1.0, 1.0])
    wobble = _field(rng, 7, side)
    radius = np.sqrt(u * u + v * v) + np.float32(0.5)
    theta = np.arctan2(v * np.float32(sense), u)
    bar_length = size * rng.uniform(0.3, 0.48)
    start = bar_length if bar else size * 0.16
    bar_angle = rng.uniform(0, np.pi)

    winding = np.log(radius / np.float32(start)) / np.float32(np.tan(np.radians(pitch)))
    phase = np.float32(arms) * (theta - winding - np.float32(bar_angle)) + np.float32(ragged) * wobble
    sharp = rng.uniform(1.2, 3.2)
    ridge = np.exp(np.float32(sharp) * (np.cos(phase) - 1))
    begin = 1 / (1 + np.exp(np.clip((np.float32(start) - radius) / np.float32(0.08 * size + 0.5), -30, 30)))
    fade = np.exp(-((radius / np.float32(size * rng.uniform(0.95, 1.25))) ** 4))
    clumps = np.exp(np.float32(0.55 * ragged + 0.15) * _field(rng, 34, side))
    arm = ridge * begin * fade * clumps

    base = np.exp(-radius / np.float32(size * 0.34))
    edge = np.exp(-((radius / np.float32(size * 1.35)) ** 6))
    level = rng.uniform(0.10, 0.34)
    old = _light(base * edge, level * 1.6, _tint(rng, NEUTRAL))
    slow = np.exp(-radius / np.float32(size * 0.75)) * edge
    image = old * np.float32(1 - 0.35 * contrast) + _light(arm * slow, level * 2.4 * contrast, _tint(rng, BLUE))
    # Dust follows the inner side of the arms and takes more blue than red.
    lane = np.exp(np.float32(4.0) * (np.cos(phase + np.float32(0.9)) - 1)) * begin * fade
    dust = np.float32(rng.uniform(0.1, 0.5) * contrast)
    image *= np.exp(-lane[..., None] * dust * np.array([0.5, 0.9, 1.3], np.float32))
    if bar:
        across, along = rng.uniform(0.16, 0.3), bar_length
        p, q = _turned(u, v * np.float32(sense), bar_angle, across)
        rod = np.exp(-(((p * p * p * p + q * q * q * q) ** np.float32(0.25) / np.float32(along)) ** 3))
        image += _light(rod, level * 1.9 * bar, _tint(rng, WARM * 0.7 + NEUTRAL * 0.3))
        if rng.random() < 0.3:
            ring = np.exp(-(((radius - np.float32(along * 1.05)) / np.float32(0.12 * along)) ** 2))
            image += _light(ring, level * 0.6, _tint(rng, BLUE))
    # A bulge is a ball: foreshortening leaves it rounder than the disc.
    bu, bv = _turned(x, y, angle, ratio ** rng.uniform(0.25, 0.6))
    core = _sersic(np.sqrt(bu * bu + bv * bv), size * (0.05 + 0.16 * bulge), rng.uniform(1.0, 2.4))
    return image + _light(core, level * (0.6 + 1.6 * bulge), _tint(rng, WARM))


def _edge_on(rng: Generator, x: Plane, y: Plane, size: float, thin: float, bulge: float) -> Plane:
    angle = rng.uniform(0, np.pi)
    u, v = _turned(x, y, angle, 1.0)
    u = u / np.float32(size)
    v = v + np.float32(rng.normal(0, 0.018) * size) * u * np.abs(u)
    height = max(thin * size, 1.3)
    thickness = np.float32(height) * (1 + np.float32(rng.uniform(-0.4, 0.5)) * np.abs(u))
    profile = 1 / np.cosh(np.clip(v / thickness, -40, 40)) ** 2
    along = np.exp(-np.abs(u) * np.float32(rng.uniform(1.2, 2.6))) * np.exp(-((u / np.float32(1.05)) ** 8))
    patchy = np.exp(np.float32(rng.uniform(0.02, 0.22)) * _field(rng, 40, x.shape[0]))
    level = rng.uniform(0.12, 0.5)
    red = np.exp(-np.abs(u) * 2.5)[..., None]
    inner, outer = (
        _tint(rng, WARM * 0.75 + NEUTRAL * 0.25),
        _tint(rng, BLUE * 0.5 + NEUTRAL * 0.5),
    )
    colour = red * inner + (1 - red) * outer
    image = (profile * along * patchy)[..., None] * (np.float32(level * 1.7) * colour)
    if bulge:
        flat = rng.uniform(0.6, 0.95)
        radius = np.sqrt((u * np.float32(size)) ** 2 + (v / np.float32(flat)) ** 2)
        image += _light(
            _sersic(radius, size * bulge, rng.uniform(1.0, 2.6)),
            level * 1.1,
            _tint(rng, WARM),
        )
    if rng.random() < 0.6:
        offset = v - np.float32(rng.normal(0, 0.25) * height)
        lane = np.exp(-((offset / np.float32(0.55 * height)) ** 2) - (u / np.float32(0.75)) ** 4)
        depth = np.float32(rng.uniform(0.2, 1.1))
        image *= np.exp(-lane[..., None] * depth * np.array([0.55, 0.9, 1.25], np.float32))
    return image


def _tail(rng: Generator, x: Plane, y: Plane, size: float, brightness: float) -> Plane:
    # A tidal tail: an arc that widens and fades with its length.
    angle, reach = rng.uniform(0, 2 * np.pi), size * rng.uniform(0.7, 1.5)
    u, v = _turned(x, y, angle, 1.0)
    sense = rng.choice([-1.0, 1.0])
    u = u + np.float32(reach * 0.9)
    radius = np.sqrt(u * u + v * v)
    turn = np.arctan2(v * np.float32(sense), u)
    width = np.float32(size * rng.uniform(0.06, 0.16)) * (1 + np.abs(turn))
    arc = np.exp(-(((radius - np.float32(reach)) / width) ** 2))
    span = np.float32(rng.uniform(1.0, 2.4))
    arc *= (turn > 0) * np.exp(-((turn / span) ** 4))
    mix = np.float32(rng.uniform(0.2, 0.8))
    return _light(arc, brightness, mix * NEUTRAL + (1 - mix) * BLUE)


def _random_body(rng: Generator, x: Plane, y: Plane, size: float) -> Plane:
    kind = rng.random()
    if kind < 0.45:
        return _smooth(rng, x, y, size * 0.9, rng.uniform(0.5, 1.0), rng.uniform(1.2, 3.5))
    if kind < 0.9:
        return _disc(
            rng, x, y, size, rng.uniform(0.35, 0.95), pitch=rng.uniform(12, 35), arms=2,
            contrast=rng.uniform(0.3, 0.9), bulge=rng.uniform(0.1, 0.8), ragged=rng.uniform(0.6, 1.4),
        )  # fmt: skip
    return _edge_on(rng, x, y, size, rng.uniform(0.07, 0.14), rng.uniform(0.0, 0.15))


def _disturbed(rng: Generator, x: Plane, y: Plane, size: float) -> Plane:
    side = x.shape[0]
    strength = np.float32(min(size * rng.uniform(0.1, 0.3), 12))
    wx, wy = x + strength * _field(rng, 6, side), y + strength * _field(rng, 6, side)
    body = _random_body(rng, wx, wy, size)
    torn = np.exp(np.float32(rng.uniform(0.25, 0.75)) * _field(rng, 8, side))
    # The torn light ends where the galaxy ends; a bent halo would look like a nebula.
    torn *= np.exp(-(((x * x + y * y) / np.float32(1.6 * size * size)) ** 2))
    image = body * torn[..., None]
    for _ in range(rng.integers(0, 3)):
        image += _tail(rng, wx, wy, size, rng.uniform(0.03, 0.12))
    for _ in range(rng.integers(0, 6)):
        image += _blob(
            x,
            y,
            rng.normal(0, size * 0.4, 2),
            size * rng.uniform(0.03, 0.09),
            0.25 * rng.random(),
            BLUE,
        )
    return image


def _merging(rng: Generator, x: Plane, y: Plane, size: float) -> Plane:
    side = x.shape[0]
    angle, apart = rng.uniform(0, 2 * np.pi), size * rng.uniform(0.55, 1.5)
    share = rng.uniform(0.35, 0.65)
    dx, dy = np.cos(angle) * apart, np.sin(angle) * apart
    strength = np.float32(size * rng.uniform(0.0, 0.15))
    wx, wy = x + strength * _field(rng, 5, side), y + strength * _field(rng, 5, side)
    first = _random_body(
        rng,
        wx - np.float32(dx * share),
        wy - np.float32(dy * share),
        size * rng.uniform(0.6, 0.95),
    )
    second = _random_body(
        rng,
        wx + np.float32(dx * (1 - share)),
        wy + np.float32(dy * (1 - share)),
        size * rng.uniform(0.35, 0.9),
    )
    image = first + second
    if rng.random() < 0.7:
        u, v = _turned(wx, wy, angle, rng.uniform(0.5, 0.95))
        halo = _sersic(np.sqrt(u * u + v * v), apart * rng.uniform(0.8, 1.2), 1.0)
        image += _light(halo, rng.uniform(0.01, 0.05), NEUTRAL)
    for _ in range(rng.integers(0, 3)):
        image += _tail(rng, wx, wy, size, rng.uniform(0.03, 0.12))
    return image


def _blob(
    x: Plane,
    y: Plane,
    at: NDArray[np.float64],
    width: float,
    brightness: float,
    colour: Plane,
) -> Plane:
    squared = (x - np.float32(at[0])) ** 2 + (y - np.float32(at[1])) ** 2
    return _light(np.exp(squared * np.float32(-0.5 / (width * width))), brightness, colour)


def _body(kind: int, rng: Generator, x: Plane, y: Plane) -> Plane:
    size = float(np.exp(rng.normal(np.log(52), 0.34)).clip(24, 100))
    if kind == 0:
        return _disturbed(rng, x, y, size)
    if kind == 1:
        return _merging(rng, x, y, size)
    if kind == 2:
        return _smooth(rng, x, y, size * 0.75, rng.uniform(0.82, 1.0), rng.uniform(1.2, 4.2))
    if kind == 3:
        return _smooth(rng, x, y, size * 0.85, rng.uniform(0.42, 0.82), rng.uniform(1.2, 4.0))
    if kind == 4:
        return _smooth(rng, x, y, size, rng.uniform(0.19, 0.38), rng.uniform(1.0, 2.2))
    if kind == 8:
        return _edge_on(rng, x, y, size * 1.25, rng.uniform(0.035, 0.11), 0.0)
    if kind == 9:
        return _edge_on(rng, x, y, size * 1.25, rng.uniform(0.035, 0.1), rng.uniform(0.05, 0.18))
    ratio = rng.uniform(0.4, 1.0)
    contrast = 0.2 + 0.8 * float(rng.beta(2.2, 1.6))
    if kind == 5:
        return _disc(
            rng, x, y, size, ratio, pitch=rng.uniform(12, 32), arms=2, contrast=contrast,
            bulge=rng.uniform(0.1, 0.6), bar=rng.uniform(0.25, 1.2), ragged=rng.uniform(0.2, 0.8),
        )  # fmt: skip
    if kind == 6:
        arms = int(rng.choice([2, 2, 3, 4]))
        return _disc(
            rng, x, y, size * 1.1, ratio, pitch=rng.uniform(2 + 2.2 * arms, 16), arms=arms,
            contrast=contrast, bulge=rng.uniform(0.35, 1.0), ragged=rng.uniform(0.2, 0.9),
        )  # fmt: skip
    return _disc(
        rng, x, y, size, ratio, pitch=rng.uniform(15, 40), arms=int(rng.choice([2, 2, 2, 3, 4])),
        contrast=contrast, bulge=rng.uniform(0.05, 0.6), ragged=rng.uniform(0.3, 1.2),
    )  # fmt: skip


def _neighbours(rng: Generator, x: Plane, y: Plane) -> Plane:
    # Stars and faint galaxies are small: each is added in a window of its own.
    side = x.shape[0]
    image = np.zeros((side, side, 3), np.float32)
    step = FIELD / side
    for _ in range(rng.poisson(rng.uniform(6, 34))):
        at = rng.uniform(-FIELD / 2, FIELD / 2, 2)
        brightness = 0.04 * float(rng.pareto(1.1) + 0.4)
        galaxy = rng.random() < 0.45
        width = rng.uniform(1.6, 4.0) if galaxy else rng.uniform(1.0, 1.5)
        reach = int(np.ceil((4 if galaxy else 3.4) * width * (1.5 if brightness > 0.6 else 1) / step)) + 1
        column, row = ((at + FIELD / 2) / step).astype(int)
        window = np.s_[
            max(row - reach, 0) : row + reach + 1,
            max(column - reach, 0) : column + reach + 1,
        ]
        u, v = x[window] - np.float32(at[0]), y[window] - np.float32(at[1])
        colour = _tint(rng, NEUTRAL if galaxy else np.ones(3, np.float32), 0.16 if galaxy else 0.36)
        if galaxy:
            u, v = _turned(u, v, rng.uniform(0, np.pi), rng.uniform(0.4, 1))
        squared = (u * u + v * v) / np.float32(2 * width * width)
        image[window] += _light(np.exp(-squared), min(brightness, 0.25 if galaxy else 4.0), colour)
    return image


def _blurred(image: Plane, sigma: float) -> Plane:
    return cv2.GaussianBlur(image, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE).astype(np.float32, copy=False)


def draw_galaxy(kind: int, rng: Generator, size: int = 256) -> NDArray[np.uint8]:
    """One field with a galaxy near its centre.

    Args:
        kind: Official class index of Galaxy10 DECaLS, 0 to 9.
        rng: Source of all randomness of the picture.
        size: Side of the picture in pixels; the field of view stays the same.

    Returns:
        RGB, shape (size, size, 3).
    """
    side = size // 2 if size >= 192 else size
    x, y = _grid(side)
    cx, cy = rng.normal(0, 3.0, 2)
    image: Plane = _body(kind, rng, x - np.float32(cx), y - np.float32(cy))
    if rng.random() < 0.12:  # a second galaxy in the field by chance, not a merger
        angle, apart = rng.uniform(0, 2 * np.pi), rng.uniform(70, 120)
        u, v = (
            x - np.float32(apart * np.cos(angle)),
            y - np.float32(apart * np.sin(angle)),
        )
        image += _random_body(rng, u, v, rng.uniform(14, 34)) * np.float32(0.7)
    dim = float(np.exp(rng.normal(-0.1, 0.5)))
    image = image * np.float32(dim) + _neighbours(rng, x, y)
    seeing = rng.uniform(1.1, 2.4) * side / FIELD
    image = _blurred(image, seeing)
    if side != size:
        image = cv2.resize(image, (size, size), interpolation=cv2.INTER_CUBIC).astype(np.float32, copy=False)
    noise = _blurred(rng.standard_normal((size, size, 3), dtype=np.float32), 0.7)
    depth = np.float32(rng.uniform(0.012, 0.05))
    image += noise * (depth * np.array([1.0, 0.8, 0.9], np.float32)) + np.float32(0.022)
    # Lupton's stretch keeps colours in bright cores: one factor for the three bands.
    intensity = np.maximum((image[..., 0] + image[..., 1] + image[..., 2]) / 3, np.float32(1e-3))
    image *= (np.arcsinh(np.float32(9.0) * intensity) * np.float32(255 / 2.9) / intensity)[..., None]
    return cv2.convertScaleAbs(np.maximum(image, 0, out=image)).astype(np.uint8, copy=False)
