"""Around the face: backgrounds, things in front of it, blur, sensor noise, JPEG."""

import cv2
import numpy as np
from numpy.random import Generator

from datamodules.sample.face_model import Array
from datamodules.sample.face_render import ellipse, polygon
from datamodules.sample.face_texture import spline


def backdrop(rng: Generator, height: int, width: int) -> Array:
    """Something blurred behind people: gradients, patches, shelves; float32 (height, width, 3)."""
    base = rng.uniform(0.1, 0.9) + rng.normal(0, 0.09, 3)
    image = np.empty((height, width, 3), np.float32)
    image[:] = base
    for _ in range(rng.integers(2, 12)):
        size = rng.uniform(0.05, 0.5, 2) * [width, height]
        at = rng.uniform(0, 1, 2) * [width, height]
        colour = base + rng.normal(0, 0.16) + rng.normal(0, 0.07, 3)
        if rng.random() < 0.5:
            polygon(image, ellipse((at[0], at[1]), (size[0], size[1]), 24), colour)
        else:
            polygon(image, at + np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * size / 2, colour)
    coarse = rng.standard_normal((12, 12, 3), dtype=np.float32)
    image += np.float32(rng.uniform(0.01, 0.06)) * cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    reach = 2 * (width // int(rng.integers(16, 60))) + 1
    return np.clip(cv2.blur(image, (reach, reach)), 0, 1)


def occlude(image: Array, points: Array, rng: Generator) -> None:
    """Lays a hand-like, mask-like or bar-like thing over a part of a face; ``points`` (98, 2) as drawn."""
    low, high = points.min(axis=0), points.max(axis=0)
    size = float((high - low).max())
    kind = rng.integers(3)
    tone = rng.uniform(0.1, 0.9, 3)
    if kind == 0:  # a cloth mask from the nose down
        line = np.concatenate([points[3:30], points[[53]]])
        polygon(image, line, tone)
        for row in (0.35, 0.6):
            fold = (1 - row) * points[[5, 54, 27]] + row * points[[9, 57, 23]]
            polygon(
                image, np.concatenate([spline(fold), spline(fold)[::-1] + np.array([0, 0.012 * size])]), tone * 0.75
            )
    elif kind == 1:  # a hand: palm and fingers, from below or the side
        skin = np.array([0.80, 0.62, 0.52]) * rng.uniform(0.45, 1.1)
        centre = points[rng.choice([5, 27, 85, 76, 82])] + rng.normal(0, 0.05 * size, 2)
        angle = rng.uniform(0, np.pi)
        along = np.array([np.cos(angle), np.sin(angle)])
        side = np.array([-along[1], along[0]])
        for finger in range(4):
            base = centre + side * (finger - 1.5) * 0.115 * size
            tip = base - along * size * rng.uniform(0.33, 0.42)
            edge = side * 0.052 * size
            ring = np.stack([base - edge, tip - edge, tip - along * 0.05 * size, tip + edge, base + edge])
            polygon(image, ring, skin * (0.92 + 0.04 * finger))
            polygon(
                image,
                np.stack([base + edge * 0.9, tip + edge * 0.9, tip + edge * 1.1, base + edge * 1.1]),
                skin * 0.55,
            )
        palm = centre + along * 0.14 * size
        polygon(image, ellipse((float(palm[0]), float(palm[1])), (0.25 * size, 0.22 * size)), skin)
    else:  # a microphone, a pole, the edge of a sign
        middle = points[rng.choice([54, 57, 66, 74, 85])] + rng.normal(0, 0.08 * size, 2)
        angle, width = rng.uniform(0, np.pi), size * rng.uniform(0.12, 0.24)
        along = np.array([np.cos(angle), np.sin(angle)]) * 1.6 * size
        side = np.array([-np.sin(angle), np.cos(angle)]) * width / 2
        start = middle if rng.random() < 0.5 else middle - along
        polygon(image, np.stack([start - side, middle + along - side, middle + along + side, start + side]), tone)
        polygon(
            image,
            np.stack([start - side * 0.4, middle + along - side * 0.4, middle + along, start]),
            tone * 1.25,
        )


def blur_face(image: Array, points: Array, rng: Generator) -> None:
    """Takes detail away where the face is, by defocus or by motion."""
    low, high = points.min(axis=0), points.max(axis=0)
    size = float((high - low).max())
    height, width = image.shape[:2]
    left, top = np.maximum((low - 0.5 * size).astype(int), 0)
    right, bottom = np.minimum((high + 0.3 * size).astype(int), [width, height])
    if right <= left or bottom <= top:
        return
    part = image[top:bottom, left:right]
    reach = max(2.0, size * rng.uniform(0.035, 0.07))
    if rng.random() < 0.6:
        soft = cv2.GaussianBlur(part, (0, 0), reach * 0.6)
    else:
        steps = int(2 * reach) | 1
        angle = rng.uniform(0, np.pi)
        kernel = np.zeros((steps, steps), np.float32)
        for at in np.linspace(-1, 1, 2 * steps):
            row = round((at * np.sin(angle) + 1) / 2 * (steps - 1))
            column = round((at * np.cos(angle) + 1) / 2 * (steps - 1))
            kernel[row, column] = 1
        soft = cv2.filter2D(part, -1, kernel / kernel.sum())
    ramp_y = np.minimum(np.arange(bottom - top), np.arange(bottom - top)[::-1])
    ramp_x = np.minimum(np.arange(right - left), np.arange(right - left)[::-1])
    weight = np.clip(np.minimum(ramp_y[:, None], ramp_x[None]) / (0.15 * size), 0, 1).astype(np.float32)[..., None]
    part += weight * (soft - part)


def jpeg(image: Array, rng: Generator, grey: float = 0.0, noise: float = 0.012) -> bytes:
    """Adds sensor noise, now and then takes the colour away, and encodes.

    The bytes depend on the JPEG encoder that OpenCV was built with; the pixels before it do not.
    """
    grain = rng.standard_normal((*image.shape[:2], 1), dtype=np.float32)
    noisy = image + grain * np.float32(noise * rng.uniform(0.4, 1.6))
    if rng.random() < grey:
        noisy[:] = noisy.mean(axis=2, keepdims=True)
    bgr = np.clip(noisy[..., ::-1] * 255 + 0.5, 0, 255).astype(np.uint8)
    done, coded = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(78, 96))])
    if not done:
        raise ValueError(f"OpenCV cannot encode a JPEG of shape {image.shape}")
    return coded.tobytes()
