import itertools
from collections import Counter

import numpy as np
import pandas as pd
import pytest

from datamodules.base import Records
from datamodules.classes import map_classes
from datamodules.prepare import Prepared, prepare_table
from datamodules.splits import assign_splits, merge_groups, split_name
from launch.errors import DataError


def labelled(counts: dict[str, int], **columns: list) -> Records:
    labels = [name for name, count in counts.items() for _ in range(count)]
    keys = [f"p{number:04d}.png" for number in range(len(labels))]
    return Records(pd.DataFrame({"key": keys, "file": keys, "label": labels} | columns))


def own_hashes(records: Records) -> dict[str, str]:
    return {key: f"hash of {key}" for key in records.table["key"]}


def prepare(records: Records, kind="classification", **changes) -> Prepared:
    options = {
        "target": None, "classes": None, "size": "full", "split": (0.15, 0.15), "split_seed": 0,
        "hashes": own_hashes(records),
    } | changes  # fmt: skip
    return prepare_table(records, kind, **options)


def test_every_class_is_in_every_split_in_the_fractions() -> None:
    prepared = prepare(labelled({"a": 100, "b": 40, "c": 3, "d": 2}))
    assert prepared.classes == ["a", "b", "c", "d"]
    assert prepared.counts == {
        "train": {"a": 70, "b": 28, "c": 1, "d": 2},
        "val": {"a": 15, "b": 6, "c": 1, "d": 0},
        "test": {"a": 15, "b": 6, "c": 1, "d": 0},
    }


def test_order_of_the_records_does_not_matter() -> None:
    records = labelled({"a": 30, "b": 20})
    shuffled = Records(records.table.sample(frac=1, random_state=1))
    one, other = prepare(records, size=30), prepare(shuffled, size=30)
    assert one.fingerprint == other.fingerprint
    pd.testing.assert_frame_equal(one.table, other.table)


def test_the_fingerprint_is_the_same_everywhere_and_changes_with_everything() -> None:
    def fingerprint(box: float = 1.0, value: float = 0.5, key: str = "a.png", content: str = "h", seed: int = 0) -> str:
        table = pd.DataFrame({"key": [key, *(f"k{n}" for n in range(9))]})
        table["value"] = [value, *np.arange(9) / 3]
        for side, offset in zip(("left", "top", "right", "bottom"), (0, 0, 9, 9), strict=True):
            table[side] = box + offset
        hashes = {name: content + name for name in table["key"]}
        return prepare(Records(table), "regression", hashes=hashes, split_seed=seed).fingerprint

    pinned = "d6b35ad68c610169272580898d6a80d77c9053fb150c394161264acbf2a78364"
    assert fingerprint() == pinned
    others = [fingerprint(box=2), fingerprint(value=0.25), fingerprint(key="b.png"), fingerprint(content="i")]
    assert len({pinned, *others, fingerprint(seed=1)}) == 6


def test_linked_examples_never_straddle() -> None:
    """Two faces of one file, equal pictures and declared groups hang together through any chain."""
    records = labelled({"a": 60, "b": 60})
    table = records.table.copy()
    table["file"] = [f"f{row // 2}" for row in range(120)]
    table["group"] = [f"person {row % 40}" if row % 3 else None for row in range(120)]
    hashes = {key: f"h{row % 50}" if row < 100 else key for row, key in enumerate(table["key"])}
    prepared = prepare(Records(table), hashes=hashes)
    place = prepared.table.set_index("key")["split"]
    links = [table["file"], table["group"], table["key"].map(hashes)]
    for column in links:
        for _, keys in table["key"].groupby(column):
            assert place[keys].nunique() == 1


@pytest.mark.parametrize("linking", ["of a class that is not learned", "a copy of a test picture"])
def test_what_a_dropped_example_links_stays_together(linking: str) -> None:
    records = labelled({"a": 40, "b": 40})
    table = records.table.copy()
    table["group"] = [f"p{row}" for row in range(80)]
    hashes = {key: key for key in table["key"]}
    first, between, last = table["key"][5], table["key"][6], table["key"][7]
    table.loc[6, "group"] = "p5"  # the same person as the first, the same picture as the last
    hashes[between] = hashes[last]
    classes = None
    if linking == "of a class that is not learned":
        table.loc[6, "label"], classes = "c", ["a", "b"]
    else:
        table["split"] = ["test" if row == 7 or row > 70 else "train" for row in range(80)]
    left = prepare(Records(table), classes=classes, hashes=hashes).table.set_index("key")
    assert between not in left.index
    assert left["group"][first] == left["group"][last] == first


def test_merge_groups_names_a_group_by_its_smallest_key() -> None:
    keys = ["d", "a", "c", "b", "e"]
    groups = merge_groups(keys, [["x", None, "x", None, None], [1, float("nan"), 2, 2, float("nan")]])
    assert groups == ["b", "a", "b", "b", "e"]


def test_a_group_too_large_for_the_fraction_goes_to_train() -> None:
    groups = ["big"] * 90 + [f"g{number}" for number in range(10)]
    splits, _ = assign_splits(groups, np.zeros(100, int), (0.05, 0.05), 0)
    assert set(splits[:90]) == {"train"}
    assert Counter(splits) == {"train": 90, "val": 5, "test": 5}


@pytest.mark.parametrize("fractions", [(0.15, 0.15), (0.45, 0.5), (0.0, 0.2), (0.3, 0.0), (0.0, 0.0)])
@pytest.mark.parametrize("count", [3, 4, 7, 50])
def test_fractions_leave_something_for_each(count, fractions) -> None:
    splits, _ = assign_splits([str(number) for number in range(count)], np.zeros(count, int), fractions, 3)
    found = Counter(splits)
    for name, fraction in zip(("val", "test"), fractions, strict=True):
        assert (found[name] > 0) == (fraction > 0)
        assert abs(found[name] - fraction * count) < 1.5  # one group is left for train
    assert found["train"] > 0


def test_regression_is_stratified_by_quantile() -> None:
    table = pd.DataFrame({"key": [f"{number:04d}" for number in range(400)], "value": np.linspace(0, 1, 400) ** 4})
    prepared = prepare(Records(table), "regression")
    by_tenth = prepared.table.groupby([np.arange(400) // 40, "split"]).size().unstack()
    assert (by_tenth["val"] == 6).all()
    assert (by_tenth["test"] == 6).all()


def test_sizes_are_nested_and_even() -> None:
    records = labelled({"a": 100, "b": 50, "c": 4})
    chosen = [prepare(records, size=size) for size in (20, 21, 60, 154, 1000)]
    for small, large in itertools.pairwise(chosen):
        assert set(small.table["key"]) <= set(large.table["key"])
    assert [len(prepared.table) for prepared in chosen] == [20, 21, 60, 154, 154]
    assert Counter(chosen[2].table["target"]) == {0: 28, 1: 28, 2: 4}
    assert chosen[2].dropped == {"downsampled to data.size": 94}
    assert chosen[3].dropped == {}
    other = prepare(records, size=60, split_seed=1)
    assert set(other.table["key"]) != set(chosen[2].table["key"])


def test_classes_of_two_groups_each_are_cut_as_one() -> None:
    """Eight patients, two of each class, five pictures of each patient."""
    groups = [f"patient {number // 5}" for number in range(40)]
    strata = np.arange(40) // 10
    splits, _ = assign_splits(groups, strata, (0.15, 0.15), 0)
    assert Counter(splits) == {"train": 30, "val": 5, "test": 5}
    assert len(set(zip(groups, splits, strict=True))) == 8  # no patient in two splits
    assert set(strata[splits == "train"]) == set(strata)  # each class can be learned
    lone, _ = assign_splits(groups, np.minimum(strata, 1), (0.15, 0.15), 0)  # one class has six: the other is all train
    assert set(lone[strata == 0]) == {"train"}


def test_official_splits_are_kept_and_completed_from_train() -> None:
    words = ["train"] * 60 + ["test"] * 40
    prepared = prepare(labelled({"a": 50, "b": 50}, split=words))
    assert (prepared.table["split"][60:] == "test").all()
    assert Counter(prepared.table["split"][:60]) == {"train": 50, "val": 10}
    assert prepared.notes == ["the official splits have no val: carved from train"]

    words = ["training"] * 60 + ["valid"] * 40
    prepared = prepare(labelled({"a": 50, "b": 50}, split=words))
    assert (prepared.table["split"][60:] == "val").all()
    assert Counter(prepared.table["split"][:60]) == {"train": 50, "test": 10}

    prepared = prepare(labelled({"a": 50, "b": 50}, split=["train"] * 40 + ["val"] * 10 + ["test"] * 50))
    assert prepared.notes == ["no training example of b: such pictures cannot be answered rightly"]

    prepared = prepare(labelled({"a": 50, "b": 50}, split=["test"] * 100))
    assert Counter(prepared.table["split"]) == {"train": 68, "val": 16, "test": 16}
    assert "all examples are officially test" in prepared.notes[0]


def test_official_copies_in_train_and_test_are_left_out_of_train() -> None:
    records = labelled({"a": 20, "b": 20}, split=["train", "test"] * 20)
    hashes = own_hashes(records)
    keys = list(records.table["key"])
    hashes[keys[0]] = hashes[keys[1]]
    prepared = prepare(records, hashes=hashes)
    assert keys[0] not in set(prepared.table["key"])
    assert keys[1] in set(prepared.table["key"])
    assert prepared.dropped == {"same picture in a later official split": 1}


def test_declared_groups_that_straddle_official_splits_are_noted() -> None:
    records = labelled({"a": 20, "b": 20}, split=["train", "test"] * 20, group=[f"g{n // 2}" for n in range(40)])
    assert "20 groups straddle the official splits, which were kept as published" in prepare(records).notes


def test_odd_official_splits_are_refused() -> None:
    with pytest.raises(DataError, match=r"'tran' is not a split.*Did you mean 'train'"):
        prepare(labelled({"a": 2, "b": 2}, split=["tran"] * 4))
    with pytest.raises(DataError, match="2 of 4 examples have no official split"):
        prepare(labelled({"a": 2, "b": 2}, split=["train", "test", None, None]))
    with pytest.raises(DataError, match="nothing to train on"):
        prepare(labelled({"a": 2, "b": 2}, split=["val", "test"] * 2))
    assert split_name(" Validation ") == "val"


def test_copies_with_other_targets_are_noted_and_kept_together() -> None:
    records = labelled({"a": 20, "b": 20})
    keys = list(records.table["key"])
    hashes = own_hashes(records) | {keys[0]: "same", keys[39]: "same", keys[1]: "also", keys[2]: "also"}
    prepared = prepare(records, hashes=hashes)
    assert prepared.notes == ["1 pictures occur more than once with different targets"]
    assert prepared.table.set_index("key").loc[[keys[0], keys[39]], "split"].nunique() == 1


def test_classes_are_kept_joined_renamed_and_dropped() -> None:
    records = labelled({"cat": 10, "dog": 10, "wolf": 10, "cup": 10})
    prepared = prepare(records, classes=["wolf", "cat"])
    assert prepared.classes == ["wolf", "cat"]
    assert Counter(prepared.table["target"]) == {0: 10, 1: 10}
    assert prepared.dropped == {"class not in data.classes": 20}
    prepared = prepare(records, classes={"canine": ["dog", "wolf"], "thing": "cup"})
    assert prepared.classes == ["canine", "thing"]
    assert Counter(prepared.table["target"]) == {0: 20, 1: 10}


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (["cat", "dgo"], "there is no class 'dgo'. Did you mean 'dog'.*The classes are: cat, dog"),
        ({"x": ["cat"], "y": ["cat", "dog"]}, "'cat' is used twice"),
        ({"x": [], "y": ["dog"]}, "class 'x' has no members"),
        (["cat"], "only one class, 'cat'"),
    ],
)
def test_wrong_class_maps_are_refused(classes, message) -> None:
    with pytest.raises(DataError, match=message):
        prepare(labelled({"cat": 5, "dog": 5}), classes=classes)


def test_class_order() -> None:
    assert map_classes(["10", "9", "2"], None, None)[1] == ["2", "9", "10"]
    assert map_classes(["b", "a"], None, ["c", "b", "a"])[1] == ["b", "a"]
    assert map_classes(["1", "2"], [1, 2], None) == (["1", "2"], ["1", "2"])


def test_missing_targets_are_dropped_with_the_reason() -> None:
    table = pd.DataFrame(
        {"key": list("abcdefgh"), "value": [1.0, 2, np.nan, 4, np.inf, 6, 7, 8], "label": [*"xxyyzz", None, ""]}
    )
    assert prepare(Records(table, {"odd name": 2}), "regression").dropped == {"odd name": 2, "no value": 2}
    assert prepare(Records(table)).dropped == {"no label": 2}
    points = [np.zeros((3, 2))] * 7 + [np.full((3, 2), np.nan)]
    prepared = prepare(Records(table.assign(points=points)), "keypoints")
    assert prepared.dropped == {"no points": 1}
    with pytest.raises(DataError, match="more points than others"):
        prepare(Records(table.assign(points=[np.zeros((2 + n % 2, 2)) for n in range(8)])), "keypoints")


def test_impossible_requests_are_refused() -> None:
    records = labelled({"a": 5, "b": 5})
    with pytest.raises(DataError, match=r"no column 'lable'.*Did you mean 'label'"):
        prepare(records, target="lable")
    with pytest.raises(DataError, match="no column 'value'"):
        prepare(records, "regression")
    for size in (0, -1, True, "all"):
        with pytest.raises(DataError, match=r"data\.size"):
            prepare(records, size=size)
    with pytest.raises(DataError, match="leaves no example"):
        prepare(records, size=1)
    for split in ((0.5, 0.5), (-0.1, 0.1), (0.1, 1.0)):
        with pytest.raises(DataError, match=r"data\.val_fraction"):
            prepare(records, split=split)
    twice = Records(pd.concat([records.table, records.table[:1]]))
    with pytest.raises(DataError, match="Two examples have the key"):
        prepare(twice)


def test_the_fingerprint_covers_classes_and_who_has_which() -> None:
    records = labelled({"a": 10, "b": 10}, split=["train", "val", "test", "train"] * 5)
    swapped = records.table["label"].tolist()
    swapped[0], swapped[-1] = swapped[-1], swapped[0]  # both are for training
    made = [
        prepare(records),
        prepare(records, classes=["b", "a"]),
        prepare(records, classes={"a": "a", "c": "b"}),
        prepare(Records(records.table.assign(label=swapped))),
    ]
    assert len({prepared.fingerprint for prepared in made}) == 4
    assert prepare(records, classes=["a", "b"]).fingerprint == made[0].fingerprint


def test_examples_stay_linked_through_one_that_is_not_kept() -> None:
    """Four in a row hang together as a chain: a file, equal pictures, a file."""
    records = labelled({"a": 80, "b": 80})
    table = records.table.assign(file=[f"f{row // 2}" for row in range(160)])
    hashes = {key: f"h{(row + 1) // 2}" if row % 4 in (1, 2) else key for row, key in enumerate(table["key"])}
    prepared = prepare(Records(table), hashes=hashes, size=80)
    chain = prepared.table["key"].str[1:5].astype(int) // 4
    assert chain.value_counts().min() < 4
    assert prepared.table.groupby(chain)["split"].nunique().max() == 1


def test_numbers_that_name_classes_are_whole() -> None:
    assert prepare(labelled({1.0: 5, 2.0: 5, 10.0: 5})).classes == ["1", "2", "10"]  # as a column with gaps is read


def test_a_group_of_several_classes_counts_where_most_of_it_lies() -> None:
    groups = [*(f"a{number}" for number in range(3)), *["mixed"] * 4, *(f"b{number}" for number in range(2))]
    strata = np.array([0, 0, 0, 0, 1, 1, 1, 1, 1])
    for seed in range(5):
        splits, _ = assign_splits(groups, strata, (0.3, 0.3), seed)
        assert Counter(splits[:3]) == {"train": 1, "val": 1, "test": 1}  # else a split had none of the class


def test_faces_of_one_picture_may_differ() -> None:
    records = labelled({"a": 10, "b": 10})
    box = {side: [10.0 * (row // 2) for row in range(20)] for side in ("left", "top", "right", "bottom")}
    boxed = Records(records.table.assign(**box).assign(file="one.png", label=["a", "b"] * 10))
    hashes = dict.fromkeys(records.table["key"], "same")
    assert "10 pictures occur more than once with different targets" in prepare(boxed, hashes=hashes).notes
    alone = Records(boxed.table.assign(left=np.arange(20.0)))
    assert not any("different targets" in note for note in prepare(alone, hashes=hashes).notes)
