import os
from pathlib import Path

import pytest

from datamodules import image_folder
from datamodules.image_folder import ImageFolder
from datamodules.splits import split_name
from launch.errors import DataError, DatasetNotFoundError
from tests.picture_files import noise, write_classes, write_picture


def test_first_level_is_the_class(tmp_path: Path) -> None:
    root = write_classes(tmp_path / "leaves", {"oak": 2, "ash": 1})
    write_picture(root / "oak" / "deeper" / "er" / "x.JPG", noise(1))
    (root / "oak" / "notes.txt").write_text("")
    (root / "oak" / ".DS_Store").write_text("")
    write_picture(root / "loose.png", noise(2))
    write_picture(root / ".thumbnails" / "x.png", noise(3))
    source = ImageFolder(root)
    records = source.records()
    assert source.name == "leaves"
    assert records.table.to_dict("list") == {
        "key": ["ash/000.png", "oak/000.png", "oak/001.png", "oak/deeper/er/x.JPG"],
        "file": ["ash/000.png", "oak/000.png", "oak/001.png", "oak/deeper/er/x.JPG"],
        "label": ["ash", "oak", "oak", "oak"],
    }
    assert records.dropped == {"not a picture by its name": 1, "not in a class folder": 1}
    assert source.read(records.table.iloc[0].to_dict()).shape == (24, 24, 3)


@pytest.mark.parametrize(
    "names", [("train", "test"), ("train", "val", "test"), ("train", "valid"), ("Training", "Dev")]
)
def test_official_splits(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name in names:
        write_classes(tmp_path / name, {"a": 1, "b": 1})
    table = ImageFolder(tmp_path).records().table
    assert list(table["label"]) == ["a", "b"] * len(names)
    assert set(table["split"]) == {split_name(name) for name in names}


@pytest.mark.parametrize("names", [("train", "test", "plane"), ("test", "val"), ("train",)])
def test_classes_that_only_sound_like_splits(tmp_path: Path, names: tuple[str, ...]) -> None:
    write_classes(tmp_path, dict.fromkeys(names, 1))
    table = ImageFolder(tmp_path).records().table
    assert set(table["label"]) == set(names)
    assert "split" not in table


def test_splits_may_lie_beside_folders_without_pictures_but_not_beside_others(tmp_path: Path) -> None:
    for name in ("train", "test"):
        write_classes(tmp_path / name, {"a": 1, "b": 1})
    (tmp_path / "__MACOSX" / "train").mkdir(parents=True)
    (tmp_path / "__MACOSX" / "train" / "._000.png").write_bytes(b"")
    assert set(ImageFolder(tmp_path).records().table["label"]) == {"a", "b"}
    write_classes(tmp_path / "extra", {"a": 1})
    with pytest.raises(DataError, match="test, train look like splits and lie beside extra"):
        ImageFolder(tmp_path).records()


def test_linked_folders_are_followed_but_circles_are_not(tmp_path: Path) -> None:
    write_classes(tmp_path / "elsewhere", {"oak": 2})
    root = write_classes(tmp_path / "d", {"ash": 1})
    (root / "oak").symlink_to(tmp_path / "elsewhere" / "oak", target_is_directory=True)
    (root / "ash" / "again").symlink_to(root, target_is_directory=True)
    assert sorted(ImageFolder(root).records().table["label"]) == ["ash", "oak", "oak"]


def test_names_that_are_not_utf8_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_classes(tmp_path, {"ch\u00eane": 2})
    names = (b"h\xeatre/1.png", b"h\xeatre/2.png", b"ash/\xe9t\xe9.png", b"ash/\xe9.txt")
    walk = image_folder._walk  # as the system tells such names; not every file system takes them
    monkeypatch.setattr(image_folder, "_walk", lambda root: sorted([*walk(root), *map(os.fsdecode, names)]))
    with pytest.raises(DataError) as caught:
        ImageFolder(root).records()
    said = r"2 names are not UTF-8, as archives of old Windows programs make them: ash/\xe9t\xe9.png, h\xeatre. Rename"
    assert said in str(caught.value)
    str(caught.value).encode()


def test_missing_and_empty_folders(tmp_path: Path) -> None:
    with pytest.raises(DatasetNotFoundError, match=r"no folder .*nowhere.*data\.root=DIR"):
        ImageFolder(tmp_path / "nowhere").check()
    with pytest.raises(DataError, match=r"no pictures in class folders\. Wanted: .*CLASS/PICTURE"):
        ImageFolder(tmp_path).records()
    write_picture(tmp_path / "x.png", noise(0))
    with pytest.raises(DataError, match="1 lie outside any class folder"):
        ImageFolder(tmp_path).records()
