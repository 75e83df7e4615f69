"""Answers drawn under a picture: all of their text is there, whatever it is written in."""

import io

import numpy as np
import pytest
from PIL import Image

from merging.answer_pictures import draw_answers, writable
from merging.answers import Answered, Seen


def drawn(name: str, width: int = 100) -> np.ndarray:
    picture = np.full((50, width, 3), 255, np.uint8)
    answers = {"kind": {"class": name, "probability": 0.5}}
    return draw_answers([Answered(Seen("a.png", picture=(picture, 1.0)), answers)])


def test_a_page_is_as_wide_as_its_text() -> None:
    """The last line of ink is the number's, after a class name that is the longer the further right."""
    edges = {length: int(np.nonzero((drawn("m" * length) < 128).any(axis=(0, 2)))[0].max()) for length in (5, 200, 300)}
    assert edges[300] - edges[200] == pytest.approx((edges[200] - edges[5]) * 100 / 195, abs=3)
    assert drawn("m" * 300).shape[1] == pytest.approx(edges[300] + 8, abs=3)
    assert drawn("short").shape[1] == 320
    assert drawn("short", 500).shape[1] == 500


def test_no_text_is_too_wide_for_a_file() -> None:
    Image.fromarray(drawn("m" * 50_000)).save(io.BytesIO(), "JPEG")


def test_characters_that_the_font_lacks_are_escaped() -> None:
    assert writable("Oak (50 %), 3-4_x") == "Oak (50 %), 3-4_x"
    words = "\u00c4rger, d\u00e9go\u00fbt, \u0441\u0442\u0440\u0430\u0445"
    assert writable(words) == words
    assert writable("\u732b \U00020000\n") == r"\u732b \U00020000\u000a"
    assert (drawn("\u732b\u732b") == drawn(r"\u732b\u732b")).all()
    assert (drawn("\u732b\u732b") != drawn("\u72ac\u72ac")).any()
