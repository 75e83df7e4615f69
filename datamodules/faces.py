"""Where the face is: dlib's HOG frontal detector (Dalal & Triggs 2005; King 2015, arXiv:1502.00046; no model file)."""

import math
import queue
from collections.abc import Callable, Sequence
from pathlib import Path

import dlib
import numpy as np
from PIL import Image

from datamodules.decode import BrokenImageError, read_image
from datamodules.file_index import per_file

LONGEST = 1000  # pixels; larger pictures are reduced by a whole number before detection, boxes are scaled back
# A detector takes a second to make and can serve one thread at a time; it lets other threads run meanwhile.
_IDLE: queue.SimpleQueue[dlib.fhog_object_detector] = queue.SimpleQueue()
_COLUMNS = ["width", "height", "left", "top", "right", "bottom"]


def detect_faces(
    root: Path,
    files: Sequence[str],
    cache_root: Path | None,
    name: str,
    read: Callable[[str], np.ndarray] | None = None,
    stamp: Callable[[str], tuple[int, int]] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Finds in each picture the frontal face nearest to its centre.

    The smallest face found has about 80 pixels. Boxes are whole pixels, yet the detector's scores are floats: in
    rare borderline cases another processor may find a face that this one does not.

    Args:
        root: folder that ``files`` are relative to.
        files: posix paths of pictures.
        cache_root: folder in which results are kept, so that detection runs once; None keeps nothing.
        name: of the data, for the kept file and the progress bar.
        read, stamp: how to get at the picture of one of ``files``, and at its size and mtime, where it is no file.

    Returns:
        Sizes, float64 (N, 2): width and height, NaN for a broken picture. Boxes, float64 (N, 4): left, top, right,
        bottom in picture pixels, may stick out; NaN where no face was found.
    """

    def compute(path: Path) -> list[float]:
        try:
            picture = read_image(path) if read is None else read(path.relative_to(root).as_posix())
        except BrokenImageError:
            return [math.nan] * 6
        height, width = picture.shape[:2]
        return [width, height, *_nearest_to_centre(picture)]

    index = None if cache_root is None else cache_root / f"{name}-faces-hog-{LONGEST}.parquet"
    found = per_file(root, files, compute, _COLUMNS, index, f"Finding faces in {name}", stamp)
    return found[:, :2], found[:, 2:]


def find_faces(picture: np.ndarray) -> list[list[float]]:
    """Boxes of all frontal faces, left to right: left, top, right, bottom in picture pixels, may stick out.

    Args:
        picture: uint8 (H, W, 3).
    """
    height, width = picture.shape[:2]
    factor = -(-max(width, height) // LONGEST)
    small = picture if factor == 1 else np.asarray(Image.fromarray(picture).reduce(factor))
    try:
        detector = _IDLE.get_nowait()
    except queue.Empty:
        detector = dlib.get_frontal_face_detector()
    found = detector(small, 0)
    _IDLE.put(detector)
    # dlib's right and bottom are the last pixels inside.
    edges = [(box.left(), box.top(), box.right() + 1, box.bottom() + 1) for box in found]
    return sorted([float(factor * edge) for edge in box] for box in edges)


def _nearest_to_centre(picture: np.ndarray) -> list[float]:
    height, width = picture.shape[:2]
    return min(
        find_faces(picture),
        key=lambda box: ((box[0] + box[2] - width) ** 2 + (box[1] + box[3] - height) ** 2, box),
        default=[math.nan] * 4,
    )


def enlarge(boxes: np.ndarray, sizes: np.ndarray, scale: float) -> np.ndarray:
    """Boxes grown about their middle and clipped to the picture.

    Args:
        boxes: float64 (N, 4) left, top, right, bottom; NaN rows stay NaN.
        sizes: float64 (N, 2) width and height of the pictures.
        scale: new side / old side.
    """
    middle = (boxes[:, :2] + boxes[:, 2:]) / 2
    half = (boxes[:, 2:] - boxes[:, :2]) * (scale / 2)
    return np.concatenate([np.maximum(middle - half, 0), np.minimum(middle + half, sizes)], axis=1)
