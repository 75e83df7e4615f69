"""From a picture to crops and from outputs to words: which region is seen, and where points lie in it."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from lightning_modules.tasks import Task
from merging.answers import Sight, in_words, look, sights
from merging.views import View
from tests.conftest import SIZE
from tests.drawn_face import scene


def points_view(outputs: int) -> View:
    return View(Task("points", "keypoints", "nme", outputs), "squash")


def test_points_lie_in_the_picture_whatever_the_shape_and_the_place_of_their_crop() -> None:
    told = in_words(points_view(4), torch.tensor([0.0, 0.0, 0.5, 0.5]), (10.0, 40.0, 110.0, 240.0))
    assert told == {"points": [[10.0, 40.0], [60.0, 140.0]]}


def test_points_count_pixels_of_the_picture_and_not_of_one_that_was_reduced(tmp_path: Path) -> None:
    (sight,) = sights({"points": points_view(8)}, faces=False)
    Image.fromarray(np.zeros((1024, 1024, 3), np.uint8)).save(tmp_path / "a.jpg")
    (seen,) = look(tmp_path / "a.jpg", "a", [sight], SIZE)
    assert seen.regions[sight] == (0, 0, 1024, 1024)


def test_a_face_is_cut_with_the_margin_of_training(tmp_path: Path) -> None:
    Image.fromarray(scene(600, 300, (0, 50, 200), (250, 40, 200))).convert("RGB").save(tmp_path / "a.png")
    tight, wide = Sight("squash", 1.0, False), Sight("squash", 1.3, False)
    faces = look(tmp_path / "a.png", "a", [tight, wide], SIZE, faces=True)
    assert len(faces) == 2
    for seen in faces:
        small, large = (seen.regions[sight] for sight in (tight, wide))
        assert large[2] - large[0] > small[2] - small[0]
