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

from datamodules.sample import faces
from datamodules.sample.face_model import EXPRESSIONS, Face, random_face
from datamodules.sample.face_render import draw_face
from datamodules.sample.face_scene import occlude
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


def _drawn(face: Face, rng: Generator) -> tuple[np.ndarray, np.ndarray]:
    image = np.full((300, 300, 3), GREY, np.float32)
    return image, draw_face(image, face, (150, 160), 100.0, rng)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Face, np.ndarray]]:
    """The faces that are to be drawn and their points, in order; the slow pixels are left out."""
    seen: list[tuple[Face, np.ndarray]] = []

    def record(image: np.ndarray, face: Face, centre: tuple[float, float], scale: float, rng: Generator) -> np.ndarray:
        seen.append((face, shape(face) * scale + centre))
        return seen[-1][1]

    monkeypatch.setattr(faces, "draw_face", record)
    monkeypatch.setattr(faces, "backdrop", lambda rng, height, width: np.zeros((height, width, 3), np.float32))
    monkeypatch.setattr(faces, "jpeg", lambda image, rng, grey: rng.bytes(16))
    return seen


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


def test_points_come_in_the_order_of_wflw() -> None:
    for number in range(10):
        face = random_face(generator(3, number), expression=5, strength=(0.8, 1.2))  # an open mouth
        x, y = shape(face).T
        assert (np.diff(x[:33]) > 0).all()  # the contour runs from the left of the picture to the right
        assert y[:33].argmax() == 16
        for upper, lower in (((34, 35, 36, 37), (41, 40, 39, 38)), ((43, 44, 45), (49, 48, 47)),
                             ((61, 62, 63), (67, 66, 65)), ((69, 70, 71), (75, 74, 73)),
                             ((77, 79, 81), (87, 85, 83)), ((89, 90, 91), (95, 94, 93))):  # fmt: skip
            assert (y[list(upper)] < y[list(lower)]).all()
            assert (np.diff(x[list(upper)]) > 0).all()
        assert y[79] < y[90] < y[94] < y[85]  # the inner lips lie between the outer ones
        assert (np.diff(y[51:55]) > 0).all()
        assert (np.diff(x[55:60]) > 0).all()
        assert x[33] < x[37] < x[42] < x[46]
        assert x[60] < x[96] < x[64] < x[68] < x[97] < x[72]
        assert x[76] < x[88] < x[92] < x[82]


def test_points_lie_in_the_middle_of_the_pixels_that_they_name() -> None:
    face, rng = _plain_face(0, identity=np.zeros(12), iris=np.array([0.0, 1.0, 0.0]), grain=0)
    image = np.full((301, 301, 3), GREY, np.float32)
    points = draw_face(image, face, (150, 150), 100.0, rng)
    assert points[[96, 97], 0].mean() == pytest.approx(150, abs=1e-6)
    green = np.clip(image[..., 1] - np.maximum(image[..., 0], image[..., 2]) - 0.12, 0, None)
    assert (green.sum(axis=0) * np.arange(301)).sum() / green.sum() == pytest.approx(150, abs=0.25)


def test_expressions_are_those_that_their_codes_name() -> None:
    smile, gape, lids, brow = {}, {}, {}, {}
    for code, name in enumerate(EXPRESSIONS):
        people = [
            random_face(generator(3, number), age=30, expression=code, strength=(0.8, 1.2)) for number in range(15)
        ]
        y = np.median([shape(face)[:, 1] for face in people], axis=0)
        smile[name] = y[[79, 85]].mean() - y[[76, 82]].mean()
        gape[name] = y[94] - y[90]
        lids[name] = y[66] - y[62]
        brow[name] = y[33:51].mean() - y[[60, 64, 68, 72]].mean()
    assert max(smile, key=lambda name: smile[name]) == "happy"
    assert min(smile, key=lambda name: smile[name]) == "sad"
    assert max(gape, key=lambda name: gape[name]) == "surprise"
    assert sorted(lids, key=lambda name: lids[name])[-2:] in (["fear", "surprise"], ["surprise", "fear"])
    assert max(brow, key=lambda name: brow[name]) in ("angry", "disgust")  # drawn down
    assert gape["angry"] < 0.02 < gape["disgust"]


def test_a_stronger_expression_moves_the_face_more() -> None:
    for code in range(6):
        still, faint, strong = (
            shape(random_face(generator(3, 0), age=30, expression=code, strength=(power, power)))
            for power in (0.0, 0.4, 1.2)
        )
        assert 0 < 2 * np.abs(faint - still).max() < np.abs(strong - still).max()


def test_old_faces_have_wrinkles_and_grey_hair_and_children_have_large_eyes() -> None:
    creases: dict[int, list[float]] = {25: [], 80: []}
    hair: dict[int, list[float]] = {25: [], 80: []}
    for age in (25, 80):
        for number in range(4):
            rng = generator(7, number)
            face = random_face(rng, age=age, gender=1, race=0, expression=6, strength=(0, 0), yaw=0, pitch=0, roll=0)
            image, points = _drawn(replace(face, glasses="none", fringe=0.0, exposure=1.0, ambient=0.5), rng)
            brows = round(points[33:51, 1].min())
            forehead = image[brows - 35 : brows - 5, round(points[38, 0]) : round(points[50, 0])]
            # Its lines are level: mottled skin evens out along the rows.
            creases[age].append(float(np.abs(np.diff(forehead.mean(axis=(1, 2)), 2)).mean()))
            hair[age].append(float(face.hair.mean()))
    assert min(creases[80]) > 5 * max(creases[25])
    assert np.median(hair[80]) > 0.5 > np.median(hair[25])
    child, grown = (shape(_plain_face(0, age=age)[0]) for age in (6, 25))
    assert np.ptp(child[60:68, 1]) > 1.2 * np.ptp(grown[60:68, 1])
    assert child[16, 1] < grown[16, 1] - 0.1  # and a short face below them


def test_gender_and_race_of_a_face_can_be_seen() -> None:
    people = [random_face(generator(4, number), age=40) for number in range(150)]
    men, women = ([face for face in people if face.gender == code] for code in (0, 1))
    assert any(face.beard for face in men)
    assert not any(face.beard or face.moustache for face in women)
    assert np.mean([face.hair_style == "long" for face in women]) > 0.5
    assert np.mean([face.hair_style == "long" for face in men]) < 0.2
    tones = [np.mean([face.skin.mean() for face in people if face.race == code]) for code in range(5)]
    assert np.argmin(tones) == 1
    assert tones[3] < min(tones[0], tones[2])


def test_light_make_up_and_glasses_show() -> None:
    def ways(**changes: Any) -> tuple[np.ndarray, np.ndarray]:
        return _drawn(*_plain_face(0, gender=1, beard=0.0, moustache=0.0, hair_style="short", fringe=0.0, **changes))

    image, points = ways()
    nose = points[54].round().astype(int)
    rows = slice(nose[1] - 10, nose[1] + 10)
    left, right = (rows, slice(nose[0] - 45, nose[0] - 25)), (rows, slice(nose[0] + 25, nose[0] + 45))
    for side in (-1, 1):
        lit, _ = ways(light=np.array([side * 1.7, -0.2, 0.35]), ambient=0.14)
        assert side * (lit[right].mean() - lit[left].mean()) > 0.1
    assert ways(exposure=0.4)[0][left].mean() < 0.6 * image[left].mean()
    lip = points[84:87].mean(axis=0).round().astype(int) - [0, 5]
    window = np.s_[lip[1] - 2 : lip[1] + 3, lip[0] - 8 : lip[0] + 9]
    for grain in (0, 1):  # which chooses the colour
        painted, plain = (ways(make_up=level, grain=grain)[0][window].mean(axis=(0, 1)) for level in (1.0, 0.0))
        assert painted[0] - painted[1] > plain[0] - plain[1] + 0.1
        assert painted[0] > painted[2] + 0.1
    dark, _ = ways(glasses="dark")
    for pupil in points[[96, 97]].round().astype(int):
        window = np.s_[pupil[1] - 9 : pupil[1] + 10, pupil[0] - 12 : pupil[0] + 13]
        assert dark[window].mean() < 0.5 * image[window].mean()


def test_names_of_utkface_tell_whom_they_show(tmp_path: Path, asked: list[tuple[Face, np.ndarray]]) -> None:
    folder = write_utkface(tmp_path, 200, seed=1) / "UTKFace"
    shown = [(f"{face.age:.0f}", str(face.gender), str(face.race)) for face, _ in asked]
    for person, name in zip(shown, ODD_NAMES, strict=False):
        assert person[:2] == tuple(name.split("_")[:2])
    named = Counter(tuple(file.name.split("_")[:3]) for file in folder.iterdir() if file.name not in ODD_NAMES)
    copies = named - Counter(shown[len(ODD_NAMES) :])
    assert copies.total() == 200 - len(shown) == 3
    ages: dict[bytes, list[str]] = {}
    for file in folder.iterdir():
        ages.setdefault(file.read_bytes(), []).append(file.name.split("_")[0])
    repeated = [len(set(both)) for both in ages.values() if len(both) == 2]
    assert sorted(repeated) == [1, 1, 2]  # every third copy is under another age


def test_labels_of_expw_are_of_the_faces_in_its_boxes(tmp_path: Path, asked: list[tuple[Face, np.ndarray]]) -> None:
    listing = write_expw(tmp_path, 100, seed=1) / "label" / "label.lst"
    lines = [line.split() for line in listing.read_text().splitlines()]
    faced = [line for line in lines if float(line[6]) > 10]  # the others are things
    assert len(faced) == 98
    for line, (face, points) in zip(faced, asked, strict=True):
        assert int(line[7]) == face.expression
        top, left, right, bottom = map(int, line[2:6])
        assert left < points[54, 0] < right
        assert top < points[54, 1] < bottom
        assert right - left > 0.9 * np.ptp(points, axis=0).max()


def test_attributes_of_wflw_are_of_the_faces_beside_them(
    tmp_path: Path, asked: list[tuple[Face, np.ndarray]], monkeypatch: pytest.MonkeyPatch
) -> None:
    covered, blurred = set(), set()
    monkeypatch.setattr(faces, "occlude", lambda *_: covered.add(len(asked) - 1))
    monkeypatch.setattr(faces, "blur_face", lambda *_: blurred.add(len(asked) - 1))
    notes = write_wflw(tmp_path, 80, seed=1) / "WFLW_annotations" / "list_98pt_rect_attr_train_test"
    lines = [line.split() for part in ("test", "train")  # in the order in which they are drawn
             for line in (notes / f"list_98pt_rect_attr_{part}.txt").read_text().splitlines()]  # fmt: skip
    for number, (line, (face, points)) in enumerate(zip(lines, asked, strict=True)):
        assert np.abs(np.array(line[:196], float).reshape(98, 2) - points).max() < 1e-5
        posed, excited, lit, made_up, hidden, soft = (flag == "1" for flag in line[200:206])
        assert posed == (abs(face.yaw) > 35)
        assert excited == (face.strength > 1)
        assert lit == (not 0.5 < face.exposure < 1.4 or face.ambient < 0.2)
        assert made_up == (face.make_up > 0)
        assert hidden == (number in covered or face.glasses == "dark")
        assert soft == (number in blurred)


def test_nobody_is_drawn_twice(tmp_path: Path, asked: list[tuple[Face, np.ndarray]]) -> None:
    for seed in (1, 2):
        for write in (write_utkface, write_expw, write_wflw):
            write(tmp_path, 20, seed=seed)
    assert len({face.identity.tobytes() for face, _ in asked}) == len(asked) > 110


def test_something_lies_over_a_hidden_face() -> None:
    for number in range(12):
        points = shape(_plain_face(number)[0]) * 80 + [150, 140]
        image = np.full((300, 300, 3), GREY, np.float32)
        occlude(image, points, generator(8, number))
        mask = np.zeros((300, 300), np.uint8)
        cv2.fillConvexPoly(mask, cv2.convexHull(points.astype(np.int32)), 1)
        assert 0.05 < (np.abs(image - GREY).max(axis=2) > 0.01)[mask.astype(bool)].mean() < 0.9


def test_most_faces_are_in_colour_and_skin_is_redder_than_blue(utkface: Path) -> None:
    redness = []
    for file in (utkface / "UTKFace").iterdir():
        blue, _, red = _picture(file)[80:140, 60:140].mean(axis=(0, 1))
        redness.append(red - blue)
    assert np.mean(np.array(redness) > 10) > 0.8
    assert min(redness) > -3
