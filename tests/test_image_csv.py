from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from datamodules.datamodule import ImageDataModule
from datamodules.image_csv import ImageCsv
from datamodules.prepare import LATER_SPLIT, Kind, prepare_table
from datamodules.splits import merge_groups
from launch.errors import DataError, DatasetNotFoundError
from lightning_modules.building import build_subsets
from tests.picture_files import noise, write_picture
from tests.runs import draw_points


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for number in range(6):
        write_picture(tmp_path / "images" / f"{number}.png", noise(number))
    return tmp_path


def write(root: Path, text: str, name: str = "labels.csv", encoding: str = "utf-8") -> None:
    (root / name).parent.mkdir(exist_ok=True)
    (root / name).write_text(text, encoding=encoding)


def test_classes(root: Path) -> None:
    write(root, 'file,label,kind,who\nimages/0.png,0,"round, red",a\n\nimages/1.png,1,flat,b\nimages/1.png,1,flat,b\n')
    source = ImageCsv(root, target_column="kind", group_column="who")
    records = source.records()
    assert records.table.to_dict("list") == {
        "key": ["images/0.png", "images/1.png"],
        "file": ["images/0.png", "images/1.png"],
        "label": ["round, red", "flat"],
        "group": ["a", "b"],
    }
    assert records.dropped == {"row repeated": 1}
    assert list(ImageCsv(root).records().table["label"]) == ["0", "1"]
    assert source.name == root.name


@pytest.mark.parametrize(("delimiter", "encoding"), [(",", "utf-8-sig"), (";", "utf-8"), ("\t", "utf-8")])
def test_numbers_in_any_usual_dialect(root: Path, delimiter: str, encoding: str) -> None:
    lines = [["file", "value"], ["images\\0.png", " 1.5 "], ["images/1.png", "-2e3"]]
    write(root, "\r\n".join(delimiter.join(line) for line in lines), encoding=encoding)
    table = ImageCsv(root, kind="regression").records().table
    assert list(table["value"]) == [1.5, -2000.0]
    assert table["key"][0] == "images/0.png"


def test_points_in_numeric_order(root: Path) -> None:
    names = [f"{axis}{number}" for number in range(12) for axis in "xy"]
    shuffled = sorted(names)  # x0, x1, x10, x11, x2, ...
    values = {name: float(position) for position, name in enumerate(names)}
    write(root, ",".join(["image", "who", *shuffled]) + "\n0.png,p," + ",".join(str(values[name]) for name in shuffled))
    options = {"image_column": "image", "kind": "keypoints", "image_dir": "images"}
    points = ImageCsv(root, **options).records().table["points"][0]
    np.testing.assert_array_equal(points, np.arange(24.0).reshape(12, 2))
    points = ImageCsv(root, target_column=["x3", "y3", "x1", "y1"], **options).records().table["points"][0]
    np.testing.assert_array_equal(points, [[6, 7], [2, 3]])
    with pytest.raises(DataError, match="in pairs"):
        ImageCsv(root, target_column=["x3", "y3", "x1"], **options).records()


def test_folders_by_split_follow_the_split_column(tmp_path: Path) -> None:
    for split, folder in (("train", "A"), ("val", "B")):
        write_picture(tmp_path / folder / "0.png", noise(len(split)))
    write(tmp_path, "file,label,part\n0.png,a,train\n0.png,b,dev\n")
    source = ImageCsv(tmp_path, image_dir={"training": "A", "validation": "B"}, split_column="part")
    table = source.records().table
    assert table[["key", "split"]].values.tolist() == [["A/0.png", "train"], ["B/0.png", "val"]]
    with pytest.raises(DataError, match=r"data\.image_dir=.* split is not known; give data\.split_column"):
        ImageCsv(tmp_path, image_dir={"train": "A", "val": "B"})


@pytest.mark.parametrize("folder", ["../out", "/tmp", "a/../../b", "C:\\pictures"])
def test_no_folder_of_pictures_leaves_the_root(root: Path, folder: str) -> None:
    for given in (folder, {"train": "images", "test": folder}):
        with pytest.raises(DataError, match=r"data\.image_dir=.* must be a folder below data\.root"):
            ImageCsv(root, image_dir=given, split_column="split")


def test_one_csv_per_split_with_folders_of_their_own(tmp_path: Path) -> None:
    for split in ("training", "test"):
        write_picture(tmp_path / split / "a_1.png", noise(len(split)))
        write(tmp_path, "image,x0,y0\na_1.png,1,2\n", f"{split}_keypoints.csv")
    source = ImageCsv(
        tmp_path, csv={"train": "training_keypoints.csv", "test": "test_keypoints.csv"}, image_column="image",
        image_dir={"train": "training", "test": "test"}, kind="keypoints", group_pattern=r"/(.*)_\d+\.png$", name="n",
    )  # fmt: skip
    table = source.records().table
    assert list(table["key"]) == ["training/a_1.png", "test/a_1.png"]
    assert list(table["split"]) == ["train", "test"]
    assert list(table["group"]) == ["a", "a"]
    assert source.name == "n"


def test_several_csvs_and_a_split_column(root: Path) -> None:
    write(root, "file,label,part\n0.png,a,train\n", "images/one.csv")  # relative to the CSV's folder
    write(root, "file,label,part\nimages/1.png,b,validation\n", "images/two.csv")  # relative to the root
    table = ImageCsv(root, csv=["images/one.csv", "images/two.csv"], split_column="part").records().table
    assert list(table["key"]) == ["images/0.png", "images/1.png"]
    assert list(table["split"]) == ["train", "val"]


@pytest.mark.parametrize("order", [("train", "test"), ("test", "train")])
def test_a_picture_in_two_splits_stays_in_the_later_one(root: Path, order: tuple[str, str]) -> None:
    write(root, "file,label,who\n" + "".join(f"images/{number}.png,a,p\n" for number in (0, 1, 2, 1)), "train.csv")
    write(root, "file,label,who\nimages/1.png,a,q\nimages/3.png,a,q\n", "test.csv")
    source = ImageCsv(root, csv={split: f"{split}.csv" for split in order}, group_column="who")
    records = source.records()
    rows = records.table.set_index("file").sort_index()
    assert list(rows["split"]) == ["train", "test", "train", "test"]
    assert list(rows["group"]) == ["p", "q", "p", "q"]
    repeated = {"row repeated": 1, LATER_SPLIT: 1} if order[0] == "train" else {LATER_SPLIT: 2}
    assert records.dropped == repeated


def test_further_columns_become_attributes(root: Path) -> None:
    head = "file,label,night,who,left,stratum,place\n"
    write(root, f"{head}images/0.png,a,1,ann,3,x,7\nimages/1.png,b, 0 ,,4,y,\n", "one.csv")
    write(root, "who,file,label\nbob,images/2.png,a\n", "two.csv")
    table = ImageCsv(root, csv=["one.csv", "two.csv"], group_column="who").records().table
    assert list(table.columns) == ["key", "file", "label", "group", "night", "place"]
    np.testing.assert_array_equal(table["night"], [1, 0, np.nan])
    np.testing.assert_array_equal(table["place"], [7, np.nan, np.nan])
    table = ImageCsv(root, csv="one.csv").records().table
    assert list(table["who"]) == ["ann", None]
    assert "group" not in table


def test_a_column_of_zeros_and_ones_is_a_subset_and_leaves_the_fingerprint(tmp_path: Path) -> None:
    root = draw_points(tmp_path / "points", 12)
    lines = (root / "labels.csv").read_text().splitlines()

    def data() -> ImageDataModule:
        source = ImageCsv(root, kind="keypoints")
        made = ImageDataModule(source, "keypoints", image_size=16, cache_root=tmp_path / "cache")
        made.prepare_data()
        made.setup()
        return made

    plain = data().fingerprint
    more = ["profile,sure,stratum", *(f"{number % 2},{number / 12},{number}" for number in range(12))]
    write(root, "\n".join(f"{line},{end}" for line, end in zip(lines, more, strict=True)))
    told = data()
    assert told.fingerprint == plain
    subsets = SimpleNamespace(task=SimpleNamespace(subsets=["profile"]))
    assert build_subsets(subsets, told)["profile"].tolist() == [number % 2 == 1 for number in range(12)]
    subsets.task.subsets = ["sure"]
    with pytest.raises(DataError, match=r"task\.subsets: sure: the column holds other values than 0 and 1"):
        build_subsets(subsets, told)


@pytest.mark.parametrize(
    ("kind", "target", "message"),
    [("keypoints", "who", "'who' of the records holds no points"), ("regression", "who", "No example is left")],
)
def test_an_attribute_that_cannot_be_learned(root: Path, kind: Kind, target: str, message: str) -> None:
    write(root, "file,value,x0,y0,who\nimages/0.png,1,1,2,ann\nimages/1.png,2,3,4,\n")
    records = ImageCsv(root, kind=kind).records()
    hashes = {key: key for key in records.table["key"]}
    with pytest.raises(DataError, match=message):
        prepare_table(records, kind, target, None, "full", (0.1, 0.1), 0, hashes)


def test_all_faults_are_told_at_once_with_their_lines(root: Path) -> None:
    rows = ["images/0.png,1,train", "images/9.png,2,train", "images/1.png,,train", "images/2.png,two,train"]
    rows += ["images/3.png,inf,train", "../secret.png,1,train", "/etc/x.png,1,train", "images/4.png,1,trian"]
    rows += ["images/5.png,1", "images/0.png,7,train", "C:/x.png,1,train", ",1,train"]
    rows += [f"images/m{number}.png,1,test" for number in range(7)]
    write(root, "\n".join(["file,value,part", *rows]))
    with pytest.raises(DataError) as caught:
        ImageCsv(root, kind="regression", split_column="part").records()
    text = str(caught.value)
    assert "picture is missing (8 lines)" in text
    assert "labels.csv line 3: images/9.png" in text
    assert "and 3 more" in text
    assert "no value in column 'value' (1 line)\n    labels.csv line 4" in text
    assert "not a number in column 'value' (1 line)\n    labels.csv line 5: 'two'" in text
    assert "not a finite number (1 line)\n    labels.csv line 6" in text
    assert "a path that leaves data.root (3 lines)\n    labels.csv line 7: ../secret.png" in text
    assert "not a split (train, val, test) (1 line)\n    labels.csv line 9: 'trian'" in text
    assert "not 3 cells (1 line)\n    labels.csv line 10: 2 cells" in text
    assert "labels.csv line 11: images/0.png, first in labels.csv line 2" in text
    assert "no value in column 'file' (1 line)\n    labels.csv line 13" in text


def test_missing_columns_name_the_nearest(root: Path) -> None:
    write(root, "file,lable,x0,y0\nimages/0.png,a,1,2\n")
    with pytest.raises(
        DataError, match=r"no column 'label' \(data.target_column\). Did you mean 'lable'.*Columns: file, "
    ):
        ImageCsv(root).records()
    with pytest.raises(DataError) as caught:
        ImageCsv(root, image_column="path", target_column="lable", group_column="who").check()
    assert str(caught.value).endswith("Name the columns that there are.")
    assert "no column 'path' (data.image_column)" in str(caught.value)
    assert "no column 'who' (data.group_column)" in str(caught.value)
    with pytest.raises(DataError, match="no column 'y7'"):
        ImageCsv(root, kind="keypoints", target_column=["x0", "y7"]).records()
    write(root, "file,label\nimages/0.png,a\n")
    with pytest.raises(DataError, match="no columns x0, y0"):
        ImageCsv(root, kind="keypoints").records()


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "is empty"), ("file,label\n", "has no rows"), ("file,label,label\n", "column 'label' twice")],
)
def test_empty_files(root: Path, text: str, message: str) -> None:
    write(root, text)
    with pytest.raises(DataError, match=message):
        ImageCsv(root).records()


def test_a_file_that_is_no_text(root: Path) -> None:
    (root / "labels.csv").write_bytes(b"file,label\n\xff\xfe\x00,x\n")
    with pytest.raises(DataError, match="cannot be read"):
        ImageCsv(root).records()


def test_missing_files_name_what_is_there(root: Path) -> None:
    write(root, "file,label\n", "labels2.csv")
    with pytest.raises(
        DatasetNotFoundError, match=r"no file .*labels\.csv.*Did you mean 'labels2\.csv'.*data\.csv=FILE"
    ):
        ImageCsv(root).check()
    with pytest.raises(DatasetNotFoundError, match="no folder"):
        ImageCsv(root / "nowhere").check()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"csv": "../labels.csv"}, "below data.root"),
        ({"csv": []}, "names no file"),
        ({"csv": {"trian": "a.csv"}}, "'trian' is not a split"),
        ({"kind": "clasification"}, "Did you mean 'classification'"),
        ({"group_pattern": "("}, "not a regular expression"),
        ({"group_pattern": "a.*"}, "no bracket"),
    ],
)
def test_wrong_settings(root: Path, options: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        ImageCsv(root, **options)


def test_a_box_around_the_points(tmp_path: Path) -> None:
    root = draw_points(tmp_path / "points", 6)
    (row, *_) = ImageCsv(root, kind="keypoints", box_scale=2.0).records().table.to_dict("records")
    x0, y0, x1, y1 = row["points"].ravel()
    assert x1 - x0 == 6
    assert y0 == y1
    assert (row["left"], row["right"]) == (x0 + 3 - 6, x0 + 3 + 6)
    assert (row["top"], row["bottom"]) == (y0 - 6, y0 + 6)
    with pytest.raises(DataError, match="box_scale"):
        ImageCsv(root, kind="regression", box_scale=1.2)


@pytest.mark.parametrize("cell", ["", " ", "nan", "NaN", "NA", "null"])
def test_a_cell_that_says_nothing_is_no_class_and_no_group(root: Path, cell: str) -> None:
    write(root, f"file,label,who\nimages/0.png,a,ann\nimages/1.png,{cell},ann\n")
    with pytest.raises(DataError, match=r"no value in column 'label' \(1 line\)\n    labels.csv line 3"):
        ImageCsv(root).records()


def test_rows_without_a_group_do_not_hang_together(root: Path) -> None:
    write(root, "file,label,who\n" + "".join(f"images/{number}.png,a,{'ann' * (number < 2)}\n" for number in range(6)))
    table = ImageCsv(root, group_column="who").records().table
    assert merge_groups(list(table["key"]), [table["group"]]) == [
        f"images/{number}.png" for number in (0, 0, *range(2, 6))
    ]


def test_of_pictures_of_one_name_the_nearest_is_meant(tmp_path: Path) -> None:
    """In ``image_dir``, else beside the CSV, else below the root."""
    for seed, folder in enumerate(("pictures", "lists", ".")):
        write_picture(tmp_path / folder / "0.png", noise(seed))
    write(tmp_path, "file,label\n0.png,a\n", "lists/labels.csv")
    for image_dir, key in (("pictures", "pictures/0.png"), (None, "lists/0.png"), ("elsewhere", "lists/0.png")):
        assert list(ImageCsv(tmp_path, csv="lists/labels.csv", image_dir=image_dir).records().table["key"]) == [key]
    (tmp_path / "lists" / "0.png").unlink()
    assert list(ImageCsv(tmp_path, csv="lists/labels.csv").records().table["key"]) == ["0.png"]
