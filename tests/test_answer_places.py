"""Where ``predict.py`` writes: earlier answers and drawings of its own are replaced, nothing else is."""

from pathlib import Path

from merging.picture_list import list_pictures


def test_a_globs_pictures_come_sorted(tmp_path: Path) -> None:
    names = [f"{folder}/{number}.png" for folder in "ab" for number in range(9)]
    for name in reversed(names):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = [str(path.relative_to(tmp_path)) for path in list_pictures([f"{tmp_path}/**/*.png"])]
    assert found == names
