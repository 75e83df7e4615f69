"""The head as a surface: rows of height y, columns of the turn around the upright axis."""

from dataclasses import dataclass, replace

import numpy as np

from datamodules.sample.face_model import Array, Face
from datamodules.sample.landmarks98 import jaw

TURN = np.radians(90)
# Columns of the unrolled head lie closer in the middle, where the features and the steep nose are.
_SPREAD = np.linspace(-1, 1, 513)
_TURNS = TURN * (0.68 * _SPREAD + 0.32 * _SPREAD**3)
CONTOUR_TURN = np.radians(85)


def rotation(face: Face) -> Array:
    """Matrix (3, 3) of the pose: yaw first, then pitch, then roll; rows give picture x, y and nearness."""
    yaw, pitch, roll = np.radians([face.yaw, face.pitch, face.roll])
    turn = np.array([[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]])
    nod = np.array([[1, 0, 0], [0, np.cos(pitch), np.sin(pitch)], [0, -np.sin(pitch), np.cos(pitch)]])
    lean = np.array([[np.cos(roll), -np.sin(roll), 0], [np.sin(roll), np.cos(roll), 0], [0, 0, 1]])
    return lean @ nod @ turn


def columns(count: int) -> Array:
    """Turns (radians) of the columns of an unrolled head, from -90 to 90 degrees."""
    return np.interp(np.linspace(-1, 1, count), _SPREAD, _TURNS)


def column_of(turn: Array) -> Array:
    """Inverse of ``columns``, on [0, 1]."""
    return (np.interp(turn, _TURNS, _SPREAD) + 1) / 2


def _profile(y: Array, knots: tuple[float, ...], values: tuple[float, ...]) -> Array:
    # Rounded at the knots: a bend in depth shows as a line in the light.
    fine = np.linspace(knots[0], knots[-1], 241)
    curve = np.interp(fine, knots, values)
    window = np.hanning(25)
    padded = np.pad(curve, 12, mode="reflect", reflect_type="odd")
    return np.interp(y, fine, np.convolve(padded, window / window.sum(), mode="valid"))


def _hill(x: Array, y: Array, at: tuple[float, float], width: tuple[float, float]) -> Array:
    return np.exp(-(((x - at[0]) / width[0]) ** 2) - ((y - at[1]) / width[1]) ** 2)


@dataclass(frozen=True)
class Head:
    """Depth of a face, from its outline and its landmarks."""

    face: Face
    points: Array  # frontal landmarks, (98, 2)
    outline: Array  # half outline from temple to chin
    crown: float

    @classmethod
    def of(cls, face: Face, points: Array) -> "Head":
        return cls(face, points, jaw(face), -1.12 - 0.12 * (1 - face.grown))

    @property
    def chin(self) -> float:
        return float(self.outline[-1, 1])

    def half_width(self, y: Array) -> Array:
        top, wide = self.outline[0, 1], self.outline[0, 0]
        below = np.interp(y, self.outline[:, 1], self.outline[:, 0])
        rise = np.clip((top - y) / (top - self.crown), 0, 1)
        return np.where(y > top, below, wide * np.sqrt(1 - rise**2.5))

    def turn_of(self, x: Array, y: Array) -> Array:
        """Column coordinate (radians) of frontal positions."""
        return np.arcsin(np.clip(x / np.maximum(self.half_width(y), 1e-6), -1, 1))

    def surface(self, turn: Array, y: Array, features: bool = True) -> Array:
        """Points in space, shape (..., 3); without ``features`` the bare skull that carries the outline."""
        chin, crown = self.chin, self.crown
        side = np.interp(y, [crown, 0.35, chin * 0.75, chin], [-0.25, 0.0, 0.14, 0.5])
        front = _profile(
            y, (crown, crown * 0.93, crown * 0.8, crown * 0.6, -0.35, 0.0, 0.5, 0.8, chin * 0.93, chin),
            (-0.2, 0.15, 0.42, 0.61, 0.71, 0.74, 0.74, 0.72, 0.70, 0.58),
        )  # fmt: skip
        x = self.half_width(y) * np.sin(turn)
        z = side + (front - side) * np.maximum(np.cos(turn), 0) ** 0.8
        if features:
            z = z + self._relief(x, y)
        return np.stack(np.broadcast_arrays(x, y, z), axis=-1)

    def _relief(self, x: Array, y: Array) -> Array:
        face, points = self.face, self.points
        child, side = 1 - face.grown, np.abs(x)
        tip, wing = points[54], points[59]
        bridge = np.clip((y + 0.12) / (tip[1] + 0.12), 0, 1)
        height = (0.05 + 0.21 * bridge**1.5) * (1 - 0.3 * child)
        end = 1 / (1 + np.exp(-np.clip((tip[1] + 0.075 - y) / 0.016, -40, 40)))
        start = np.clip((y + 0.3) / 0.22, 0, 1)
        nose = height * end * start * np.exp(-((side / (0.07 + 0.05 * bridge**2)) ** 2))
        nose = nose + 0.10 * _hill(side, y, (wing[0] * 0.72, tip[1] + 0.02), (0.055, 0.055))
        sockets = -0.085 * _hill(side, y, (0.33, 0.0), (0.17, 0.10)) + 0.045 * _hill(side, y, (0.35, 0.0), (0.11, 0.07))
        brows = (0.05 - 0.03 * child) * _hill(side, y, (0.3, -0.2), (0.28, 0.07))
        smile = max(face.mimic.corner_up, 0) * 1.2 + 0.03 * max(face.mimic.squint, 0)
        cheeks = (0.045 + 0.04 * child + smile) * _hill(side, y, (0.45, 0.38), (0.17, 0.17))
        hollow = -0.06 * face.old * _hill(side, y, (0.5, 0.65), (0.14, 0.2))
        middle = 0.5 * (points[79, 1] + points[85, 1])
        lips = 0.055 * _hill(side, y, (0.0, middle), (0.24, 0.10))
        dent = -0.05 * _hill(side, y, (0.0, points[85, 1] + 0.055), (0.2, 0.04))
        chin = 0.08 * _hill(side, y, (0.0, self.chin - 0.15), (0.2, 0.12))
        return nose + sockets + brows + cheeks + hollow + lips + dent + chin

    def landmarks(self) -> Array:
        """The 98 points in space, posed but neither scaled nor moved; shape (98, 2).

        Where the head's side turns away, the contour is the outline that is seen, as in WFLW.
        """
        pose = rotation(self.face)
        x, y = self.points[:, 0], self.points[:, 1]
        posed = self.surface(self.turn_of(x, y), y) @ pose.T
        # Judged before the roll: there the outline's outermost point is a matter of x alone.
        upright = rotation(_without_roll(self.face))
        sign = np.where(np.arange(33) < 16, -1.0, 1.0)[:, None]
        rows = self.surface(sign * CONTOUR_TURN * np.linspace(0, 1, 33), y[:33, None], features=False)
        outermost = np.argmax(sign * (rows @ upright[0]), axis=1)
        contour = rows[np.arange(33), outermost] @ pose.T
        contour[16] = posed[16]
        posed[:33] = contour
        return posed[:, :2]


def _without_roll(face: Face) -> Face:

    return replace(face, roll=0.0)
