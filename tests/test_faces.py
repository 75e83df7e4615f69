"""Face finding on drawn faces: the right one, the right place, once."""

import os
from pathlib import Path

import dlib
import numpy as np
import pytest
from PIL import Image

from datamodules import faces, file_index
from datamodules.decode import BrokenImageError
from datamodules.faces import detect_faces, enlarge
from tests.drawn_face import scene


def save(path: Path, picture: np.ndarray) -> str:
    Image.fromarray(picture).save(path)
    return path.name


def middle(box: np.ndarray) -> tuple[float, float]:
    return float(box[0] + box[2]) / 2, float(box[1] + box[3]) / 2


def test_finds_the_face_nearest_to_the_centre(tmp_path: Path) -> None:
    files = [
        save(tmp_path / "one.png", scene(300, 300, (50, 60, 200))),
        save(tmp_path / "two.png", scene(600, 300, (0, 50, 200), (250, 40, 200))),
        save(tmp_path / "other.png", scene(600, 300, (150, 50, 200), (400, 40, 200))),
        save(tmp_path / "none.png", scene(300, 300)),
    ]
    sizes, boxes = detect_faces(tmp_path, files, None, "drawn")
    assert sizes.tolist() == [[300, 300], [600, 300], [600, 300], [300, 300]]
    assert middle(boxes[0]) == pytest.approx((150, 173), abs=15)
    assert middle(boxes[1]) == pytest.approx((350, 153), abs=15)
    assert middle(boxes[2]) == pytest.approx((250, 163), abs=15)
    assert np.isnan(boxes[3]).all()
    assert boxes[0][2] - boxes[0][0] == pytest.approx(150, abs=30)


def test_large_pictures_are_reduced_and_boxes_scaled_back(tmp_path: Path) -> None:
    files = [save(tmp_path / "large.png", scene(2400, 1500, (1000, 300, 900)))]
    _, boxes = detect_faces(tmp_path, files, None, "drawn")
    assert middle(boxes[0]) == pytest.approx((1450, 800), abs=70)


def test_orientation_is_that_of_the_picture_as_it_is_read(tmp_path: Path) -> None:
    turned = Image.fromarray(np.rot90(scene(400, 300, (50, 50, 200))))
    exif = turned.getexif()
    exif[0x0112] = 6  # to be turned clockwise by 90 degrees
    turned.save(tmp_path / "turned.jpg", exif=exif)
    sizes, boxes = detect_faces(tmp_path, ["turned.jpg"], None, "drawn")
    assert sizes.tolist() == [[400, 300]]
    assert middle(boxes[0]) == pytest.approx((150, 163), abs=15)


def test_a_broken_picture_has_no_size(tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    sizes, boxes = detect_faces(tmp_path, ["broken.jpg", "missing.jpg"], None, "drawn")
    assert np.isnan(sizes).all()
    assert np.isnan(boxes).all()


def test_detection_runs_once_for_each_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    original = faces.read_image
    monkeypatch.setattr(faces, "read_image", lambda path: (read.append(path.name), original(path))[1])
    monkeypatch.setattr(file_index, "_BATCH", 2)
    files = [save(tmp_path / f"{index}.png", scene(250, 250, (20, 20, 200))) for index in range(5)]
    first = detect_faces(tmp_path, files, tmp_path / "kept", "drawn")
    assert sorted(read) == files
    save(tmp_path / "3.png", scene(300, 300))
    files.append(save(tmp_path / "5.png", scene(250, 250)))
    read.clear()
    sizes, boxes = detect_faces(tmp_path, files[::-1], tmp_path / "kept", "drawn")
    assert sorted(read) == ["3.png", "5.png"]
    assert np.array_equal(boxes[::-1][:3], first[1][:3])
    assert sizes[::-1][3].tolist() == [300, 300]


def test_an_interruption_loses_no_more_than_a_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_index, "_BATCH", 2)
    computed: list[str] = []

    def compute(path: Path) -> list[float]:
        if path.name == "3" and "4" not in computed:
            computed.append("4")
            raise KeyboardInterrupt
        computed.append(path.name)
        return [float(path.name)]

    arguments = (tmp_path, list("01234"), compute, ["number"], tmp_path / "kept.parquet", "Counting")
    for name in "01234":
        (tmp_path / name).write_text(name)
    with pytest.raises(KeyboardInterrupt):
        file_index.per_file(*arguments)
    computed[:] = ["4"]
    assert file_index.per_file(*arguments).tolist() == [[0], [1], [2], [3], [4]]
    assert "0" not in computed
    assert "1" not in computed


def test_a_damaged_index_is_made_anew(tmp_path: Path) -> None:
    files = [save(tmp_path / "one.png", scene(250, 250, (20, 20, 200)))]
    first = detect_faces(tmp_path, files, tmp_path / "kept", "drawn")
    [index] = (tmp_path / "kept").glob("*.parquet")
    whole = index.read_bytes()
    index.write_bytes(whole[:50])
    assert np.array_equal(detect_faces(tmp_path, files, tmp_path / "kept", "drawn")[1], first[1])
    assert len(index.read_bytes()) == len(whole)


def test_enlarged_boxes_keep_their_middle_and_end_at_the_picture() -> None:
    boxes = np.array([[40.0, 40, 60, 60], [0, 70, 20, 90], [np.nan] * 4])
    grown = enlarge(boxes, np.array([[100.0, 100]] * 3), 1.5)
    assert grown[:2].tolist() == [[35, 35, 65, 65], [0, 65, 25, 95]]
    assert np.isnan(grown[2]).all()


def test_boxes_have_the_size_that_the_detector_gives_them() -> None:
    picture = np.ascontiguousarray(scene(300, 300, (50, 60, 200)))
    (found,) = dlib.get_frontal_face_detector()(picture, 0)
    ((left, top, right, bottom),) = faces.find_faces(picture)
    assert (left, top) == (found.left(), found.top())
    assert (right - left, bottom - top) == (found.width(), found.height())


@pytest.mark.parametrize(("content", "later"), [(b"2", 1000), (b"34", 0)])
def test_a_file_of_another_time_or_size_is_computed_anew(tmp_path: Path, content: bytes, later: int) -> None:
    def number() -> float:
        arguments = (lambda path: [float(path.read_bytes())], ["number"], tmp_path / "kept.parquet", "Reading")
        return float(file_index.per_file(tmp_path, ["file"], *arguments)[0, 0])

    for written, time_ns in ((b"1", 10**18), (content, 10**18 + later)):
        (tmp_path / "file").write_bytes(written)
        os.utime(tmp_path / "file", ns=(time_ns, time_ns))
        assert number() == float(written)


def test_what_could_not_be_read_once_is_looked_at_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that one may read by now has the size and time that it had."""
    files = [save(tmp_path / "one.png", scene(250, 250, (20, 20, 200)))]
    with monkeypatch.context() as patch:
        patch.setattr(faces, "read_image", lambda path: (_ for _ in ()).throw(BrokenImageError("not now")))
        assert np.isnan(detect_faces(tmp_path, files, tmp_path / "kept", "drawn")[0]).all()
    assert detect_faces(tmp_path, files, tmp_path / "kept", "drawn")[0].tolist() == [[250, 250]]
