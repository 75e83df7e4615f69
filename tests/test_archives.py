"""Unpacking: what is published comes out, what is hostile or broken leaves nothing."""

import io
import multiprocessing
import resource
import shutil
import stat
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from datamodules import archive_rules
from datamodules.archives import unpack
from datamodules.expw import ExpW
from launch.errors import DataError, UserError
from launch.files import atomic_folder

FILES = {"set/a/one.txt": b"one" * 100, "set/b.txt": b"two"}
NOISE = np.random.Generator(np.random.PCG64(0)).bytes(50_000)
LIMIT = 10_000_000


def make_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def make_tar(path: Path, files: dict[str, bytes]) -> Path:
    mode = {".tar": "w", ".gz": "w:gz", ".bz2": "w:bz2", ".xz": "w:xz"}[path.suffix]
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def tar_with(path: Path, change: Callable[[tarfile.TarInfo], None]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        good = tarfile.TarInfo("set/good.txt")
        good.size = 4
        archive.addfile(good, io.BytesIO(b"good"))
        member = tarfile.TarInfo("set/evil")
        change(member)
        archive.addfile(member, io.BytesIO(b"x" * member.size))
    return path


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def left_over(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


@pytest.mark.parametrize("name", ["x.zip", "x.tar", "x.tar.gz", "x.tar.bz2", "x.tar.xz"])
@pytest.mark.parametrize("level", ["set/", ""])
def test_unpacks_with_and_without_the_outer_folder(tmp_path: Path, name: str, level: str) -> None:
    files = {level + key.removeprefix("set/"): content for key, content in FILES.items()}
    archive = (make_zip if name.endswith("zip") else make_tar)(tmp_path / name, files)
    unpack(archive, tmp_path / "set", LIMIT)
    assert tree(tmp_path / "set") == {"a/one.txt": b"one" * 100, "b.txt": b"two"}
    assert left_over(tmp_path) == ["set", name]


def test_an_inner_folder_of_the_same_name_stays(tmp_path: Path) -> None:
    unpack(make_zip(tmp_path / "x.zip", {"set/set/one.txt": b"1"}), tmp_path / "set", LIMIT)
    assert tree(tmp_path / "set") == {"set/one.txt": b"1"}


def test_another_outer_folder_stays(tmp_path: Path) -> None:
    unpack(make_zip(tmp_path / "x.zip", {"other/one.txt": b"1"}), tmp_path / "set", LIMIT)
    assert tree(tmp_path / "set") == {"other/one.txt": b"1"}


@pytest.mark.parametrize("name", ["x.zip", "x.tar.gz"])
def test_what_macos_adds_is_left_out(tmp_path: Path, name: str) -> None:
    files = FILES | {"__MACOSX/set/._b.txt": b"", "set/.DS_Store": b"", "set/._b.txt": b""}
    unpack((make_zip if name == "x.zip" else make_tar)(tmp_path / name, files), tmp_path / "set", LIMIT)
    assert sorted(tree(tmp_path / "set")) == ["a/one.txt", "b.txt"]


def test_a_folder_that_is_there_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    unpack(tmp_path / "not even an archive", tmp_path / "set", LIMIT)
    assert left_over(tmp_path) == ["set"]


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "set") as temporary:
        shutil.copytree(temporary, tmp_path / "copy")
    shutil.rmtree(tmp_path / "set")
    (tmp_path / "copy").rename(temporary)
    (tmp_path / ".set.more.abcdefg1.tmp").mkdir()  # another process is unpacking into set.more
    unpack(make_zip(tmp_path / "x.zip", FILES), tmp_path / "set", LIMIT)
    assert left_over(tmp_path) == [".set.more.abcdefg1.tmp", "set", "x.zip"]


@pytest.mark.parametrize("name", ["../evil", "set/../../evil", "/evil", "C:\\evil", "..\\evil", "\\evil"])
@pytest.mark.parametrize("kind", ["x.zip", "x.tar.gz"])
def test_names_that_lead_outside_are_refused(tmp_path: Path, name: str, kind: str) -> None:
    place = tmp_path / "deep" / "place"
    place.mkdir(parents=True)
    archive = (make_zip if kind == "x.zip" else make_tar)(place / kind, FILES | {name: b"evil"})
    with pytest.raises(DataError, match="outside its own folder: "):
        unpack(archive, place / "set", LIMIT)
    assert left_over(place) == [kind]
    assert not list(tmp_path.rglob("*evil*"))


def as_type(kind: bytes, target: str = "") -> Callable[[tarfile.TarInfo], None]:
    def change(member: tarfile.TarInfo) -> None:
        member.type, member.linkname = kind, target

    return change


@pytest.mark.parametrize(
    ("kind", "target"),
    [
        (tarfile.SYMTYPE, "/etc/passwd"),
        (tarfile.SYMTYPE, "good.txt"),
        (tarfile.LNKTYPE, "set/good.txt"),
        (tarfile.CHRTYPE, ""),
        (tarfile.BLKTYPE, ""),
        (tarfile.FIFOTYPE, ""),
    ],
)
def test_links_and_devices_in_a_tar_are_refused(tmp_path: Path, kind: bytes, target: str) -> None:
    archive = tar_with(tmp_path / "x.tar.gz", as_type(kind, target))
    with pytest.raises(DataError, match=r"no plain file or folder: 'set/evil' \((link|device)"):
        unpack(archive, tmp_path / "set", LIMIT)
    assert left_over(tmp_path) == ["x.tar.gz"]


@pytest.mark.parametrize(("mode", "word"), [(stat.S_IFLNK, "link"), (stat.S_IFCHR, "device")])
def test_links_and_devices_in_a_zip_are_refused(tmp_path: Path, mode: int, word: str) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        entry = zipfile.ZipInfo("set/evil")
        entry.external_attr = (mode | 0o777) << 16
        archive.writestr(entry, "/etc/passwd")
    with pytest.raises(DataError, match=rf"'set/evil' \({word}\)"):
        unpack(tmp_path / "x.zip", tmp_path / "set", LIMIT)
    assert left_over(tmp_path) == ["x.zip"]


@pytest.mark.parametrize("name", ["x.zip", "x.tar.gz"])
def test_more_than_the_dataset_is_refused(tmp_path: Path, name: str) -> None:
    archive = (make_zip if name == "x.zip" else make_tar)(tmp_path / name, {"set/zeros": bytes(3_000_000)})
    with pytest.raises(DataError, match=r"unpacks to more than 2\.0 MB"):
        unpack(archive, tmp_path / "set", 2_000_000)
    assert left_over(tmp_path) == [name]


@pytest.mark.parametrize("name", ["x.zip", "x.tar.gz"])
def test_a_bomb_is_known_by_its_ratio(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive_rules, "RATIO_FLOOR", 1_000_000)
    archive = (make_zip if name == "x.zip" else make_tar)(tmp_path / name, {"set/zeros": bytes(20_000_000)})
    with pytest.raises(DataError, match="than 100 times its own size"):
        unpack(archive, tmp_path / "set", 10**12)
    assert left_over(tmp_path) == [name]


def test_a_header_that_is_a_bomb_is_refused(tmp_path: Path) -> None:
    header = tarfile.TarInfo("long")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 1 << 32
    (tmp_path / "x.tar").write_bytes(header.tobuf(tarfile.GNU_FORMAT))
    with pytest.raises(DataError, match="has a header of 4,294,967,296 bytes"):
        unpack(tmp_path / "x.tar", tmp_path / "set", 1 << 50)
    assert left_over(tmp_path) == ["x.tar"]


@pytest.mark.parametrize("name", ["x.zip", "x.tar.gz"])
def test_too_many_entries_are_refused(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive_rules, "MAX_FILES", 1)
    with pytest.raises(DataError, match="more than 1 entries"):
        unpack((make_zip if name == "x.zip" else make_tar)(tmp_path / name, FILES), tmp_path / "set", LIMIT)


@pytest.mark.parametrize("name", ["x.zip", "x.tar", "x.tar.gz", "x.tar.bz2", "x.tar.xz"])
@pytest.mark.parametrize("part", [0.3, 0.9, 0.98])
def test_a_truncated_archive_is_refused(tmp_path: Path, name: str, part: float) -> None:
    noise = {f"set/{index}": NOISE[5000 * index : 5000 * index + 5000] for index in range(9)}
    archive = (make_zip if name.endswith("zip") else make_tar)(tmp_path / name, noise)
    whole = archive.read_bytes()
    content = whole.rstrip(b"\0") if name == "x.tar" else whole
    archive.write_bytes(content[: int(part * len(content))])
    with pytest.raises(DataError, match="damaged or cut short"):
        unpack(archive, tmp_path / "set", LIMIT)
    assert left_over(tmp_path) == [name]


@pytest.mark.parametrize("name", ["x.zip", "x.tar.gz"])
def test_a_changed_byte_is_noticed(tmp_path: Path, name: str) -> None:
    noise = {"set/noise": NOISE}
    archive = (make_zip if name == "x.zip" else make_tar)(tmp_path / name, noise)
    content = bytearray(archive.read_bytes())
    content[25_000] ^= 1
    archive.write_bytes(content)
    with pytest.raises(DataError, match="damaged"):
        unpack(archive, tmp_path / "set", LIMIT)
    assert left_over(tmp_path) == [name]


def test_a_broken_header_inside_a_tar_is_not_taken_for_its_end(tmp_path: Path) -> None:
    archive = make_tar(tmp_path / "x.tar", {"set/a": b"a", "set/b": b"b"})
    content = bytearray(archive.read_bytes())
    content[1024 + 10] ^= 1  # in the name of the second entry: its header's checksum is now wrong
    archive.write_bytes(content)
    with pytest.raises(DataError, match="damaged or cut short"):
        unpack(archive, tmp_path / "set", LIMIT)
    assert left_over(tmp_path) == ["x.tar"]


def test_one_name_twice_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for _ in range(2):
            archive.addfile(tarfile.TarInfo("set/b.txt"))
    with pytest.raises(DataError, match=r"two entries of one name \(b\.txt\)"):
        unpack(tmp_path / "x.tar", tmp_path / "set", LIMIT)


@pytest.mark.parametrize("content", [b"<!DOCTYPE html><html>sign in</html>", b""])
def test_what_is_no_archive_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.zip").write_bytes(content)
    with pytest.raises(DataError, match=r"x\.zip is neither zip, tar nor 7z"):
        unpack(tmp_path / "x.zip", tmp_path / "set", LIMIT)
    assert left_over(tmp_path) == ["x.zip"]


@pytest.mark.parametrize("name", ["x.zip", "x.tar.gz"])
def test_a_full_disk_leaves_nothing(tmp_path: Path, name: str) -> None:
    archive = (make_zip if name == "x.zip" else make_tar)(
        tmp_path / name, {"set/small": b"1", "set/large": bytes(500_000)}
    )
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(UserError, match=r"No room to unpack .*File too large\. Nothing was left there"):
            unpack(archive, tmp_path / "set", LIMIT)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert left_over(tmp_path) == [name]
    unpack(archive, tmp_path / "set", LIMIT)
    assert sorted(tree(tmp_path / "set")) == ["large", "small"]


def test_too_little_room_is_seen_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100))
    with pytest.raises(UserError, match=r"No room for x\.zip .*: 303 B needed, 100 B free"):
        unpack(make_zip(tmp_path / "x.zip", FILES), tmp_path / "set", LIMIT)
    assert left_over(tmp_path) == ["x.zip"]


def test_two_processes_unpack_it_once(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "x.zip", {f"set/{index}": bytes(1000) for index in range(500)})
    context = multiprocessing.get_context("spawn")
    jobs = [context.Process(target=unpack, args=(archive, tmp_path / "set", LIMIT)) for _ in range(2)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join(60)
    assert [job.exitcode for job in jobs] == [0, 0]
    assert len(tree(tmp_path / "set")) == 500
    assert left_over(tmp_path) == ["set", "x.zip"]


# 7-Zip itself may not be installed where the tests run: this stands in for it, with its real output's form.
PROGRAM = """#!{python}
import pathlib, sys
mode, args = sys.argv[1], sys.argv[2:]
entries = {entries!r}
if mode == "l":
    print("7-Zip 23.01\\n\\nListing archive: x\\n\\n--\\nPath = x.7z.001\\nType = Split\\n\\n----------")
    for name, size, attributes, extra in entries:
        print(f"Path = {{name}}\\nSize = {{size}}\\nAttributes = {{attributes}}\\n{{extra}}CRC = 0\\n")
    sys.exit({list_code})
folder = pathlib.Path(next(arg[2:] for arg in args if arg.startswith("-o")))
print("Extracting archive: x")
for name, size, attributes, extra in entries:
    print("-", name)
    path = folder / name
    if attributes.startswith("D"):
        path.mkdir(parents=True, exist_ok=True)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(size))
{after}
"""
PLAIN = [("origin", 0, "D_ drwxr-xr-x", ""), ("origin/one.jpg", 5, "A_ -rw-r--r--", ""), ("origin/two.jpg", 7, "A", "")]


def install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entries: list, list_code: int = 0, after: str = ""
) -> Path:
    program = tmp_path / "bin" / "7z"
    program.parent.mkdir()
    text = PROGRAM.format(python=sys.executable, entries=entries, list_code=list_code, after=after)
    program.write_text(text)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent))
    place = tmp_path / "image"
    place.mkdir()
    for volume in (1, 2):
        (place / f"origin.7z.{volume:03d}").write_bytes(b"7z\xbc\xaf\x27\x1c" + bytes(100))
    return place


def test_volumes_of_7z_are_given_to_the_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = install(tmp_path, monkeypatch, PLAIN)
    unpack(place / "origin.7z.001", place / "origin", LIMIT)
    assert tree(place / "origin") == {"one.jpg": bytes(5), "two.jpg": bytes(7)}
    assert left_over(place) == ["origin", "origin.7z.001", "origin.7z.002"]


def test_the_first_volume_of_expw_has_two_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = install(tmp_path, monkeypatch, PLAIN)
    for volume in range(3, 9):
        (place / f"origin.7z.{volume:03d}").write_bytes(bytes(100))
    (place / "origin.7z.001").rename(place / "origin.7z.001.001")
    (tmp_path / "label").mkdir()
    (tmp_path / "label" / "label.lst").touch()
    ExpW(root=tmp_path).prepare()
    assert tree(place / "origin") == {"one.jpg": bytes(5), "two.jpg": bytes(7)}
    assert left_over(place) == ["origin", *(f"origin.7z.{volume:03d}" for volume in range(1, 9))]


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (("../evil", 1, "A_ -rw-r--r--", ""), "outside its own folder"),
        (("/evil", 1, "A_ -rw-r--r--", ""), "outside its own folder"),
        (("origin/evil", 1, "A_ lrwxrwxrwx", ""), "no plain file or folder"),
        (("origin/evil", 1, "A", "Symbolic Link = /etc/passwd\n"), "no plain file or folder"),
        (("origin/evil", LIMIT, "A", ""), r"more than 10\.0 MB"),
    ],
)
def test_hostile_7z_is_refused_before_it_is_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entry: tuple, said: str
) -> None:
    place = install(tmp_path, monkeypatch, [*PLAIN, entry], after="raise SystemExit('it was unpacked')")
    with pytest.raises(DataError, match=said):
        unpack(place / "origin.7z.001", place / "origin", LIMIT)
    assert left_over(place) == ["origin.7z.001", "origin.7z.002"]


def test_a_link_that_the_listing_hid_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = install(tmp_path, monkeypatch, PLAIN, after="(folder / 'origin/evil').symlink_to('/etc/passwd')")
    with pytest.raises(DataError, match=r"'origin/evil' \(link"):
        unpack(place / "origin.7z.001", place / "origin", LIMIT)
    assert left_over(place) == ["origin.7z.001", "origin.7z.002"]


@pytest.mark.parametrize(
    ("list_code", "after", "said"),
    [
        (2, "", "damaged, or a volume is missing"),
        (0, "print('ERROR: CRC Failed : origin/two.jpg'); sys.exit(2)", "could not be unpacked: .*CRC Failed"),
        (0, "print('ERROR: No space left on device'); sys.exit(2)", "No room to unpack"),
    ],
)
def test_what_the_program_says_is_passed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, list_code: int, after: str, said: str
) -> None:
    place = install(tmp_path, monkeypatch, PLAIN, list_code, after)
    with pytest.raises(UserError, match=said):
        unpack(place / "origin.7z.001", place / "origin", LIMIT)
    assert left_over(place) == ["origin.7z.001", "origin.7z.002"]


def test_without_the_program_it_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = install(tmp_path, monkeypatch, PLAIN)
    monkeypatch.setenv("PATH", str(place))
    with pytest.raises(DataError, match=r"needs the program 7-Zip.*apt install 7zip"):
        unpack(place / "origin.7z.001", place / "origin", LIMIT)


def test_all_volumes_count_for_the_ratio(tmp_path: Path) -> None:
    for volume in (1, 2):
        (tmp_path / f"x.7z.{volume:03d}").write_bytes(bytes(600_000))
    assert archive_rules.Budget(tmp_path / "x.7z.001", 10**12).limit == 120_000_000
