"""Head-only training on cached features against passing the images in every epoch."""

import numpy as np
import pytest
import torch

from datamodules import batches
from datamodules.datamodule import ImageDataModule, normalize
from datamodules.image_folder import ImageFolder
from launch.errors import DataError
from lightning_modules import features as features_module
from lightning_modules.features import FeatureBatches, FeatureDataModule
from merging.features import deep_width
from merging.model import load
from tests.conftest import SIZE
from tests.runs import draw_folder, draw_points, leaves, overrides, train_here

AUGMENT = {"hflip": True, "rotate": 20.0, "brightness": 0.2}


@pytest.fixture
def images(tmp_path):
    source = ImageFolder(root=draw_folder(tmp_path / "leaves"))
    data = ImageDataModule(
        source, "classification", image_size=SIZE, augment=AUGMENT, batch_size=8, seed=3, cache_root=tmp_path / "cache"
    )
    data.setup()
    return data


def collect(loader, epoch=0):
    loader.sampler.set_epoch(epoch)
    batches = list(loader)
    return {key: torch.cat([batch[key] for batch in batches]) for key in batches[0]}


def test_views_are_the_frozen_features_of_the_augmented_images(vit, images):
    data = FeatureDataModule(vit, images, 2, torch.device("cpu"))
    for view in range(2):
        batch = collect(data.train_dataloader(), epoch=view)
        expected = collect(images.view_dataloader(view), epoch=view)
        order = torch.argsort(expected["index"])
        with torch.no_grad():
            pixels = images.on_after_batch_transfer({"image": expected["image"]}, 0)["image"]
            features = vit(pixels)[order]
        place = torch.searchsorted(expected["index"][order], batch["index"])
        torch.testing.assert_close(batch["image"], features[place], rtol=1e-4, atol=1e-4)


def test_epochs_go_through_the_views_and_the_orders_of_the_images(vit, images):
    data = FeatureDataModule(vit, images, 2, torch.device("cpu"))
    first, second, third = (collect(data.train_dataloader(), epoch) for epoch in range(3))
    for epoch, batch in enumerate((first, second, third)):
        assert torch.equal(batch["index"], collect(images.train_dataloader(), epoch)["index"])

    def by_index(batch):
        return {int(index): row for index, row in zip(batch["index"], batch["image"], strict=True)}

    again = by_index(third)
    shared = [index for index in by_index(first) if index in again]
    assert shared
    assert all(torch.equal(by_index(first)[index], again[index]) for index in shared)
    assert not torch.equal(by_index(second)[shared[0]], again[shared[0]])


def test_the_order_of_an_epoch_is_drawn_once(monkeypatch):
    drawn = []
    draw = batches.epoch_order
    monkeypatch.setattr(batches, "epoch_order", lambda *given: drawn.append(given) or draw(*given))
    rows = torch.arange(12)
    dataset = FeatureBatches([(rows[:, None].float(), rows)], rows, [0, 4, 8, 12], seed=1, shuffle=True)
    for epoch in (0, 1, 0):
        found = torch.cat([dataset[epoch, number]["index"] for number in range(3)])
        assert found.tolist() == draw(12, 1, epoch).tolist()
    assert drawn == [(12, 1, 0), (12, 1, 1), (12, 1, 0)]


def test_without_augmentation_one_view_is_enough(vit, images):
    images.augment = None
    data = FeatureDataModule(vit, images, 5, torch.device("cpu"))
    assert len(data.train_views) == 1


@pytest.mark.parametrize("features", ["class_token", "deep"])
def test_same_head_as_passing_images(tmp_path, features):
    """Without augmentation the two ways see the same features in the same order."""
    common = ["lora.rank=0", f"features={features}", "task.augment=null", "trainer.max_epochs=4"]
    common.append("trainer.precision=32-true")
    cached, _ = train_here(leaves(tmp_path, *common, "feature_views=1"))
    passed, _ = train_here(leaves(tmp_path, *common, "feature_views=null"))
    assert cached["metrics"].keys() == passed["metrics"].keys()
    for name, value in passed["metrics"].items():
        assert cached["metrics"][name] == pytest.approx(value, abs=1e-4)


def test_a_head_on_deep_features_stands_beside_the_plain_one_and_answers(tmp_path):
    train_here(leaves(tmp_path, "lora.rank=0"))
    plain = (tmp_path / "out/adapters/leaves/r0-s0/card.json").read_bytes()
    result, run = train_here(leaves(tmp_path, "lora.rank=0", "features=deep", "trainer.precision=32-true"))
    assert run.path.name.startswith("train-leaves-r0_deep-s0-")
    assert (tmp_path / "out/adapters/leaves/r0-s0/card.json").read_bytes() == plain
    model = load(tmp_path / "out/adapters/leaves/r0_deep-s0")
    assert model.heads["leaves"].hidden.in_features == deep_width(64)
    data = ImageDataModule(
        ImageFolder(root=tmp_path / "leaves"), "classification", image_size=SIZE, cache_root=tmp_path / "cache"
    )
    data.setup()
    hits = [
        model(normalize(batch["image"], model.mean, model.std))["leaves"].argmax(1) == batch["target"]
        for batch in data.plain_dataloader("test")
    ]
    assert torch.cat(hits).float().mean() == pytest.approx(result["score"])
    assert result["features"] == "deep"  # which tells reports to put it beside the merges


def test_a_subset_that_is_not_there_is_told_before_any_feature(tmp_path, monkeypatch):
    def computed(*given):
        raise ZeroDivisionError

    monkeypatch.setattr(features_module, "frozen_features", computed)
    with pytest.raises(DataError, match=r"task\.subsets: profile: there is no such column"):
        train_here(leaves(tmp_path, "lora.rank=0", "task.subsets=[profile]"))


def test_a_head_alone_can_be_made_to_overfit(tmp_path):
    """Lightning then asks for batches by their bare number."""
    result, _ = train_here(leaves(tmp_path, "lora.rank=0", "trainer.overfit_batches=1"))
    assert np.isfinite(result["score"])


def test_points_move_with_their_view(tmp_path):
    """Each view has its own targets: points are augmented with the images."""
    root = draw_points(tmp_path / "dots")
    arguments = ["task=keypoints", "name=dot", "data=image_csv", f"data.root={root}", "task.eye_corners=[0,1]"]
    result, _ = train_here(overrides(tmp_path, *arguments, "lora.rank=0", "feature_views=2"))
    assert np.isfinite(result["score"])
    assert result["lora"]["parameters"] == 0
