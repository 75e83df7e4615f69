import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch.errors import UserError, nearest
from launch.files import atomic_folder, atomic_write, require_ours, require_replaceable, sha256_file, write_json

ROOT = Path(__file__).resolve().parents[1]


def test_atomic_write_makes_folders_and_replaces(tmp_path):
    path = tmp_path / "a" / "b.txt"
    atomic_write(path, "one")
    atomic_write(path, b"two")
    assert path.read_bytes() == b"two"
    assert [file.name for file in path.parent.iterdir()] == ["b.txt"]


def test_new_files_and_folders_follow_the_umask(tmp_path):
    plain = tmp_path / "plain"
    plain.write_text("")
    atomic_write(tmp_path / "file", "x")
    with atomic_folder(tmp_path / "folder"):
        pass
    (tmp_path / "plain_folder").mkdir()
    assert (tmp_path / "file").stat().st_mode == plain.stat().st_mode
    assert (tmp_path / "folder").stat().st_mode == (tmp_path / "plain_folder").stat().st_mode


def test_file_in_place_of_a_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"Cannot write .*file/x.txt: a part of its path is a file, not a folder"):
        atomic_write(tmp_path / "file" / "x.txt", "")
    with (
        pytest.raises(UserError, match=r"Cannot write .*paths.outputs=DIR"),
        atomic_folder(tmp_path / "file" / "folder"),
    ):
        pass


def test_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    """A file size limit stands for a full disk: the write itself fails half-way."""
    target = tmp_path / "big.bin"
    target.write_text("old")
    script = (
        "import resource, shutil, signal, sys; from pathlib import Path\n"
        "import numpy as np; from safetensors.numpy import save_file\n"
        "from launch.files import atomic_write, atomic_folder; from launch.errors import UserError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "path = Path(sys.argv[1])\n"
        "try: atomic_write(path, b'x' * 5000)\n"
        "except UserError as error: print(error)\n"
        "try:\n"
        "    with atomic_folder(path.parent / 'folder') as folder: (folder / 'part').write_bytes(b'x' * 5000)\n"
        "except UserError as error: print(error)\n"
        "try:\n"
        "    with atomic_folder(path.parent / 'tensors') as folder:\n"
        "        save_file({'x': np.zeros(2000)}, folder / 'x.safetensors')\n"
        "except UserError as error: print(error)\n"
        "try:\n"
        "    with atomic_folder(path.parent / 'copy') as folder: shutil.copytree(sys.argv[2], folder / 'x')\n"
        "except UserError as error: print(error)\n"
    )
    large = tmp_path / "large"
    large.mkdir()
    (large / "file").write_bytes(bytes(5000))
    done = subprocess.run(
        [sys.executable, "-c", script, str(target), str(large)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.stderr == ""
    first, second, third, fourth = done.stdout.splitlines()
    assert first.startswith(f"Cannot write {target}: the file is larger than this system allows. Free space")
    assert second.startswith(f"Cannot write {tmp_path / 'folder'}")
    assert third.startswith(f"Cannot write {tmp_path / 'tensors'}: the file is larger")
    assert fourth.startswith(f"Cannot write {tmp_path / 'copy'}: the file is larger")
    assert target.read_text() == "old"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["big.bin", "large"]


def test_atomic_folder_replaces_as_a_whole(tmp_path):
    path = tmp_path / "bundle"
    for content in ("one", "two"):
        with atomic_folder(path) as folder:
            (folder / content).write_text(content)
            assert not (path / content).exists()
    assert [file.name for file in path.iterdir()] == ["two"]
    assert [file.name for file in tmp_path.iterdir()] == ["bundle"]


def test_what_a_killed_writer_left_goes_a_day_later(tmp_path):
    left = {
        name: tmp_path / name for name in (".model[1].old_abcd.tmp", ".model[1].youngabc.tmp", ".other.old_abcd.tmp")
    }
    for name, folder in left.items():
        folder.mkdir()
        (folder / "weights").write_text("x")
        age = 25 * 3600 if "old" in name else 3600
        os.utime(folder, (time.time() - age,) * 2)
    with atomic_folder(tmp_path / "model[1]") as folder:
        (folder / "weights").write_text("y")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".model[1].youngabc.tmp",
        ".other.old_abcd.tmp",
        "model[1]",
    ]


def test_a_folder_that_a_killed_writer_had_moved_away_is_put_back(tmp_path):
    moved = tmp_path / ".model.abcdefg1.old"
    moved.mkdir()
    (moved / "weights").write_text("old")
    with pytest.raises(KeyError), atomic_folder(tmp_path / "model"):
        raise KeyError
    assert (tmp_path / "model" / "weights").read_text() == "old"
    (tmp_path / ".model.d_efgh12.old").mkdir()  # killed while it cleared what it had replaced
    with atomic_folder(tmp_path / "model") as folder:
        (folder / "weights").write_text("new")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (tmp_path / "model" / "weights").read_text() == "new"


@pytest.mark.parametrize(("own", "other"), [("model", "model.v2"), ("a" * 99 + "1", "a" * 99 + "2")])
def test_what_a_killed_writer_of_another_folder_moved_away_stays(tmp_path, monkeypatch, own, other):
    def killed(*_):
        raise KeyboardInterrupt

    (tmp_path / other).mkdir()
    with monkeypatch.context() as patched:
        patched.setattr("launch.files._take_place", lambda new, path, old: path.replace(old) and killed())
        with pytest.raises(KeyboardInterrupt), atomic_folder(tmp_path / other):
            pass
    (moved,) = tmp_path.iterdir()
    for _ in range(2):
        with atomic_folder(tmp_path / own) as folder:
            (folder / "weights").write_text("own")
    assert sorted(tmp_path.iterdir()) == sorted([moved, tmp_path / own])
    with pytest.raises(KeyError), atomic_folder(tmp_path / other):
        raise KeyError
    assert sorted(tmp_path.iterdir()) == sorted([tmp_path / own, tmp_path / other])


def test_a_folder_of_something_else_is_not_replaced(tmp_path):
    require_replaceable(tmp_path / "new", "card.json", "recipe")
    (tmp_path / "empty").mkdir()
    require_replaceable(tmp_path / "empty", "card.json", "recipe")
    ours = tmp_path / "ours"
    write_json(ours / "card.json", {"recipe": {}})
    require_replaceable(ours, "card.json", "recipe")
    for content in ("no card", '["recipe"]', '{"format": "onnx"}'):
        (ours / "card.json").write_text(content)
        with pytest.raises(UserError, match=r"ours is written as a whole and holds something else \(card.json\)"):
            require_replaceable(ours, "card.json", "recipe")
    with pytest.raises(UserError, match="is a file"):
        require_replaceable(ours / "card.json", "card.json", "recipe")


def test_a_users_own_files_are_not_replaced(tmp_path):
    ours = tmp_path / "ours"
    write_json(ours / "card.json", {"recipe": {}})
    (ours / "model.onnx").write_text("x")
    (ours / ".DS_Store").write_text("x")
    names = ("card.json", "model.*")
    require_replaceable(ours, "card.json", "recipe", names)
    assert require_ours(ours, names) == ["card.json", "model.onnx"]
    assert require_ours(tmp_path / "new", names) == []
    (ours / "NOTES.md").write_text("x")
    for check in (lambda: require_replaceable(ours, "card.json", "recipe", names), lambda: require_ours(ours, names)):
        with pytest.raises(UserError, match=r"holds something else \(NOTES\.md\), which would be lost"):
            check()


def test_a_link_goes_on_leading_to_the_new_folder(tmp_path):
    (tmp_path / "disk" / "model").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "model")
    with atomic_folder(tmp_path / "link") as folder:
        (folder / "weights").write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "disk" / "model" / "weights").read_text() == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "link"]
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["model"]


def test_all_files_of_a_folder_follow_the_umask(tmp_path):
    with atomic_folder(tmp_path / "bundle") as folder:
        (folder / "members").mkdir()
        for file in (folder / "a", folder / "members" / "b"):
            file.touch(mode=0o600)
    plain = tmp_path / "plain"
    plain.touch()
    for file in ("a", "members/b"):
        assert (tmp_path / "bundle" / file).stat().st_mode == plain.stat().st_mode


@pytest.mark.parametrize("begins", ["a folder", "nothing"])
@pytest.mark.parametrize("step", [0, 1])
def test_of_two_writers_at_once_the_last_folder_stays_and_nothing_else(tmp_path, monkeypatch, begins, step):
    """Another writer takes its turn as a whole right before one of the steps in which a folder is replaced."""
    path, move, steps = tmp_path / "bundle", Path.replace, []

    def write(name: str) -> None:
        with atomic_folder(path) as folder:
            (folder / name).write_text("")

    def meet(source: Path, target: Path) -> Path:
        steps.append(source)
        if len(steps) == step + 1:
            write("other")
        return move(source, target)

    if begins == "a folder":
        write("earlier")
    monkeypatch.setattr(Path, "replace", meet)
    write("own")
    monkeypatch.undo()
    assert [file.name for file in path.iterdir()] == ["own"]
    assert [file.name for file in tmp_path.iterdir()] == ["bundle"]


def test_a_folder_that_another_writer_has_just_moved_is_no_fault(tmp_path, monkeypatch):
    path, move = tmp_path / "bundle", Path.replace
    path.mkdir()

    def meet(source: Path, target: Path) -> Path:
        if source == path:
            path.rmdir()
        return move(source, target)

    monkeypatch.setattr(Path, "replace", meet)
    with atomic_folder(path) as folder:
        (folder / "own").write_text("")
    assert [file.name for file in path.iterdir()] == ["own"]


def test_the_earlier_folder_is_back_when_the_new_one_cannot_take_its_place(tmp_path, monkeypatch):
    path, move = tmp_path / "bundle", Path.replace
    with atomic_folder(path) as folder:
        (folder / "earlier").write_text("")

    def fail(source: Path, target: Path) -> Path:
        if source.suffix == ".tmp":
            raise OSError(28, "No space left on device", str(source))
        return move(source, target)

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(UserError, match="the disk is full"), atomic_folder(path):
        pass
    assert [file.name for file in path.iterdir()] == ["earlier"]
    assert [file.name for file in tmp_path.iterdir()] == ["bundle"]


@pytest.mark.parametrize("error", [ValueError("no"), FileNotFoundError(2, "No such file", "/input.jpg")])
def test_atomic_folder_passes_errors_of_the_block_on(tmp_path, error):
    """A missing input is not a fault of writing; nothing of the new folder stays."""
    path = tmp_path / "bundle"
    with atomic_folder(path) as folder:
        (folder / "old").write_text("")

    def fail() -> None:
        with atomic_folder(path) as folder:
            (folder / "new").write_text("")
            raise error

    with pytest.raises(type(error)) as caught:
        fail()
    assert caught.value is error
    assert [file.name for file in path.iterdir()] == ["old"]
    assert [file.name for file in tmp_path.iterdir()] == ["bundle"]


def test_unreadable_input_in_a_block_is_not_said_to_be_unwritable(tmp_path):
    error = PermissionError(13, "Permission denied", str(tmp_path / "input.jpg"))
    with pytest.raises(PermissionError) as caught, atomic_folder(tmp_path / "bundle"):
        raise error
    assert caught.value is error


def test_write_json_is_sorted_and_refuses_nan(tmp_path):
    write_json(tmp_path / "x.json", {"b": "ä", "a": [1.5]})
    assert (tmp_path / "x.json").read_text(encoding="utf-8") == '{\n  "a": [\n    1.5\n  ],\n  "b": "ä"\n}\n'
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "x.json", {"a": float("nan")})
    assert json.loads((tmp_path / "x.json").read_text(encoding="utf-8"))["b"] == "ä"


def test_sha256_file(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    assert sha256_file(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_nearest():
    assert nearest("galxy", ["galaxy", "emotion"]) == " Did you mean 'galaxy'?"
    assert nearest("xyz", ["galaxy"]) == ""
