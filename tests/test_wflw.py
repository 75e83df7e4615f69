"""WFLW's lists: 207 fields, enlarged boxes, splits that exist, the order of points after a flip."""

from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image

from datamodules.prepare import prepare_table
from datamodules.sample.landmarks98 import EYE_CORNERS, FLIP
from datamodules.wflw import ATTRIBUTES, Wflw
from launch.errors import DataError, DatasetNotFoundError

FOLDER = "WFLW_annotations/list_98pt_rect_attr_train_test"


def line(picture: str, first: float = 0.0, attributes: str = "1 0 1 0 0 1") -> str:
    points = " ".join(f"{first + value:.6f}" for value in range(196))
    return f"{points} 10 20 50 80 {attributes} {picture}"


def write(root: Path, **lists: list[str]) -> Wflw:
    (root / FOLDER).mkdir(parents=True)
    for split, lines in lists.items():
        (root / FOLDER / f"list_98pt_rect_attr_{split}.txt").write_text("\n".join(lines) + "\n")
        for text in lines:
            path = root / "WFLW_images" / text.split()[-1]
            path.parent.mkdir(parents=True, exist_ok=True)
            seed = sum(path.name.encode())
            Image.new("RGB", (100, 100), (seed % 256, seed // 256, 0)).save(path)
    return Wflw(root=root)


def test_a_line(tmp_path: Path) -> None:
    records = write(tmp_path, test=[line("37--Soccer/a.jpg", 3.5)]).records()
    [row] = records.table.to_dict("records")
    assert row["key"] == "WFLW_images/37--Soccer/a.jpg#0"
    assert row["file"] == row["group"] == "WFLW_images/37--Soccer/a.jpg"
    assert row["points"].shape == (98, 2)
    assert row["points"].dtype == np.float64
    assert row["points"][:2].tolist() == [[3.5, 4.5], [5.5, 6.5]]
    # longer side 60, times 1.2, about the middle (30, 50)
    assert [row[name] for name in ("left", "top", "right", "bottom")] == [-6, 14, 66, 86]
    assert [row[name] for name in ATTRIBUTES] == [1, 0, 1, 0, 0, 1]


def test_the_box_grows_with_its_factor(tmp_path: Path) -> None:
    write(tmp_path, test=[line("a/a.jpg")])
    [row] = Wflw(root=tmp_path, box_scale=2.0).records().table.to_dict("records")
    assert [row[name] for name in ("left", "top", "right", "bottom")] == [-30, -10, 90, 110]


def test_official_lists_are_the_splits_and_val_is_carved_from_train(tmp_path: Path) -> None:
    source = write(
        tmp_path,
        train=[line(f"e/{number // 2}.jpg", number) for number in range(40)],
        test=[line(f"f/t{number}.jpg", number) for number in range(5)],
    )
    records = source.records()
    hashes = {row["key"]: source.digest(row) for row in records.table.to_dict("records")}
    prepared = prepare_table(records, "keypoints", None, None, "full", (0.2, 0.2), 0, hashes)
    assert {name: part["all"] for name, part in prepared.counts.items()} == {"train": 32, "val": 8, "test": 5}
    assert set(prepared.table.loc[prepared.table["split"] == "test", "file"]) == {
        f"WFLW_images/f/t{number}.jpg" for number in range(5)
    }
    assert prepared.table.groupby("file")["split"].nunique().max() == 1
    assert set(ATTRIBUTES) <= set(prepared.table.columns)


def test_the_test_list_alone_is_split_by_picture(tmp_path: Path) -> None:
    source = write(tmp_path, test=[line(f"e/{number // 2}.jpg", number) for number in range(40)])
    records = source.records()
    assert "split" not in records.table
    assert any("only the official test list is here" in note for note in records.notes)
    assert any("has 40 of the published 2,500 faces" in note for note in records.notes)
    hashes = {row["key"]: source.digest(row) for row in records.table.to_dict("records")}
    prepared = prepare_table(records, "keypoints", None, None, "full", (0.2, 0.2), 0, hashes)
    assert {name: part["all"] for name, part in prepared.counts.items()} == {"train": 24, "val": 8, "test": 8}
    assert prepared.table.groupby("file")["split"].nunique().max() == 1


def test_keys_of_test_faces_do_not_depend_on_the_train_list(tmp_path: Path) -> None:
    test = [line("e/same.jpg", 1), line("e/same.jpg", 2)]
    alone = write(tmp_path / "alone", test=test).records().table
    both = write(tmp_path / "both", test=test, train=[line("e/same.jpg", 3)]).records().table
    assert list(alone["key"]) == list(both.loc[both["split"] == "test", "key"])
    assert both["key"].is_unique


def test_the_tasks_flip_is_an_involution_that_mirrors_a_face() -> None:
    task = OmegaConf.load(Path(__file__).parents[1] / "conf" / "task" / "landmarks.yaml")
    flip, corners = list(task.flip_index), tuple(task.eye_corners)
    assert (flip, corners) == (FLIP.tolist(), EYE_CORNERS), "the drawn faces have an order of their own"
    assert sorted(flip) == list(range(98))
    assert [flip[other] for other in flip] == list(range(98))
    assert flip[corners[0]] == corners[1]
    assert [point for point, other in enumerate(flip) if point == other] == [
        16, 51, 52, 53, 54, 57, 79, 85, 90, 94,
    ]  # fmt: skip
    parts = [(0, 33), (33, 51), (51, 60), (60, 76), (76, 96), (96, 98)]
    for start, end in parts:
        assert sorted(flip[start:end]) == list(range(start, end))


def test_a_list_that_is_no_text_is_named(tmp_path: Path) -> None:
    source = write(tmp_path, test=[line("e/a.jpg")])
    (tmp_path / FOLDER / "list_98pt_rect_attr_test.txt").write_bytes(line("e/a.jpg").encode("utf-16"))
    with pytest.raises(DataError, match=r"test\.txt is not a text in UTF-8 \(.*fetch it again"):
        source.records()


@pytest.mark.parametrize(
    "bad", ["1 2 3 a.jpg", line("e/a.jpg").replace(" 10 20", " nan 20"), line("e/a.jpg")[9:], line("../a.jpg")]
)
def test_a_line_of_another_form_is_named(tmp_path: Path, bad: str) -> None:
    source = write(tmp_path, test=[line("e/a.jpg"), bad])
    with pytest.raises(DataError, match=r"1 lines are not 206 numbers and a picture:\n  line 2: "):
        source.records()


def test_faults(tmp_path: Path) -> None:
    with pytest.raises(DatasetNotFoundError) as caught:
        Wflw(root=tmp_path, download=True).check()
    text = str(caught.value)
    assert "no WFLW_images, and" in text  # the annotations could be fetched
    assert "Google Drive" in text
    assert "archives:  WFLW_images.tar.gz" in text
    assert "by hand:   no direct link" in text
    source = write(tmp_path)
    with pytest.raises(DataError, match=r"has neither of list_98pt_rect_attr_train\.txt"):
        source.records()
    (tmp_path / FOLDER / "list_98pt_rect_attr_test.txt").write_text("\n")
    with pytest.raises(DataError, match="0 lines are not"):
        source.records()
    with pytest.raises(DataError, match=r"data\.box_scale=0 must be more than 0"):
        Wflw(root=tmp_path, box_scale=0)


def test_attributes_are_named_in_the_order_of_the_lists(tmp_path: Path) -> None:
    names = ["pose", "expression", "illumination", "make_up", "occlusion", "blur"]  # as its README gives them
    lines = [
        line(f"e/{place}.jpg", attributes=" ".join("01"[number == place] for number in range(6))) for place in range(6)
    ]
    table = write(tmp_path, test=lines).records().table
    assert [next(name for name in names if row[name] == 1) for row in table.to_dict("records")] == names
    assert table[names].to_numpy().sum() == 6
