"""Drawn faces in the layouts of UTKFace, ExpW and WFLW.

The three sets share one parametric face (``face_model``), so age, expression and landmarks live in one
domain. The same seed gives the same pictures; their JPEG bytes may differ between builds of OpenCV.
"""

from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
from numpy.random import Generator

from datamodules.sample.face_model import EXPRESSIONS, Array, Face, random_face
from datamodules.sample.face_render import draw_face, polygon
from datamodules.sample.face_scene import backdrop, blur_face, jpeg, occlude
from datamodules.sample.pool import draw_all, generator
from launch.files import atomic_folder, atomic_write

UTKFACE_STREAM, EXPW_STREAM, WFLW_STREAM = 2, 3, 4

# The eight published names that break the pattern [age]_[gender]_[race]_[datetime].jpg.chip.jpg.
ODD_NAMES = (
    "39_1_20170116174525125.jpg.chip.jpg", "61_1_20170109142408075.jpg.chip.jpg",
    "61_1_20170109150557335.jpg.chip.jpg", "14_0_0_2017011022340900.jpg.chip.jpg",
    "24_0_1_20170116220224657 .jpg.chip.jpg", "28_1_2_201701161846515488.jpg.chip.jpg",
    "38_0_1_201701162330572788.jpg.chip.jpg", "55_0_0_20170116232725357jpg.chip.jpg",
)  # fmt: skip
# UTKFace: upper age and share of each group.
AGE_GROUPS = ((9, 0.13), (19, 0.065), (29, 0.31), (39, 0.19), (49, 0.095), (59, 0.097), (69, 0.056),
              (79, 0.03), (89, 0.02), (100, 0.007))  # fmt: skip
# ExpW: faces of each label in the whole set; drawn half as uneven, so that small samples have every label.
EXPW_COUNTS = np.array([3671, 3995, 1088, 30537, 10559, 7060, 34883])
QUERIES = ("angry", "disgusted", "afraid", "happy", "sad", "amazed", "calm")
ROLES = ("actor", "boss", "couple", "face", "family", "girl", "man", "people", "teacher", "woman")
EVENTS = ("0--Parade", "2--Demonstration", "7--Cheering", "12--Group", "19--Couple",
          "29--Students_Schoolkids", "37--Soccer", "54--Rescue")  # fmt: skip
# WFLW's attributes, in the order of its lists, with their shares of its test faces.
ATTRIBUTES = {"largepose": 0.13, "expression": 0.126, "illumination": 0.28, "makeup": 0.082,
              "occlusion": 0.294, "blur": 0.309}  # fmt: skip


def _ages(rng: Generator, count: int) -> Array:
    # Evenly spaced quantiles instead of independent draws: small samples have old people too.
    upper = np.array([0, *(group[0] for group in AGE_GROUPS)])
    share = np.cumsum([0, *(group[1] for group in AGE_GROUPS)])
    quantiles = rng.permutation((np.arange(count) + rng.uniform(0.1, 0.9)) / count)
    return np.ceil(np.interp(quantiles, share / share[-1], upper)).clip(1, 100).astype(int)


def _draw_chip(job: tuple[int, int, int, int | None, int | None]) -> tuple[Face, bytes]:
    seed, number, age, gender, race = job
    rng = generator(seed, UTKFACE_STREAM, number)
    feeling = int(rng.choice([3, 6, int(rng.integers(7))], p=[0.4, 0.4, 0.2]))
    face = random_face(rng, age=age, gender=gender, race=race, expression=feeling, strength=(0.2, 0.9), yaw=13)
    image = backdrop(rng, 200, 200)
    centre = (100 + rng.normal(0, 4), 112 + rng.normal(0, 5))
    draw_face(image, face, centre, rng.uniform(74, 98), rng)
    return face, jpeg(image, rng, grey=0.06)


def write_utkface(root: Path, count: int, seed: int, workers: int = 1) -> Path:
    """Draws aligned chips, 200x200, labelled by their names.

    From 40 files on, the eight odd names of the published set are among them and about 1.6 % of the files are
    byte for byte copies of another one, every third of these under another age.

    Args:
        root: Folder that gets ``UTKFace/``; an earlier one is replaced as a whole.
        count: Files, copies included.
        seed: Same seed, same pictures.
        workers: Processes that draw.

    Returns:
        ``root``.
    """
    rng = generator(seed, UTKFACE_STREAM)
    odd = ODD_NAMES if count >= 40 else ()
    copies = max(1, round(0.016 * count)) if count >= 40 else 0
    fresh = count - copies
    known = [name.split("_") for name in odd]
    jobs: list[tuple[int, int, int, int | None, int | None]] = [
        (seed, number, int(parts[0]), int(parts[1]), int(parts[2]) if len(parts) == 4 else None)
        for number, parts in enumerate(known)
    ]
    ages = _ages(rng, fresh - len(odd))
    jobs += [(seed, len(odd) + number, int(age), None, None) for number, age in enumerate(ages)]
    moments = [datetime(2017, 1, 9, 9) + timedelta(milliseconds=97_411 * number) for number in range(count)]
    stamps = [f"{moment:%Y%m%d%H%M%S}{moment.microsecond // 1000:03d}" for moment in moments]
    names: list[str] = []
    with atomic_folder(root / "UTKFace") as folder:
        for number, (face, coded) in enumerate(draw_all(_draw_chip, jobs, "drawing UTKFace", workers)):
            name = f"{round(face.age)}_{face.gender}_{face.race}_{stamps[number]}.jpg.chip.jpg"
            names.append(odd[number] if number < len(odd) else name)
            (folder / names[-1]).write_bytes(coded)
        for number, source in enumerate(rng.permutation(np.arange(len(odd), fresh))[:copies]):
            age, gender, race, _ = names[source].split("_")
            shown = max(1, int(age) + (2 if number % 3 == 2 else 0))
            name = f"{shown}_{gender}_{race}_{stamps[fresh + number]}.jpg.chip.jpg"
            (folder / name).write_bytes((folder / names[source]).read_bytes())
    return root


def _box(middle: Array, side: float) -> tuple[int, int, int, int]:
    left, top = middle - side / 2
    return round(left), round(top), round(left + side), round(top + side)


def _face_box(points: Array, rng: Generator) -> tuple[int, int, int, int]:
    side = float(np.ptp(points, axis=0).max()) * rng.uniform(1.05, 1.25)
    middle = (points.min(axis=0) + points.max(axis=0)) / 2 - np.array([0, 0.05 * side])
    return _box(middle + rng.normal(0, 0.03 * side, 2), side)


def _draw_photo(job: tuple[int, int, tuple[int, ...]]) -> tuple[bytes, list[str]]:
    """One ExpW picture; a label of -1 stands for a thing that was taken for a face."""
    seed, number, labels = job
    rng = generator(seed, EXPW_STREAM, number)
    height = int(rng.integers(180, 340))
    width = int(height * rng.uniform(0.9, 1.5) * (1 + 0.35 * (len(labels) - 1)))
    image = backdrop(rng, height, width)
    slot = width / len(labels)
    lines = []
    for place, label in enumerate(labels):
        middle = ((place + 0.5) * slot + rng.normal(0, 0.03 * slot), height * rng.uniform(0.45, 0.6))
        scale = min(slot / 2.3, height / 2.6) * rng.uniform(0.55, 0.95)
        if label < 0:
            side = scale * rng.uniform(0.8, 1.6)
            for _ in range(5):
                at = np.array(middle) + rng.normal(0, 0.25 * side, 2)
                corners = at + rng.normal(0, 0.3 * side, (5, 2))
                ordered = corners[np.argsort(np.arctan2(*(corners - at).T))]
                polygon(image, ordered, rng.uniform(0, 1, 3))
            box = _box(np.array(middle), side)
            sure, label = rng.uniform(0.2, 9.0), int(rng.integers(7))
        else:
            face = random_face(rng, expression=label, strength=(0.45, 1.15), yaw=15, roll=8)
            box = _face_box(draw_face(image, face, middle, scale, rng), rng)
            sure = rng.normal(58, 17) - 0.5 * abs(face.yaw)
            sure = max(float(sure), 12.0)
        lines.append(f"{place} {box[1]} {box[0]} {box[2]} {box[3]} {sure:.6g} {label}")
    return jpeg(image, rng, grey=0.05), lines


def write_expw(root: Path, count: int, seed: int, workers: int = 1) -> Path:
    """Draws photos with one to four faces and the list of their boxes and expressions.

    About 2 % of the lines are low-confidence boxes without a face. Boxes may reach over the picture's edge.

    Args:
        root: Folder that gets ``image/origin/*.jpg`` and ``label/label.lst``; both are replaced as a whole.
        count: Lines of the list: labelled faces, wrong ones included.
        seed: Same seed, same pictures.
        workers: Processes that draw.

    Returns:
        ``root``.
    """
    rng = generator(seed, EXPW_STREAM)
    share = 0.5 * EXPW_COUNTS / EXPW_COUNTS.sum() + 0.5 / len(EXPRESSIONS)
    labels = rng.permutation(np.searchsorted(np.cumsum(share), (np.arange(count) + 0.5) / count).clip(0, 6))
    labels[rng.permutation(count)[: round(0.02 * count)]] = -1
    jobs: list[tuple[int, int, tuple[int, ...]]] = []
    names: list[str] = []
    while len(labels):
        several = int(rng.choice([1, 2, 3, 4], p=[0.86, 0.09, 0.03, 0.02]))
        taken, labels = labels[:several], labels[several:]
        # The search word is what people typed, not the label.
        word = QUERIES[taken[0]] if rng.random() < 0.6 else str(rng.choice(QUERIES))
        names.append(f"{word}_{rng.choice(ROLES)}_{len(names) + 13}.jpg")
        jobs.append((seed, len(jobs), tuple(int(label) for label in taken)))
    lines: list[str] = []
    with atomic_folder(root / "image") as images, atomic_folder(root / "label") as listing:
        (images / "origin").mkdir()
        drawn = draw_all(_draw_photo, jobs, "drawing ExpW", workers)
        for name, (coded, faces) in zip(names, drawn, strict=True):
            (images / "origin" / name).write_bytes(coded)
            lines += [f"{name} {face}" for face in faces]
        atomic_write(listing / "label.lst", "\n".join(lines) + "\n")
    return root


def _attributed(rng: Generator, flags: Array) -> Face:
    posed, excited, lit, made_up, _, _ = flags
    face = random_face(
        rng, strength=(1.25, 1.6) if excited else (0.1, 0.8), yaw=9, pitch=5, roll=7,
        gender=1 if made_up else None, age=float(rng.uniform(17, 60)) if made_up else None,
        expression=int(rng.choice([0, 1, 2, 3, 5])) if excited else int(rng.choice([3, 4, 6])),
    )  # fmt: skip
    if posed:
        yaw = rng.choice([-1, 1]) * rng.uniform(36, 52)
        face = replace(face, yaw=float(yaw), roll=float(rng.normal(0, 14)), pitch=float(rng.normal(0, 9)))
    if lit:
        kind = rng.integers(3)
        if kind == 0:
            face = replace(face, ambient=0.14, light=np.array([rng.choice([-1.7, 1.7]), -0.2, 0.35]), exposure=1.1)
        else:
            face = replace(face, exposure=float(rng.uniform(0.3, 0.45) if kind == 1 else rng.uniform(1.5, 1.8)))
    return replace(face, make_up=float(rng.uniform(0.8, 1.0)) if made_up else 0.0)


def _draw_crowd(job: tuple[int, int, Array]) -> tuple[bytes, list[tuple[Array, tuple[int, int, int, int]]]]:
    seed, number, flags = job
    rng = generator(seed, WFLW_STREAM, number)
    height = int(rng.integers(200, 360))
    width = int(height * rng.uniform(0.9, 1.5) * (1 + 0.6 * (len(flags) - 1)))
    image = backdrop(rng, height, width)
    slot = width / len(flags)
    faces = []
    for place, row in enumerate(flags):
        scale = min(slot / 2.2, height / 2.6) * rng.uniform(0.5, 0.95)
        x, y = (place + 0.5) * slot + rng.normal(0, 0.04 * slot), height * rng.uniform(0.45, 0.6)
        if rng.random() < 0.06:  # cut off by the lower edge
            y = height - 0.35 * scale
        face = _attributed(rng, row)
        hidden = bool(row[4])
        dark = hidden and rng.random() < 0.3
        face = replace(face, glasses="dark" if dark else "none" if hidden else face.glasses)
        points = draw_face(image, face, (x, y), scale, rng)
        if hidden and not dark:
            occlude(image, points, rng)
        if row[5]:
            blur_face(image, points, rng)
        low, high = points.min(axis=0), points.max(axis=0)
        size = high - low
        edges = np.concatenate([low - size * [0.02, 0.28], high]) + np.tile(size, 2) * rng.normal(0, 0.03, 4)
        left, top, right, bottom = (round(float(edge)) for edge in edges)
        faces.append((points, (left, top, right, bottom)))
    return jpeg(image, rng, grey=0.04), faces


def write_wflw(root: Path, count: int, seed: int, workers: int = 1) -> Path:
    """Draws scenes with one or two faces, their 98 points, boxes and attributes.

    A quarter of the faces are in the test lists; no picture is in both. Attributes are true of the pixels,
    and every subset list has at least one face. Some points lie outside the picture.

    Args:
        root: Folder that gets ``WFLW_images/`` and ``WFLW_annotations/``; both are replaced as a whole.
        count: Faces, train and test together; at least 4.
        seed: Same seed, same pictures.
        workers: Processes that draw.

    Returns:
        ``root``.
    """
    rng = generator(seed, WFLW_STREAM)
    tested = max(count // 4, 1)
    jobs: list[tuple[int, int, Array]] = []
    parts: list[str] = []
    for part, size in (("test", tested), ("train", count - tested)):
        flags = np.zeros((size, len(ATTRIBUTES)), np.int64)
        for column, share in enumerate(ATTRIBUTES.values()):
            flags[rng.permutation(size)[: max(1, round(share * size))], column] = 1
        start = 0
        while start < size:
            several = 2 if rng.random() < 0.15 else 1
            jobs.append((seed, len(jobs), flags[start : start + several]))
            parts.append(part)
            start += several
    lists: dict[str, list[str]] = {part: [] for part in ("train", "test", "plain", *ATTRIBUTES)}
    with atomic_folder(root / "WFLW_images") as images, atomic_folder(root / "WFLW_annotations") as notes:
        drawn = draw_all(_draw_crowd, jobs, "drawing WFLW", workers)
        for number, (part, (_, _, rows), (coded, faces)) in enumerate(zip(parts, jobs, drawn, strict=True)):
            event = EVENTS[number % len(EVENTS)]
            stem = event.replace("--", "_")
            name = f"{event}/{stem}_{stem}_{event.split('--')[0]}_{number + 11}.jpg"
            (images / event).mkdir(exist_ok=True)
            (images / name).write_bytes(coded)
            for row, (points, box) in zip(rows, faces, strict=True):
                numbers = " ".join(f"{value:.6f}" for value in points.ravel())
                rest = [*box, *(int(flag) for flag in row), name]
                lists[part].append(" ".join([numbers, *map(str, rest)]))
                if part == "test":
                    for entry in ["plain", *(key for key, flag in zip(ATTRIBUTES, row, strict=True) if flag)]:
                        lists[entry].append(f"{numbers} {name}")
        for key, lines in lists.items():
            folder = "list_98pt_rect_attr_train_test" if key in ("train", "test") else "list_98pt_test"
            tail = f"rect_attr_{key}" if key in ("train", "test") else "test" if key == "plain" else f"test_{key}"
            atomic_write(notes / folder / f"list_98pt_{tail}.txt", "\n".join(lines) + "\n")
    return root
