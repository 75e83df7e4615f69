"""Geometry of the one crop and resize that every picture gets, and of the points in it."""

from typing import Literal

import numpy as np
from PIL import Image

from datamodules.decode import BrokenImageError

Fit = Literal["crop", "pad", "squash"]
Box = tuple[float, float, float, float]


def crop_region(width: int, height: int, box: Box | None, fit: Fit) -> Box:
    """The part of the picture that becomes the square image: left, top, right, bottom in picture pixels.

    ``crop``: the centred square of the box's (or picture's) shorter side. ``pad``: of its longer side;
    around a box the picture is shown where there is some, beyond the picture it is black. ``squash``: all of
    it, stretched.

    Raises:
        BrokenImageError: the box is empty, not finite, or wholly outside the picture.
    """
    left, top, right, bottom = box if box is not None else (0.0, 0.0, float(width), float(height))
    if not np.isfinite([left, top, right, bottom]).all() or right - left <= 0 or bottom - top <= 0:
        raise BrokenImageError(f"its crop box ({left:g}, {top:g}, {right:g}, {bottom:g}) is empty")
    if fit != "squash":
        side = min(right - left, bottom - top) if fit == "crop" else max(right - left, bottom - top)
        middle_x, middle_y = (left + right) / 2, (top + bottom) / 2
        left, right = middle_x - side / 2, middle_x + side / 2
        top, bottom = middle_y - side / 2, middle_y + side / 2
    if right <= 0 or bottom <= 0 or left >= width or top >= height:
        raise BrokenImageError(f"its crop box ({left:g}, {top:g}, {right:g}, {bottom:g}) lies outside the picture")
    return left, top, right, bottom


def crop_resize(picture: np.ndarray, region: Box, size: int) -> np.ndarray:
    """Resamples a region to uint8 (size, size, 3); antialiased bicubic (Pillow), black outside the picture.

    Args:
        picture: uint8 (H, W, 3).
        region: as ``crop_region`` returns; may stick out.
        size: side of the result in pixels.
    """
    height, width = picture.shape[:2]
    # Only the part inside is resampled, so that a sliver of 20,000 x 10 pixels never becomes a square canvas.
    x0, x1, left, right = _inside(region[0], region[2], width, size)
    y0, y1, top, bottom = _inside(region[1], region[3], height, size)
    part = Image.fromarray(picture).resize(
        (x1 - x0, y1 - y0), Image.Resampling.BICUBIC, box=(left, top, right, bottom), reducing_gap=3.0
    )
    if (x1 - x0, y1 - y0) == (size, size):
        return np.asarray(part)
    square = np.zeros((size, size, 3), np.uint8)
    square[y0:y1, x0:x1] = np.asarray(part)
    return square


def _inside(start: float, end: float, length: int, size: int) -> tuple[int, int, float, float]:
    """Whole target pixels [first, last) that the picture covers along one axis, and their source interval."""
    scale = (end - start) / size
    first = min(max(int(np.ceil(-start / scale - 1e-6)), 0), size - 1)
    last = max(min(int(np.floor((length - start) / scale + 1e-6)), size), first + 1)
    low = min(max(start + first * scale, 0.0), float(length))
    high = min(max(start + last * scale, low), float(length))
    if high - low < 1e-3:  # a sliver thinner than one target pixel
        low, high = max(0.0, low - 1), min(float(length), low + 1)
    return first, last, low, high


def to_crop(points: np.ndarray, region: Box) -> np.ndarray:
    """Points (K, 2) from picture pixels to float32 crop coordinates, where 0 and 1 are the crop's edges."""
    left, top, right, bottom = region
    return ((np.asarray(points, np.float64) - (left, top)) / (right - left, bottom - top)).astype(np.float32)
