"""Pictures to look at: the right examples, dots where the points are, also after a flip."""

from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from datamodules.cache import PixelCache
from datamodules.prepare import Kind, Prepared, split_counts
from datamodules.preview import TILE, View, choose, draw_preview, draw_tile, write_preview

FLIP = {
    "hflip": True, "vflip": False, "rotate": 0.0, "scale": 0.0, "translate": 0.0, "brightness": 0.0, "contrast": 0.0,
    "saturation": 0.0, "hue": 0.0,
}  # fmt: skip


def view(kind: Kind, targets: list, points: np.ndarray | None = None, left_out: int = 0, **more: object) -> View:
    count = len(targets)
    keys = [f"{number:03d}" for number in range(count)]
    splits = [("train", "train", "val", "test")[number % 4] for number in range(count)]
    table = pd.DataFrame({"key": keys, "target": targets, "split": splits})
    classes = [f"class {index}" for index in range(max(targets) + 1)] if kind == "classification" else None
    prepared = Prepared(table, classes, "f", {}, split_counts(table, classes))
    used = count - left_out
    pixels = np.random.default_rng(0).integers(90, 160, (used, 16, 16, 3), dtype=np.uint8)
    return View("task", kind, prepared, PixelCache(Path("x"), pixels, points, keys[:used]), **more)  # type: ignore[arg-type]


def test_every_class_is_shown_as_often_as_it_can_be() -> None:
    seen = view("classification", [0] * 50 + [1] * 3 + [2] * 50)
    targets = dict(zip(seen.prepared.table["key"], seen.prepared.table["target"], strict=True))
    shown = [targets[key] for key in choose(seen, 13, seed=0)]
    assert shown == [0] * 5 + [1] * 3 + [2] * 5


def test_a_number_is_shown_over_its_range() -> None:
    seen = view("regression", [float(number % 50) for number in range(200)])
    targets = dict(zip(seen.prepared.table["key"], seen.prepared.table["target"], strict=True))
    shown = [targets[key] for key in choose(seen, 8, seed=0)]
    assert shown == sorted(shown)
    assert (shown[0], shown[-1]) == (0.0, 49.0)


def test_the_choice_is_seeded_and_leaves_broken_pictures_out() -> None:
    seen = view("classification", [number % 2 for number in range(100)], left_out=50)
    assert choose(seen, 10, seed=0) == choose(seen, 10, seed=0) != choose(seen, 10, seed=1)
    assert max(choose(seen, 32, seed=0)) < "050"


def test_dots_lie_on_their_points() -> None:
    image = np.full((40, 40, 3), 128, np.uint8)
    tile = draw_tile(image, np.array([[0.25, 0.75], [0.5, 0.1], [2.0, -1.0], [1e9, 0.5]]), side=160)
    marked = np.argwhere((tile != 128).any(axis=2))
    assert {(round(x / 8), round(y / 8)) for y, x in marked} <= {(5, 15), (10, 2)}
    assert (tile[120, 40] != 128).any()
    assert (tile[16, 80] != 128).any()


def test_dots_follow_augmentation_and_swapped_points_keep_their_colours() -> None:
    points = np.tile(np.array([[0.2, 0.5], [0.8, 0.5]], np.float32), (4, 1, 1))
    given = view("keypoints", list(points), points, augment=FLIP, flip_index=[1, 0])
    page = draw_preview("drawn", [given], seed=0)
    # Red is point 0 and stays left, after a flip too, since the two points change places.
    row = page[-TILE - 40 :]
    red = (row[..., 0] > 230) & (row[..., 1] < 60) & (row[..., 2] < 60)
    columns = np.flatnonzero(red.any(axis=0))
    places = {int((column - 12) % (TILE + 6) / TILE * 10) for column in columns}
    assert places <= {1, 2}
    assert len({int((column - 12) // (TILE + 6)) for column in columns}) == 8


def test_two_tasks_of_one_set_share_the_examples(tmp_path: Path) -> None:
    classes = view("classification", [number % 3 for number in range(60)])
    numbers = view("regression", [float(number) for number in range(60)], augment=FLIP)
    one = draw_preview("set", [classes])
    both = draw_preview("set", [classes, numbers])
    assert both.shape[0] > one.shape[0]
    assert (both[60 : 60 + 100] == one[60 : 60 + 100]).all()
    write_preview(tmp_path / "previews" / "set.png", "set", [classes, numbers])
    with Image.open(tmp_path / "previews" / "set.png") as picture:
        assert picture.size == (both.shape[1], both.shape[0])
    assert [path.name for path in (tmp_path / "previews").iterdir()] == ["set.png"]


def test_few_examples_are_enough() -> None:
    assert draw_preview("few", [view("classification", [0, 1])]).ndim == 3
    assert draw_preview("few", [view("regression", [1.0, 2.0])]).ndim == 3
