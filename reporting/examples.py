"""Example pictures that a run left: ``<run>/examples/examples.json`` and the pictures it names.

The JSON is a list of ``{"task", "image", "target", "single", "merged"}``. ``image`` is a file beside it; the others are
a class name, a number, or points ``[[x, y], ...]`` in [0, 1] of the picture. A train run has no ``merged``; a merge
has ``method``, ``realign`` and ``set`` besides.
"""

import base64
import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

from PIL import Image

from datamodules.decode import BrokenImageError, read_image

SIDE = 144  # pixels
PER_TASK = 12  # of a run
FOLDER = "examples"


def read_examples(run: Path, origin: int, left_out: list[tuple[str, str]]) -> list[dict[str, Any]]:
    """The run's examples with small pictures as ``data:`` addresses; a broken file is added to ``left_out``."""
    file = run / FOLDER / "examples.json"
    if not file.exists():
        return []
    try:
        listed = _first(json.loads(file.read_text(encoding="utf-8"), parse_constant=no_number))
        return [{**_known(item), "image": _thumbnail(file.parent, item["image"]), "origin": origin} for item in listed]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, BrokenImageError) as error:
        left_out.append(
            (str(file), f"examples cannot be read: {str(error).splitlines()[0] if str(error) else error!r}")
        )
        return []


def no_number(text: str) -> float:
    """For ``json.loads(parse_constant=...)``: NaN and Infinity are no JSON, and a page with them cannot be read.

    Raises:
        ValueError: always.
    """
    raise ValueError(f"{text} is no number in JSON")


def _first(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first ``PER_TASK`` of each task."""
    taken: Counter[str] = Counter()
    kept = []
    for item in items:
        taken[item["task"]] += 1
        if taken[item["task"]] <= PER_TASK:
            kept.append(item)
    return kept


def _known(item: dict[str, Any]) -> dict[str, Any]:
    return {name: item.get(name) for name in ("task", "target", "single", "merged", "method", "realign", "set")}


def _thumbnail(folder: Path, name: str) -> str:
    """A small copy; of a picture in ``folder`` alone, since the page may be passed on and the run may be another's."""
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise ValueError(f"{name} lies outside of the run")
    small = Image.fromarray(read_image(path))
    small.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
