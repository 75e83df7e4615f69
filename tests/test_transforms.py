import numpy as np
import pytest

from datamodules.transforms import Augment
from launch.errors import CommandError, DataError
from tests.picture_files import noise

SIDE = 64
FLIP = [1, 0, 2]
STEPS = {
    "hflip": {"hflip": True},
    "vflip": {"vflip": True},
    "flips": {"hflip": True, "vflip": True},
    "rotate": {"rotate": 180},
    "scale": {"scale": 0.3},
    "translate": {"translate": 0.15},
    "colour": {"brightness": 0.2, "contrast": 0.2, "saturation": 0.3, "hue": 0.05},
    "all": {"hflip": True, "vflip": True, "rotate": 40, "scale": 0.2, "translate": 0.1, "brightness": 0.2, "hue": 0.02},
}  # fmt: skip


def dots() -> tuple[np.ndarray, np.ndarray]:
    """Eight times the same red, green and blue blob, and where they are in crop coordinates."""
    points = np.array([[22.0, 25.5], [43.5, 27.0], [30.0, 42.0]])
    y, x = np.mgrid[:SIDE, :SIDE] + 0.5
    blobs = [200 * np.exp(-((x - px) ** 2 + (y - py) ** 2) / 8) for px, py in points]
    image = np.stack(blobs, -1).astype(np.uint8)
    return np.repeat(image[None], 8, 0), np.repeat((points / SIDE).astype(np.float32)[None], 8, 0)


def find(image: np.ndarray) -> np.ndarray:
    """Centre of each colour's blob in crop coordinates (3, 2)."""
    weight = np.clip(image.astype(float) - 0.4 * image.max((0, 1)), 0, None)
    grid = ((np.arange(SIDE) + 0.5) / SIDE)[:, None]
    x, y = (weight.sum(0) * grid).sum(0), (weight.sum(1) * grid).sum(0)
    return np.stack([x, y], -1) / weight.sum((0, 1))[:, None]


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("seed", ["0", "1", "2"])
def test_points_stay_on_their_dots(name: str, seed: str) -> None:
    """In a mirror image the dot that was drawn for point 0 is where point 1 is now, as with left and right eyes."""
    images, points = dots()
    augmented, moved = Augment(STEPS[name], FLIP, 3)(images, points, seed)
    mirrored = 0
    for image, found in zip(augmented, moved, strict=True):
        seen = find(image)
        straight, swapped = np.abs(seen - found).max(), np.abs(seen[FLIP] - found).max()
        assert min(straight, swapped) < 0.35 / SIDE
        first, second, third = found
        turn = np.cross(np.append(second - first, 0), np.append(third - first, 0))[2]
        # With the pair exchanged the order of the three goes round the same way in a mirror image as in the original.
        assert turn > 0
        mirrored += swapped < straight
    flips = STEPS[name].get("hflip", False) or STEPS[name].get("vflip", False)
    assert (mirrored > 0) == flips
    assert mirrored < 8
    if name != "colour":
        assert np.abs(moved - points).max() > 0.03


def test_same_seed_same_bytes_and_pictures_differ() -> None:
    images, points = dots()
    augment = Augment(STEPS["all"], FLIP, 3)
    one, other = augment(images, points, "s"), Augment(STEPS["all"], FLIP, 3)(images, points, "s")
    np.testing.assert_array_equal(one[0], other[0])
    np.testing.assert_array_equal(one[1], other[1])
    assert len({image.tobytes() for image in one[0]}) == 8
    assert (augment(images, points, "t")[0] != one[0]).any()
    without = Augment(STEPS["all"], None, None)(images, None, "s")
    assert without[1] is None
    np.testing.assert_array_equal(without[0], one[0])
    np.testing.assert_array_equal(images, dots()[0])


def test_flips_are_independent_and_even() -> None:
    """All four combinations of the two flips come equally often (albumentations' own streams give only two)."""
    picture = noise(0, 8, 8)
    flipped = Augment({"hflip": True, "vflip": True}, None, None)(np.repeat(picture[None], 4000, 0), None, "s")[0]
    wanted = [picture, picture[:, ::-1], picture[::-1], picture[::-1, ::-1]]
    counts = [int((flipped == other).all((1, 2, 3)).sum()) for other in wanted]
    assert sum(counts) == 4000
    assert min(counts) > 850


def test_angles_cover_the_range_evenly() -> None:
    images, points = dots()
    many = Augment({"rotate": 90}, FLIP, 3)(np.repeat(images, 50, 0), np.repeat(points, 50, 0), "s")[1]
    arm, start = many[:, 1] - many[:, 0], points[0, 1] - points[0, 0]
    angles = np.degrees(np.arctan2(arm[:, 1], arm[:, 0]) - np.arctan2(start[1], start[0]))
    assert np.abs(angles).max() <= 90.01
    assert np.histogram(angles, 6, (-90, 90))[0].min() > 35


def test_borders_repeat_the_edge() -> None:
    white = np.full((16, SIDE, SIDE, 3), 255, np.uint8)
    assert Augment({"rotate": 180, "scale": 0.5, "translate": 0.3}, None, None)(white, None, "s")[0].min() == 255


def test_colour_changes_what_it_says() -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(60, 190, (32, 16, 16, 3), dtype=np.uint8)
    grey = np.repeat(images.mean(-1, keepdims=True).astype(np.uint8), 3, -1)

    def augmented(batch: np.ndarray, **changes: float) -> np.ndarray:
        return Augment(changes, None, None)(batch, None, "s")[0].astype(float)

    ratio = augmented(images, brightness=0.2).mean((1, 2, 3)) / images.mean((1, 2, 3))
    assert 0.79 < ratio.min() < 0.9
    assert 1.1 < ratio.max() < 1.21
    spread = augmented(images, contrast=0.2).std((1, 2)).mean(1) / images.std((1, 2)).mean(1)
    assert 0.78 < spread.min() < 0.9
    assert 1.1 < spread.max() < 1.22
    for change in ({"saturation": 0.5}, {"hue": 0.2}):
        assert np.abs(augmented(images, **change) - images).max() > 10
        assert np.abs(augmented(grey, **change) - grey).max() <= 1  # grey has neither
    np.testing.assert_allclose(augmented(images, hue=0.05).mean(-1), images.mean(-1), atol=2)


def test_nothing_to_do_changes_nothing() -> None:
    images, points = dots()
    out, moved = Augment({"hflip": False, "rotate": 0, "hue": None}, None, 3)(images, points, "s")
    np.testing.assert_array_equal(out, images)
    np.testing.assert_allclose(moved, points, atol=1e-6)


def test_wrong_settings_are_named_together() -> None:
    with pytest.raises(CommandError, match=r"'rotatoin'.*Did you mean 'rotate'.*scale=2 must be between 0 and 1"):
        Augment({"rotatoin": 3, "scale": 2}, None, None)
    for value in (-1, True, "much", 181):
        with pytest.raises(CommandError, match="rotate="):
            Augment({"rotate": value}, None, None)


@pytest.mark.parametrize("order", [[0, 1], [1, 2, 0], [0, 0, 2], [1, 0, 3]])
def test_flip_index_must_pair_the_points(order) -> None:
    with pytest.raises(DataError, match="must pair each of the 3 points"):
        Augment({"hflip": True}, order, 3)


@pytest.mark.parametrize("flip", ["hflip", "vflip"])
def test_points_are_never_mirrored_without_flip_index(flip: str) -> None:
    with pytest.raises(CommandError, match="flip_index"):
        Augment({flip: True}, None, 3)


def test_sizes_cover_the_range_on_both_sides() -> None:
    images, points = dots()
    many = Augment({"scale": 0.3}, FLIP, 3)(np.repeat(images, 25, 0), np.repeat(points, 25, 0), "s")[1]
    ratio = np.linalg.norm(many[:, 1] - many[:, 0], axis=-1) / np.linalg.norm(points[0, 1] - points[0, 0])
    assert 0.7 <= ratio.min() + 1e-6 < 0.75
    assert 1.25 < ratio.max() - 1e-6 <= 1.3


def test_saturation_keeps_the_brightness_that_eyes_see() -> None:
    images = np.random.default_rng(0).integers(60, 190, (32, 16, 16, 3), dtype=np.uint8)
    out = Augment({"saturation": 0.5}, None, None)(images, None, "s")[0]
    luma = np.array([0.299, 0.587, 0.114])  # of red, green and blue (ITU-R BT.601)
    np.testing.assert_allclose(out @ luma, images @ luma, atol=1)


def test_hues_cover_the_fraction_of_a_turn_on_both_sides() -> None:
    images = np.tile(np.array([160, 110, 90], np.uint8), (200, 2, 2, 1))

    def angle(colours: np.ndarray) -> np.ndarray:
        red, green, blue = np.moveaxis(colours[:, 0, 0].astype(float), -1, 0)
        return np.arctan2(np.sqrt(3) * (green - blue), 2 * red - green - blue) / (2 * np.pi)

    turn = angle(Augment({"hue": 0.2}, None, None)(images, None, "s")[0]) - angle(images)
    turn -= np.rint(turn)
    assert -0.205 < turn.min() < -0.18
    assert 0.18 < turn.max() < 0.205


def test_mirror_images_are_as_bright_as_the_others() -> None:
    """Each step has numbers of its own: else the first of a batch would always be darker where it is mirrored."""
    picture = np.full((1, 8, 8, 3), 50, np.uint8)
    picture[:, :, 4:] = 150
    augment = Augment({"hflip": True, "brightness": 0.2}, None, None)
    out = np.concatenate([augment(picture, None, str(seed))[0] for seed in range(500)]).astype(float)
    mirrored, level = out[:, 0, 0, 0] > out[:, 0, -1, 0], out.mean((1, 2, 3))
    assert abs(level[mirrored].mean() / level[~mirrored].mean() - 1) < 0.05
