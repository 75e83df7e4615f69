"""A drawn face that dlib's detector takes for one."""

import numpy as np


def drawn_face(side: int) -> np.ndarray:
    """uint8 (side, side): what the detector's gradients ask of a face; the box found is about 3/4 as wide."""
    y, x = np.mgrid[0:side, 0:side] / side * 2 - 1

    def blob(centre_x: float, centre_y: float, width: float, height: float) -> np.ndarray:
        return np.exp(-(((x - centre_x) / width) ** 2) - ((y - centre_y) / height) ** 2)

    picture = 60 + 130 / (1 + np.exp(((x / 0.62) ** 2 + (y / 0.85) ** 2 - 1) * 12))
    for sign in (-1, 1):
        picture -= 90 * blob(0.27 * sign, -0.22, 0.13, 0.06) + 60 * blob(0.28 * sign, -0.42, 0.2, 0.05)
        picture -= 40 * blob(0.1 * sign, 0.2, 0.06, 0.05) + 25 * blob(0.13 * sign, -0.05, 0.06, 0.25)
    picture -= 80 * blob(0, 0.48, 0.25, 0.05) + 25 * blob(0, 0.62, 0.2, 0.05)
    return np.clip(picture, 0, 255).astype(np.uint8)


def scene(width: int, height: int, *places: tuple[int, int, int]) -> np.ndarray:
    """Faces (left, top, side) on grey."""
    picture = np.full((height, width), 60, np.uint8)
    for left, top, side in places:
        picture[top : top + side, left : left + side] = drawn_face(side)
    return picture
