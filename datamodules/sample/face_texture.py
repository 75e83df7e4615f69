"""Skin, eyes, brows, lips, wrinkles and hair, painted on the unrolled surface of the head."""

import cv2
import numpy as np
from numpy.random import Generator

from datamodules.sample.face_geometry import Head, column_of, columns
from datamodules.sample.face_model import Array, Face

SHIFT = 4


def spline(points: Array, closed: bool = False, steps: int = 5) -> Array:
    """Catmull-Rom curve through ``points`` (N, 2)."""
    if closed:
        padded = np.concatenate([points[-1:], points, points[:2]])
    else:
        padded = np.concatenate([2 * points[:1] - points[1:2], points, 2 * points[-1:] - points[-2:-1]])
    t = np.linspace(0, 1, steps, endpoint=False)[:, None, None]
    a, b, c, d = padded[:-3], padded[1:-2], padded[2:-1], padded[3:]
    curve = 0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
    curve = curve.swapaxes(0, 1).reshape(-1, 2)
    return curve if closed else np.concatenate([curve, points[-1:]])


class Canvas:
    """A colour map over (height, turn) with soft brushes given in face units."""

    def __init__(self, head: Head, side: int) -> None:
        self.head = head
        self.rows = self.columns = side
        self.unit = (side - 1) / (head.chin - head.crown)  # pixels per face unit, along y
        self.y = np.linspace(head.crown, head.chin, side)
        self.turn = columns(side)
        self.half_width = head.half_width(self.y)
        self.x = (self.half_width[:, None] * np.sin(self.turn)).astype(np.float32)
        self.pixels = np.zeros((side, side, 3), np.float32)

    def place(self, points: Array) -> Array:
        """Pixel positions (column, row) of frontal points (N, 2)."""
        half = np.maximum(np.interp(points[:, 1], self.y, self.half_width), 1e-6)
        column = column_of(np.arcsin(np.clip(points[:, 0] / half, -1, 1))) * (self.columns - 1)
        return np.stack([column, (points[:, 1] - self.head.crown) * self.unit], axis=1)

    def blend(self, mask: Array, colour: Array, window: tuple[slice, slice] = (slice(None), slice(None))) -> None:
        part = self.pixels[window]
        change = np.asarray(colour, np.float32) - part
        change *= mask[..., None]
        part += change

    def _mask(self, points: Array, soft: float, line: float = 0.0) -> tuple[Array, tuple[slice, slice]] | None:
        at = self.place(points)
        sigma = soft * self.unit
        pad = int(3 * sigma + line * self.unit + 3)
        low = np.maximum(np.floor(at.min(axis=0)).astype(int) - pad, 0)
        high = np.minimum(np.ceil(at.max(axis=0)).astype(int) + pad, self.rows)
        if (high <= low).any():
            return None
        mask = np.zeros((high[1] - low[1], high[0] - low[0]), np.uint8)
        fixed = np.round((at - low) * (1 << SHIFT)).astype(np.int32)
        if line:
            cv2.polylines(mask, [fixed], False, 255, max(1, round(line * self.unit)), cv2.LINE_AA, SHIFT)
        else:
            cv2.fillPoly(mask, [fixed], 255, cv2.LINE_AA, SHIFT)
        soft_mask: Array = mask.astype(np.float32) / 255
        if sigma > 0.3:
            soft_mask = cv2.GaussianBlur(soft_mask, (0, 0), sigma)
        # Lines thinner than a pixel lose strength instead of width.
        if line:
            soft_mask = soft_mask * min(1.0, max(line * self.unit, 0.25))
        return soft_mask, (slice(low[1], high[1]), slice(low[0], high[0]))

    def fill(self, points: Array, colour: Array, alpha: float, soft: float = 0.0) -> None:
        if alpha > 0.01 and (made := self._mask(points, soft)):
            self.blend(np.minimum(made[0] * np.float32(alpha), 1), colour, made[1])

    def stroke(self, points: Array, colour: Array, width: float, alpha: float, soft: float = 0.0) -> None:
        if alpha > 0.01 and (made := self._mask(points, soft, width)):
            gain = 1 + 1.6 * soft / width if soft else 1.0  # blurring spreads a line thin
            self.blend(np.minimum(made[0] * np.float32(alpha * gain), np.float32(0.95)), colour, made[1])

    def spot(self, at: tuple[float, float], radii: tuple[float, float], colour: Array, alpha: float) -> None:
        angle = np.linspace(0, 2 * np.pi, 20, endpoint=False)
        points = np.stack([at[0] + radii[0] * np.cos(angle), at[1] + radii[1] * np.sin(angle)], axis=1)
        self.fill(points, colour, alpha, soft=0.45 * min(radii))

    def creases(self, folds: list[tuple[Array, float, float]]) -> None:
        """Folds of the skin (curve, strength, width): dark lines with light below them, all at once."""
        dark, light = np.zeros((2, self.rows, self.columns), np.uint8)
        for points, alpha, width in folds:
            if alpha <= 0.05:
                continue
            curve = spline(points)
            for mask, drop, level in ((dark, 0.0, min(0.9 * alpha, 0.95)), (light, 0.02, min(0.5 * alpha, 0.5))):
                at = np.round(self.place(curve + np.array([0, drop])) * (1 << SHIFT)).astype(np.int32)
                pixels = 0.9 * width * self.unit
                level = round(255 * level * min(1.0, max(pixels, 0.3)))
                cv2.polylines(mask, [at], False, level, max(1, round(pixels)), cv2.LINE_AA, SHIFT)
        if not dark.any():
            return
        skin = self.head.face.skin
        for mask, colour in ((light, np.minimum(skin * 1.15, 1)), (dark, np.array([0.52, 0.40, 0.36]) * skin)):
            self.blend(cv2.GaussianBlur(mask, (0, 0), max(0.007 * self.unit, 0.5)).astype(np.float32) / 255, colour)


def _mirrored(points: Array) -> Array:
    return points * [-1, 1]


def _grain(rng: Generator, rows: int, columns: int, side: int) -> Array:
    return cv2.resize(rng.standard_normal((rows, columns), dtype=np.float32), (side, side))


def _paint_skin(canvas: Canvas, face: Face, rng: Generator) -> None:
    red = np.clip(face.skin * [1.08, 0.72, 0.70], 0, 1)
    wash = Canvas(canvas.head, 72)  # broad, soft tones need few pixels
    wash.pixels[:] = face.skin
    for side in (-1, 1):
        wash.spot((side * 0.42, 0.42), (0.24, 0.2), red, 0.3 + 0.4 * face.make_up + 0.1 * (1 - face.grown))
        wash.spot((side * 0.34, -0.02), (0.24, 0.13), face.skin * [0.72, 0.64, 0.64], 0.45)
        wash.spot((side * 0.36, 0.13), (0.14, 0.045), face.skin * [0.66, 0.58, 0.6], 0.2 + 0.4 * face.old)
    wash.spot((0, float(canvas.head.points[54, 1])), (0.11, 0.09), red, 0.3)
    mottled = 1 + np.float32(0.02 + 0.025 * face.old) * _grain(rng, 40, 40, canvas.rows)
    mottled += np.float32(0.015 + 0.02 * face.old) * _grain(rng, 120, 120, canvas.rows)
    canvas.pixels[:] = cv2.resize(wash.pixels, (canvas.columns, canvas.rows), interpolation=cv2.INTER_LINEAR)
    canvas.pixels *= mottled[..., None]
    if face.old > 0.5:
        for _ in range(int(9 * face.old)):
            at = (rng.uniform(-0.6, 0.6), rng.uniform(-0.9, 0.8))
            size = rng.uniform(0.012, 0.03)
            canvas.spot(at, (size, size), face.skin * [0.72, 0.6, 0.5], rng.uniform(0.2, 0.6))


def _paint_wrinkles(canvas: Canvas, face: Face, rng: Generator) -> None:
    old, move, points = face.old, face.mimic, canvas.head.points
    folds: list[tuple[Array, float, float]] = []
    level = min(max(1.1 * old - 0.1, 0.0), 1.1) + 0.5 * face.grown * max(move.forehead, 0)
    for number, y in enumerate((-0.42, -0.53, -0.64, -0.74)):
        x = np.linspace(-0.42, 0.42, 6) * (1 - 0.08 * number)
        line = y - 0.3 * max(move.brow_inner, 0) + 0.012 * rng.standard_normal(6) + 0.04 * np.abs(x)
        folds.append((np.stack([x, line], axis=1), level * rng.uniform(0.45, 0.95) * (1 - 0.14 * number), 0.016))
    frown = 0.5 * old + 1.0 * face.grown * max(move.frown, 0)
    for beside in (-0.045, 0.045):
        folds.append((np.array([[beside, -0.10], [beside * 1.15, -0.2], [beside, -0.3]]), frown, 0.016))
    for y in (0.02, 0.07):
        across = np.array([[-0.09, y + 0.02], [0, y], [0.09, y + 0.02]])
        folds.append((across, 0.9 * max(move.nose_wrinkle, 0) + 0.15 * old, 0.016))
    wing, corner, chin = points[59], points[82], canvas.head.chin
    fold = 0.10 + 0.85 * old + 3.5 * max(move.corner_up, 0) + 0.5 * max(move.nose_wrinkle, 0)
    for flip in (False, True):
        lines: list[tuple[Array, float, float]] = [
            (np.array([[wing[0] + 0.02, wing[1] - 0.06], [wing[0] + 0.12, wing[1] + 0.06],
                       [corner[0] + 0.085, corner[1] - 0.07], [corner[0] + 0.075, corner[1] + 0.06]]),
             fold, 0.02),
            (np.array([[0.24, 0.125], [0.36, 0.155], [0.47, 0.11]]), 0.15 + 0.75 * old, 0.016),
            (np.array([[0.22, 0.175], [0.36, 0.22], [0.5, 0.15]]), 0.9 * old - 0.25, 0.016),
            (np.array([[corner[0] + 0.03, corner[1] + 0.05], [corner[0] + 0.055, corner[1] + 0.15],
                       [corner[0] + 0.03, chin - 0.22]]),
             0.9 * old - 0.2 + 2 * max(-move.corner_up, 0), 0.018),
            (np.array([[0.62, 0.5], [0.58, 0.72], [0.47, 0.92]]), 0.7 * old - 0.35, 0.018),
        ]  # fmt: skip
        feet = 0.85 * old - 0.1 + 0.45 * face.grown * max(move.squint, 0)
        for angle in (-0.5, -0.1, 0.3, 0.65):
            ray = np.array([[0.535, 0.01], [0.59, 0.01 + 0.06 * angle], [0.65, 0.02 + 0.15 * angle]])
            lines.append((ray, feet * rng.uniform(0.6, 1.0), 0.013))
        folds += [(_mirrored(line) if flip else line, alpha, width) for line, alpha, width in lines]
    canvas.creases(folds)


def _paint_eye(canvas: Canvas, face: Face, lids: Array, pupil: Array) -> None:
    outline = np.concatenate([spline(lids[:5])[:-1], spline(np.concatenate([lids[4:], lids[:1]]))[:-1]])
    made = canvas._mask(outline, 0.003)
    if made is None:
        return
    inside, window = made
    white = np.array([0.90, 0.88, 0.86]) - 0.08 * face.old * np.array([0, 0.6, 1])
    canvas.blend(inside, white, window)
    rows = canvas.y[window[0]][:, None]
    columns = canvas.x[window]
    distance = np.sqrt((columns - pupil[0]) ** 2 + (rows - pupil[1]) ** 2)
    radius, edge = 0.072 + 0.022 * (1 - face.grown), 0.6 / canvas.unit

    def disc(size: float) -> Array:
        return (np.clip((size - distance) / edge + 0.5, 0, 1) * inside).astype(np.float32)

    canvas.blend(disc(radius), face.iris * 0.45, window)
    canvas.blend(disc(radius * 0.82), face.iris, window)
    canvas.blend(disc(radius * 0.42), np.array([0.02, 0.02, 0.02]), window)
    glint = np.sqrt((columns - pupil[0] + 0.028) ** 2 + (rows - pupil[1] + 0.03) ** 2)
    canvas.blend((np.clip((0.02 - glint) / edge + 0.5, 0, 1) * inside * 0.9).astype(np.float32), np.ones(3), window)
    upper = spline(lids[:5])
    shade = canvas._mask(np.concatenate([upper, upper[::-1] + np.array([0, 0.03])]), 0.012)
    if shade is not None:
        # The lid throws a shadow on the eyeball only.
        full = np.zeros((canvas.rows, canvas.columns), np.float32)
        full[shade[1]] = shade[0]
        canvas.blend(full[window] * inside * np.float32(0.6), face.skin * 0.35, window)
    lash = np.array([0.06, 0.05, 0.05])
    thick = 0.016 + 0.014 * face.gender * face.grown + 0.02 * face.make_up
    canvas.stroke(upper, lash, thick, 0.9)
    canvas.stroke(spline(lids[[4, 5, 6, 7, 0]]), face.skin * 0.4, 0.010, 0.55)
    fold = upper + np.stack([np.zeros(len(upper)), -0.035 - 0.02 * np.sin(np.linspace(0, np.pi, len(upper)))], axis=1)
    canvas.stroke(fold, face.skin * [0.5, 0.42, 0.42], 0.014, 0.25 if face.race == 2 else 0.6, 0.004)
    if face.make_up:
        colour = np.array([0.25, 0.2, 0.38]) if face.grain % 2 else np.array([0.42, 0.24, 0.16])
        canvas.fill(np.concatenate([upper, upper[::-1] + np.array([0, -0.075])]), colour, 0.75 * face.make_up, 0.02)


def _paint_brows(canvas: Canvas, face: Face) -> None:
    colour = face.hair * (0.75 - 0.1 * face.old) + 0.03
    strength = 0.35 + 0.5 * face.grown - 0.12 * face.old
    for first in (33, 42):
        ring = canvas.head.points[first : first + 9]
        canvas.fill(spline(ring, closed=True), colour, strength, 0.010)
        canvas.fill(ring, colour, 0.5 * strength, 0.004)


def _paint_nose(canvas: Canvas, face: Face) -> None:
    points, skin = canvas.head.points, face.skin
    dark = skin * [0.34, 0.26, 0.25]
    tip, wing = points[54, 1], points[59, 0]
    for sign in (-1, 1):
        canvas.spot((sign * wing * 0.5, tip + 0.068), (wing * 0.25, 0.021), dark, 0.8)
        edge = np.array(
            [
                [wing * 0.82, tip - 0.055],
                [wing * 1.02, tip - 0.01],
                [wing * 0.98, tip + 0.045],
                [wing * 0.72, tip + 0.07],
            ]
        )
        canvas.stroke(spline(edge * [sign, 1]), dark, 0.016, 0.5, 0.006)
        flank = np.array([[0.10, -0.06], [0.085, 0.12], [0.12, tip - 0.06]])
        canvas.stroke(spline(flank * [sign, 1]), skin * [0.66, 0.58, 0.56], 0.04, 0.3, 0.02)
    canvas.fill(spline(points[55:60]) + np.array([0, 0.012]), dark, 0.12, 0.01)
    canvas.stroke(spline(points[55:60]) + np.array([0, 0.015]), skin * [0.5, 0.4, 0.4], 0.018, 0.3, 0.01)
    canvas.stroke(np.array([[0.0, 0.1], [0.0, tip - 0.03]]), np.minimum(skin * 1.22, 1), 0.03, 0.35, 0.015)
    canvas.stroke(np.array([[0.0, points[57, 1] + 0.03], [0.0, points[79, 1] - 0.03]]), skin * 0.7, 0.03, 0.25, 0.012)


def _paint_mouth(canvas: Canvas, face: Face) -> None:
    points = canvas.head.points
    lip = np.clip(face.skin * [0.86, 0.56, 0.56] + [0.03, 0.0, 0.0], 0, 1)
    if face.make_up:
        rouge = np.array([0.62, 0.08, 0.14]) if face.grain % 3 else np.array([0.70, 0.12, 0.38])
        lip = lip + (rouge - lip) * min(1.3 * face.make_up, 0.95)
    lip = lip * (1 - 0.04 * face.old) + 0.04 * face.old * face.skin
    outer, inner = points[76:88], points[88:96]
    strength = 0.75 + 0.2 * face.make_up
    top = np.concatenate([spline(outer[:7]), spline(inner[:5])[::-1]])
    low = np.concatenate([spline(np.concatenate([outer[6:], outer[:1]])), spline(inner[[0, 7, 6, 5, 4]])])
    canvas.fill(top, lip * 0.82, strength, 0.005)
    canvas.fill(low, lip, strength, 0.005)
    hollow = np.concatenate([spline(inner[:5])[:-1], spline(inner[[4, 5, 6, 7, 0]])[:-1]])
    gap = inner[6, 1] - inner[2, 1]
    if gap > 0.02:
        canvas.fill(hollow, np.array([0.20, 0.06, 0.06]), 0.97)
        teeth = np.array([0.90, 0.88, 0.83]) * (1 - 0.15 * face.old * np.array([0.4, 0.7, 1.4]))
        edge = spline(inner[:5])
        show = 0.075 if face.expression in (1, 2, 3) else 0.05
        depth = np.minimum(show, 0.75 * gap) * np.clip(1.4 * np.cos(edge[:, 0] / abs(inner[0, 0]) * 1.5), 0, 1)
        lower = edge + np.stack([np.zeros(len(edge)), depth], axis=1)
        if face.age > 2.5 or gap > 0.08:
            canvas.fill(np.concatenate([edge, lower[::-1]]), teeth, 0.95, 0.003)
        if gap > 0.14:
            canvas.spot((0.0, float(inner[6, 1] - 0.25 * gap)), (0.14, 0.22 * gap), np.array([0.62, 0.25, 0.25]), 0.8)
    else:
        canvas.stroke(spline(inner[:5]), np.array([0.25, 0.10, 0.10]) * (0.5 + face.skin[0]), 0.018, 0.85)
    canvas.stroke(spline(outer[:7]), face.skin * [0.55, 0.38, 0.38], 0.009, 0.35)
    below = spline(points[[84, 85, 86]]) + np.array([0, 0.045])
    canvas.stroke(below, face.skin * [0.55, 0.46, 0.45], 0.05, 0.35, 0.02)
    for corner, sign in ((points[76], -1), (points[82], 1)):
        canvas.spot((float(corner[0] + 0.008 * sign), float(corner[1])), (0.022, 0.016), face.skin * 0.35, 0.65)


def _paint_beard(canvas: Canvas, face: Face, rng: Generator) -> None:
    if not face.beard and not face.moustache:
        return
    points, chin = canvas.head.points, canvas.head.chin
    streak = np.clip(0.8 + 0.35 * _grain(rng, canvas.rows // 6, canvas.rows // 2, canvas.rows), 0, 1.2)
    colour = face.hair * 0.8
    mask = np.zeros((canvas.rows, canvas.columns), np.float32)
    if face.beard:
        corner, low = points[82], points[85]
        half = np.array([
            [0.0, low[1] + 0.06], [0.14, low[1] + 0.05], [corner[0] + 0.05, corner[1] + 0.06],
            [corner[0] + 0.15, corner[1] - 0.06], [0.60, corner[1] - 0.2], [0.73, 0.2], [0.765, 0.2],
        ])  # fmt: skip
        rim = canvas.head.outline[canvas.head.outline[:, 1] > 0.2][::4]
        right = np.concatenate([half, rim, [[0.0, chin]]])
        for ring in (right, _mirrored(right)):
            if made := canvas._mask(ring, 0.03):
                mask[made[1]] = np.maximum(mask[made[1]], made[0] * np.float32(min(0.25 + 0.8 * face.beard, 0.95)))
    if face.moustache:
        top, edge = points[57, 1] + 0.03, spline(points[76:83])
        upper = np.stack([edge[:, 0] * 1.05, top + 0.35 * np.abs(edge[:, 0])], axis=1)
        if made := canvas._mask(np.concatenate([edge - [0, 0.005], upper[::-1]]), 0.015):
            mask[made[1]] = np.maximum(mask[made[1]], made[0] * np.float32(min(0.3 + 0.7 * face.moustache, 0.95)))
    canvas.blend(np.clip(mask * streak, 0, 1), colour)


def _paint_hair(canvas: Canvas, face: Face, rng: Generator) -> None:
    x, y = canvas.x, canvas.y[:, None]
    streak = _grain(rng, max(canvas.rows // 12, 2), canvas.columns // 2, canvas.rows)
    ragged = 0.03 * _grain(rng, 2, 26, canvas.rows)
    line = -0.80 + 0.02 * face.identity[5] + 0.28 * x**2
    if face.fringe:
        line = np.minimum(line + 0.45 * face.fringe, -0.40)
    # At the temples the hairline drops to the ears, or with long hair past the jaw.
    edge = 0.80 if face.hair_style == "short" else 0.87
    temple = np.clip((np.abs(np.sin(canvas.turn)) - edge) / (0.97 - edge), 0, 1)
    line = line + (0.95 if face.hair_style == "short" else 2.2) * temple**2 * (3 - 2 * temple)
    alpha = np.clip((line + ragged - y) / 0.05 + 0.5, 0, 1)
    if face.hair_style == "bald":
        top = 0.45 if face.age < 3 else 0.0
        alpha = top * alpha + np.clip((np.abs(canvas.turn) - 1.15) / 0.15, 0, 1) * (y < -0.1) * (
            0.8 if face.age > 3 else 0.0
        )
    colour = np.clip(face.hair * (1 + 0.22 * streak[..., None]), 0, 1).astype(np.float32)
    part = np.clip(alpha, 0, 1).astype(np.float32)[..., None]
    canvas.pixels += part * (colour - canvas.pixels)


def paint(head: Head, side: int) -> Array:
    """Colour map of a head.

    Returns:
        float32 (side, side, 3), rows from crown to chin, columns as in ``face_geometry.columns``; RGB in [0, 1]
        before light falls on it.
    """
    face = head.face
    rng = np.random.Generator(np.random.PCG64(face.grain))
    canvas = Canvas(head, side)
    _paint_skin(canvas, face, rng)
    _paint_nose(canvas, face)
    _paint_mouth(canvas, face)
    _paint_wrinkles(canvas, face, rng)
    for first, pupil in ((60, 96), (68, 97)):
        _paint_eye(canvas, face, head.points[first : first + 8], head.points[pupil])
    _paint_beard(canvas, face, rng)
    _paint_brows(canvas, face)
    _paint_hair(canvas, face, rng)
    return canvas.pixels
