import hashlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from datamodules.base import Records, Source
from datamodules.cache import PixelCache, cache_folder, open_or_build
from datamodules.crop import crop_region, crop_resize
from datamodules.decode import BrokenImageError, read_image
from datamodules.hashes import content_hashes
from datamodules.image_folder import ImageFolder
from datamodules.pipeline import make_pixels
from launch.errors import DataError, UserError
from launch.files import sha256_file
from tests.picture_files import noise, write_classes, write_picture


class Drawn(Source):
    """Pictures that exist only when asked for; counts how often."""

    def __init__(self, root: Path, count: int = 30, broken: tuple[int, ...] = (), delay: float = 0) -> None:
        super().__init__(root=root, name="drawn")
        self.count, self.broken, self.delay = count, broken, delay
        self.reads = 0

    def check(self) -> None:
        return

    def records(self) -> Records:
        return Records(pd.DataFrame({"key": [f"row {row:05d}" for row in range(self.count)], "label": "a"}))

    def read(self, row, max_pixels=0, side=None) -> np.ndarray:
        self.reads += 1
        time.sleep(self.delay)
        number = int(row["key"][4:])
        if number in self.broken:
            raise BrokenImageError("torn")
        return noise(number, 20, 30)


def build(folder: Path, source: Source, **options) -> PixelCache:
    return open_or_build(
        folder, source, source.records().table, **({"size": 8, "fit": "crop", "points": False} | options)
    )


@pytest.mark.parametrize("parallel", [True, False])
def test_pixels_are_in_the_order_of_the_table(tmp_path: Path, parallel: bool) -> None:
    source = Drawn(tmp_path, 50)
    source.parallel = parallel
    cache = build(tmp_path / "c", source)
    assert isinstance(cache.pixels, np.memmap)
    assert cache.pixels.shape == (50, 8, 8, 3)
    assert cache.keys == [f"row {row:05d}" for row in range(50)]
    for row in (0, 7, 49):
        wanted = crop_resize(noise(row, 20, 30), crop_region(30, 20, None, "crop"), 8)
        np.testing.assert_array_equal(cache.pixels[row], wanted)
    build(tmp_path / "c", source)
    assert source.reads == 50
    assert sorted(path.name for path in tmp_path.iterdir()) == [".c.lock", "c"]


def test_files_boxes_and_points(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.png", noise(1, 40, 60))
    rows = {"key": ["a.png#0", "a.png#1"], "file": "a.png", "left": [0.0, 20.5], "top": [0.0, 4.0]}
    table = pd.DataFrame(rows | {"right": [40.0, 60.5], "bottom": [40.0, 44.0]})
    table["target"] = [np.array([[10.0, 10.0], [50.0, 0.0]])] * 2
    cache = open_or_build(tmp_path / "c", ImageFolder(tmp_path), table, size=16, fit="crop", points=True)
    np.testing.assert_allclose(cache.points, [[[0.25, 0.25], [1.25, 0]], [[-0.2625, 0.15], [0.7375, -0.1]]], atol=1e-6)
    picture = read_image(tmp_path / "a.png")
    for row, box in enumerate([(0, 0, 40, 40), (20.5, 4, 60.5, 44)]):
        np.testing.assert_array_equal(cache.pixels[row], crop_resize(picture, box, 16))


def test_broken_pictures_are_left_out_below_the_limit(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = build(tmp_path / "one", Drawn(tmp_path, 30, broken=(3,)))
    assert cache.broken == {"row 00003": "torn"}
    assert len(cache.pixels) == len(cache.keys) == 29
    np.testing.assert_array_equal(cache.pixels[3], crop_resize(noise(4, 20, 30), (5, 0, 25, 20), 8))
    assert "row 00003 is left out: torn" in caplog.text
    assert len(build(tmp_path / "two", Drawn(tmp_path, 30, broken=(3, 4)), max_broken=0.1).keys) == 28
    with pytest.raises(DataError, match="at least 2 of 30 pictures cannot be used, more than the 1 allowed"):
        build(tmp_path / "three", Drawn(tmp_path, 30, broken=(3, 4, 5)))
    with pytest.raises(DataError, match="1 of 30"):
        build(tmp_path / "none", Drawn(tmp_path, 30, broken=(3,)), max_broken=0)
    with pytest.raises(DataError, match="1 of 19"):
        build(tmp_path / "few", Drawn(tmp_path, 19, broken=(3,)))
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {"one", "two"}
    with pytest.raises(DataError, match=r"data\.max_broken=0"):  # a cache made under a laxer limit is judged again
        build(tmp_path / "one", Drawn(tmp_path, 30), max_broken=0)


def test_folder_name_tells_all_that_decides_the_pixels(tmp_path: Path) -> None:
    folders = {
        cache_folder(tmp_path, "my data/x", print_, size, fit, most)
        for print_ in ("p", "q")
        for size in (8, 16)
        for fit in ("crop", "pad", "squash")
        for most in (100, 200)
    }
    assert len(folders) == 24
    assert all(folder.parent == tmp_path and folder.name.startswith("my_data_x-") for folder in folders)


@pytest.mark.parametrize("part", ["pixels.npy", "index.parquet", "meta.json", "points.npy"])
@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_damaged_cache_is_made_anew(tmp_path: Path, part: str, damage: str) -> None:
    source = Drawn(tmp_path, 20)
    table = source.records().table
    table["target"] = [np.zeros((2, 2))] * 20
    options = {"size": 8, "fit": "pad", "points": True}
    whole = open_or_build(tmp_path / "c", source, table, **options).pixels[:].copy()
    file = tmp_path / "c" / part
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-10])
    else:
        file.unlink()
    cache = open_or_build(tmp_path / "c", source, table, **options)
    assert source.reads == 40
    np.testing.assert_array_equal(cache.pixels, whole)


def build_slowly(folder: Path, queue) -> None:
    source = Drawn(folder.parent, 40, delay=0.02)
    cache = build(folder, source)
    queue.put((source.reads, int(cache.pixels.sum(dtype=np.int64))))


def test_two_processes_build_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    processes = [context.Process(target=build_slowly, args=(tmp_path / "c", queue)) for _ in range(2)]
    for process in processes:
        process.start()
    results = [queue.get(timeout=120) for _ in processes]
    for process in processes:
        process.join()
    assert sorted(reads for reads, _ in results) == [0, 40]
    assert results[0][1] == results[1][1]


def test_killed_process_leaves_nothing_half_made(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from tests.test_cache import Drawn, build\n"
        "build(Path(sys.argv[1]), Drawn(Path(sys.argv[1]), 10000, delay=0.01))"
    )
    here = Path(__file__).parent.parent
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "c")], cwd=here)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob(".c.*.tmp/pixels.npy")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "c").exists()
    (tmp_path / ".c.more.abcdefg1.tmp").mkdir()  # another process is building c.more
    assert len(build(tmp_path / "c", Drawn(tmp_path)).keys) == 30
    assert sorted(path.name for path in tmp_path.iterdir()) == [".c.lock", ".c.more.abcdefg1.tmp", "c"]


def test_error_in_the_middle_leaves_nothing(tmp_path: Path) -> None:
    class Faulty(Drawn):
        def read(self, row, max_pixels=0, side=None) -> np.ndarray:
            if row["key"] == "row 00020":
                raise ZeroDivisionError
            return super().read(row)

    with pytest.raises(ZeroDivisionError):
        build(tmp_path / "c", Faulty(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == [".c.lock"]


def test_no_room_on_the_disk_is_told_before_the_work(tmp_path: Path) -> None:
    source = Drawn(tmp_path, 20)
    with pytest.raises(DataError, match=r"needs 6000\.0 TB .* are free\. .*paths\.outputs=DIR"):
        build(tmp_path / "c", source, size=10_000_000)
    assert source.reads == 0


def test_unwritable_cache_root(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"Cannot write to .*paths\.outputs=DIR"):
        build(tmp_path / "file" / "c", Drawn(tmp_path))


def test_memory_stays_flat(tmp_path: Path) -> None:
    source = Drawn(tmp_path, 1500)
    tracemalloc.start()
    build(tmp_path / "c", source, size=64)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1500 * 64 * 64 * 3 / 2


def test_hashes_are_kept_until_a_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_classes(tmp_path / "d", {"a": 3, "b": 3})
    (root / "b" / "copy.png").write_bytes((root / "a" / "000.png").read_bytes())
    source = ImageFolder(root)
    asked: list[str] = []
    digest = source.digest
    monkeypatch.setattr(source, "digest", lambda row: asked.append(row["file"]) or digest(row))
    first = content_hashes(source, source.records(), tmp_path / "i.parquet")
    assert len(asked) == len(first) == 7
    assert first["b/copy.png"] == first["a/000.png"]
    assert len(set(first.values())) == 6
    assert content_hashes(source, source.records(), tmp_path / "i.parquet") == first
    assert len(asked) == 7
    write_picture(root / "a" / "001.png", noise(99, 30, 30))
    second = content_hashes(source, source.records(), tmp_path / "i.parquet")
    assert asked[7:] == ["a/001.png"]
    assert {key for key in first if first[key] != second[key]} == {"a/001.png"}
    (tmp_path / "i.parquet").write_bytes(b"rubbish")
    assert content_hashes(source, source.records(), tmp_path / "i.parquet") == second


@pytest.mark.parametrize("fault", ["changed", "away", "torn all along"])
def test_only_what_could_never_be_read_is_left_out(tmp_path: Path, fault: str) -> None:
    """The fingerprint tells of the other: left out, it would be missing for good, on this machine alone."""
    source = ImageFolder(write_classes(tmp_path / "d", {"a": 12, "b": 12}))
    picture = source.root / "a" / "003.png"
    torn = picture.read_bytes()[:60]
    if fault == "torn all along":
        picture.write_bytes(torn)
    table = source.records().table
    hashes = content_hashes(source, source.records(), tmp_path / "i.parquet")
    table["hash"] = [hashes[key] for key in table["key"]]
    if fault == "changed":
        picture.write_bytes(torn)
    elif fault == "away":
        picture.unlink()
    options = {"size": 8, "fit": "crop", "points": False}
    if fault == "torn all along":
        assert set(open_or_build(tmp_path / "c", source, table, **options).broken) == {"a/003.png"}
        return
    with pytest.raises(DataError, match=r"a/003.png was changed or could no longer be read .* Run the same command"):
        open_or_build(tmp_path / "c", source, table, **options)
    assert not (tmp_path / "c").exists()


def test_unreadable_files_are_no_duplicates_of_each_other(tmp_path: Path) -> None:
    source = ImageFolder(write_classes(tmp_path / "d", {"a": 2, "b": 2}))
    records = source.records()
    for name in ("000", "001"):
        (tmp_path / "d" / "a" / f"{name}.png").unlink()
    assert len(set(content_hashes(source, records, tmp_path / "i.parquet").values())) == 4


def test_a_picture_whose_pixels_are_counted_is_never_decoded_smaller(tmp_path: Path) -> None:
    """JPEGs can be decoded at a fraction of their size; boxes and points are in pixels of the whole."""
    grey = np.linspace(0, 255, 480).astype(np.uint8)
    write_picture(tmp_path / "a.jpg", np.repeat(np.tile(grey, (320, 1))[..., None], 3, 2))
    picture, whole = read_image(tmp_path / "a.jpg"), crop_region(480, 320, None, "crop")
    boxed = pd.DataFrame({"key": ["a"], "file": "a.jpg", "left": 300.0, "top": 40.0, "right": 460.0, "bottom": 200.0})
    cache = open_or_build(tmp_path / "b", ImageFolder(tmp_path), boxed, size=16, fit="crop", points=False)
    np.testing.assert_array_equal(cache.pixels[0], crop_resize(picture, (300, 40, 460, 200), 16))
    marked = pd.DataFrame({"key": ["a"], "file": "a.jpg", "target": [np.array([[100.0, 200.0]])]})
    cache = open_or_build(tmp_path / "p", ImageFolder(tmp_path), marked, size=16, fit="crop", points=True)
    np.testing.assert_array_equal(cache.pixels[0], crop_resize(picture, whole, 16))
    np.testing.assert_allclose(cache.points, [[[(100 - 80) / 320, 200 / 320]]], atol=1e-6)


def test_a_hash_is_of_the_bytes_of_now_when_only_time_or_size_tell(tmp_path: Path) -> None:
    file, index = tmp_path / "d" / "a" / "0.png", tmp_path / "i.parquet"
    file.parent.mkdir(parents=True)
    source = ImageFolder(tmp_path / "d")
    for content, time_ns in ((b"one", 10**18), (b"two", 10**18 + 1000), (b"three", 10**18 + 1000)):
        file.write_bytes(content)
        os.utime(file, ns=(time_ns, time_ns))
        assert content_hashes(source, source.records(), index) == {"a/0.png": hashlib.sha256(content).hexdigest()}


def test_what_could_not_be_read_once_is_read_again(tmp_path: Path) -> None:
    """A file that one may read by now, or a disk that answers again, has the size and time that it had."""

    class Failing(ImageFolder):
        def digest(self, row) -> str:
            raise PermissionError

    root = write_classes(tmp_path / "d", {"a": 2})
    for source in (Failing(root), ImageFolder(root)):
        found = content_hashes(source, source.records(), tmp_path / "i.parquet")
    assert found == {f"a/{name}": sha256_file(root / "a" / name) for name in ("000.png", "001.png")}


def test_sets_of_one_name_at_two_places_have_hashes_of_their_own(tmp_path: Path) -> None:
    """Unpacked with the times of their archives, uncompressed pictures differ in nothing but their bytes."""
    hashes = []
    for seed, place in enumerate(("one", "other")):
        root = tmp_path / place / "leaves"
        for number in range(12):
            file = root / "ab"[number % 2] / f"{number}.bmp"
            write_picture(file, noise(100 * seed + number, 8, 8))
            os.utime(file, ns=(10**18, 10**18))
        made = make_pixels(
            ImageFolder(root), "classification", target=None, classes=None, size="full", split=(0.2, 0.2),
            split_seed=0, fit=None, image_size=8, cache_root=tmp_path / "cache",
        )  # fmt: skip
        hashes.append(list(made.prepared.table["hash"]))
    assert set(hashes[0]).isdisjoint(hashes[1])
