"""FireRisk's tree: classes, coordinates, official and spatial splits."""

from pathlib import Path

import pytest
from PIL import Image

from datamodules.firerisk import CLASSES, FireRisk
from datamodules.prepare import prepare_table
from launch.errors import DataError, DatasetNotFoundError

CODES = {"Very_Low": 1, "Low": 2, "Moderate": 3, "High": 4, "Very_High": 5, "Non-burnable": 6, "Water": 7}


def write(root: Path, count: int = 3, step: float = 0.01) -> None:
    number = 0
    for split in ("train", "val"):
        for label in CLASSES:
            place = root / "FireRisk" / split / label
            place.mkdir(parents=True)
            for _ in range(count):
                number += 1
                name = f"{27032281 + number}_{CODES[label]}_{-103.43 + step * number:.12f}_{44.28 - step * number:.12f}"
                Image.new("RGB", (4, 4), (number % 256, number // 256, 0)).save(place / f"{name}.png")


def test_the_official_val_is_the_test_split(tmp_path: Path) -> None:
    write(tmp_path)
    records = FireRisk(root=tmp_path).records()
    assert records.classes == CLASSES
    assert records.table["split"].value_counts().to_dict() == {"train": 21, "test": 21}
    row = records.table[records.table["label"] == "Very_High"].iloc[0]
    assert row["file"].startswith("FireRisk/train/Very_High/")
    assert row["key"] == row["file"]
    assert -103.43 < row["longitude"] < -102
    assert 43 < row["latitude"] < 44.28
    assert records.dropped == {}


def test_seven_classes_become_three_and_val_is_carved_from_train(tmp_path: Path) -> None:
    write(tmp_path, 10)
    source = FireRisk(root=tmp_path)
    records = source.records()
    hashes = {row["key"]: source.digest(row) for row in records.table.to_dict("records")}
    three = {
        "non_burnable": ["Non-burnable", "Water"],
        "high": ["High", "Very_High", "Moderate"],
        "low": ["Low", "Very_Low"],
    }
    prepared = prepare_table(records, "classification", None, three, 90, (0.2, 0.2), 0, hashes)
    assert prepared.classes == ["non_burnable", "high", "low"]
    assert prepared.table["target"].value_counts().to_dict() == {0: 30, 1: 30, 2: 30}
    assert prepared.table.loc[prepared.table["split"] == "test", "file"].str.startswith("FireRisk/val/").all()
    assert prepared.table.loc[prepared.table["split"] != "test", "file"].str.startswith("FireRisk/train/").all()
    assert (prepared.table["split"] == "val").any()


def test_blocks_of_land_stay_together(tmp_path: Path) -> None:
    write(tmp_path, 20)
    source = FireRisk(root=tmp_path, split="spatial", block=0.1)
    records = source.records()
    assert "split" not in records.table
    hashes = {row["key"]: source.digest(row) for row in records.table.to_dict("records")}
    prepared = prepare_table(records, "classification", None, None, "full", (0.2, 0.2), 0, hashes)
    table = prepared.table
    assert set(table["split"]) == {"train", "val", "test"}
    blocks = (table["longitude"] // 0.1).astype(str) + (table["latitude"] // 0.1).astype(str)
    assert blocks.nunique() > 20
    assert table.groupby(blocks)["split"].nunique().max() == 1
    # both official folders are in the splits
    assert table.loc[table["split"] == "test", "file"].str.startswith("FireRisk/train/").any()


def test_odd_names_are_counted(tmp_path: Path) -> None:
    write(tmp_path)
    place = tmp_path / "FireRisk" / "train" / "High"
    Image.new("RGB", (4, 4)).save(place / "renamed.png")
    Image.new("RGB", (4, 4)).save(place / "1_2_-100.5_40.5.png")  # 2 is Low
    official = FireRisk(root=tmp_path).records()
    assert len(official.table) == 44
    assert any(note.startswith("1 tiles lie in another class's folder") for note in official.notes)
    spatial = FireRisk(root=tmp_path, split="spatial").records()
    assert spatial.dropped == {"no coordinates in the name": 1}
    assert len(spatial.table) == 43


def test_faults(tmp_path: Path) -> None:
    with pytest.raises(DatasetNotFoundError, match=r"FireRisk\.zip \(15\.2 GB\)[\s\S]*CC BY-NC 4\.0"):
        FireRisk(root=tmp_path).check()
    (tmp_path / "FireRisk").mkdir()
    with pytest.raises(DataError, match="has no pictures below train/<class>"):
        FireRisk(root=tmp_path).records()
    with pytest.raises(DataError, match=r"data\.split=random must be official or spatial"):
        FireRisk(root=tmp_path, split="random")  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"data\.block=0 must be more than 0"):
        FireRisk(root=tmp_path, block=0)


def test_the_order_of_the_listing_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path)
    first = FireRisk(root=tmp_path).records().table
    original = Path.iterdir
    for reverse in (True, False):
        with monkeypatch.context() as patch:
            patch.setattr(Path, "iterdir", lambda self, reverse=reverse: iter(sorted(original(self), reverse=reverse)))
            assert first.equals(FireRisk(root=tmp_path).records().table)
