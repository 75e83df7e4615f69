"""Files of the Hugging Face Hub, which tells their checksums where it redirects to its storage."""

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest

from datamodules.galaxy10 import Galaxy10
from datamodules.sources import RemoteFile, fetch, hub_files
from launch.errors import DatasetNotFoundError
from tests.mirror import BODY, SHA256, Mirror, remote, visible

OTHER = BODY[:-1] + b"?"


@pytest.fixture
def told(mirror: Mirror) -> RemoteFile:
    """A file of which only its place is known, and the Hub tells the rest."""
    mirror.linked = {"X-Linked-ETag": f'"{SHA256}"', "X-Linked-Size": str(len(BODY))}
    return remote(mirror.url.replace("/file", "/redirect"), size=None, sha256=None)


def test_what_the_hub_tells_of_a_file_is_what_came(
    mirror: Mirror, told: RemoteFile, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert fetch(told, tmp_path, allow=True).read_bytes() == BODY
    assert [asked["path"] for asked in mirror.asked] == ["/redirect", "/file"]
    assert "checksum" not in caplog.text


def test_a_storage_that_gives_other_bytes_is_seen(mirror: Mirror, told: RemoteFile, tmp_path: Path) -> None:
    mirror.body = OTHER
    mirror.stored = {"X-Linked-ETag": f'"{hashlib.sha256(OTHER).hexdigest()}"'}  # it vouches for itself
    with pytest.raises(DatasetNotFoundError, match=f"gave another file: its sha256 is .*, the published one {SHA256}"):
        fetch(told, tmp_path, allow=True)
    assert visible(tmp_path) == []


def test_another_size_than_the_hub_tells_is_seen_before_a_byte_is_fetched(
    mirror: Mirror, told: RemoteFile, tmp_path: Path
) -> None:
    mirror.body = BODY + b"more"
    with pytest.raises(DatasetNotFoundError, match="offers 600,004 bytes, the published file has 600,000"):
        fetch(told, tmp_path, allow=True)
    assert visible(tmp_path) == []


def test_a_published_checksum_goes_before_what_the_hub_tells(mirror: Mirror, told: RemoteFile, tmp_path: Path) -> None:
    mirror.linked["X-Linked-ETag"] = f'"{"0" * 64}"'
    assert fetch(replace(told, sha256=SHA256), tmp_path, allow=True).read_bytes() == BODY


def test_a_part_of_other_bytes_is_fetched_afresh(mirror: Mirror, told: RemoteFile, tmp_path: Path) -> None:
    mirror.etag, mirror.cuts = '"one"', [300_000, 0, 0, 0]
    with pytest.raises(DatasetNotFoundError, match="300,000 bytes are kept"):
        fetch(told, tmp_path, allow=True)
    mirror.cuts.clear()
    with (tmp_path / "set.bin.part").open("r+b") as part:
        part.write(b"damaged")
    assert fetch(told, tmp_path, allow=True).read_bytes() == BODY
    assert "bytes=300000-" in [asked.get("range") for asked in mirror.asked]


@pytest.mark.parametrize("size", [None, len(BODY)])
def test_a_part_that_is_whole_is_compared_too(
    mirror: Mirror, told: RemoteFile, tmp_path: Path, size: int | None
) -> None:
    mirror.etag, mirror.cuts = '"one"', [599_999, 0, 0, 0]
    with pytest.raises(DatasetNotFoundError):
        fetch(told, tmp_path, allow=True)
    mirror.cuts.clear()
    with (tmp_path / "set.bin.part").open("ab") as part:
        part.write(bytes([BODY[-1] ^ 1]))
    assert fetch(replace(told, size=size), tmp_path, allow=True).read_bytes() == BODY


@pytest.mark.parametrize("tag", [None, f'"{"a" * 40}"'])
def test_where_nobody_tells_a_checksum_the_log_says_so(
    mirror: Mirror, told: RemoteFile, tmp_path: Path, caplog: pytest.LogCaptureFixture, tag: str | None
) -> None:
    """A file outside LFS has a tag of git's."""
    mirror.linked = {} if tag is None else {"X-Linked-ETag": tag}
    fetch(told, tmp_path, allow=True)
    assert f"set.bin: no checksum is published and {told.urls[0]} tells none" in caplog.text


def test_a_mirror_that_was_changed_on_its_way_is_not_kept(
    mirror: Mirror, told: RemoteFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (file,) = hub_files("owner/name/resolve/1", {"default/train/0000.parquet": "600 kB"})
    source = Galaxy10(root=tmp_path, format="parquet", download=True)
    published = replace(source.publication, mirror=(replace(file, urls=told.urls),))
    monkeypatch.setattr(Galaxy10, "publication", published)
    mirror.body = OTHER
    with pytest.raises(DatasetNotFoundError, match=r"default/train/0000\.parquet[\s\S]*gave another file"):
        source.prepare()
    assert visible(tmp_path / "default" / "train") == []
