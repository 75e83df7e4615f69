"""A set of 100,000 pictures takes no more memory than one of 1,000, but for its table."""

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

JOB = Path(__file__).with_name("memory_job.py")


def draw(root: Path, count: int) -> None:
    """``count`` different pictures of 32 px in four classes."""
    rng = np.random.Generator(np.random.PCG64(0))
    for label in range(4):
        (root / f"class {label}").mkdir(parents=True)
    for number in range(count):
        picture = np.full((32, 32, 3), 64 * (number % 4), np.uint8)
        picture[0, :2] = rng.integers(0, 256, (2, 3), dtype=np.uint8)
        picture[1, 0] = np.frombuffer(number.to_bytes(3, "little"), np.uint8)
        done, coded = cv2.imencode(".png", picture, [cv2.IMWRITE_PNG_COMPRESSION, 1])
        assert done
        (root / f"class {number % 4}" / f"{number:06d}.png").write_bytes(coded.tobytes())


def run(root: Path, cache: Path) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, str(JOB), str(root), str(cache)], capture_output=True, text=True, check=True, timeout=3600
    )
    told: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return told


@pytest.mark.slow
def test_a_hundred_thousand_pictures_take_little_beside_the_libraries(tmp_path: Path) -> None:
    """torch and what Lightning imports take 0.9 GiB before the first picture is read; only the rest is ours."""
    draw(tmp_path / "pictures", 100_000)
    told = run(tmp_path / "pictures", tmp_path / "cache")
    assert told["examples"] == 100_000
    assert told["peak"] - told["imported"] < 300, told
