"""What holds for every shipped dataset and task, on drawn data: nothing leaks, everything is the same everywhere."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datamodules.hashes import content_hashes
from datamodules.prepare import Prepared, prepare_table
from datamodules.preparing import open_source
from datamodules.sample.drawn import draw_set
from launch.app import CONF
from launch.compose import Composer
from launch.config import first_config
from launch.prepare_schema import PrepareConfig
from launch.schema import Data, Task

ROOT = Path(__file__).resolve().parents[1]
COUNT = 64


def settings(*arguments: str) -> PrepareConfig:
    composer = Composer("prepare", CONF)
    return PrepareConfig.model_validate(first_config(composer, composer.parse(list(arguments), multirun=False)))


CASES = [
    (name, task)
    for name, data in settings("data=sample").chosen().items()
    for task in settings("data=sample").tasks(data)
]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("all")
    for name in settings("data=sample").chosen():
        draw_set(name, folder / "sample" / name, COUNT, seed=0, workers=1)
    return folder


def prepared(root: Path, name: str, task_name: str, keep: str = "cache", **changes: Any) -> tuple[Prepared, Any]:
    """As ``make_pixels``, without pixels; ``keep`` is the folder of face boxes and hashes."""
    config = settings("data=sample", f"paths.data={root}")
    data: Data = config.chosen()[name]
    task: Task = config.tasks(data)[task_name]
    assert data.model_extra is not None
    if "cache_root" in data.model_extra:
        data.model_extra["cache_root"] = str(root / keep)
    source = open_source(data, download=False)
    source.prepare()
    records = source.records()
    hashes = content_hashes(source, records, root / keep / f"{name}.parquet")
    given = {"size": data.size, "split": (data.val_fraction, data.test_fraction), "split_seed": data.split_seed}
    classes = data.classes if task.kind == "classification" else None
    made = prepare_table(records, task.kind, task.target, classes, hashes=hashes, **(given | changes))
    return made, records


def fingerprints(root: Path, keep: str = "cache") -> dict[str, str]:
    return {f"{name}/{task}": prepared(root, name, task, keep)[0].fingerprint for name, task in CASES}


def reordered(monkeypatch: pytest.MonkeyPatch, order: Callable[[list[Any], Callable[[Any], str]], list[Any]]) -> None:
    """Every listing of a folder comes in another order."""
    scandir, listdir = os.scandir, os.listdir

    class Listing:
        def __init__(self, path: Any = ".") -> None:
            with scandir(path) as found:
                self.entries = iter(order(list(found), lambda entry: entry.name))

        def __iter__(self) -> Iterator[Any]:
            return self.entries

        def __next__(self) -> Any:
            return next(self.entries)

        def __enter__(self) -> "Listing":
            return self

        def __exit__(self, *error: object) -> None:
            self.close()

        def close(self) -> None:
            pass

    monkeypatch.setattr(os, "scandir", Listing)
    monkeypatch.setattr(os, "listdir", lambda path=".": order(listdir(path), str))


def shuffled(entries: list[Any], name: Callable[[Any], str]) -> list[Any]:
    ordered = sorted(entries, key=name)
    return [ordered[place] for place in np.random.default_rng(len(ordered)).permutation(len(ordered))]


def without_case(entries: list[Any], name: Callable[[Any], str]) -> list[Any]:
    return sorted(entries, key=lambda entry: name(entry).lower(), reverse=True)


@pytest.mark.parametrize(("name", "task"), CASES)
@pytest.mark.parametrize("split_seed", [0, 1])
def test_nothing_that_belongs_together_is_separated(root: Path, name: str, task: str, split_seed: int) -> None:
    made, records = prepared(root, name, task, split_seed=split_seed)
    table = made.table
    assert set(table["split"]) == {"train", "val", "test"}
    declared = records.table.set_index("key")
    for column in ("hash", "file", "group"):
        if column in table:
            assert (table.groupby(column)["split"].nunique() == 1).all(), column
    if "group" in declared:
        own = table.assign(own=declared.loc[table["key"], "group"].to_numpy())
        assert (own.dropna(subset="own").groupby("own")["split"].nunique() == 1).all()


@pytest.mark.parametrize(("name", "task"), CASES)
def test_every_example_is_used_or_accounted_for(root: Path, name: str, task: str) -> None:
    made, records = prepared(root, name, task, size=40)
    read = len(records.table) + sum(records.dropped.values())
    assert read == COUNT
    assert len(made.table) + sum(made.dropped.values()) == read
    assert len(made.table) <= 40
    assert sum(sum(counts.values()) for counts in made.counts.values()) == len(made.table)


def test_drawn_sets_have_what_must_not_be_separated(root: Path) -> None:
    """Otherwise the test above could not fail."""
    for name, task, column in (
        ("galaxy10", "galaxy", "hash"), ("utkface", "age_class", "hash"), ("expw", "emotion", "file"),
        ("wflw", "landmarks", "file"),
    ):  # fmt: skip
        table = prepared(root, name, task)[0].table
        assert table[column].duplicated().any(), name


@pytest.mark.parametrize("order", [shuffled, without_case])
def test_the_order_of_listings_changes_nothing(root: Path, monkeypatch: pytest.MonkeyPatch, order: Any) -> None:
    expected = fingerprints(root)
    reordered(monkeypatch, order)
    chips = root / "sample" / "utkface" / "UTKFace"
    for listing in (chips.iterdir(), chips.rglob("*"), chips.parent.rglob("*.jpg")):
        names = [path.name for path in listing]
        assert names != sorted(names)
    assert fingerprints(root) == expected


def test_another_process_finds_the_same(root: Path) -> None:
    code = (
        "import json, sys; from pathlib import Path; from tests.test_all_datasets import fingerprints\n"
        "print(json.dumps(fingerprints(Path(sys.argv[1]), 'other')))"
    )
    environment = os.environ | {"PYTHONHASHSEED": "7", "LC_ALL": "C", "TZ": "Pacific/Auckland"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(root)], capture_output=True, text=True, check=True, cwd=ROOT, env=environment
    )
    assert json.loads(done.stdout.splitlines()[-1]) == fingerprints(root)


def test_both_age_tasks_use_the_same_pictures_in_the_same_splits(root: Path) -> None:
    one, other = (prepared(root, "utkface", task, size=40)[0].table for task in ("age_class", "age_regression"))
    assert list(zip(one["key"], one["split"], strict=True)) == list(zip(other["key"], other["split"], strict=True))
