"""The 98 points of WFLW (Wu et al., CVPR 2018) on the frontal face, as functions of the face's parameters.

Order: contour 0-32, left brow 33-41, right brow 42-50, nose 51-59, left eye 60-67, right eye 68-75, outer lip
76-87, inner lip 88-95, pupils 96 and 97; "left" is the left side of the picture.
"""

import numpy as np

from datamodules.sample.face_model import Array, Face

# Index of each point after a horizontal flip.
FLIP = np.array(
    [*range(32, -1, -1), 46, 45, 44, 43, 42, 50, 49, 48, 47, 37, 36, 35, 34, 33, 41, 40, 39, 38,
     51, 52, 53, 54, 59, 58, 57, 56, 55, 72, 71, 70, 69, 68, 75, 74, 73, 64, 63, 62, 61, 60, 67, 66, 65,
     82, 81, 80, 79, 78, 77, 76, 87, 86, 85, 84, 83, 92, 91, 90, 89, 88, 95, 94, 93, 97, 96]
)  # fmt: skip
EYE_CORNERS = (60, 72)


def jaw(face: Face, steps: int = 129) -> Array:
    """Right half of the face's outline, from the temple at eye height to the chin, shape (steps, 2)."""
    width, square, length = face.identity[0], face.identity[1], face.identity[2]
    child = 1 - face.grown
    half = 0.755 + 0.13 * child + 0.025 * width + 0.012 * (1 - 2 * face.gender) + 0.015 * face.old
    chin = 1.275 - 0.33 * child + 0.035 * length - 0.03 * face.gender * face.grown + 0.9 * face.mimic.jaw_drop * 0.55
    power = 0.74 - 0.05 * square - 0.10 * child + 0.06 * face.gender * face.grown - 0.07 * face.old
    angle = np.linspace(0, np.pi / 2, steps)
    x = half * np.cos(angle) ** max(power, 0.5)
    y = -0.06 + (chin + 0.06) * np.sin(angle) ** 1.12
    x[-1] = 0.0
    return np.stack([x, y], axis=1)


def _evenly(curve: Array, count: int) -> Array:
    lengths = np.concatenate([[0], np.cumsum(np.hypot(*np.diff(curve, axis=0).T))])
    at = np.linspace(0, lengths[-1], count)
    return np.stack([np.interp(at, lengths, curve[:, 0]), np.interp(at, lengths, curve[:, 1])], axis=1)


def _brow(face: Face) -> Array:
    # Right brow from its inner end: upper edge 42-46, lower edge 47-50 back to the inner end.
    move, child = face.mimic, 1 - face.grown
    along = np.array([0.0, 0.25, 0.5, 0.75, 1.0])
    x = 0.135 - move.brow_close + along * (0.465 + 0.02 * face.identity[3])
    arch = (0.055 + 0.015 * face.identity[4] + 0.02 * face.gender) * np.sin(np.pi * along**0.9)
    height = 0.185 + 0.05 * child + 0.012 * face.identity[5] - 0.02 * face.old + 0.01 * face.gender
    lift = move.brow_inner * (1 - along) ** 1.2 + move.brow_outer * along
    centre = -height - arch - lift + np.array([0.0, 0.0, 0.0, 0.01, 0.055])
    thick = (0.045 + 0.012 * (1 - face.gender) + 0.006 * face.identity[6]) * (1 - 0.55 * child)
    half = thick * np.array([0.85, 1.0, 0.9, 0.65, 0.0])
    upper = np.stack([x, centre - half], axis=1)
    lower = np.stack([x, centre + half], axis=1)
    return np.concatenate([upper, lower[3::-1]])


def _eye(face: Face) -> Array:
    # Right eye: inner corner 68, upper lid 69-71, outer corner 72, lower lid 73-75.
    child, slant = 1 - face.grown, 0.012 * face.identity[7] + (0.012 if face.race == 2 else 0.0)
    inner = 0.192 - 0.035 * child
    opening = (0.112 + 0.075 * child + 0.01 * face.identity[8] - 0.018 * face.old) * max(1 + face.mimic.lid, 0.22)
    opening *= 0.86 if face.race == 2 else 1.0
    up, down = 0.62 * opening, 0.38 * opening - 0.022 * max(face.mimic.squint, 0)
    down = max(down, 0.012)
    span = 0.5 - inner
    inner_y, outer_y = 0.014 + slant * 0.3, -slant
    x = inner + span * np.array([0.0, 0.24, 0.52, 0.79, 1.0, 0.79, 0.5, 0.22])
    base = inner_y + (outer_y - inner_y) * (x - inner) / span
    rise = np.array([0, -0.74, -1.0, -0.78, 0, 0, 0, 0]) * up + np.array([0, 0, 0, 0, 0, 0.8, 1.0, 0.72]) * down
    return np.stack([x, base + rise], axis=1)


def _mouth(face: Face) -> Array:
    # The 20 points 76-95, whole mouth (symmetric before the face's own asymmetry is added).
    move, child = face.mimic, 1 - face.grown
    y = 0.765 - 0.21 * child + 0.015 * face.identity[2]
    half = 0.31 - 0.09 * child + 0.016 * face.identity[9] + move.corner_out
    full = (1 + 0.18 * face.identity[10] + 0.1 * face.gender - 0.45 * face.old) * (1 + 0.35 * (face.race == 1))
    upper, lower = 0.056 * full, 0.088 * full
    upper, lower = upper * (1 - 1.2 * max(-move.corner_up, 0)), lower * (1 - 1.5 * move.jaw_drop)
    gap_top = 0.35 * move.jaw_drop * 0.25 + move.lip_lift * 0.6
    gap_bottom = move.jaw_drop * 0.85 + move.lip_lift * 0.25
    corner = y - move.corner_up
    bend = 0.35 * move.corner_up

    def row(at: Array, middle: float, power: float) -> Array:
        # From the corners (at = 1) to the middle line (at = 0) along a bow.
        weight = np.abs(at) ** power
        return np.stack([half * at, middle * (1 - weight) + corner * weight], axis=1)

    top = y - upper - gap_top + bend - move.lip_lift * 0.4
    low = y + lower + gap_bottom + bend
    out_up = row(np.array([-1, -0.62, -0.2, 0, 0.2, 0.62, 1]), top, 1.7)
    out_up[3, 1] += 0.012 * full
    out_down = row(np.array([0.74, 0.4, 0, -0.4, -0.74]), low, 2.6)
    in_up = row(np.array([-0.92, -0.48, 0, 0.48, 0.92]), y - gap_top + bend - move.lip_lift * 0.2, 2.2)
    in_down = row(np.array([0.5, 0, -0.5]), y + gap_bottom + bend + 0.004, 2.2)
    return np.concatenate([out_up, out_down, in_up, in_down])


def shape(face: Face) -> Array:
    """Frontal positions of the 98 points, x to the right, y down, origin between the eyes; shape (98, 2)."""
    points = np.zeros((98, 2))
    half = _evenly(jaw(face), 17)
    points[16:33] = half[::-1]
    points[42:51] = _brow(face)
    child, length = 1 - face.grown, 0.016 * face.identity[11]
    tip = 0.455 - 0.17 * child + length + 0.015 * face.old - 0.03 * face.mimic.nose_wrinkle
    points[51:55, 1] = np.linspace(0.0, tip, 4)
    wing = 0.178 - 0.045 * child + 0.012 * face.identity[9] + (0.03 if face.race == 1 else 0.0)
    wing += 0.015 * face.mimic.nose_wrinkle + 0.12 * max(face.mimic.corner_out, 0)
    points[57] = (0.0, tip + 0.095 - 0.02 * child)
    points[58] = (0.53 * wing, tip + 0.075 - 0.015 * child)
    points[59] = (wing, tip + 0.045)
    points[68:76] = _eye(face)
    points[76:96] = _mouth(face)
    lids = points[68:76]
    points[97] = (0.352, np.clip(0.5 * (lids[2, 1] + lids[6, 1]), -0.02, 0.01))
    left = np.setdiff1d(np.arange(98), [*range(16, 33), *range(42, 51), *range(51, 55), 57, 58, 59, *range(68, 97), 97])
    left = np.append(left, 96)
    points[left] = points[FLIP[left]] * [-1, 1]
    # Nobody is quite symmetric: one brow higher, one mouth corner lower.
    lopsided = np.clip([face.identity[4] - face.identity[8], face.identity[6] - face.identity[10]], -2, 2)
    points[42:51, 1] += 0.006 * lopsided[0]
    sway = 0.012 * lopsided[1] * points[76:96, 0] / 0.31
    points[76:96, 1] += sway
    return points
