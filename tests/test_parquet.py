"""Drawn parquet files in the form in which the Hugging Face Hub keeps pictures."""

import io
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datamodules import sources
from datamodules.base import Source
from datamodules.decode import BrokenImageError
from datamodules.firerisk import FireRisk
from datamodules.galaxy10 import CLASSES, Galaxy10
from datamodules.parquet import ParquetPictures, find_parquet
from datamodules.pipeline import make_pixels
from datamodules.summary import left_out
from datamodules.utkface import UtkFace
from launch.errors import DataError, DatasetNotFoundError
from tests.drawn_face import drawn_face
from tests.picture_files import noise


def png(pixels: np.ndarray) -> bytes:
    done, coded = cv2.imencode(".png", pixels[..., ::-1] if pixels.ndim == 3 else pixels)
    assert done
    return coded.tobytes()


def write(
    path: Path, pictures: list[bytes | None], columns: dict[str, list[Any]], names: list[str] | None = None,
    paths: list[str] | None = None, rows: int = 4, bare: bool = False,
) -> None:  # fmt: skip
    """A file whose ``image`` is {bytes, path}, or plain bytes (``bare``), and whose ``label`` has ``names``."""
    told = paths or [None] * len(pictures)
    image: Any = pictures
    if not bare:
        image = pa.array(
            [{"bytes": content, "path": name} for content, name in zip(pictures, told, strict=True)],
            pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
        )
    table = pa.table({"image": image, **columns})
    if names is not None:
        info = {"info": {"features": {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(info)})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=rows)


def galaxies(root: Path, counts: tuple[int, int] = (30, 10)) -> Path:
    seed = 0
    for split, count in zip(("train", "test"), counts, strict=True):
        pictures = [png(noise(seed + number, 32, 32)) for number in range(count)]
        seed += count
        pictures[1] = pictures[0]
        labels = pa.array([number % 10 for number in range(count)], pa.uint8())
        write(root / "own" / split / "0000.parquet", pictures, {"label": labels})
    return root


def pixels_of(source: Source, tmp_path: Path, **more: Any) -> Any:
    arguments = {"target": None, "classes": None, "size": "full", "split": (0.15, 0.15), "split_seed": 0, "fit": None}
    return make_pixels(source, "classification", image_size=32, cache_root=tmp_path / "cache", **(arguments | more))


def test_rows_are_read_whatever_their_order_and_by_many_threads(tmp_path: Path) -> None:
    contents = [png(noise(number)) for number in range(25)]
    write(tmp_path / "data" / "train-00000-of-00002.parquet", contents[:13], {"label": [0] * 13})
    write(tmp_path / "data" / "train-00001-of-00002.parquet", contents[13:], {"label": [1] * 12})
    pictures = ParquetPictures(tmp_path)
    table = pictures.table()
    assert list(table["label"]) == [0] * 13 + [1] * 12
    assert list(table["key"]) == sorted(table["key"])
    order = np.random.default_rng(0).permutation(25)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(pictures.encoded, table["key"].to_numpy()[order]))
    assert found == [contents[number] for number in order]
    assert (pictures.read(table["key"][3]) == noise(3)).all()


def test_only_a_few_row_groups_are_held(tmp_path: Path) -> None:
    write(tmp_path / "train-00000-of-00001.parquet", [png(noise(number)) for number in range(40)], {"label": [0] * 40})
    pictures = ParquetPictures(tmp_path)
    reads = []
    file = pictures._files["train-00000-of-00001.parquet"]
    original = file.read_row_group
    file.read_row_group = lambda group, **more: reads.append(group) or original(group, **more)
    for key in pictures.table()["key"]:
        pictures.encoded(key)
    assert reads == list(range(10))
    assert len(pictures._groups) == 2


def test_splits_are_told_by_file_or_folder(tmp_path: Path) -> None:
    for name in ("data/train-00000-of-00001.parquet", "default/validation/0000.parquet", "plain.parquet",
                 "x/test-00000-of-00001-0a1b2c.parquet", ".hidden/0.parquet"):  # fmt: skip
        write(tmp_path / name, [png(noise(0))], {"label": [0]})
    assert find_parquet(tmp_path) == {
        "data/train-00000-of-00001.parquet": "train", "default/validation/0000.parquet": "val",
        "plain.parquet": "train", "x/test-00000-of-00001-0a1b2c.parquet": "test",
    }  # fmt: skip


def test_a_part_of_the_files_is_not_taken_for_the_whole(tmp_path: Path) -> None:
    write(tmp_path / "data" / "train-00001-of-00003.parquet", [png(noise(0))], {"label": [0]})
    with pytest.raises(DataError, match=r"has 1 of the 3 files train-\*-of-00003\.parquet; missing: 00000, 00002"):
        Galaxy10(root=tmp_path).check()


@pytest.mark.parametrize("kind", ["auto", "parquet"])
def test_a_half_fetched_mirror_is_not_taken_for_the_whole(tmp_path: Path, kind: Any) -> None:
    for name in ("train/0000", "train/0001", "train/0003", "train/0004", "test/0000"):
        write(tmp_path / "default" / f"{name}.parquet", [png(noise(0))], {"label": [0]})
    with pytest.raises(DataError) as caught:
        Galaxy10(root=tmp_path, format=kind).prepare()
    assert str(caught.value).splitlines() == [
        f"{tmp_path} has 5 of the 6 parquet files of Galaxy10 DECaLS; missing: default/train/0002.parquet. "
        "Fetch these too:",
        f"  python prepare.py data=galaxy10 data.format=parquet data.root={tmp_path}",
    ]
    write(tmp_path / "default" / "train" / "0002.parquet", [png(noise(0))], {"label": [0]})
    Galaxy10(root=tmp_path, format=kind).prepare()


def test_galaxy10_from_the_mirror(tmp_path: Path) -> None:
    source = Galaxy10(root=galaxies(tmp_path / "mirror"), name="drawn")
    source.prepare()
    made = pixels_of(source, tmp_path)
    assert made.read == 40
    assert made.prepared.classes == list(CLASSES)
    table = made.prepared.table.set_index("key")
    one, other = (f"own/train/0000.parquet row {row:07d}" for row in (0, 1))
    assert table.loc[one, "group"] == table.loc[other, "group"]
    assert table.loc[one, "split"] == table.loc[other, "split"]
    assert set(table["split"]) == {"train", "val", "test"}
    keys = list(made.cache.keys)
    assert (made.cache.pixels[keys.index("own/test/0000.parquet row 0000003")] == noise(33, 32, 32)).all()


def test_constant_galaxies_of_the_mirror_are_left_out_and_named(tmp_path: Path) -> None:
    pictures = [png(noise(number, 32, 32)) for number in range(40)]
    pictures[7] = png(np.full((32, 32, 3), 32, np.uint8))
    lined = noise(8, 32, 32)
    lined[16] = 9  # its middle line alone is constant
    pictures[8] = png(lined)
    write(tmp_path / "m" / "x.parquet", pictures, {"label": [number % 10 for number in range(40)]})
    made = pixels_of(Galaxy10(root=tmp_path / "m"), tmp_path)
    assert made.cache.broken == {"x.parquet row 0000007": "constant picture"}
    assert left_out(made) == {"broken picture": 1}


def test_the_published_file_goes_before_the_mirror_unless_asked(tmp_path: Path) -> None:
    from datamodules.sample.galaxies import write_galaxy10

    root = galaxies(tmp_path)
    write_galaxy10(root, 20, seed=0, size=32)
    assert Galaxy10(root=root).records().table["key"][0] == "row 00000"
    assert Galaxy10(root=root, format="parquet").records().table["key"][0].startswith("own/test/0000.parquet row")


def test_firerisk_from_the_mirror(tmp_path: Path) -> None:
    names = ["high", "low", "moderate", "non-burnable", "very_high", "very_low", "water"]
    for shard in range(2):
        pictures = [png(noise(100 * shard + number)) for number in range(35)]
        labels = [number % 7 for number in range(35)]
        path = tmp_path / "mirror" / "data" / f"train-{shard:05d}-of-00002.parquet"
        write(path, pictures, {"label": labels}, names)
    source = FireRisk(root=tmp_path / "mirror")
    records = source.records()
    assert records.table["label"].value_counts().to_dict() == dict.fromkeys(
        ["High", "Low", "Moderate", "Non-burnable", "Very_High", "Very_Low", "Water"], 10
    )
    assert records.table["label"][3] == "Non-burnable"
    made = pixels_of(source, tmp_path, classes={"burns": ["High", "Low"], "not": ["Water", "Non-burnable"]})
    assert {name: sum(counts.values()) for name, counts in made.prepared.counts.items()} == {
        "train": 28, "val": 6, "test": 6,
    }  # fmt: skip
    with pytest.raises(DataError, match="no coordinates"):
        FireRisk(root=tmp_path / "mirror", split="spatial").records()


def test_classes_without_names_in_the_file_count_in_the_mirrors_order(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", [png(noise(number)) for number in range(7)], {"label": list(range(7))})
    assert list(FireRisk(root=tmp_path).records().table["label"]) == [
        "High", "Low", "Moderate", "Non-burnable", "Very_High", "Very_Low", "Water",
    ]  # fmt: skip


def test_utkface_by_its_names(tmp_path: Path) -> None:
    names = [
        "UTKFace/82_0_2_20170111210110290",
        "UTKFace/39_1_20170116174525125",
        "UTKFace/x",
        "UTKFace/3_1_0_20161219",
    ]
    pictures = [png(np.dstack([drawn_face(200)] * 3)), *(png(noise(number, 200, 200)) for number in range(3))]
    write(tmp_path / "mirror" / "train-00000-of-00001.parquet", pictures, {"__key__": names})
    records = UtkFace(root=tmp_path / "mirror", cache_root=tmp_path / "cache").records()
    assert list(records.table["age"]) == [82.0, 39.0]
    assert list(records.table["gender"].astype(object).where(records.table["gender"].notna(), None)) == ["male", None]
    assert records.dropped == {"no age in the name": 2}
    assert "a face was found in 1 of 2 pictures" in records.notes
    face, whole = records.table[["left", "top", "right", "bottom"]].to_numpy()
    assert face[2] - face[0] < 200
    assert list(whole) == [0, 0, 200, 200]
    kept = (tmp_path / "cache" / "utkface-faces-hog-1000.parquet").stat().st_mtime_ns
    assert UtkFace(root=tmp_path / "mirror", cache_root=tmp_path / "cache").records().table.equals(records.table)
    assert (tmp_path / "cache" / "utkface-faces-hog-1000.parquet").stat().st_mtime_ns == kept


def test_utkface_by_a_column_of_ages_or_by_the_pictures_own_names(tmp_path: Path) -> None:
    pictures = [png(noise(number)) for number in range(3)]
    write(tmp_path / "a" / "x.parquet", pictures, {"age": [1, 26, 200]}, bare=True)
    found = UtkFace(root=tmp_path / "a", crop="whole").records()
    assert (list(found.table["age_class"]), found.dropped) == (["0-3", "17-30"], {"no age in the name": 1})
    write(tmp_path / "b" / "x.parquet", pictures[:1], {"note": ["-"]}, paths=["26_0_1_20170116221024657.jpg.chip.jpg"])
    assert list(UtkFace(root=tmp_path / "b", crop="whole").records().table["age"]) == [26.0]
    write(tmp_path / "c" / "x.parquet", pictures[:1], {"years": [3]})
    with pytest.raises(DataError, match=r"no column of the parquet files is age .* the columns are key, split, years"):
        UtkFace(root=tmp_path / "c", crop="whole").records()


def test_a_row_without_a_picture_is_broken_and_named(tmp_path: Path) -> None:
    pictures: list[bytes | None] = [png(noise(number)) for number in range(40)]
    pictures[7] = None
    write(tmp_path / "m" / "x.parquet", pictures, {"label": [number % 10 for number in range(40)]})
    made = pixels_of(Galaxy10(root=tmp_path / "m"), tmp_path)
    assert made.cache.broken == {"x.parquet row 0000007": "the row has no picture"}
    with pytest.raises(BrokenImageError):
        ParquetPictures(tmp_path / "m").encoded("x.parquet row 0000007")


def test_the_fingerprint_is_that_of_the_content(tmp_path: Path) -> None:
    one = pixels_of(Galaxy10(root=galaxies(tmp_path / "a")), tmp_path / "1").prepared.fingerprint
    assert pixels_of(Galaxy10(root=galaxies(tmp_path / "b")), tmp_path / "2").prepared.fingerprint == one
    other = pixels_of(Galaxy10(root=galaxies(tmp_path / "c", (30, 11))), tmp_path / "3").prepared.fingerprint
    assert other != one


@pytest.mark.parametrize(
    ("content", "text"),
    [(b"PAR1 cut short", "is not a whole parquet file"), (b"", "is not a whole parquet file")],
)
def test_what_is_not_parquet_is_named(tmp_path: Path, content: bytes, text: str) -> None:
    (tmp_path / "x.parquet").write_bytes(content)
    with pytest.raises(DataError, match=text):
        Galaxy10(root=tmp_path).check()


def test_damaged_pages_are_named(tmp_path: Path) -> None:
    write(tmp_path / "x.parquet", [bytes(1000) for _ in range(4)], {"label": [0] * 4}, rows=1)
    whole = bytearray((tmp_path / "x.parquet").read_bytes())
    whole[4:200] = b"\xff" * 196
    (tmp_path / "x.parquet").write_bytes(whole)
    pictures = ParquetPictures(tmp_path)
    with pytest.raises(DataError, match=r"x\.parquet is damaged"):
        pictures.encoded("x.parquet row 0000000")


def test_files_that_do_not_fit_together_or_have_no_pictures(tmp_path: Path) -> None:
    write(tmp_path / "a" / "0.parquet", [png(noise(0))], {"label": [0]})
    write(tmp_path / "a" / "1.parquet", [png(noise(0))], {"answer": [0]})
    with pytest.raises(DataError, match=r"1\.parquet has other columns \(image, answer\) than 0\.parquet"):
        ParquetPictures(tmp_path / "a")
    (tmp_path / "b").mkdir()
    pq.write_table(pa.table({"label": [1]}), tmp_path / "b" / "0.parquet")
    with pytest.raises(DataError, match=r"0 columns hold pictures, wanted one; the columns are label \(int64\)"):
        ParquetPictures(tmp_path / "b")


def test_an_unknown_class_is_named(tmp_path: Path) -> None:
    write(tmp_path / "x.parquet", [png(noise(0))], {"label": [10]})
    with pytest.raises(DataError, match="label has '10'; the classes are Disturbed"):
        Galaxy10(root=tmp_path).records()


def test_without_files_it_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DatasetNotFoundError) as caught:
        Galaxy10(root=tmp_path, format="parquet").check()
    text = str(caught.value)
    assert "no parquet files" in text
    assert "https://huggingface.co/datasets/matthieulel/galaxy10_decals" in text
    assert "python prepare.py data=galaxy10 data.format=parquet" in text


def test_the_mirror_is_fetched_at_its_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def fetch(file: sources.RemoteFile, folder: Path, allow: bool) -> Path:
        asked.append(file.urls[0])
        return folder / file.name

    monkeypatch.setattr(sources, "fetch", fetch)
    sources.PublishedSource.prepare(Galaxy10(root=tmp_path, format="parquet", download=True))
    base = (
        "https://huggingface.co/datasets/matthieulel/galaxy10_decals/resolve/0c1bdb4e157d7d86cc95f67d8895d354a28f7561"
    )
    assert asked == [f"{base}/default/train/{number:04d}.parquet" for number in range(5)] + [
        f"{base}/default/test/0000.parquet"
    ]
    asked.clear()
    with pytest.raises(DatasetNotFoundError):
        FireRisk(root=tmp_path, format="parquet", download=False).prepare()
    assert asked == []


def test_a_picture_may_be_given_as_its_content() -> None:
    from datamodules.decode import read_image

    assert (read_image(io.BytesIO(png(noise(5)))) == noise(5)).all()


def test_numbers_mean_what_the_file_says_of_them(tmp_path: Path) -> None:
    names = ["water", "very_low", "high", "low", "moderate", "non-burnable", "very_high"]
    write(tmp_path / "a.parquet", [png(noise(number)) for number in range(7)], {"label": list(range(7))}, names)
    assert list(FireRisk(root=tmp_path).records().table["label"]) == [
        "Water", "Very_Low", "High", "Low", "Moderate", "Non-burnable", "Very_High",
    ]  # fmt: skip
