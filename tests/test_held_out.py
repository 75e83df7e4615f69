"""Images of one group (near copies of each other) stay on one side of whatever judges."""

from pathlib import Path

import pytest
import torch

from datamodules.datamodule import ImageDataModule
from datamodules.image_csv import ImageCsv
from lightning_modules.tasks import Task
from merging.held_out import fold_masks, held_out_start
from merging.paired import retention_interval
from merging.predict import measurement_noise, predict_retention
from merging.realign import choose_readout
from tests.picture_files import write_picture

COPIES = 8


def test_no_group_lies_on_both_sides() -> None:
    groups = torch.tensor([0, 1, 1, 2, 2, 2, 3, 4])
    assert [held_out_start(groups, count) for count in (1, 2, 3, 4, 5)] == [7, 6, 3, 3, 3]
    assert held_out_start(torch.zeros(9, dtype=torch.long), 2) == 7  # one group alone has to be divided
    assert held_out_start(torch.tensor([0, *[1] * 8]), 2) == 7  # and one that would leave next to nothing
    masks = torch.stack(list(fold_masks(groups, 3)))
    assert torch.equal(masks.sum(0), torch.ones(8, dtype=torch.long))
    assert all(set(groups[mask].tolist()).isdisjoint(groups[~mask].tolist()) for mask in masks)
    assert [mask.tolist() for mask in fold_masks(torch.arange(3), 5)] == torch.eye(3, dtype=torch.bool).tolist()
    assert len(list(fold_masks(torch.zeros(9, dtype=torch.long), 5))) == 5


def test_some_images_come_a_group_after_the_other(tmp_path: Path) -> None:
    lines = ["file,label,who"]
    for number in range(60):
        write_picture(tmp_path / f"{number:02}.png", torch.full((8, 8, 3), number, dtype=torch.uint8).numpy())
        lines.append(f"{number:02}.png,{'ab'[number % 2]},{number % 12}")
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    source = ImageCsv(tmp_path, group_column="who")
    data = ImageDataModule(source, "classification", image_size=8, cache_root=tmp_path / "cache")
    data.prepare_data()
    data.setup()
    groups = data.groups("train", 30)
    changes = int((groups.diff() != 0).sum())
    assert changes == len(groups.unique()) - 1 >= 5
    rows = torch.cat([batch["index"] for batch in data.plain_dataloader("train", 30)])
    who = data.table["group"].to_numpy()[rows]
    assert len(set(zip(who, groups.tolist(), strict=True))) == len(set(who))
    assert len(data.groups("test")) == sum(data.counts["test"].values())


def test_a_readout_is_chosen_for_groups_that_it_was_not_fitted_to() -> None:
    """What a merge lost differs from group to group, so that a weak ridge only learns the groups by heart."""
    g = torch.Generator().manual_seed(0)

    def images(count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        groups = torch.arange(count).repeat_interleave(50)
        features, lost = (torch.randn(count, 8, generator=g)[groups] for _ in range(2))
        features = features + 0.05 * torch.randn(features.shape, generator=g)
        return features, features + lost, groups

    errors = {"groups": 0.0, "images": 0.0}
    for _ in range(20):
        features, wanted, groups = images(4)
        new, truth, _ = images(20)
        for name, kept in (("groups", groups), ("images", None)):
            readout, _ = choose_readout(features, wanted, kept)
            errors[name] += float((readout(new) - truth).square().mean())
    assert errors["groups"] < 0.9 * errors["images"], errors


def test_copies_of_test_images_are_no_further_evidence() -> None:
    task = Task("t", "classification", "macro_f1", 3)
    g = torch.Generator().manual_seed(1)
    target = torch.randint(3, (50,), generator=g)
    truth = torch.nn.functional.one_hot(target, 3).float()
    single, merged = (truth + size * torch.randn(50, 3, generator=g) for size in (0.4, 0.7))
    alone = retention_interval(task, single, merged, target)
    many = [part.repeat_interleave(COPIES, 0) for part in (single, merged, target)]
    groups = torch.arange(50).repeat_interleave(COPIES)
    assert retention_interval(task, *many, groups) == pytest.approx(alone)
    low, high = retention_interval(task, *many)
    assert high - low < 0.6 * (alone[1] - alone[0])
    noise = measurement_noise(task, single, merged, target)
    assert measurement_noise(task, *many, groups) == pytest.approx(noise)
    assert measurement_noise(task, *many) < 0.6 * noise


def test_a_prediction_from_copies_is_as_unsure_as_one_from_their_originals() -> None:
    task = Task("t", "regression", "rmse", 1)
    g = torch.Generator().manual_seed(2)
    target = torch.randn(60, 1, generator=g)
    single, merged = (target + size * torch.randn(60, 1, generator=g) for size in (0.5, 0.6))
    many = [part.repeat_interleave(COPIES, 0) for part in (single, merged)]
    targets = target.repeat_interleave(COPIES, 0)

    def width(*outputs: torch.Tensor, **more: torch.Tensor) -> float:
        _, low, high = predict_retention(task, *outputs, {}, **more)
        return high - low

    groups = torch.arange(60).repeat_interleave(COPIES)
    alone = width(single, merged, targets=target)
    grouped = width(*many, targets=targets, groups=groups)  # less unsure of the errors that are drawn for each image
    assert 0.7 * alone < grouped < 1.1 * alone
    assert width(*many, targets=targets) < 0.6 * alone
