"""Downloads from a local server that can be told to misbehave; the ladder and its error."""

import hashlib
import io
import multiprocessing
import resource
import shutil
import socket
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from datamodules import download
from datamodules.sources import Part, Publication, RemoteFile, fetch, not_found, require_room
from launch.errors import DataError, DatasetNotFoundError, UserError
from tests.mirror import BODY, SHA256, Mirror, remote, visible


def test_downloads_verifies_and_leaves_only_the_file(mirror: Mirror, tmp_path: Path) -> None:
    path = fetch(remote(mirror.url), tmp_path / "new" / "folder", allow=True)
    assert path.read_bytes() == BODY
    assert visible(path.parent) == ["set.bin"]
    assert mirror.asked[0]["accept-encoding"] == "identity"  # packed on the way it would be other bytes
    fetch(remote(mirror.url), path.parent, allow=True)
    assert len(mirror.asked) == 1  # the second call finds it


def test_nothing_is_asked_without_leave(mirror: Mirror, tmp_path: Path) -> None:
    with pytest.raises(DatasetNotFoundError, match=r"set\.bin \(600 kB\) is missing.*data\.download=true"):
        fetch(remote(mirror.url), tmp_path, allow=False)
    assert mirror.asked == []
    assert list(tmp_path.iterdir()) == []


def test_a_broken_connection_is_continued(mirror: Mirror, tmp_path: Path) -> None:
    mirror.cuts = [300_000, 200_000]
    assert fetch(remote(mirror.url), tmp_path, allow=True).read_bytes() == BODY
    starts = [int(asked.get("range", "bytes=0-")[6:-1]) for asked in mirror.asked]
    assert starts == [0, 300_000, 500_000]


def test_a_server_that_breaks_off_many_times_is_outlasted_while_it_gives_more(mirror: Mirror, tmp_path: Path) -> None:
    mirror.cuts = [60_000] * 9
    assert fetch(remote(mirror.url), tmp_path, allow=True).read_bytes() == BODY


def test_a_later_run_continues_what_an_earlier_one_left(mirror: Mirror, tmp_path: Path) -> None:
    mirror.cuts = [250_000, 0, 0, 0]
    with pytest.raises(DatasetNotFoundError, match=r"broke, 250,000 bytes in[\s\S]*250,000 bytes are kept"):
        fetch(remote(mirror.url), tmp_path, allow=True)
    assert visible(tmp_path) == ["set.bin.part", "set.bin.part.json"]
    mirror.asked.clear()
    mirror.cuts.clear()
    assert fetch(remote(mirror.url), tmp_path, allow=True).read_bytes() == BODY
    assert [asked["range"] for asked in mirror.asked] == ["bytes=250000-"]
    assert visible(tmp_path) == ["set.bin"]


def test_a_part_that_is_whole_is_not_fetched_again(mirror: Mirror, tmp_path: Path) -> None:
    for facts in ({}, {"size": None}):
        (tmp_path / "set.bin.part").write_bytes(BODY)
        fetch(remote(mirror.url, **facts), tmp_path, allow=True).unlink()
    assert [asked["range"] for asked in mirror.asked] == ["bytes=600000-"]  # answered 416


def test_a_server_without_ranges_sends_all_again(mirror: Mirror, tmp_path: Path) -> None:
    mirror.ranges, mirror.cuts = False, [300_000]
    assert fetch(remote(mirror.url), tmp_path, allow=True).read_bytes() == BODY
    assert len(mirror.asked) == 2


def test_a_server_that_always_breaks_at_the_same_place_is_given_up(mirror: Mirror, tmp_path: Path) -> None:
    mirror.ranges, mirror.cuts = False, [300_000] * 50
    with pytest.raises(DatasetNotFoundError, match="gave up after 3 attempts"):
        fetch(remote(mirror.url), tmp_path, allow=True)
    assert len(mirror.asked) == 3


@pytest.mark.parametrize("etag", ['"one"', None])
def test_without_a_checksum_only_the_same_file_is_continued(mirror: Mirror, tmp_path: Path, etag: str | None) -> None:
    plain = remote(mirror.url, size=None, sha256=None)
    mirror.etag, mirror.cuts = etag, [300_000, 0, 0, 0]
    with pytest.raises(DatasetNotFoundError):
        fetch(plain, tmp_path, allow=True)
    mirror.cuts.clear()
    mirror.etag, mirror.body = '"two"', BODY[::-1]  # the publisher changed it meanwhile
    assert fetch(plain, tmp_path, allow=True).read_bytes() == BODY[::-1]


def test_a_weak_validator_confirms_nothing(mirror: Mirror, tmp_path: Path) -> None:
    """It stays the same for bytes that only mean the same."""
    plain = remote(mirror.url, size=None, sha256=None)
    mirror.etag, mirror.cuts = 'W/"one"', [300_000, 0, 0]
    with pytest.raises(DatasetNotFoundError):
        fetch(plain, tmp_path, allow=True)
    mirror.body = BODY[::-1]
    assert fetch(plain, tmp_path, allow=True).read_bytes() == BODY[::-1]


def test_without_a_checksum_another_mirror_begins_anew(mirror: Mirror, tmp_path: Path) -> None:
    mirror.etag, mirror.cuts = '"one"', [300_000, 0, 0]
    plain = remote(mirror.url, mirror.url + "2", size=None, sha256=None)
    assert fetch(plain, tmp_path, allow=True).read_bytes() == BODY
    assert mirror.asked[1]["range"] == "bytes=300000-"
    assert [asked.get("range") for asked in mirror.asked if asked["path"] == "/file2"] == [None]


def test_redirects_are_followed_and_circles_refused(mirror: Mirror, tmp_path: Path) -> None:
    root = mirror.url.removesuffix("/file")
    assert fetch(remote(f"{root}/redirect"), tmp_path, allow=True).read_bytes() == BODY
    (tmp_path / "set.bin").unlink()
    with pytest.raises(DatasetNotFoundError, match="redirects in a circle"):
        fetch(remote(f"{root}/redirect/circle"), tmp_path, allow=True)


def test_missing_on_every_mirror_names_each(mirror: Mirror, tmp_path: Path) -> None:
    mirror.status = 404
    with pytest.raises(DatasetNotFoundError) as caught:
        fetch(remote(mirror.url, mirror.url + "2"), tmp_path, allow=True)
    text = str(caught.value)
    assert f"{mirror.url}: 404 Not Found" in text
    assert f"{mirror.url}2: 404 Not Found" in text
    assert f"put it at {tmp_path / 'set.bin'}" in text
    assert visible(tmp_path) == []
    assert len(mirror.asked) == 2  # a plain no is not asked again


def test_the_second_mirror_helps_and_continues(mirror: Mirror, tmp_path: Path) -> None:
    with socket.socket() as closed:  # a port where nobody listens
        closed.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{closed.getsockname()[1]}/file"
        (tmp_path / "set.bin.part").write_bytes(BODY[:100_000])
        assert fetch(remote(dead, mirror.url), tmp_path, allow=True).read_bytes() == BODY
    assert mirror.asked[0]["range"] == "bytes=100000-"


@pytest.mark.parametrize(("status", "said"), [(503, "503 Service Unavailable"), (429, "429 Too Many Requests")])
def test_what_may_pass_is_tried_again(mirror: Mirror, tmp_path: Path, status: int, said: str) -> None:
    mirror.status = status
    with pytest.raises(DatasetNotFoundError, match=f"{said}, 0 bytes in; gave up after 3 attempts"):
        fetch(remote(mirror.url), tmp_path, allow=True)
    assert len(mirror.asked) == 3


def test_a_wrong_checksum_leaves_nothing(mirror: Mirror, tmp_path: Path) -> None:
    mirror.body = BODY[:-1] + b"?"
    with pytest.raises(DatasetNotFoundError, match=f"gave another file: its sha256 is .*, the published one {SHA256}"):
        fetch(remote(mirror.url), tmp_path, allow=True)
    assert visible(tmp_path) == []


def test_md5_alone_is_checked_too_in_any_case(mirror: Mirror, tmp_path: Path) -> None:
    digest = hashlib.md5(BODY).hexdigest()
    fetch(remote(mirror.url, sha256=None, md5=digest.upper()), tmp_path, allow=True).unlink()
    with pytest.raises(DatasetNotFoundError, match="its md5 is"):
        fetch(remote(mirror.url, sha256=None, md5="0" * 32), tmp_path, allow=True)


def test_a_damaged_part_is_fetched_afresh(mirror: Mirror, tmp_path: Path) -> None:
    (tmp_path / "set.bin.part").write_bytes(b"damaged" * 1000)
    assert fetch(remote(mirror.url), tmp_path, allow=True).read_bytes() == BODY
    assert "range" in mirror.asked[0]
    assert "range" not in mirror.asked[1]


def test_another_size_is_seen_before_a_byte_is_fetched(mirror: Mirror, tmp_path: Path) -> None:
    mirror.body = BODY + b"more"
    with pytest.raises(DatasetNotFoundError, match="offers 600,004 bytes, the published file has 600,000"):
        fetch(remote(mirror.url), tmp_path, allow=True)
    assert visible(tmp_path) == []


def test_a_page_in_place_of_the_file(mirror: Mirror, tmp_path: Path) -> None:
    mirror.content_type = "text/html; charset=utf-8"
    with pytest.raises(DatasetNotFoundError, match="gives a web page instead of the file"):
        fetch(remote(mirror.url, size=None, sha256=None), tmp_path, allow=True)


def test_a_truncated_body_of_unsaid_length_is_caught_by_the_checksum(mirror: Mirror, tmp_path: Path) -> None:
    mirror.says_length, mirror.ranges, mirror.cuts = False, False, [1000] * 9
    with pytest.raises(DatasetNotFoundError, match="it has 1,000 bytes, the published one 600,000"):
        fetch(remote(mirror.url), tmp_path, allow=True)


def test_a_stalled_connection_ends(mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "TIMEOUT", (5.0, 0.2))
    mirror.stall, mirror.cuts = True, [200_000, 0, 0, 0]
    with pytest.raises(DatasetNotFoundError, match=r"no answer for 0\.2 s, \d+,\d+ bytes in; gave up"):
        fetch(remote(mirror.url), tmp_path, allow=True)
    assert len(mirror.asked) == 3
    assert 0 < (tmp_path / "set.bin.part").stat().st_size <= 200_000


def test_a_full_disk_names_itself_and_keeps_what_came(mirror: Mirror, tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    try:
        with pytest.raises(UserError, match=r"Cannot write .*set\.bin\.part: File too large.*kept"):
            fetch(remote(mirror.url), tmp_path, allow=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not (tmp_path / "set.bin").exists()
    assert fetch(remote(mirror.url), tmp_path, allow=True).read_bytes() == BODY


def test_too_little_room_is_seen_before(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"No room for big\.zip .*: 1000000000\.0 TB needed"):
        require_room(tmp_path, 10**21, "big.zip")


def test_too_little_room_is_seen_before_a_byte_is_kept(
    mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=599_999))
    with pytest.raises(UserError, match=r"No room for set\.bin .*: 600 kB needed, 600 kB free"):
        fetch(remote(mirror.url), tmp_path, allow=True)
    assert visible(tmp_path) == []


def test_a_place_that_cannot_be_written(mirror: Mirror, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"Cannot write to .*file: .*data\.root=DIR"):
        fetch(remote(mirror.url), tmp_path / "file", allow=True)


def test_a_wrong_file_put_there_by_hand_is_named_and_kept(tmp_path: Path) -> None:
    (tmp_path / "set.bin").write_bytes(BODY[:-1])
    with pytest.raises(DataError, match=r"set\.bin is not the published file: it has 599,999 bytes"):
        fetch(remote(), tmp_path, allow=True)
    assert visible(tmp_path) == ["set.bin"]


def at_once(target: Callable[[str, str], None], url: str, folder: str) -> None:
    context = multiprocessing.get_context("spawn")
    jobs = [context.Process(target=target, args=(url, folder)) for _ in range(2)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join(60)
    assert [job.exitcode for job in jobs] == [0, 0]


def _fetch_in_process(url: str, folder: str) -> None:
    fetch(remote(url), Path(folder), allow=True)


def test_two_processes_download_it_once(mirror: Mirror, tmp_path: Path) -> None:
    mirror.delay = 0.5
    at_once(_fetch_in_process, mirror.url, str(tmp_path))
    assert len(mirror.asked) == 1
    assert (tmp_path / "set.bin").read_bytes() == BODY


def _prepare_in_process(url: str, root: str) -> None:
    archive = RemoteFile("set.zip", (url,))
    Publication("set", "Set", "none", url, (Part("set", (archive,), 10**6),)).prepare(Path(root), download=True)


def test_two_processes_prepare_one_set(mirror: Mirror, tmp_path: Path) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for number in range(100):
            archive.writestr(f"set/{number}.txt", str(number))
    mirror.body, mirror.delay = packed.getvalue(), 0.5
    at_once(_prepare_in_process, mirror.url, str(tmp_path))
    assert len(mirror.asked) == 1
    assert visible(tmp_path) == ["set", "set.zip"]
    assert len(list((tmp_path / "set").iterdir())) == 100


def test_the_error_says_all_that_is_needed(tmp_path: Path) -> None:
    files = [
        RemoteFile("a.zip", ("https://example.org/a.zip",), about="15.2 GB"),
        RemoteFile("b.7z", size=1_234_000),
    ]
    text = str(not_found("Set", tmp_path, files, "research only", "https://example.org", ["one", "two"], "no a"))
    assert text.splitlines() == [
        f"Set was not found in {tmp_path}: no a.",
        "  archives:  a.zip (15.2 GB), b.7z (1.2 MB)",
        "  licence:   research only",
        "  get it at: https://example.org",
        f"  by hand:   b.7z: no direct link; download with a browser into {tmp_path}",
        "Go on with one of:",
        "  one",
        "  two",
    ]


def test_the_ladder(tmp_path: Path) -> None:
    parts = (
        Part("pictures", (RemoteFile("p.zip", ("https://example.org/p.zip",)),), 10),
        Part("list.txt", (RemoteFile("list.txt"),), 10),
    )
    published = Publication("set", "Set", "none", "https://example.org", parts)
    with pytest.raises(DatasetNotFoundError, match=r"no pictures and no list\.txt"):
        published.check(tmp_path, download=False)
    (tmp_path / "list.txt").write_text("")
    published.check(tmp_path, download=True)
    with pytest.raises(DatasetNotFoundError, match=r"no pictures, ") as told:
        published.check(tmp_path, download=False)
    assert f"  python prepare.py data=set data.root={tmp_path}    (" in str(told.value)  # not the shipped place
    (tmp_path / "p.zip").write_text("")
    published.check(tmp_path, download=False)
    (tmp_path / "p.zip").rename(tmp_path / "pictures")
    published.check(tmp_path, download=False)
