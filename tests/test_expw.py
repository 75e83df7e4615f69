"""ExpW's list: order of the box, threshold, clipping, one group a picture."""

from pathlib import Path

import pytest
from PIL import Image

from datamodules.decode import read_image
from datamodules.expw import CLASSES, ExpW
from datamodules.prepare import prepare_table
from launch.errors import DataError, DatasetNotFoundError

LINES = """\
angry_actor_104.jpg 0 28 113 226 141 22.9362 0
angry_actor_104.jpg 1 10 20 60 50 50.5 6
happy_child_2.jpg 0 -7 -5 400 250 90.0 3

sad_man_3.jpg 0 10 10 50 50 9.99 4
sad_man_3.jpg 1 300 300 350 350 80.0 4
absent_man_4.jpg 0 10 10 50 50 80.0 5
"""


def write(root: Path, lines: str = LINES) -> None:
    (root / "image" / "origin").mkdir(parents=True)
    (root / "label").mkdir()
    (root / "label" / "label.lst").write_text(lines)
    for name, size in {"angry_actor_104": (300, 200), "happy_child_2": (320, 240), "sad_man_3": (100, 100)}.items():
        Image.new("RGB", size).save(root / "image" / "origin" / f"{name}.jpg")


def test_the_box_is_top_left_right_bottom(tmp_path: Path) -> None:
    write(tmp_path)
    records = ExpW(root=tmp_path, cache_root=tmp_path / "kept").records()
    table = records.table.set_index("key")
    box = ["left", "top", "right", "bottom"]
    assert table.loc["image/origin/angry_actor_104.jpg#0", box].tolist() == [113, 28, 226, 141]
    assert table.loc["image/origin/happy_child_2.jpg#0", box].tolist() == [0, 0, 320, 240]  # clipped
    assert table["label"].to_dict() == {
        "image/origin/angry_actor_104.jpg#0": "angry",
        "image/origin/angry_actor_104.jpg#1": "neutral",
        "image/origin/happy_child_2.jpg#0": "happy",
    }
    assert records.classes == CLASSES
    assert records.dropped == {
        "picture is not in image/origin": 1,
        "confidence below 10": 1,
        "box outside the picture": 1,
    }
    assert records.notes == ["only a part of the listed pictures is here"]


def test_the_threshold_is_the_users(tmp_path: Path) -> None:
    write(tmp_path)
    assert len(ExpW(root=tmp_path, min_confidence=0).records().table) == 4
    assert len(ExpW(root=tmp_path, min_confidence=60).records().table) == 1


def test_faces_of_one_picture_stay_in_one_split(tmp_path: Path) -> None:
    (tmp_path / "image" / "origin").mkdir(parents=True)
    (tmp_path / "label").mkdir()
    lines = []
    for number in range(60):
        Image.new("RGB", (60, 60), (number, 0, 0)).save(tmp_path / "image" / "origin" / f"{number}.jpg")
        lines += [f"{number}.jpg {face} {face} 0 40 40 50 {(number + face) % 7}" for face in range(2)]
    (tmp_path / "label" / "label.lst").write_text("\n".join(lines))
    source = ExpW(root=tmp_path)
    records = source.records()
    hashes = {row["key"]: source.digest(row) for row in records.table.to_dict("records")}
    prepared = prepare_table(records, "classification", None, None, "full", (0.2, 0.2), 0, hashes)
    assert len(prepared.table) == 120
    assert prepared.classes == CLASSES
    assert set(prepared.table["split"]) == {"train", "val", "test"}
    assert prepared.table.groupby("file")["split"].nunique().max() == 1


@pytest.mark.parametrize(
    "line",
    [
        "a.jpg 0 28 113 226 141 22.9362",
        "a.jpg 0 28 113 226 141 22.9362 7",
        "a.jpg 0 28 113 226 141 22.9362 -1",
        "a.jpg 0 28 x 226 141 22.9362 1",
    ],
)
def test_a_line_of_another_form_is_named(tmp_path: Path, line: str) -> None:
    write(tmp_path, LINES + line)
    with pytest.raises(DataError, match=r"label\.lst: 1 lines are not 'name face top.*\n  line 8: a\.jpg"):
        ExpW(root=tmp_path).records()


def test_a_list_that_is_no_text_is_named(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "label" / "label.lst").write_bytes(LINES.encode("utf-16"))
    with pytest.raises(DataError, match=r"label\.lst is not a text in UTF-8 \(.*fetch it again"):
        ExpW(root=tmp_path).records()


def test_a_face_listed_twice_counts_once(tmp_path: Path) -> None:
    write(tmp_path, LINES + LINES.splitlines()[0])
    assert ExpW(root=tmp_path).records().dropped["face listed twice"] == 1


def test_faults(tmp_path: Path) -> None:
    for download in (False, True):
        with pytest.raises(DatasetNotFoundError) as caught:
            ExpW(root=tmp_path, download=download).check()
    text = str(caught.value)
    assert "ExpW was not found in" in text
    assert "image/origin.7z.008 (of 8, over 8 GB in all), label/label.lst (size unknown)" in text
    assert f"by hand:   no direct link; download with a browser into {tmp_path}" in text
    assert "mmlab.ie.cuhk.edu.hk" in text
    write(tmp_path)
    ExpW(root=tmp_path).check()
    for lines in ("absent.jpg 0 28 113 226 141 22.9362 1", ""):
        (tmp_path / "label" / "label.lst").write_text(lines)
        with pytest.raises(DataError, match=r"None of the pictures in label/label\.lst"):
            ExpW(root=tmp_path).records()


def test_the_seven_expressions_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    write(tmp_path, "\n".join(f"angry_actor_104.jpg {number} 10 20 60 50 50.5 {number}" for number in range(7)))
    table = ExpW(root=tmp_path).records().table
    assert list(table["label"]) == ["angry", "disgust", "fear", "happy", "sad", "surprise", "neutral"]


def test_a_box_ends_where_the_picture_does_as_it_is_turned_for_reading(tmp_path: Path) -> None:
    write(tmp_path, "angry_actor_104.jpg 0 10 20 400 400 50.5 0")
    exif = Image.Exif()
    exif[0x0112] = 6  # 300 x 200 pixels, to be turned by 90 degrees
    file = tmp_path / "image" / "origin" / "angry_actor_104.jpg"
    Image.new("RGB", (300, 200)).save(file, exif=exif)
    (row,) = ExpW(root=tmp_path).records().table.to_dict("records")
    assert (row["right"], row["bottom"]) == (200, 300)
    assert read_image(file).shape == (300, 200, 3)


def test_a_size_that_could_not_be_read_once_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path)
    source = ExpW(root=tmp_path, cache_root=tmp_path / "kept")
    with monkeypatch.context() as patch:
        patch.setattr(Image, "open", lambda path: (_ for _ in ()).throw(PermissionError()))
        assert source.records().table["right"].max() == 400
    assert source.records().table["right"].max() == 320
