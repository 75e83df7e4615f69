"""One parametric face: who it is, what it feels, how it is turned and lit.

Ages, expressions and landmarks are all functions of these numbers, and the pixels are drawn from the same
numbers: what a label says can be seen. Lengths are in units of the distance between the outer eye corners.
"""

from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Array = NDArray[Any]

# ExpW's codes.
EXPRESSIONS = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")


@dataclass(frozen=True)
class Mimic:
    """Movements of the face at full strength, after the action units of Ekman and Friesen (1978)."""

    brow_inner: float = 0.0  # up is positive
    brow_outer: float = 0.0
    brow_close: float = 0.0  # towards the other brow
    lid: float = 0.0  # relative opening of the eye
    corner_up: float = 0.0
    corner_out: float = 0.0
    jaw_drop: float = 0.0
    lip_lift: float = 0.0  # upper lip alone
    squint: float = 0.0  # cheek and lower lid up
    nose_wrinkle: float = 0.0
    frown: float = 0.0  # upright folds between the brows
    forehead: float = 0.0  # level folds


MIMICS = (
    Mimic(brow_inner=-0.105, brow_outer=-0.01, brow_close=0.05, lid=-0.25, corner_up=-0.05, corner_out=-0.03,
          frown=1.0, nose_wrinkle=0.2, squint=0.3),
    Mimic(brow_inner=-0.06, brow_outer=-0.04, brow_close=0.02, lid=-0.45, corner_up=-0.05, lip_lift=0.075,
          jaw_drop=0.05, squint=0.8, nose_wrinkle=1.0, frown=0.3),
    Mimic(brow_inner=0.11, brow_outer=0.03, brow_close=0.04, lid=0.45, corner_up=-0.03, corner_out=0.07,
          jaw_drop=0.11, forehead=0.7, frown=0.3),
    Mimic(brow_inner=0.01, brow_outer=0.015, lid=-0.25, corner_up=0.105, corner_out=0.085, jaw_drop=0.075,
          lip_lift=0.02, squint=1.0),
    Mimic(brow_inner=0.1, brow_outer=-0.055, brow_close=0.03, lid=-0.3, corner_up=-0.09, corner_out=-0.03,
          forehead=0.3, frown=0.4),
    Mimic(brow_inner=0.13, brow_outer=0.13, lid=0.55, corner_up=-0.02, corner_out=-0.07, jaw_drop=0.3,
          forehead=1.0),
    Mimic(),
)  # fmt: skip

# Lightness of the skin by UTKFace's race code.
SKIN_LIGHT, SKIN_DARK = np.array([0.93, 0.76, 0.66]), np.array([0.34, 0.21, 0.15])
SKIN_RANGE = ((0.72, 1.0), (0.0, 0.38), (0.68, 0.95), (0.3, 0.66), (0.45, 0.9))
HAIR = np.array([[0.10, 0.08, 0.07], [0.26, 0.16, 0.10], [0.45, 0.30, 0.17], [0.72, 0.56, 0.34], [0.50, 0.22, 0.12]])
IRIS = np.array([[0.22, 0.13, 0.08], [0.36, 0.24, 0.12], [0.32, 0.38, 0.24], [0.32, 0.45, 0.58]])
WHITE_HAIR = np.array([0.86, 0.85, 0.83])


@dataclass(frozen=True)
class Face:
    """All that a picture of a face depends on; angles in degrees, colours linear RGB in [0, 1]."""

    age: float
    gender: int  # 0 male, 1 female, as in UTKFace
    race: int
    expression: int
    mimic: Mimic
    strength: float
    yaw: float
    pitch: float
    roll: float
    identity: Array  # (12,) standard normal numbers, clipped at 2: the shape of this person
    skin: Array
    hair: Array
    iris: Array
    hair_style: str  # bald, short, long
    fringe: float
    beard: float
    moustache: float
    make_up: float
    glasses: str  # none, clear, dark
    light: Array = field(default_factory=lambda: np.array([0.2, -0.5, 0.85]))  # towards the light; y is down
    ambient: float = 0.5
    exposure: float = 1.0
    grain: int = 0  # seed of skin and hair texture

    @property
    def grown(self) -> float:
        """0 at birth, 1 for adults: how far the proportions of the face have come."""
        return float(1 - np.exp(-self.age / 9.5))

    @property
    def old(self) -> float:
        """0 up to 25 years, 1 at 78."""
        return float(np.clip((self.age - 25) / 53, 0, 1.3))


def _scaled(mimic: Mimic, strength: float, noise: Array) -> Mimic:
    moved = {}
    for number, entry in enumerate(fields(Mimic)):
        value = getattr(mimic, entry.name)
        # People differ most in how far they open the mouth.
        spread = 0.45 if entry.name == "jaw_drop" else 0.2
        moved[entry.name] = float(value * strength * (1 + spread * noise[number]))
    for name in ("brow_inner", "brow_outer", "corner_up", "corner_out"):
        moved[name] += float(0.008 * noise[len(moved) - 1])
    moved["jaw_drop"] = max(moved["jaw_drop"], 0.0)
    return Mimic(**moved)


def random_face(
    rng: Generator,
    *,
    age: float | None = None,
    gender: int | None = None,
    race: int | None = None,
    expression: int | None = None,
    strength: tuple[float, float] = (0.5, 1.1),
    yaw: float = 12.0,
    pitch: float = 6.0,
    roll: float = 6.0,
) -> Face:
    """Draws a person.

    Args:
        rng: Source of all randomness.
        age: Years; drawn from UTKFace's range, with most between 20 and 40, when None.
        gender: 0 or 1; drawn when None.
        race: 0 to 4; drawn when None.
        expression: Index into ``EXPRESSIONS``; drawn when None.
        strength: Bounds of the expression's strength; 1 is a plain, 0.4 a faint one.
        yaw: Standard deviation of the turn to the side, in degrees; and of ``pitch`` and ``roll``.
    """
    if age is None:
        age = float(rng.choice([rng.uniform(1, 16), rng.normal(30, 9), rng.uniform(35, 90)], p=[0.25, 0.45, 0.3]))
    age = float(np.clip(age, 1, 100))
    gender = int(rng.integers(2)) if gender is None else gender
    race = int(rng.choice(5, p=[0.42, 0.2, 0.15, 0.16, 0.07])) if race is None else race
    expression = int(rng.integers(7)) if expression is None else expression
    power = float(rng.uniform(*strength))
    mimic = _scaled(MIMICS[expression], power, np.clip(rng.standard_normal(12), -2, 2))

    low, high = SKIN_RANGE[race]
    tone = rng.uniform(low, high)
    skin = SKIN_DARK + (SKIN_LIGHT - SKIN_DARK) * tone + rng.normal(0, 0.015, 3)
    hair = HAIR[rng.choice(5, p=[0.25, 0.27, 0.22, 0.16, 0.1]) if race in (0, 4) else rng.choice(2, p=[0.75, 0.25])]
    grey = float(1 / (1 + np.exp(-(age - rng.normal(56, 6)) / 5.0)))
    hair = hair + (WHITE_HAIR * rng.uniform(0.75, 1.0) - hair) * grey + rng.normal(0, 0.01, 3)
    iris = IRIS[rng.integers(4) if race == 0 else rng.integers(2)]

    style = str(rng.choice(["short", "long"], p=[0.97, 0.03] if gender == 0 else [0.2, 0.8]))
    if age < 3 or (gender == 0 and rng.random() < 0.7 * np.clip((age - 30) / 45, 0, 1)):
        style = "bald"
    bearded = gender == 0 and age > 19 and rng.random() < 0.35
    moustached = bearded or (gender == 0 and age > 25 and rng.random() < 0.08)
    glasses = "clear" if rng.random() < (0.03 if age < 16 else 0.12 + 0.15 * (age > 45)) else "none"
    return Face(
        age=age, gender=gender, race=race, expression=expression, mimic=mimic, strength=power,
        yaw=float(np.clip(rng.normal(0, yaw), -52, 52)), pitch=float(np.clip(rng.normal(0, pitch), -22, 22)),
        roll=float(np.clip(rng.normal(0, roll), -40, 40)), identity=np.clip(rng.standard_normal(12), -2, 2),
        skin=np.clip(skin, 0.05, 0.98), hair=np.clip(hair, 0.03, 0.95), iris=iris, hair_style=style,
        fringe=float(rng.uniform(0.3, 1)) if style != "bald" and rng.random() < 0.3 else 0.0,
        beard=float(rng.uniform(0.25, 1.0)) if bearded else 0.0,
        moustache=float(rng.uniform(0.3, 1.0)) if moustached else 0.0,
        make_up=float(rng.uniform(0.2, 0.6)) if gender == 1 and age > 15 and rng.random() < 0.4 else 0.0,
        glasses=glasses,
        light=np.array([rng.normal(0, 0.45), rng.uniform(-0.9, -0.1), 0.9]),
        ambient=float(rng.uniform(0.42, 0.62)), exposure=float(rng.uniform(0.88, 1.12)), grain=int(rng.integers(2**31)),
    )  # fmt: skip
