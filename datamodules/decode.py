"""Reads picture files of any kind as 8-bit RGB, and refuses those that cannot be used, with the reason."""

import functools
import struct
import zlib
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageOps

from launch.errors import DataError

MAX_PIXELS = 100_000_000
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".jp2")
# A closed list: some of Pillow's readers start other programs (EPS) or read other files.
_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM", "JPEG2000")
_DECODER_ERRORS = (
    OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, EOFError, OverflowError, MemoryError,
    struct.error, zlib.error,
)  # fmt: skip

Image.init()  # all readers are registered here, since the first pictures are opened by many threads at once
# Pillow's own limit cannot be set per file and would refuse what max_pixels allows; read_image checks
# instead.
Image.MAX_IMAGE_PIXELS = None


class BrokenImageError(DataError):
    """A picture that cannot be used; the text is the reason alone."""


def read_image(path: Path | IO[bytes], max_pixels: int = MAX_PIXELS, side: int | None = None) -> np.ndarray:
    """Decodes a picture to uint8 (H, W, 3) RGB.

    Greyscale and palette pictures become RGB, transparency lies on white, CMYK is converted, 16-bit
    greyscale is divided by 257, of an animation the first frame is taken and the EXIF orientation is
    applied. The size is checked from the header, before pixels are decoded.

    Args:
        path: picture file, or its content.
        max_pixels: the most pixels (width x height) that are accepted.
        side: when given, a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size (several times faster) as long
            as its shorter side stays at least twice this.

    Raises:
        BrokenImageError: missing, unreadable, truncated, too large, or one pixel wide.
    """
    try:
        with Image.open(path, formats=_readable()) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise BrokenImageError(
                    f"{width} x {height} pixels are more than the {max_pixels:,} allowed (max_pixels)"
                )
            if min(width, height) < 2:
                raise BrokenImageError(f"only {width} x {height} pixels")
            if side is not None and image.format == "JPEG":
                factor = min(1.0, 2 * side / min(width, height))
                image.draft(None, (int(np.ceil(width * factor)), int(np.ceil(height * factor))))
            image.load()
            return np.array(_to_rgb(ImageOps.exif_transpose(image)))
    except BrokenImageError:
        raise
    except FileNotFoundError as error:
        raise BrokenImageError("file is missing") from error
    except Image.UnidentifiedImageError as error:
        raise BrokenImageError("not a picture of a known format") from error
    except _DECODER_ERRORS as error:
        raise BrokenImageError(f"cannot be decoded: {error or type(error).__name__}") from error


@functools.cache
def _readable() -> tuple[str, ...]:
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise BrokenImageError("floating-point pixels have no fixed range")
    if image.mode.startswith("I"):
        wide = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
        return Image.fromarray(((wide + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")
