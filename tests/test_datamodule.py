import pickle
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch

from datamodules.base import Records, Source
from datamodules.batches import BatchOrder, PictureBatches, epoch_order, eval_bounds, train_bounds
from datamodules.datamodule import ImageDataModule, normalize
from datamodules.image_csv import ImageCsv
from datamodules.image_folder import ImageFolder
from datamodules.transforms import Augment
from launch.errors import DataError
from tests.picture_files import AUGMENT, folder_data, noise, write_classes, write_picture


def epoch_of(data: ImageDataModule, epoch: int = 0) -> list[dict[str, torch.Tensor]]:
    loader = data.train_dataloader()
    loader.sampler.set_epoch(epoch)
    return list(loader)


def equal(one: list, other: list) -> bool:
    return len(one) == len(other) and all(
        torch.equal(left[key], right[key]) for left, right in zip(one, other, strict=True) for key in left
    )


def test_classification_batches(tmp_path: Path) -> None:
    data = folder_data(tmp_path)
    assert data.classes == ["ash", "elm", "oak"]
    assert data.num_outputs == 3
    assert data.target_mean is None
    assert data.fit == "crop"
    assert {split: sum(counts.values()) for split, counts in data.counts.items()} == {
        "train": 52,
        "val": 11,
        "test": 11,
    }
    batches = epoch_of(data)
    assert len(batches) == len(data.train_dataloader()) == 6  # 52 // 8: the partial batch is left out
    batch = batches[0]
    assert batch["image"].shape == (8, 16, 16, 3)
    assert batch["image"].dtype == torch.uint8
    assert batch["target"].dtype == batch["index"].dtype == torch.int64
    for batch in (*batches, *data.val_dataloader()):
        assert batch["target"].tolist() == [data.table["target"][row] for row in batch["index"].tolist()]
    seen = torch.cat([batch["index"] for batch in batches])
    assert len(set(seen.tolist())) == 48
    assert set(data.table["split"][seen.numpy()]) == {"train"}


def test_evaluation_goes_through_everything_in_order(tmp_path: Path) -> None:
    data = folder_data(tmp_path)
    for split, loader in (("val", data.val_dataloader()), ("test", data.test_dataloader())):
        batches = list(loader)
        assert [len(batch["index"]) for batch in batches] == [8, 3]
        index = torch.cat([batch["index"] for batch in batches]).numpy()
        np.testing.assert_array_equal(index, np.flatnonzero(data.table["split"] == split))
    assert equal(list(data.predict_dataloader()), list(data.test_dataloader()))
    plain = torch.cat([batch["index"] for batch in data.plain_dataloader("train")])
    assert len(plain) == 52
    first = next(iter(data.plain_dataloader("train")))
    cached = np.load(next((tmp_path / "cache").glob("leaves-*/pixels.npy")), mmap_mode="r")
    np.testing.assert_array_equal(first["image"], cached[first["index"]])
    with pytest.raises(DataError, match="'dev' is not a split"):
        data.plain_dataloader("dev")


def test_the_last_of_some_are_as_mixed_as_the_first(tmp_path: Path) -> None:
    """Merges hold the last ones out; in the order of the table those were of one class."""
    data = folder_data(tmp_path)
    for count in (40, 500):
        some = torch.cat([batch["target"] for batch in data.plain_dataloader("train", count)])
        assert len(some) == min(count, 52)
        assert torch.equal(some, data.targets("train", count))
        assert set(some[-10:].tolist()) >= {0, 2}
        assert set(some[:10].tolist()) >= {0, 2}
    drawn = torch.cat([batch["index"] for batch in data.plain_dataloader("train", 40)])
    assert len(set(drawn.tolist())) == 40
    assert torch.equal(drawn, torch.cat([batch["index"] for batch in data.plain_dataloader("train", 52)])[:40])
    assert torch.equal(drawn, torch.cat([batch["index"] for batch in data.view_dataloader(1, 40)]))


@pytest.mark.parametrize(
    ("wrong", "text"),
    [({"classes": ["ash", "oka"]}, "no class 'oka'. Did you mean 'oak'"), ({"target": "labl"}, "no column 'labl'")],
)
def test_what_is_misspelt_is_told_before_any_picture_is_read(tmp_path: Path, monkeypatch, wrong, text) -> None:
    monkeypatch.setattr(ImageFolder, "digest", lambda source, row: pytest.fail("a picture was read"))
    with pytest.raises(DataError, match=text):
        folder_data(tmp_path, **wrong)


def test_same_bytes_for_any_number_of_workers(tmp_path: Path) -> None:
    alone, helped = folder_data(tmp_path, num_workers=0), folder_data(tmp_path, num_workers=2)
    cv2.GaussianBlur(np.zeros((3000, 3000, 3), np.uint8), (9, 9), 2)  # a pool of OpenCV's would now hang the workers
    assert cv2.getNumThreads() == 1
    loader = helped.train_dataloader()
    for epoch in (0, 3):
        loader.sampler.set_epoch(epoch)
        assert equal(epoch_of(alone, epoch), list(loader))
    assert equal(list(alone.val_dataloader()), list(helped.val_dataloader()))


def test_order_and_augmentation_depend_on_seed_and_epoch(tmp_path: Path) -> None:
    data = folder_data(tmp_path)
    assert equal(epoch_of(data, 2), epoch_of(folder_data(tmp_path), 2))
    orders = [torch.cat([batch["index"] for batch in epoch_of(data, epoch)]).tolist() for epoch in range(3)]
    orders.append(torch.cat([batch["index"] for batch in epoch_of(folder_data(tmp_path, seed=1))]).tolist())
    assert len({tuple(order) for order in orders}) == 4
    images = {}
    for epoch in range(2):
        for batch in epoch_of(data, epoch):
            for row, image in zip(batch["index"].tolist(), batch["image"], strict=True):
                images[epoch, row] = image
    both = [row for epoch, row in images if epoch == 0 and (1, row) in images]
    assert all(not torch.equal(images[0, row], images[1, row]) for row in both)


def test_a_loader_goes_on_in_the_middle_of_an_epoch(tmp_path: Path) -> None:
    data = folder_data(tmp_path)
    whole = epoch_of(data, 1)
    loader = data.train_dataloader()
    loader.sampler.set_epoch(1)
    iterator = iter(loader)
    for _ in range(2):
        next(iterator)
    state = loader.state_dict()
    for workers in (0, 2):
        again = folder_data(tmp_path, num_workers=workers).train_dataloader()
        again.load_state_dict(state)
        again.sampler.set_epoch(1)
        assert equal(list(again), whole[2:])
        assert again.state_dict() == {"given": 6}
        assert equal(list(again), whole)  # only once
    again.load_state_dict({"given": 6})  # saved at the end of an epoch: the next one is whole
    assert equal(list(again), whole)


def test_regression_targets(tmp_path: Path) -> None:
    for number in range(30):
        write_picture(tmp_path / f"{number:02d}.png", noise(number))
    rows = "\n".join(f"{number:02d}.png,{number / 2}" for number in range(30))
    (tmp_path / "labels.csv").write_text("file,value\n" + rows)
    source = ImageCsv(tmp_path, kind="regression")
    data = ImageDataModule(source, "regression", image_size=16, batch_size=100, cache_root=tmp_path / "cache")
    data.prepare_data()
    data.setup()
    (batch,) = data.train_dataloader()  # fewer than a batch: one partial batch
    assert batch["target"].shape == (22, 1)
    assert batch["target"].dtype == torch.float32
    torch.testing.assert_close(batch["target"][:, 0], batch["index"] / 2)
    assert data.num_outputs == 1
    assert data.target_mean == pytest.approx([batch["target"].mean().item()])
    assert data.counts["train"] == {"all": 22}
    assert data.target_scale == 1.0, "numbers near one are learned as they are"
    for unit in (1000, 0.001):
        far = "\n".join(f"{number:02d}.png,{number * unit}" for number in range(30))
        (tmp_path / "labels.csv").write_text("file,value\n" + far)
        data = ImageDataModule(ImageCsv(tmp_path, kind="regression"), "regression", image_size=16, cache_root=tmp_path)
        data.prepare_data()
        data.setup()
        assert data.target_scale == pytest.approx(data.targets("train").std(correction=0).item())


def test_keypoints_move_with_their_pictures(tmp_path: Path) -> None:
    """A dot is drawn at each point; after cache, flip, rotation and workers the dots are where the targets say."""
    rows = ["file,x0,y0,x1,y1"]
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:40, :60] + 0.5
    for number in range(24):
        points = rng.uniform((18, 12), (42, 28), (2, 2))
        picture = np.zeros((40, 60, 3))
        for channel, (px, py) in enumerate(points):
            picture[..., channel] = 255 * np.exp(-((x - px) ** 2 + (y - py) ** 2) / 10)
        write_picture(tmp_path / f"{number:02d}.png", picture.astype(np.uint8))
        rows.append(f"{number:02d}.png,{points[0, 0]},{points[0, 1]},{points[1, 0]},{points[1, 1]}")
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    data = ImageDataModule(
        ImageCsv(tmp_path, kind="keypoints"), "keypoints", image_size=64, batch_size=8, cache_root=tmp_path / "cache",
        augment={"hflip": True, "rotate": 30, "scale": 0.1}, flip_index=[1, 0],
    )  # fmt: skip
    data.prepare_data()
    data.setup()
    assert data.fit == "pad"
    assert data.num_outputs == len(data.target_mean) == 4
    grid = ((torch.arange(64) + 0.5) / 64)[:, None]
    for batch in (*data.train_dataloader(), *data.val_dataloader()):
        assert batch["target"].shape[1:] == (2, 2)
        weight = batch["image"][..., :2].float()
        total = weight.sum((1, 2))
        seen = torch.stack([(weight.sum(1) * grid).sum(1), (weight.sum(2) * grid).sum(1)], -1) / total[..., None]
        straight = (seen - batch["target"]).abs().amax((1, 2))
        mirrored = (seen.flip(1) - batch["target"]).abs().amax((1, 2))
        assert torch.minimum(straight, mirrored).max() < 0.01


def test_broken_pictures_are_named_and_counted(tmp_path: Path) -> None:
    root = write_classes(tmp_path / "leaves", {"ash": 40, "oak": 30, "elm": 4})
    torn = root / "ash" / "003.png"
    torn.write_bytes(torn.read_bytes()[:600])
    data = folder_data(tmp_path)
    assert list(data.broken) == ["ash/003.png"]
    assert data.dropped == {"broken picture": 1}
    assert len(data.table) == 73
    assert sum(data.counts[split]["ash"] for split in data.counts) == 39
    cached = np.load(next((tmp_path / "cache").glob("leaves-*/pixels.npy")), mmap_mode="r")
    assert len(cached) == 73
    for split in ("train", "val", "test"):
        for batch in data.plain_dataloader(split):
            np.testing.assert_array_equal(batch["image"], cached[batch["index"]])


def test_a_second_run_reads_neither_files_nor_pixels_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = folder_data(tmp_path)

    def refuse(*args, **options):
        raise AssertionError

    monkeypatch.setattr(ImageFolder, "read", refuse)
    monkeypatch.setattr(ImageFolder, "digest", refuse)
    second = folder_data(tmp_path)
    assert second.fingerprint == first.fingerprint
    assert equal(epoch_of(first), epoch_of(second))


def test_setup_alone_opens_what_another_process_prepared(tmp_path: Path) -> None:
    prepared = folder_data(tmp_path)
    other = ImageDataModule(
        ImageFolder(tmp_path / "leaves"), "classification", image_size=16, batch_size=8, augment=AUGMENT,
        cache_root=tmp_path / "cache",
    )  # fmt: skip
    other.setup("fit")
    other.setup("test")
    assert equal(epoch_of(prepared), epoch_of(other))


def test_too_few_examples(tmp_path: Path) -> None:
    write_classes(tmp_path / "leaves", {"ash": 2, "oak": 2})
    with pytest.raises(DataError, match="too few examples"):
        folder_data(tmp_path)
    data = folder_data(tmp_path, val_fraction=0, test_fraction=0)
    assert data.counts["val"] == {"ash": 0, "oak": 0}
    assert list(data.val_dataloader()) == []


def test_named_target_column(tmp_path: Path) -> None:
    class People(ImageFolder):
        def records(self) -> Records:
            records = super().records()
            return Records(records.table.assign(age=np.arange(len(records.table)) % 50))

    source: Source = People(write_classes(tmp_path / "leaves", {"ash": 40, "oak": 30}))
    data = ImageDataModule(source, "regression", target="age", image_size=8, cache_root=tmp_path / "cache")
    data.setup()
    assert sorted(set(data.table["target"])) == list(range(50))
    assert "label" in data.table


def test_normalize() -> None:
    image = torch.from_numpy(noise(0, 4, 5))[None]
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 2.0)
    wanted = ((image.numpy() / 255 - mean) / std).transpose(0, 3, 1, 2)
    found = normalize(image, mean, std)
    assert found.is_contiguous()
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert normalize(found, mean, std) is found


@pytest.mark.parametrize("count", [1, 2, 5, 64, 65, 129, 1000])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_every_example_is_evaluated_once_on_any_number_of_devices(count: int, world: int) -> None:
    bounds = eval_bounds(count, 64, world)
    sizes = np.diff(bounds)
    assert bounds[0] == 0
    assert bounds[-1] == count
    assert sizes.max() <= 64
    assert (len(bounds) - 1) % world == 0
    if count >= world:
        assert sizes.min() >= 1


def test_more_devices_than_examples(tmp_path: Path) -> None:
    np.save(tmp_path / "p.npy", np.zeros((1, 2, 2, 3), np.uint8))
    rows = np.arange(1)
    batches = PictureBatches(tmp_path / "p.npy", rows, rows, rows, eval_bounds(1, 8, 3))
    assert [batches[0, number]["index"].tolist() for number in range(3)] == [[0], [0], [0]]


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_devices_share_the_batches_of_an_epoch(tmp_path: Path, world: int) -> None:
    np.save(tmp_path / "p.npy", np.zeros((33, 2, 2, 3), np.uint8))
    rows = np.arange(33)
    batches = PictureBatches(tmp_path / "p.npy", rows, rows, rows, train_bounds(33, 8), shuffle=True)
    orders = [BatchOrder(batches, world, rank) for rank in range(world)]
    items = [list(order) for order in orders]
    assert {len(own) for own in items} == {max(1, 4 // world)}
    assert all(len(order) == len(own) for order, own in zip(orders, items, strict=True))
    numbers = [number for own in items for _, number in own]
    assert len(set(numbers)) == min(4, len(numbers))
    rows_seen = torch.cat([batches[item]["index"] for item in dict.fromkeys(item for own in items for item in own)])
    assert len(set(rows_seen.tolist())) == len(rows_seen)


def test_order_is_pinned() -> None:
    """The same on every machine and with every version of NumPy."""
    assert epoch_order(8, 0, 0).tolist() == [0, 5, 3, 6, 7, 4, 1, 2]
    assert sorted(epoch_order(1000, 1, 2)) == list(range(1000))


def test_batches_travel_to_other_processes_without_their_pixels(tmp_path: Path) -> None:
    np.save(tmp_path / "p.npy", np.zeros((50, 64, 64, 3), np.uint8))
    rows = np.arange(50)
    batches = PictureBatches(tmp_path / "p.npy", rows, rows, rows, [0, 8, 16])
    before = batches[0, 1]["index"]
    data = pickle.dumps(batches)
    assert len(data) < 10_000
    assert torch.equal(pickle.loads(data)[0, 1]["index"], before)


def test_table_is_what_prepare_made(tmp_path: Path) -> None:
    data = folder_data(tmp_path)
    assert isinstance(data.table, pd.DataFrame)
    assert data.table["key"].is_monotonic_increasing
    assert {"key", "file", "target", "group", "split", "hash"} <= set(data.table.columns)


def test_pictures_that_a_higher_limit_allows_are_used(tmp_path: Path) -> None:
    root = write_classes(tmp_path / "leaves", {"ash": 40, "oak": 30, "elm": 4})
    write_picture(root / "ash" / "large.png", noise(99, 50, 50))
    assert list(folder_data(tmp_path, max_pixels=1000).broken) == ["ash/large.png"]
    assert folder_data(tmp_path, max_pixels=3000).broken == {}


def test_each_batch_and_seed_has_an_augmentation_of_its_own(tmp_path: Path) -> None:
    np.save(tmp_path / "p.npy", np.repeat(noise(0, 8, 8)[None], 16, 0))
    rows, augment = np.arange(16), Augment({"hflip": True, "brightness": 0.5}, None, None)

    def images(seed: int, epoch: int, number: int) -> bytes:
        batches = PictureBatches(tmp_path / "p.npy", rows, rows, rows, [0, 8, 16], seed=seed, augment=augment)
        return batches[epoch, number]["image"].numpy().tobytes()

    assert len({images(0, 0, 0), images(1, 0, 0), images(0, 1, 0), images(0, 0, 1)}) == 4
    assert images(0, 1, 1) == images(0, 1, 1)


def test_batches_are_normalised_as_the_backbone_was_trained(tmp_path: Path) -> None:
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 2.0)
    data = folder_data(tmp_path, mean=mean, std=std)
    batch = next(iter(data.val_dataloader()))
    assert torch.equal(data.on_after_batch_transfer(batch, 0)["image"], normalize(batch["image"], mean, std))
