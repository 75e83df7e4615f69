"""Augmentation of whole batches through albumentations; the only module that knows that library.

Its 2.0.8 gives every transform of a Compose the same random stream (a vertical flip then always comes with a
horizontal one) and spends most of a small picture's time on matrices and checks. So there are two transforms
of our own, one warp and one colour matrix, each with its own stream: two to three times as fast.
"""

import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else importing it asks a server for its newest version

import albumentations as A
import cv2
import numpy as np

from launch.errors import CommandError, DataError, nearest

# OpenCV's thread pool does not survive a fork: workers of a loader would wait for its threads for ever. The pictures
# are too small to gain from it.
cv2.setNumThreads(0)

KEYS = ("hflip", "vflip", "rotate", "scale", "translate", "brightness", "contrast", "saturation", "hue")
_LUMA = (0.299, 0.587, 0.114)


class Warp(A.DualTransform):
    """Flips, then rotation, scaling and shift about the centre in one bilinear resampling; points move along.

    Borders repeat the edge pixels: black corners would tell the angle, and reflected ones would show parts
    (of a face, a galaxy) twice for which no points exist.

    Args:
        hflip, vflip: each with probability 1/2.
        rotate: up to this many degrees either way.
        scale: factor between 1 - scale and 1 + scale.
        translate: up to this fraction of the side along each axis.
        flip_index: order of the points after a mirror image; needed when points come and a flip is on.
    """

    _targets = (A.core.transforms_interface.Targets.IMAGE, A.core.transforms_interface.Targets.KEYPOINTS)

    def __init__(
        self,
        hflip: bool = False,
        vflip: bool = False,
        rotate: float = 0.0,
        scale: float = 0.0,
        translate: float = 0.0,
        flip_index: Sequence[int] | None = None,
    ) -> None:
        super().__init__(p=1.0)
        self.hflip, self.vflip = hflip, vflip
        self.rotate, self.scale, self.translate = rotate, scale, translate
        self.flip_index = None if flip_index is None else np.asarray(flip_index)
        self.resample = bool(rotate or scale or translate)

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        # Plain floats: arrays of six numbers would take longer than the resampling.
        height, width = params["shape"][:2]
        draw = self.random_generator.random(6).tolist()
        mirror = (self.hflip and draw[0] < 0.5, self.vflip and draw[1] < 0.5)
        angle = math.radians(self.rotate) * (2 * draw[2] - 1)
        factor = 1 + self.scale * (2 * draw[3] - 1)
        cos, sin = factor * math.cos(angle), factor * math.sin(angle)
        sign_x, sign_y = 1 - 2 * mirror[0], 1 - 2 * mirror[1]
        xx, xy, yx, yy = cos * sign_x, -sin * sign_y, sin * sign_x, cos * sign_y
        x, y = (width - 1) / 2, (height - 1) / 2  # the centre; in OpenCV the centres of pixels are whole numbers
        to_x = x + self.translate * (2 * draw[4] - 1) * width
        to_y = y + self.translate * (2 * draw[5] - 1) * height
        matrix = np.array([[xx, xy, to_x - xx * x - xy * y], [yx, yy, to_y - yx * x - yy * y]])
        return {"matrix": matrix, "mirror": mirror}

    def apply(self, img: np.ndarray, matrix: np.ndarray, mirror: tuple[bool, bool], **params: Any) -> np.ndarray:
        if self.resample:
            return cv2.warpAffine(img, matrix, img.shape[1::-1], borderMode=cv2.BORDER_REPLICATE)
        return img[:: -1 if mirror[1] else 1, :: -1 if mirror[0] else 1]

    def apply_to_keypoints(
        self, keypoints: np.ndarray, matrix: np.ndarray, mirror: tuple[bool, bool], **params: Any
    ) -> np.ndarray:
        moved = keypoints.copy()
        moved[:, :2] = keypoints[:, :2] @ matrix[:, :2].T + matrix[:, 2]
        if self.flip_index is not None and mirror[0] != mirror[1]:
            moved = moved[self.flip_index]
        return moved


class ColorMatrix(A.ImageOnlyTransform):
    """Saturation, hue, contrast and brightness as one 3 x 4 matrix on RGB.

    Args:
        brightness, contrast, saturation: factor between 1 - x and 1 + x; contrast about the picture's mean
            grey, saturation about each pixel's.
        hue: rotation about the grey axis by up to this fraction of a full turn either way.
    """

    def __init__(
        self, brightness: float = 0.0, contrast: float = 0.0, saturation: float = 0.0, hue: float = 0.0
    ) -> None:
        super().__init__(p=1.0)
        self.brightness, self.contrast, self.saturation, self.hue = brightness, contrast, saturation, hue

    def get_params(self) -> dict[str, Any]:
        draw = (2 * self.random_generator.random(4) - 1).tolist()
        brightness, contrast = 1 + self.brightness * draw[0], 1 + self.contrast * draw[1]
        saturation, angle = 1 + self.saturation * draw[2], 2 * math.pi * self.hue * draw[3]
        # A rotation about the grey axis is circulant and leaves grey alone, so that the two products are one sum.
        third, sin = (1 - math.cos(angle)) / 3, math.sin(angle) / math.sqrt(3)
        turn = (math.cos(angle) + third, third - sin, third + sin)
        gain = brightness * contrast
        grey = [gain * (1 - saturation) * luma for luma in _LUMA]
        rows = [[gain * saturation * turn[(j - i) % 3] + grey[j] for j in range(3)] for i in range(3)]
        return {"rows": rows, "lift": brightness * (1 - contrast)}

    def apply(self, img: np.ndarray, rows: list[list[float]], lift: float, **params: Any) -> np.ndarray:
        offset = lift * sum(luma * mean for luma, mean in zip(_LUMA, cv2.mean(img), strict=False))
        return cv2.transform(img, np.array([[*row, offset] for row in rows]))


class Augment:
    """Augments a batch as a pure function of the batch and a seed.

    Args:
        augment: hflip, vflip (bool), rotate (degrees), scale, translate, brightness, contrast, saturation,
            hue (fractions); what is missing is off.
        flip_index: order of the points after a mirror image; needed to mirror pictures with points.
        num_points: K, None when there are no points.

    Raises:
        CommandError: unknown key, impossible value, or a flip of points without flip_index.
        DataError: flip_index is no pairing of the K points.
    """

    def __init__(self, augment: Mapping[str, Any], flip_index: Sequence[int] | None, num_points: int | None) -> None:
        _check(augment)
        order = _flip_order(flip_index, num_points)
        rotate, scale, translate = (float(augment.get(name) or 0) for name in ("rotate", "scale", "translate"))
        hflip, vflip = bool(augment.get("hflip")), bool(augment.get("vflip"))
        if (hflip or vflip) and num_points is not None and order is None:
            raise CommandError(
                "task.augment mirrors pictures, but task.flip_index does not say which points change places. "
                "Give task.flip_index=[...], or task.augment.hflip=false task.augment.vflip=false."
            )
        colour = {name: float(augment.get(name) or 0) for name in ("brightness", "contrast", "saturation", "hue")}
        steps: list[Any] = []
        if hflip or vflip or rotate or scale or translate:
            steps.append(Warp(hflip, vflip, rotate, scale, translate, order))
        if any(colour.values()):
            steps.append(ColorMatrix(**colour))
        self._moves_points = num_points is not None and any(isinstance(step, Warp) for step in steps)
        points = A.KeypointParams("xy", remove_invisible=False, check_each_transform=False)
        self._compose = A.Compose(steps, keypoint_params=points if self._moves_points else None)

    def __call__(self, images: np.ndarray, points: np.ndarray | None, seed: str) -> tuple[np.ndarray, Any]:
        """uint8 (B, S, S, 3) and float32 (B, K, 2) in crop coordinates (or None) to new ones."""
        for number, step in enumerate(self._compose.transforms):
            step.set_random_seed(int.from_bytes(hashlib.sha256(f"{seed}:{number}".encode()).digest()[:4]))
        out = np.empty_like(images)
        if points is None or not self._moves_points:
            for index, image in enumerate(images):
                out[index] = self._compose(image=image)["image"]
            return out, points
        side = images.shape[1]
        moved = np.empty_like(points)
        for index, image in enumerate(images):
            # Crop coordinates count from edges, OpenCV's from the first pixel's centre.
            result = self._compose(image=image, keypoints=points[index] * side - 0.5)
            out[index], moved[index] = result["image"], (result["keypoints"] + 0.5) / side
        return out, moved


def _check(augment: Mapping[str, Any]) -> None:
    faults = [f"unknown key '{key}'.{nearest(key, KEYS)}" for key in augment if key not in KEYS]
    for key, value in augment.items():
        if key in KEYS[2:] and value is not None:
            most = {"rotate": 180, "hue": 0.5}.get(key, 1)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
                faults.append(f"{key}={value} must be between 0 and {most}")
    if faults:
        raise CommandError(f"task.augment: {'; '.join(faults)}. Keys: {', '.join(KEYS)}.")


def _flip_order(flip_index: Sequence[int] | None, num_points: int | None) -> list[int] | None:
    if flip_index is None or num_points is None:
        return None
    order = [int(point) for point in flip_index]
    if sorted(order) != list(range(num_points)) or any(order[order[point]] != point for point in order):
        raise DataError(
            f"task.flip_index must pair each of the {num_points} points 0..{num_points - 1} with its mirror "
            f"image (itself on the midline), and back again; it has {len(order)} entries."
        )
    return order
