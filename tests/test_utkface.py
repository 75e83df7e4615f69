"""UTKFace's names, odd ones included, its classes, its duplicates and its face crops."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules.prepare import prepare_table
from datamodules.utkface import AGE_CLASSES, UtkFace, age_class
from launch.errors import DataError, DatasetNotFoundError
from tests.drawn_face import scene

ODD = {
    "39_1_20170116174525125.jpg.chip.jpg": (39, None),
    "61_1_20170109142408075.jpg.chip.jpg": (61, None),
    "61_1_20170109150557335.jpg.chip.jpg": (61, None),
    "14_0_0_2017011022340900.jpg.chip.jpg": (14, "White"),
    "24_0_1_20170116220224657 .jpg.chip.jpg": (24, "Black"),
    "28_1_2_201701161846515488.jpg.chip.jpg": (28, "Asian"),
    "38_0_1_201701162330572788.jpg.chip.jpg": (38, "Black"),
    "55_0_0_20170116232725357jpg.chip.jpg": (55, "White"),
}


def write(root: Path, names: list[str], folder: str = "UTKFace") -> None:
    place = root / folder
    place.mkdir(parents=True, exist_ok=True)
    for index, name in enumerate(names):
        Image.new("RGB", (8, 8), (index % 256, 3 * index % 256, 90)).save(place / name, "JPEG")


def test_names_tell_age_gender_and_race(tmp_path: Path) -> None:
    write(tmp_path, ["100_1_0_20170110183726390.jpg.chip.jpg", "1_0_4_20161219140623097.jpg.chip.jpg"])
    records = UtkFace(root=tmp_path, crop="whole").records()
    rows = records.table.set_index("file")
    old, young = (rows.loc[name] for name in sorted(rows.index))
    assert (old["age"], old["age_decades"], old["age_class"], old["gender"], old["race"]) == (
        100, 10.0, "60+", "female", "White",
    )  # fmt: skip
    assert (young["age"], young["age_decades"], young["age_class"], young["gender"], young["race"]) == (
        1, 0.1, "0-3", "male", "Others",
    )  # fmt: skip
    assert list(records.table["key"]) == sorted(records.table["file"])
    assert records.table["key"].str.startswith("UTKFace/").all()
    assert records.classes == list(AGE_CLASSES)


def test_the_eight_odd_names_are_read_by_what_is_known(tmp_path: Path) -> None:
    write(tmp_path, list(ODD))
    records = UtkFace(root=tmp_path, crop="whole").records()
    found = {
        Path(row["file"]).name: (row["age"], row["race"] if isinstance(row["race"], str) else None)
        for row in records.table.to_dict("records")
    }
    assert found == ODD
    assert records.dropped == {}
    assert "3 names lack gender or race; their age was used" in records.notes


def test_other_files_are_counted_or_passed_over(tmp_path: Path) -> None:
    write(tmp_path, ["5_0_0_20170110183726390.jpg.chip.jpg", "face.jpg", "500_0_0_20170110183726390.jpg.chip.jpg"])
    (tmp_path / "UTKFace" / "readme.txt").write_text("")
    (tmp_path / "UTKFace" / "._5_0_0_20170110183726390.jpg.chip.jpg").write_text("")
    records = UtkFace(root=tmp_path, crop="whole").records()
    assert len(records.table) == 1
    assert records.dropped == {"no age in the name": 2}


@pytest.mark.parametrize(
    ("age", "name"),
    [(0, "0-3"), (3, "0-3"), (4, "4-16"), (16, "4-16"), (17, "17-30"), (30, "17-30"), (31, "31-45"), (45, "31-45"),
     (46, "46-59"), (59, "46-59"), (60, "60+"), (116, "60+")],
)  # fmt: skip
def test_class_borders(age: int, name: str) -> None:
    assert age_class(age) == name


def test_the_face_is_cropped_where_found_and_the_whole_chip_kept_elsewhere(tmp_path: Path) -> None:
    place = tmp_path / "UTKFace"
    place.mkdir()
    Image.fromarray(scene(300, 300, (50, 60, 200))).save(place / "20_0_0_20170110183726390.jpg.chip.jpg")
    Image.fromarray(scene(200, 200)).save(place / "30_0_0_20170110183726390.jpg.chip.jpg")
    records = UtkFace(root=tmp_path, face_scale=1.2, cache_root=tmp_path / "kept").records()
    face, whole = records.table[["left", "top", "right", "bottom"]].to_numpy()
    assert (face[0] + face[2]) / 2 == pytest.approx(150, abs=15)
    assert face[2] - face[0] == pytest.approx(180, abs=36)
    assert whole.tolist() == [0, 0, 200, 200]
    assert "a face was found in 1 of 2 pictures" in records.notes
    dropping = UtkFace(root=tmp_path, without_face="drop", cache_root=tmp_path / "kept").records()
    assert dropping.dropped == {"no face found": 1}
    assert len(dropping.table) == 1


def test_both_age_tasks_can_be_prepared_and_copies_stay_together(tmp_path: Path) -> None:
    names = [f"{age}_0_0_201701101837263{age:02d}.jpg.chip.jpg" for age in (2, 9, 22, 40, 50, 70) for _ in range(1)]
    names += [f"{age + 1}_1_2_201701101837264{age:02d}.jpg.chip.jpg" for age in (2, 9, 22, 40, 50, 70)]
    names += [f"{age + 1}_1_3_201701101837265{age:02d}.jpg.chip.jpg" for age in (1, 8, 23, 41, 51, 71)]
    write(tmp_path, names)
    copy = tmp_path / "UTKFace" / "99_0_0_20170110183726399.jpg.chip.jpg"
    copy.write_bytes((tmp_path / "UTKFace" / names[0]).read_bytes())
    source = UtkFace(root=tmp_path, crop="whole")
    records = source.records()
    hashes = {row["key"]: source.digest(row) for row in records.table.to_dict("records")}
    by_class = prepare_table(records, "classification", "age_class", None, "full", (0.2, 0.2), 0, hashes)
    assert by_class.classes == list(AGE_CLASSES)
    by_age = prepare_table(records, "regression", "age_decades", None, "full", (0.2, 0.2), 0, hashes)
    assert np.sort(by_age.table["target"])[-1] == 9.9
    for prepared in (by_class, by_age):
        rows = prepared.table.set_index("key")
        assert rows.loc[f"UTKFace/{names[0]}", "split"] == rows.loc[f"UTKFace/{copy.name}", "split"]


def test_another_folder_can_be_named(tmp_path: Path) -> None:
    write(tmp_path, ["5_0_0_20170110183726390.jpg.chip.jpg"], "crop_part1")
    source = UtkFace(root=tmp_path, folder="crop_part1", crop="whole")
    source.prepare()
    assert list(source.records().table["file"]) == ["crop_part1/5_0_0_20170110183726390.jpg.chip.jpg"]


def test_faults(tmp_path: Path) -> None:
    with pytest.raises(DatasetNotFoundError) as caught:
        UtkFace(root=tmp_path).check()
    for part in (
        "UTKFace was not found in", "UTKFace.tar.gz (107 MB)", "non-commercial research", "https://susanqq.github.io",
        "python prepare.py data=utkface", "data.root=DIR",
    ):  # fmt: skip
        assert part in str(caught.value)
    UtkFace(root=tmp_path, download=True).check()
    (tmp_path / "UTKFace").mkdir()
    with pytest.raises(DataError, match=r"has no pictures named \[age\]"):
        UtkFace(root=tmp_path).records()
    with pytest.raises(DataError, match=r"data\.crop=half must be face or whole"):
        UtkFace(root=tmp_path, crop="half")  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"data\.without_face=no must be keep or drop"):
        UtkFace(root=tmp_path, without_face="no")  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"data\.face_scale=0 must be more than 0"):
        UtkFace(root=tmp_path, face_scale=0)


def test_the_order_of_the_listing_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, [*ODD, "5_0_0_20170110183726390.jpg.chip.jpg"])
    first = UtkFace(root=tmp_path, crop="whole").records().table
    original = Path.rglob
    monkeypatch.setattr(Path, "rglob", lambda self, pattern: sorted(original(self, pattern), reverse=True))
    backwards = UtkFace(root=tmp_path, crop="whole").records().table
    monkeypatch.setattr(Path, "rglob", lambda self, pattern: sorted(original(self, pattern)))
    forwards = UtkFace(root=tmp_path, crop="whole").records().table
    assert first.equals(backwards)
    assert first.equals(forwards)


def test_the_crop_grows_with_its_factor(tmp_path: Path) -> None:
    place = tmp_path / "UTKFace"
    place.mkdir()
    Image.fromarray(scene(400, 400, (100, 110, 200))).save(place / "20_0_0_20170110183726390.jpg.chip.jpg")
    sides = []
    for scale in (1.0, 1.2, 1.5):
        (row,) = (
            UtkFace(root=tmp_path, face_scale=scale, cache_root=tmp_path / "kept").records().table.to_dict("records")
        )
        sides.append(row["right"] - row["left"])
    assert np.array(sides) / sides[0] == pytest.approx([1, 1.2, 1.5])
