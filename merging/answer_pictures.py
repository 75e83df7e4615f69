"""A picture with what a model says of it: boxes of faces, points as dots, a line of text for each answer."""

import contextlib
import functools
import io
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from launch.files import atomic_folder, write_json
from merging.answer_places import DRAWINGS, DRAWN, require_drawings
from merging.answers import Answered

_LINE, _MARGIN, _LEAST = 20, 8, 320  # pixels: height of a line, margin, least width of the page
_MOST = 16_000  # pixels that text may widen a page to: a JPEG has at most 65,500
_NO_CHARACTER = "\U0010ffff"  # which no font can have
_PAPER, _INK, _FACE = (255, 255, 255), (34, 34, 34), (0, 200, 90)


def caption(name: str, told: dict[str, Any]) -> str:
    """``galaxy: spiral 0.93``, ``age_regression: 31.2 years``, ``landmarks: 98 points``."""
    if "class" in told:
        return f"{name}: {told['class']} {told['probability']:.2f}"
    if "value" in told:
        value = "not finite" if told["value"] is None else f"{told['value']:.3g}"
        return f"{name}: {value} {told['unit']}".rstrip()
    return f"{name}: {len(told['points'])} points"


def draw_answers(found: Sequence[Answered]) -> np.ndarray:
    """uint8 (H, W, 3) of all the answers that belong to one picture (one, or one for each face).

    Args:
        found: the first one's ``seen.picture`` is drawn on.
    """
    assert found[0].seen.picture is not None
    pixels, factor = found[0].seen.picture
    lines = []
    for answered in found:
        number = "" if answered.seen.face is None else f"face {answered.seen.face}: "
        texts = [caption(name, told) for name, told in answered.answers.items()]
        lines += [number + text for text in texts] + ([answered.seen.fault] if answered.seen.fault else [])
    lines, font = [writable(line) for line in lines], _font()
    height, width = pixels.shape[:2]
    text = max((font.getlength(line) for line in lines), default=0.0) + 2 * _MARGIN
    wide = max(width, _LEAST, min(math.ceil(text), _MOST))
    page = Image.new("RGB", (wide, height + len(lines) * _LINE + 2 * _MARGIN), _PAPER)
    page.paste(Image.fromarray(pixels), (0, 0))
    pen = ImageDraw.Draw(page)
    for answered in found:
        if answered.seen.box is not None:
            left, top, right, bottom = (factor * edge for edge in answered.seen.box)
            pen.rectangle((left, top, right, bottom), outline=_FACE, width=2)
            pen.text((left + 3, top + 1), str(answered.seen.face), fill=_FACE, font=font)
        for told in answered.answers.values():
            _dot(pen, told.get("points", []), factor, max(1.0, min(height, width) / 250))
    for place, line in enumerate(lines):
        pen.text((_MARGIN, height + _MARGIN + place * _LINE), line, fill=_INK, font=font)
    return np.asarray(page)


def writable(text: str) -> str:
    """The text with ``\\u...`` for each character that the font would draw as the same box."""
    return "".join(char if _has_glyph(char) else _escape(char) for char in text)


def _escape(char: str) -> str:
    return f"\\u{ord(char):04x}" if ord(char) < 2**16 else f"\\U{ord(char):08x}"


@functools.cache
def _has_glyph(char: str) -> bool:
    return _looks(char) != _looks(_NO_CHARACTER)


def _looks(char: str) -> tuple[tuple[int, int], bytes]:
    mask = _font().getmask(char)
    return mask.size, bytes(mask)


@functools.cache
def _font() -> ImageFont.FreeTypeFont:
    # Pillow's own has hardly more than ASCII; this one writes Latin, Greek and Cyrillic
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    return ImageFont.truetype(str(path), 13, layout_engine=ImageFont.Layout.BASIC)


def _dot(pen: ImageDraw.ImageDraw, points: Sequence[Sequence[float]], factor: float, radius: float) -> None:
    # red to violet by number, so that left and right points that have changed places are seen
    wheel = Image.new("HSV", (max(len(points), 1), 1))
    wheel.putdata([(round(150 * place / max(len(points) - 1, 1)), 255, 255) for place in range(max(len(points), 1))])
    colours = wheel.convert("RGB").load()
    assert colours is not None
    for place, (x, y) in enumerate(points):
        at_x, at_y = x * factor, y * factor
        if abs(at_x) < 2**20 and abs(at_y) < 2**20:
            box = (at_x - radius, at_y - radius, at_x + radius, at_y + radius)
            pen.ellipse(box, fill=colours[place, 0])


@contextlib.contextmanager
def picture_folder(path: Path) -> Iterator[Path]:
    """Yields an empty folder for ``write_picture`` that takes the place of earlier drawings when the block ends well.

    Raises:
        UserError: there is something else than earlier drawings, or it cannot be written.
    """
    path = path.resolve()  # of a link what it leads to is replaced
    with atomic_folder(path) as folder:
        yield folder
        write_json(folder / DRAWN, {DRAWINGS: sorted(drawing.name for drawing in folder.iterdir())})
        require_drawings(path)  # a last look: what has come in the meantime is not ours


def write_picture(folder: Path, number: int, found: Sequence[Answered]) -> None:
    """Writes ``<number>-<name of the file>.jpg``."""
    stem = re.sub(r"[^A-Za-z0-9_.-]+", "_", Path(found[0].seen.file).stem)[:60]
    buffer = io.BytesIO()
    Image.fromarray(draw_answers(found)).save(buffer, "JPEG", quality=90)
    (folder / f"{number:07}-{stem}.jpg").write_bytes(buffer.getvalue())
