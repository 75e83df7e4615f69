import hashlib
from pathlib import Path

import h5py
import numpy as np
import pytest

from datamodules import galaxy10
from datamodules.datamodule import ImageDataModule
from datamodules.galaxy10 import CLASSES, FILE_NAME, Galaxy10
from launch.errors import DataError, DatasetNotFoundError

ROWS = 120


def write(root: Path, chunks: tuple[int, ...] | None = None, **changes: np.ndarray | None) -> Path:
    """The published layout with all ten classes; rows 3 and 50 are copies, 4 and 60 one place, 5 and 6 constant."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (ROWS, 20, 20, 3), dtype=np.uint8)
    images[50] = images[3]
    images[5] = images[6] = 32
    images[7, 10] = 9  # its middle line alone is constant
    ra, dec = rng.uniform(0, 360, ROWS), rng.uniform(-20, 80, ROWS)
    ra[60], dec[60] = ra[4] + 1e-6, dec[4]
    content = {"images": images, "ans": (np.arange(ROWS) % 10).astype(np.uint8), "ra": ra, "dec": dec}
    content |= {"redshift": rng.uniform(0, 0.3, ROWS), "pxscale": np.full(ROWS, 0.262)}
    with h5py.File(root / FILE_NAME, "w") as file:
        for key, values in (content | changes).items():
            if values is not None:
                file.create_dataset(key, data=values, chunks=chunks if key == "images" else None)
    return root


@pytest.mark.parametrize("chunks", [None, (16, 20, 20, 3), (7, 5, 5, 1)])
def test_records_and_pixels(tmp_path: Path, chunks: tuple[int, ...] | None) -> None:
    source = Galaxy10(write(tmp_path, chunks))
    records = source.records()
    assert records.classes == list(CLASSES)
    assert records.dropped == {"constant picture": 2}
    assert records.notes == ["not the published file: 120 rows instead of 17736"]
    table = records.table.set_index("key")
    assert len(table) == ROWS - 2
    assert "row 00005" not in table.index
    assert table.loc["row 00013", "label"] == "In-between Round Smooth"
    assert table.loc["row 00004", "group"] == table.loc["row 00060", "group"]
    assert table["group"].nunique() == ROWS - 3
    with h5py.File(tmp_path / FILE_NAME) as file:
        for row in (0, 119, 8, 7):
            np.testing.assert_array_equal(source.read({"key": f"row {row:05d}"}), file["images"][row])
            assert source.digest({"key": f"row {row:05d}"}) == hashlib.sha256(file["images"][row].tobytes()).hexdigest()


def test_through_the_data_module(tmp_path: Path) -> None:
    source = Galaxy10(write(tmp_path))
    keep = [name for name in CLASSES if name != "Cigar Shaped Smooth"]
    data = ImageDataModule(source, "classification", classes=keep, image_size=16, cache_root=tmp_path / "cache")
    data.prepare_data()
    data.setup()
    assert data.classes == keep
    assert data.dropped == {"constant picture": 2, "class not in data.classes": 12}
    assert "1 pictures occur more than once with different targets" in data.notes
    place = data.table.set_index("key")["split"]
    assert place["row 00003"] == place["row 00050"]
    assert "row 00004" not in place  # a cigar; its double under another class stays
    assert place["row 00060"] in ("train", "val", "test")


def test_missing_file_says_how_to_go_on(tmp_path: Path) -> None:
    with pytest.raises(DatasetNotFoundError) as caught:
        Galaxy10(tmp_path).check()
    for part in ("Galaxy10 DECaLS", str(tmp_path), FILE_NAME, "2.54 GB", "MIT", "zenodo.org/records/10845026",
                 "python prepare.py data=galaxy10", "data.root=DIR"):  # fmt: skip
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ans": None, "labels": np.zeros(ROWS)}, "has no key ans; it has dec, images, labels"),
        ({"images": np.zeros((ROWS, 69, 69, 3), np.uint8)}, "older Galaxy10 SDSS"),
        ({"images": np.zeros((ROWS, 20, 20, 3), np.float32)}, "images are float32"),
        ({"ra": np.zeros(5)}, "120 images, but"),
        ({"ans": np.full(ROWS, 10)}, "labels from 10 to 10"),
    ],
)
def test_other_layouts_are_refused(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Galaxy10(write(tmp_path, **changes)).records()


def test_truncated_file_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path) / FILE_NAME
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(DataError, match=r"not a whole HDF5 file.*fetch it again"):
        Galaxy10(tmp_path).records()


def test_published_row_count_must_have_the_published_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path) / FILE_NAME
    monkeypatch.setattr(galaxy10, "ROWS", ROWS)
    with pytest.raises(DataError, match="not the published bytes"):
        Galaxy10(tmp_path).prepare()
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(galaxy10, "_SHA256", digest)
    source = Galaxy10(tmp_path)
    source.prepare()
    assert source.records().notes == []
    monkeypatch.setattr(galaxy10, "sha256_file", lambda path: "read again")
    Galaxy10(tmp_path).prepare()  # the outcome was kept
    path.touch()
    with pytest.raises(DataError, match="read again"):
        Galaxy10(tmp_path).prepare()


def test_the_ten_classes_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    table = Galaxy10(write(tmp_path)).records().table.set_index("key")["label"]
    assert [table[f"row {row:05d}"] for row in (10, 1, 2, 3, 4, 15, 16, 7, 8, 9)] == [
        "Disturbed", "Merging", "Round Smooth", "In-between Round Smooth", "Cigar Shaped Smooth", "Barred Spiral",
        "Unbarred Tight Spiral", "Unbarred Loose Spiral", "Edge-on without Bulge", "Edge-on with Bulge",
    ]  # fmt: skip
