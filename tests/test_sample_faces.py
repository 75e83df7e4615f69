"""Drawn faces: landmarks lie on the features they name, labels are true, layouts are the published ones."""

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import dlib
import numpy as np
import pytest
from numpy.random import Generator

from datamodules.sample.face_model import EXPRESSIONS, Face, random_face
from datamodules.sample.face_render import draw_face
from datamodules.sample.faces import ATTRIBUTES, ODD_NAMES, write_expw, write_utkface, write_wflw
from datamodules.sample.landmarks98 import EYE_CORNERS, FLIP, shape
from datamodules.sample.pool import generator

GREY = 0.5


def _picture(path: Path) -> np.ndarray:
    image = cv2.imread(str(path))
    assert image is not None
    return image


@pytest.fixture(scope="module")
def utkface(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_utkface(tmp_path_factory.mktemp("utkface"), 48, seed=1)


@pytest.fixture(scope="module")
def expw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_expw(tmp_path_factory.mktemp("expw"), 50, seed=1)


@pytest.fixture(scope="module")
def wflw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_wflw(tmp_path_factory.mktemp("wflw"), 40, seed=1)


def _plain_face(number: int, **changes: Any) -> tuple[Face, Generator]:
    rng = generator(7, number)
    face = random_face(rng, age=30, race=0, expression=6, strength=(0, 0), yaw=0, pitch=0, roll=0)
    even: dict[str, Any] = {"glasses": "none", "light": np.array([0.0, -0.2, 1.0]), "exposure": 1.0, "make_up": 0.0}
    return replace(face, **{**even, **changes}), rng


def test_flip_is_an_involution_that_mirrors_every_face() -> None:
    assert (FLIP[FLIP] == np.arange(98)).all()
    assert FLIP[EYE_CORNERS[0]] == EYE_CORNERS[1]
    for number in range(20):
        points = shape(random_face(generator(3, number)))
        assert np.abs(points[FLIP] * [-1, 1] - points).max() < 0.06  # faces are a little lopsided
        assert np.hypot(*(points[60] - points[72])) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize(
    ("yaw", "pitch", "roll"), [(0, 0, 0), (25, 0, 0), (-25, 0, 0), (0, 12, 0), (0, -12, 0), (12, 5, 30)]
)
def test_pupils_are_where_the_irises_are_drawn(yaw: float, pitch: float, roll: float) -> None:
    for number in range(3):
        face, rng = _plain_face(number, iris=np.array([0.0, 1.0, 0.0]), yaw=yaw, pitch=pitch, roll=roll)
        image = np.full((300, 300, 3), GREY, np.float32)
        points = draw_face(image, face, (150, 160), 100.0, rng)
        green = np.clip(image[..., 1] - np.maximum(image[..., 0], image[..., 2]) - 0.12, 0, None)
        y, x = np.mgrid[:300, :300]
        for pupil, first in ((96, 60), (97, 68)):
            middle = points[first : first + 8].mean(axis=0)
            near = green * (np.hypot(x - middle[0], y - middle[1]) < 22)
            assert near.sum() > 5
            found = np.array([(near * x).sum(), (near * y).sum()]) / near.sum()
            assert np.hypot(*(found - points[pupil])) < 5  # lids cover a part; the eyes are 100 pixels apart


def test_brows_and_mouth_lie_under_their_points() -> None:
    for number in range(4):
        face, rng = _plain_face(number, hair=np.array([0.0, 0.0, 1.0]), hair_style="short", fringe=0.0, beard=0.0,
                                moustache=0.0)  # fmt: skip
        face = replace(face, mimic=replace(face.mimic, jaw_drop=0.3), yaw=10.0, roll=10.0)
        image = np.full((300, 300, 3), GREY, np.float32)
        points = draw_face(image, face, (150, 160), 100.0, rng)

        def inside(ring: np.ndarray, picture: np.ndarray = image) -> np.ndarray:
            mask = np.zeros((300, 300), np.uint8)
            cv2.fillPoly(mask, [np.round(ring).astype(np.int32)], 1)
            return picture[mask.astype(bool)].mean(axis=0)

        for first in (33, 42):
            brow = inside(points[first : first + 9])
            below = inside(points[first : first + 9] + np.array([0, 14]))
            assert brow[2] - brow[0] > below[2] - below[0] + 0.2
        assert inside(points[88:96]).mean() < inside(points[76:88] + np.array([0, 42])).mean()


def test_contour_follows_the_visible_outline_of_a_turned_head() -> None:
    for yaw in (-45.0, 45.0):
        face, rng = _plain_face(2, yaw=yaw, hair_style="short", fringe=0.0, beard=0.0)
        points = draw_face(np.full((300, 300, 3), GREY, np.float32), face, (150, 160), 80.0, rng)
        far, near = (range(3, 13), range(20, 30)) if yaw < 0 else (range(20, 30), range(3, 13))
        inner_eye = points[68] if yaw < 0 else points[64]
        assert min(abs(points[i, 0] - points[54, 0]) for i in near) > 2 * max(
            abs(points[i, 0] - points[54, 0]) for i in far
        )
        assert np.sign(points[54, 0] - inner_eye[0]) == np.sign(yaw)


def test_expressions_move_the_points_that_they_are_named_for() -> None:
    """Against the same person at rest, in units of the distance between the eyes; y grows downwards."""

    def at(expression: str, number: int) -> np.ndarray:
        kind = EXPRESSIONS.index(expression)
        return shape(random_face(generator(11, number), age=30, race=0, expression=kind, strength=(1, 1)))

    def lower(expression: str, points: list[int]) -> float:
        moved = [at(expression, number)[points, 1] - at("neutral", number)[points, 1] for number in range(12)]
        return float(np.median(moved))

    corners, brows, chin = [76, 82], [37, 38, 42, 50], [16]
    assert lower("happy", corners) < -0.05 < 0.05 < lower("sad", corners)
    assert lower("surprise", brows) < -0.08 < 0.08 < lower("angry", brows)
    assert lower("surprise", chin) > lower("happy", chin) + 0.05


def test_age_shows_in_the_picture() -> None:
    """Wrinkles of the forehead, and the short face of a child."""

    def drawn(age: float, number: int) -> tuple[float, float]:
        rng = generator(13, number)
        face = random_face(rng, age=age, race=0, expression=6, strength=(0, 0), yaw=0, pitch=0, roll=0)
        face = replace(face, glasses="none", light=np.array([0.0, -0.2, 1.0]), exposure=1.0, make_up=0.0, fringe=0.0)
        image = np.full((300, 300, 3), GREY, np.float32)
        points = draw_face(image, face, (150, 160), 100.0, rng)
        x, y = np.round(points[[60, 72]].mean(axis=0)).astype(int)
        forehead = image[y - 62 : y - 30, x - 30 : x + 30].mean(axis=2)
        return float(np.abs(np.diff(forehead, axis=0)).mean()), float(points[16, 1] - y)

    child, adult, old = (np.median([drawn(age, number) for number in range(5)], axis=0) for age in (6.0, 28.0, 80.0))
    assert old[0] > 2 * adult[0]
    assert child[1] < 0.93 * adult[1]


def test_utkface_names_sizes_odd_names_and_copies(utkface: Path) -> None:
    files = sorted((utkface / "UTKFace").iterdir())
    names = {file.name for file in files}
    assert len(names) == 48
    assert set(ODD_NAMES) <= names
    strict = re.compile(r"(\d{1,3})_([01])_([0-4])_\d{17}\.jpg\.chip\.jpg")
    assert sum(bool(strict.fullmatch(name)) for name in names) == 48 - len(ODD_NAMES)
    ages = [int(name.split("_")[0]) for name in names]
    assert min(ages) <= 4
    assert max(ages) >= 70
    assert all(_picture(file).shape == (200, 200, 3) for file in files)
    assert max(Counter(file.read_bytes() for file in files).values()) == 2


def test_dlib_finds_the_drawn_faces(utkface: Path) -> None:
    detector = dlib.get_frontal_face_detector()
    files = sorted((utkface / "UTKFace").iterdir())[:24]
    found = sum(bool(detector(_picture(file)[..., ::-1].copy())) for file in files)
    assert found >= 18


def test_drawn_faces_depend_on_the_seed_only(tmp_path: Path) -> None:
    def contents(root: Path) -> dict[str, bytes]:
        return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}

    for write in (write_utkface, write_expw, write_wflw):
        first = contents(write(tmp_path / write.__name__ / "a", 5, seed=2))
        assert first == contents(write(tmp_path / write.__name__ / "b", 5, seed=2))
        assert first != contents(write(tmp_path / write.__name__ / "c", 5, seed=3))


def test_expw_list_has_the_published_columns(expw: Path) -> None:
    lines = [line.split() for line in (expw / "label" / "label.lst").read_text().splitlines()]
    assert len(lines) == 50
    assert {len(line) for line in lines} == {8}
    assert {int(line[7]) for line in lines} == set(range(len(EXPRESSIONS)))
    assert {line[0] for line in lines} == {file.name for file in (expw / "image" / "origin").iterdir()}
    assert max(Counter(line[0] for line in lines).values()) > 1
    sure = np.array([float(line[6]) for line in lines])
    assert (sure < 10).sum() == 1
    detector, seen = dlib.get_frontal_face_detector(), 0
    for name, _, *numbers in lines[:24]:
        top, left, right, bottom = (int(number) for number in numbers[:4])
        assert right - left == pytest.approx(bottom - top, abs=1)
        image = _picture(expw / "image" / "origin" / name)
        margin = (right - left) // 3
        crop = image[max(top - margin, 0) : bottom + margin, max(left - margin, 0) : right + margin]
        seen += bool(detector(cv2.resize(crop, (200, 200))[..., ::-1].copy()))
    assert seen >= 16


def test_wflw_lists_points_boxes_and_attributes(wflw: Path) -> None:
    notes = wflw / "WFLW_annotations"
    lists = {}
    for part in ("train", "test"):
        path = notes / "list_98pt_rect_attr_train_test" / f"list_98pt_rect_attr_{part}.txt"
        lists[part] = [line.split() for line in path.read_text().splitlines()]
    assert {part: len(lines) for part, lines in lists.items()} == {"train": 30, "test": 10}
    assert not {line[206] for line in lists["train"]} & {line[206] for line in lists["test"]}
    detail: dict[str, list[float]] = {"0": [], "1": []}
    outside = 0
    for line in lists["train"] + lists["test"]:
        assert len(line) == 207
        image = _picture(wflw / "WFLW_images" / line[206])
        points = np.array(line[:196], float).reshape(98, 2)
        left, top, right, bottom = (int(edge) for edge in line[196:200])
        assert left < points[54, 0] < right
        assert top < points[54, 1] < bottom
        outside += int((points > image.shape[1::-1]).any() or (points < 0).any())
        eyes = cv2.cvtColor(image[max(top, 0) : bottom, max(left, 0) : right], cv2.COLOR_BGR2GRAY)
        if line[204] == "0" and line[202] == "0":  # neither hidden nor oddly lit
            detail[line[205]].append(float(cv2.Laplacian(cv2.resize(eyes, (96, 96)), cv2.CV_64F).var()))
    assert outside > 0
    assert np.median(detail["1"]) < 0.6 * np.median(detail["0"])
    plain = (notes / "list_98pt_test" / "list_98pt_test.txt").read_text().splitlines()
    assert [line.split()[:196] for line in plain] == [line[:196] for line in lists["test"]]
    for column, name in enumerate(ATTRIBUTES):
        subset = (notes / "list_98pt_test" / f"list_98pt_test_{name}.txt").read_text().splitlines()
        assert subset == [entry for entry, line in zip(plain, lists["test"], strict=True) if line[200 + column] == "1"]
        assert subset
