"""From a face to pixels: light, pose, what stands behind and before it."""

import cv2
import numpy as np
from numpy.random import Generator

from datamodules.sample.face_geometry import Head, columns, rotation
from datamodules.sample.face_model import Array, Face
from datamodules.sample.face_texture import paint, spline
from datamodules.sample.landmarks98 import shape

COARSE = 96
SHIFT = 4


def _cover(image: Array, points: Array, colour: Array, width: float = 0.0, closed: bool = True) -> None:
    # cv2 smooths edges in 8-bit masks only.
    pad = int(width) + 2
    low = np.clip(np.floor(points.min(axis=0)).astype(int) - pad, 0, image.shape[1::-1])
    high = np.clip(np.ceil(points.max(axis=0)).astype(int) + pad, 0, image.shape[1::-1])
    if (high <= low).any():
        return
    mask = np.zeros((high[1] - low[1], high[0] - low[0]), np.uint8)
    fixed = [np.round((points - low) * (1 << SHIFT)).astype(np.int32)]
    if width:
        cv2.polylines(mask, fixed, closed, 255, max(1, round(width)), cv2.LINE_AA, SHIFT)
    else:
        cv2.fillPoly(mask, fixed, 255, cv2.LINE_AA, SHIFT)
    part = image[low[1] : high[1], low[0] : high[0]]
    tone = np.clip(np.asarray(colour, np.float32), 0, 1)
    part += (mask.astype(np.float32) / 255)[..., None] * (tone - part)


def polygon(image: Array, points: Array, colour: Array) -> None:
    _cover(image, points, colour)


def _line(image: Array, points: Array, colour: Array, width: float, closed: bool = False) -> None:
    _cover(image, points, colour, max(width, 1.0), closed)


def ellipse(centre: tuple[float, float], radii: tuple[float, float], steps: int = 40) -> Array:
    angle = np.linspace(0, 2 * np.pi, steps, endpoint=False)
    return np.stack([centre[0] + radii[0] * np.cos(angle), centre[1] + radii[1] * np.sin(angle)], axis=1)


class _View:
    """Face units to picture pixels: pose, scale, shift."""

    def __init__(self, pose: Array, scale: float, shift: Array) -> None:
        self.pose, self.scale, self.shift = pose, scale, shift

    def of(self, points: Array) -> Array:
        return (points @ self.pose.T)[..., :2] * self.scale + self.shift

    def flat(self, points: Array, depth: float) -> Array:
        return self.of(np.concatenate([points, np.full((len(points), 1), depth)], axis=1))


def _shading(head: Head, grid: Array, pose: Array) -> Array:
    face = head.face
    across, down = np.gradient(grid, axis=1), np.gradient(grid, axis=0)
    normal = np.cross(across, down) @ pose.T
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True) + 1e-9
    light = face.light / np.linalg.norm(face.light)
    lambert = np.clip(normal @ light, 0, 1)
    half = light + np.array([0, 0, 1])
    gloss = np.clip(normal @ (half / np.linalg.norm(half)), 0, 1) ** 14
    sky = 0.85 + 0.15 * np.clip(-normal[..., 1], -1, 1)
    shade = face.ambient * sky + (1.15 - face.ambient) * lambert
    return np.stack([shade * face.exposure, gloss * (1 - face.ambient) * 0.22 * face.exposure], axis=-1)


def _mesh(head: Head, view: _View) -> tuple[Array, Array, tuple[int, int]]:
    """The lit face as premultiplied colour, its coverage, and the column and row of their corner."""
    side = int(np.clip(view.scale * 2.3, 96, 360))
    y = np.linspace(head.crown, head.chin, COARSE)[:, None]
    grid = head.surface(columns(COARSE)[None, :], y)
    shade = _shading(head, grid, view.pose).astype(np.float32)
    at = view.of(grid).astype(np.float32)

    def finer(plane: Array, rows: int, across: int) -> Array:
        # Corner samples stay corner samples, unlike in cv2.resize: the chin is the last row.
        step_x, step_y = (plane.shape[1] - 1) / (across - 1), (plane.shape[0] - 1) / (rows - 1)
        scaled = np.array([[step_x, 0, 0], [0, step_y, 0]])
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        return cv2.warpAffine(plane, scaled, (across, rows), flags=flags, borderMode=cv2.BORDER_REPLICATE)

    lit = finer(shade, side, side)
    colour = paint(head, side) * lit[..., :1] + lit[..., 1:]
    bytes_ = np.full((side, side, 4), 255, np.uint8)
    bytes_[..., :3] = np.clip(colour * 255 + 0.5, 0, 255)

    corner = np.floor(at.reshape(-1, 2).min(axis=0)).astype(int) - 2
    span = np.ceil(at.reshape(-1, 2).max(axis=0)).astype(int) + 3 - corner
    # Twice the picture's resolution, and a little more; the turned-away side needs the most columns.
    rows = int(np.clip(view.scale * 2.45 * 2.2, 160, 1400))
    across = int(np.clip(view.scale * 4.1 * (1.0 + 1.2 * abs(float(view.pose[2, 0]))), 160, 1400))
    places = finer((at - corner.astype(np.float32)) * 2, rows, across).astype(np.int32)
    samples = cv2.resize(bytes_, (across, rows), interpolation=cv2.INTER_LINEAR)
    index = places[..., 1] * (2 * int(span[0])) + places[..., 0]
    # Painter's order: on a height field whatever lies further towards the viewer is nearer, column by column
    # and row by row, and of several values for one pixel numpy keeps the last.
    order = np.s_[:: 1 if view.pose[2, 1] >= 0 else -1, :: 1 if view.pose[2, 0] >= 0 else -1]
    splat = np.zeros(4 * span[0] * span[1], np.uint32)
    splat[index[order].ravel()] = np.ascontiguousarray(samples[order]).view(np.uint32).ravel()
    picture = splat.view(np.uint8).reshape(2 * span[1], 2 * span[0], 4)
    small = cv2.resize(picture, (int(span[0]), int(span[1])), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    # A pixel with holes is whole when its surroundings are covered.
    around = cv2.blur(np.ascontiguousarray(small[..., 3]), (3, 3))
    gain = np.where(around > 0.7, 1 / np.maximum(small[..., 3], 0.2), 1).astype(np.float32)
    return (
        small[..., :3] * gain[..., None],
        np.minimum(small[..., 3] * gain, 1),
        (int(corner[0]), int(corner[1])),
    )


def _strands(image: Array, ring: Array, colour: Array, rng: Generator, scale: float) -> None:
    polygon(image, ring, colour)
    low, high = ring.min(axis=0), ring.max(axis=0)
    window = np.s_[
        max(int(low[1]), 0) : max(int(high[1]) + 1, 0), max(int(low[0]), 0) : max(int(high[0]) + 1, 0)
    ]  # fmt: skip
    part = image[window]
    if part.size == 0:
        return
    mask = np.zeros(image.shape[:2], np.uint8)
    cv2.fillPoly(mask, [np.round(ring * (1 << SHIFT)).astype(np.int32)], 255, cv2.LINE_AA, SHIFT)
    coarse = rng.standard_normal((3, max(int((high[0] - low[0]) / (0.03 * scale)), 3)), dtype=np.float32)
    streak = cv2.resize(coarse, (part.shape[1], part.shape[0]), interpolation=cv2.INTER_CUBIC)
    part *= 1 + (0.18 * streak * (mask[window].astype(np.float32) / 255))[..., None]


def _behind(image: Array, head: Head, view: _View, rng: Generator) -> None:
    face, scale = head.face, view.scale
    dim = face.exposure * (0.75 * face.ambient + 0.28)
    hair, skin = face.hair * dim, face.skin * dim
    wide = float(head.outline[0, 0])
    neck_top = view.of(np.array([[-0.56, 0.55, -0.15], [0.56, 0.55, -0.15], [-0.5, 1.0, -0.1], [0.5, 1.0, -0.1]]))
    middle = view.of(np.array([[0.0, 1.0, -0.4]]))[0]
    reach = max(image.shape[0], image.shape[1])
    base = middle[1] + (0.8 - 0.2 * (1 - face.grown)) * scale
    cloth = rng.uniform(0.08, 0.85, 3) * dim
    if face.hair_style == "long":
        length = rng.uniform(0.9, 2.0)
        back = np.array(
            [
                [-1.02, -0.4],
                [-0.9, -0.95],
                [0.0, -1.36],
                [0.9, -0.95],
                [1.02, -0.4],
                [1.06, 0.4],
                [0.98, length],
                [0.55, length + 0.08],
                [-0.55, length + 0.08],
                [-0.98, length],
                [-1.06, 0.4],
            ]
        )
        _strands(image, view.flat(spline(back * [wide / 0.8, 1], closed=True), -0.25), hair * 0.8, rng, scale)
    thin = 0.58 + 0.42 * face.grown - 0.12 * face.gender * face.grown
    throat = np.array([neck_top[0], neck_top[1], [middle[0] + 0.55 * scale, base], [middle[0] - 0.55 * scale, base]])
    axis = throat[[0, 0, 3, 3]] * 0.5 + throat[[1, 1, 2, 2]] * 0.5
    lit = np.clip(0.5 * face.light[0], -0.5, 0.5) * (throat[1] - throat[0])
    for step in np.linspace(0, 1, 6):  # a rounded column under the shadow of the jaw
        ring = axis + (throat - axis) * thin * (1 - 0.8 * step) + lit * 0.6 * step
        polygon(image, ring, skin * (0.6 + 0.26 * step))
    shadow = np.array([throat[0], throat[1], 0.62 * throat[1] + 0.38 * throat[2], 0.62 * throat[0] + 0.38 * throat[3]])
    polygon(image, axis[0] + (shadow - axis[0]) * [thin, 1], skin * 0.56)
    chest = np.array([
        [middle[0] - 0.42 * scale, base - 0.22 * scale], [middle[0], base + 0.06 * scale],
        [middle[0] + 0.42 * scale, base - 0.22 * scale], [middle[0] + 1.5 * scale, base + 0.25 * scale],
        [middle[0] + 1.9 * scale, base + reach], [middle[0] - 1.9 * scale, base + reach],
        [middle[0] - 1.5 * scale, base + 0.25 * scale],
    ])  # fmt: skip
    polygon(image, chest, cloth)
    thick = 0.0 if face.hair_style == "bald" else 0.07
    yaw = np.radians(face.yaw)
    across = np.hypot((wide + thick) * np.cos(yaw), (0.98 + thick) * np.sin(yaw))
    skull = ellipse((0.0, 0.0), (across, abs(head.crown) - 0.28 + thick), 48)
    middle_skull = view.of(np.array([[0.0, -0.28, -0.22]]))[0]
    lean = np.radians(face.roll)
    turn = np.array([[np.cos(lean), -np.sin(lean)], [np.sin(lean), np.cos(lean)]])
    bare = skin * 0.9 if face.age < 3 or face.hair_style == "bald" else hair * 0.85
    _strands(image, skull @ turn.T * scale + middle_skull, bare, rng, scale)
    if face.hair_style == "bald" and face.age > 3:  # a wreath of hair at the sides
        for sign in (-1, 1):
            polygon(image, view.of(np.array(
                [[sign * 0.74, -0.5, -0.1], [sign * 0.78, -0.1, -0.02], [sign * 0.76, 0.12, -0.2],
                 [sign * 0.6, 0.1, -0.8], [sign * 0.6, -0.5, -0.8]])), hair * 0.9)  # fmt: skip
    if face.hair_style != "long":
        for sign in (-1, 1):
            ear = ellipse((0.0, 0.17), (0.13, 0.23), 24)
            flap = np.stack([sign * (wide - 0.01 + 0.55 * ear[:, 0]), ear[:, 1], -0.08 - ear[:, 0]], axis=1)
            polygon(image, view.of(flap), skin * 0.92)
            core = np.array([sign * (wide + 0.02), 0.17, -0.10])
            polygon(image, view.of(core + 0.5 * (flap - core)), skin * 0.62)


def _glasses(image: Array, head: Head, view: _View, rng: Generator) -> None:
    dark = head.face.glasses == "dark"
    frame = rng.uniform(0.02, 0.3, 3) * head.face.exposure
    width = view.scale * rng.uniform(0.014, 0.035)
    radii = (rng.uniform(0.2, 0.23), rng.uniform(0.13, 0.19))
    for sign in (-1, 1):
        angle = np.linspace(0, 2 * np.pi, 36, endpoint=False)
        power = 2 / 3.2
        x = sign * 0.345 + radii[0] * np.sign(np.cos(angle)) * np.abs(np.cos(angle)) ** power
        y = 0.015 + radii[1] * np.sign(np.sin(angle)) * np.abs(np.sin(angle)) ** power
        z = 0.78 - 0.35 * x**2
        ring = view.of(np.stack([x, y, z], axis=1))
        if dark:
            polygon(image, ring, frame * 0.4)
        _line(image, ring, frame, width, closed=True)
        # The far temple is hidden by the face.
        if sign * np.sin(np.radians(head.face.yaw)) < 0.15:
            arm = np.array([[sign * 0.55, -0.02, 0.66], [sign * 0.79, 0.0, 0.1]])
            _line(image, view.of(arm), frame, width)
    _line(image, view.of(np.array([[-0.14, 0.0, 0.83], [0.0, -0.02, 0.86], [0.14, 0.0, 0.83]])), frame, width)


def draw_face(image: Array, face: Face, centre: tuple[float, float], scale: float, rng: Generator) -> Array:
    """Draws a face with neck and shoulders into a picture.

    Args:
        image: float32 (H, W, 3) RGB in [0, 1], changed in place.
        face: The person.
        centre: Where the middle of the landmarks' box comes to lie (x, y), in pixels.
        scale: Pixels per face unit, the distance of the outer eye corners seen from the front.
        rng: For what the face does not determine: clothes, strands, frames.

    Returns:
        The 98 points in picture pixels (pixel centres at whole numbers), float64 (98, 2).
    """
    head = Head.of(face, shape(face))
    points = head.landmarks() * scale
    shift = np.array(centre) - (points.min(axis=0) + points.max(axis=0)) / 2
    view = _View(rotation(face), scale, shift)
    _behind(image, head, view, rng)
    # The mesh counts from pixel corners, cv2 and the landmarks from pixel centres.
    colour, cover, (left, top) = _mesh(head, _View(view.pose, scale, shift + 0.5))
    height, width = image.shape[:2]
    rows = slice(max(top, 0), min(top + len(cover), height))
    columns = slice(max(left, 0), min(left + cover.shape[1], width))
    if rows.start < rows.stop and columns.start < columns.stop:
        part = np.s_[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
        image[rows, columns] *= 1 - cover[part][..., None]
        image[rows, columns] += colour[part]
    if face.glasses != "none":
        _glasses(image, head, view, rng)
    return points + shift
