"""A picture to look at before anything is trained: examples with their targets, and what augmentation makes of one."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
from PIL import Image, ImageDraw, ImageFont

from datamodules.base import SPLITS
from datamodules.cache import PixelCache
from datamodules.prepare import Kind, Prepared
from datamodules.splits import seeded_rank
from launch.files import atomic_write

COLUMNS, ROWS = 8, 4
TILE = 160  # pixels of a side
_LINE, _GAP, _MARGIN = 18, 6, 12
_PAPER, _INK = (255, 255, 255), (34, 34, 34)
_SPLIT_INK = dict(zip(SPLITS, (_INK, (0, 90, 200), (190, 60, 0)), strict=True))


@dataclass(frozen=True)
class View:
    """One task's way of seeing a dataset.

    Attributes:
        task: its name.
        kind: classification | regression | keypoints.
        prepared, cache: of the dataset for this task.
        augment, flip_index: as ``transforms.Augment`` takes them.
    """

    task: str
    kind: Kind
    prepared: Prepared
    cache: PixelCache
    augment: Mapping[str, Any] | None = None
    flip_index: Sequence[int] | None = None


def write_preview(path: Path, title: str, views: Sequence[View], seed: int = 0) -> None:
    """Writes a PNG: rows of examples, the same ones for all tasks, then one example augmented in each task's way.

    Args:
        path: of the picture.
        title: its first line.
        views: the tasks of one dataset; the first one's pixels and choice of examples are shown.
        seed: of the choice and the augmentation.

    Raises:
        UserError: the picture cannot be written.
    """
    buffer = io.BytesIO()
    Image.fromarray(draw_preview(title, views, seed)).save(buffer, "PNG")
    atomic_write(path, buffer.getvalue())


def draw_preview(title: str, views: Sequence[View], seed: int = 0) -> np.ndarray:
    """The picture of ``write_preview``, uint8 (H, W, 3)."""
    first = views[0]
    chosen = choose(first, ROWS * COLUMNS, seed)
    rows = [chosen[start : start + COLUMNS] for start in range(0, len(chosen), COLUMNS)]
    pitch = TILE + len(views) * _LINE + _GAP
    ways = _ways(views)
    height = 2 * _MARGIN + 2 * _LINE + len(rows) * pitch + len(ways) * (TILE + _LINE + _GAP)
    width = 2 * _MARGIN + COLUMNS * TILE + (COLUMNS - 1) * _GAP
    page = Image.new("RGB", (width, height), _PAPER)
    pen = ImageDraw.Draw(page)
    _write(pen, _MARGIN, _MARGIN, title, width - 2 * _MARGIN, _INK, 15)
    at = _MARGIN
    for split in SPLITS:
        count = sum(first.prepared.counts[split].values())
        at += _write(pen, at, _MARGIN + _LINE, f"{split} {count:,}", width, _SPLIT_INK[split]) + 16
    top = _MARGIN + 2 * _LINE
    captions = [_captions(view) for view in views]
    places = {key: place for place, key in enumerate(first.cache.keys)}
    splits = dict(zip(first.prepared.table["key"], first.prepared.table["split"], strict=True))
    for row in rows:
        for column, key in enumerate(row):
            left = _MARGIN + column * (TILE + _GAP)
            image, points = _pixels(first, places[key])
            page.paste(Image.fromarray(draw_tile(image, points)), (left, top))
            for line, found in enumerate(captions):
                y = top + TILE + 1 + line * _LINE
                _write(pen, left, y, found.get(key, "not used"), TILE, _SPLIT_INK[splits[key]])
        top += pitch
    for names, view in ways.items():
        _write(pen, _MARGIN, top, f"{names}: one picture, then as augmentation changes it", width, _INK)
        for column, (image, points) in enumerate(_augmented(view, seed)):
            page.paste(Image.fromarray(draw_tile(image, points)), (_MARGIN + column * (TILE + _GAP), top + _LINE))
        top += TILE + _LINE + _GAP
    return np.asarray(page)


def choose(view: View, count: int, seed: int) -> list[str]:
    """Keys of examples to show: as many of each class, or evenly over a number's range, in the target's order."""
    table = view.prepared.table
    table = table[table["key"].isin(set(view.cache.keys))]
    # Not the order that made the split: it would show nothing but test examples.
    rank = seeded_rank([f"preview:{key}" for key in table["key"]], seed)
    if view.kind == "keypoints":
        return sorted(table["key"].to_numpy()[np.argsort(rank, kind="stable")[:count]])
    table = table.assign(rank=rank).sort_values(["target", "rank"])
    if view.kind == "regression":
        return list(table["key"].iloc[np.linspace(0, len(table) - 1, min(count, len(table))).round().astype(int)])
    table["turn"] = table.groupby("target").cumcount()
    shown: pd.DataFrame = table.sort_values(["turn", "target"]).head(count).sort_values(["target", "turn"])
    return list(shown["key"])


def draw_tile(image: np.ndarray, points: np.ndarray | None, side: int = TILE) -> np.ndarray:
    """uint8 (side, side, 3): the picture scaled, with dots.

    The dots' colours go from red to violet with the points' numbers, so that left and right points that have
    changed places are seen.

    Args:
        image: uint8 (S, S, 3).
        points: (K, 2) in crop coordinates, or None.
        side: of the result in pixels.
    """
    method = cv2.INTER_AREA if side < image.shape[0] else cv2.INTER_CUBIC
    tile = cv2.resize(np.ascontiguousarray(image), (side, side), interpolation=method)
    if points is None:
        return tile
    wheel = np.stack([np.linspace(0, 150, len(points)), np.full(len(points), 255), np.full(len(points), 255)], axis=-1)
    colours = cv2.cvtColor(wheel.astype(np.uint8)[None], cv2.COLOR_HSV2RGB)[0].tolist()
    fine = 16  # OpenCV takes sixteenths of a pixel
    for (x, y), colour in zip((np.asarray(points, np.float64) * side - 0.5) * fine, colours, strict=True):
        if abs(x) < 2**20 and abs(y) < 2**20:
            cv2.circle(tile, (round(x), round(y)), round(side / 110 * fine), colour, -1, cv2.LINE_AA, shift=4)
    return tile


def _pixels(view: View, place: int) -> tuple[np.ndarray, np.ndarray | None]:
    points = view.cache.points
    return np.asarray(view.cache.pixels[place]), None if points is None else points[place]


def _captions(view: View) -> dict[str, str]:
    table = view.prepared.table
    if view.kind == "keypoints":
        return dict(zip(table["key"], table["split"], strict=True))
    if view.kind == "regression":
        texts = [f"{value:.3g}" for value in table["target"]]
    else:
        assert view.prepared.classes is not None  # holds for every classification
        texts = [view.prepared.classes[index] for index in table["target"]]
    return dict(zip(table["key"], texts, strict=True))


def _ways(views: Sequence[View]) -> dict[str, View]:
    """Tasks' names, joined where they augment alike, to the first of them."""
    names: dict[str, list[View]] = {}
    for view in views:
        names.setdefault(repr((view.augment, view.flip_index)), []).append(view)
    return {", ".join(view.task for view in alike): alike[0] for alike in names.values()}


def _augmented(view: View, seed: int) -> list[tuple[np.ndarray, np.ndarray | None]]:
    from datamodules.transforms import Augment  # takes a second to import

    keys = set(choose(view, 1, seed))
    place = next(place for place, key in enumerate(view.cache.keys) if key in keys)
    image, points = _pixels(view, place)
    shown = [(image, points)]
    if not view.augment:
        return shown
    augment = Augment(view.augment, view.flip_index, None if points is None else len(points))
    many = np.repeat(image[None], COLUMNS - 1, axis=0)
    moved = None if points is None else np.repeat(points[None], COLUMNS - 1, axis=0)
    images, moved = augment(many, moved, f"preview:{seed}")
    return shown + [(image, None if moved is None else moved[number]) for number, image in enumerate(images)]


def _write(
    pen: ImageDraw.ImageDraw, left: int, top: int, text: str, room: int, ink: tuple[int, int, int], size: int = 12
) -> int:
    """Writes a line, cut to the room there is, and returns its width in pixels."""
    font = ImageFont.load_default(size)
    while pen.textlength(text, font=font) > room and len(text) > 1:
        text = text.rstrip("…")[:-1] + "…"
    pen.text((left, top), text, fill=ink, font=font)
    return int(pen.textlength(text, font=font))
