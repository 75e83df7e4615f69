"""From a picture to what a model says of it: decoded, cropped as each task was trained, passed, put into words."""

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from datamodules.crop import Box, Fit, crop_region, crop_resize
from datamodules.decode import MAX_PIXELS, BrokenImageError, read_image
from datamodules.faces import enlarge, find_faces
from merging.model import AnsweringModel
from merging.views import View

DRAWN = 640  # pixels, the longer side of a picture that is kept to be drawn on


class Sight(NamedTuple):
    """One way of seeing a picture. Tasks that share it share the backbone pass, as do ways that cut the same region.

    Attributes:
        fit: how it becomes square.
        scale: side of the crop in sides of the face's box; None for the whole picture.
        reduced: whether a JPEG may be decoded at a fraction of its size, as training did where no box or point counts
            its pixels; it is where all sights allow it.
    """

    fit: Fit
    scale: float | None
    reduced: bool

    @property
    def words(self) -> str:
        """As messages tell it."""
        return self.fit if self.scale is None else f"{self.fit} of a face x {self.scale:g}"


@dataclass(frozen=True)
class Seen:
    """A picture, or one face in it, ready for the model.

    Attributes:
        file: its name.
        face: number of the face, left to right; None where none was looked for or found.
        box: of the face, left, top, right, bottom in picture pixels.
        crops: uint8 (S, S, 3) by sight.
        regions: of the crops in picture pixels (of the decoded picture where it was reduced).
        fault: why there are crops missing; "" if there are none.
        picture: what can be drawn on, and how much smaller it is than the picture.
    """

    file: str
    face: int | None = None
    box: Box | None = None
    crops: Mapping[Sight, np.ndarray] = field(default_factory=dict)
    regions: Mapping[Sight, Box] = field(default_factory=dict)
    fault: str = ""
    picture: tuple[np.ndarray, float] | None = None


@dataclass(frozen=True)
class Answered:
    """What a model says of a ``Seen``.

    Attributes:
        answers: by task ``{"class", "probability"}``, ``{"value", "unit"}`` or ``{"points"}`` (picture pixels).
    """

    seen: Seen
    answers: dict[str, dict[str, Any]]

    def as_json(self) -> dict[str, Any]:
        """Plain values; what is not there (a face, a fault) is left out."""
        told: dict[str, Any] = {"file": self.seen.file}
        if self.seen.face is not None and self.seen.box is not None:
            told |= {"face": self.seen.face, "box": [round(edge, 1) for edge in self.seen.box]}
        if self.seen.fault:
            told["error"] = self.seen.fault
        return told | {"answers": self.answers}


def sights(views: Mapping[str, View], faces: bool) -> dict[Sight, list[str]]:
    """The tasks of each sight. Those that differ in nothing but ``reduced`` share the exact one, and so one pass.

    Args:
        faces: tasks that were trained on faces read the face that was found (all tasks where none is known to have
            been), the others the whole picture.
    """
    known = any(view.face_scale is not None for view in views.values())
    found: dict[Sight, list[str]] = {}
    for name, view in views.items():
        reads_face = faces and (view.face_scale is not None or not known)
        scale = (view.face_scale or 1.0) if reads_face else None
        reduced = scale is None and view.face_scale is None and view.task.kind != "keypoints"
        found.setdefault(Sight(view.fit, scale, reduced), []).append(name)
    for sight in [sight for sight in found if sight.reduced]:
        if (exact := sight._replace(reduced=False)) in found:
            found[exact] = sorted(found[exact] + found.pop(sight))
    return found


def look(
    source: Path | bytes,
    file: str,
    wanted: Sequence[Sight],
    size: int,
    *,
    faces: bool = False,
    draw: bool = False,
    max_pixels: int = MAX_PIXELS,
) -> list[Seen]:
    """A picture as the model takes it, once for each face where faces are looked for.

    A picture that cannot be used gives one ``Seen`` with its fault; it never raises. Where no face is found, what reads
    the whole picture is still answered.

    Args:
        source: picture file or its content.
        size: side of the crops in pixels.
        draw: keep a picture to draw on.
    """
    try:
        is_exact = any(not sight.reduced for sight in wanted)  # then for all: crops of one region are the same
        full = _read(source, max_pixels, None) if faces or draw or is_exact else None
        reduced = full if is_exact else _read(source, max_pixels, size)
        boxes: list[list[float]] = find_faces(full) if faces and full is not None else []
        small = _shrink(full) if draw and full is not None else None
        whole = {sight: reduced if sight.reduced else full for sight in wanted if sight.scale is None}
        parts = {sight: _cut(picture, None, sight.fit, size) for sight, picture in whole.items() if picture is not None}
        plain = {sight: part[0] for sight, part in parts.items()}, {sight: part[1] for sight, part in parts.items()}
        if full is None or not boxes:
            fault = "no face found" if faces and any(sight.scale is not None for sight in wanted) else ""
            return [Seen(file, crops=plain[0], regions=plain[1], fault=fault, picture=small)]
        seen = []
        for number, box in enumerate(boxes):
            own = {sight: _cut(full, box, sight.fit, size, sight.scale) for sight in wanted if sight.scale is not None}
            crops = {sight: part[0] for sight, part in own.items()}
            regions = {sight: part[1] for sight, part in own.items()}
            place: Any = tuple(box)
            seen.append(Seen(file, number, place, plain[0] | crops, plain[1] | regions, picture=small))
        return seen
    except BrokenImageError as error:
        return [Seen(file, fault=str(error))]


def _read(source: Path | bytes, max_pixels: int, side: int | None) -> np.ndarray:
    return read_image(io.BytesIO(source) if isinstance(source, bytes) else source, max_pixels, side)


def _cut(
    picture: np.ndarray, box: Sequence[float] | None, fit: Fit, size: int, scale: float | None = None
) -> tuple[np.ndarray, Box]:
    height, width = picture.shape[:2]
    place: Any = None
    if box is not None:
        place = tuple(enlarge(np.array([box]), np.array([[width, height]], np.float64), scale or 1.0)[0].tolist())
    region = crop_region(width, height, place, fit)
    return crop_resize(picture, region, size), region


def _shrink(picture: np.ndarray) -> tuple[np.ndarray, float]:
    height, width = picture.shape[:2]
    factor = min(1.0, DRAWN / max(width, height))
    wanted = (max(1, round(width * factor)), max(1, round(height * factor)))
    return np.asarray(Image.fromarray(picture).resize(wanted, Image.Resampling.BICUBIC, reducing_gap=2.0)), factor


@torch.inference_mode()
def answer(
    model: AnsweringModel,
    batch: Sequence[Seen],
    wanted: Mapping[Sight, Sequence[str]],
    dtype: torch.dtype | None = None,
) -> list[Answered]:
    """What the model says of each, in order; each passes through the backbone once for each different crop of it.

    Args:
        wanted: from ``sights``; those that cut the same region, as crop and pad do of a square, share a pass.
        dtype: of autocast in the backbone; None for float32. The heads are float32.
    """
    device = model.device
    found: list[dict[str, dict[str, Any]]] = [{} for _ in batch]
    passes: dict[tuple[Sight, ...], list[int]] = {}
    for place, seen in enumerate(batch):
        for alike in _alike(seen, wanted):
            passes.setdefault(alike, []).append(place)
    for alike, places in passes.items():
        names = [name for sight in alike for name in wanted[sight]]
        images = torch.from_numpy(np.stack([batch[place].crops[alike[0]] for place in places])).to(device)
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            features = model.features(images, names)
        # bfloat16 would round points to 1/256 of the crop and ages to half a year
        for name, output in model.read(features.float(), names).items():
            rows = output.cpu()
            for place, row in zip(places, rows, strict=True):
                found[place][name] = in_words(model.tasks[name], row, batch[place].regions[alike[0]])
    order = list(model.tasks)
    return [
        Answered(seen, {name: told[name] for name in order if name in told})
        for seen, told in zip(batch, found, strict=True)
    ]


def _alike(seen: Seen, wanted: Iterable[Sight]) -> list[tuple[Sight, ...]]:
    """The wanted sights that there are crops of, those of one region together."""
    found: dict[Box, tuple[Sight, ...]] = {}
    for sight in wanted:
        if sight in seen.crops:
            region = seen.regions[sight]
            found[region] = (*found.get(region, ()), sight)
    return list(found.values())


def in_words(view: View, output: Tensor, region: Box) -> dict[str, Any]:
    """One output (out,) as a class with its probability, a number in its unit, or points in picture pixels."""
    if view.task.kind == "classification":
        probabilities = torch.softmax(output, 0)
        best = int(probabilities.argmax())
        name = view.task.classes[best] if view.task.classes else str(best)
        return {"class": name, "probability": round(float(probabilities[best]), 6)}
    if view.task.kind == "regression":
        value = float(output[0]) * view.factor
        return {"value": round(value, 4) if math.isfinite(value) else None, "unit": view.unit}
    left, top, right, bottom = region
    points = output.unflatten(0, (-1, 2)).double().numpy() * (right - left, bottom - top) + (left, top)
    return {"points": [[round(float(x), 2), round(float(y), 2)] for x, y in points]}
