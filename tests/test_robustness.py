"""What tasks bear, measured on drawn models and predicted with."""

from pathlib import Path

import pytest
import torch

from launch.bundles import bundle_path
from launch.errors import AdapterError
from lightning_modules.backbone import split_qkv
from lightning_modules.lora import add_lora, lora_config
from lightning_modules.tasks import Task
from merging.linear import cat
from merging.members import read_member
from merging.robustness import (
    LEVELS,
    NOISE,
    disturbed,
    measure_robustness,
    predict_by_error,
    relative_errors,
    require_robustness,
    turned,
)
from tests.conftest import AppleTensor
from tests.merge_runs import train_members


def test_a_turned_factor_changes_every_output_by_the_level() -> None:
    b, a, x = torch.randn(12, 3), torch.randn(3, 8), torch.randn(8, 50)
    own, change = b @ a @ x, (turned(b, 0.7, seed=1) - b) @ a @ x
    assert torch.allclose(change.norm(dim=0), 0.7 * own.norm(dim=0), rtol=1e-4)
    assert torch.equal(turned(b, 0.0, seed=1), b)
    assert torch.equal(turned(b, 0.7, seed=1), turned(b, 0.7, seed=1))
    assert not torch.allclose(turned(b, 0.7, seed=1), turned(b, 0.7, seed=2))


@pytest.mark.parametrize("rank", [3, 20])
def test_all_turns_are_alike_in_all_directions(rank: int) -> None:
    """Q B with a uniform Q: B^T B is kept, and the mean over many turns is 0 with equal variance in each output."""
    b = torch.randn(12, rank, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    changes = torch.stack([turned(b, 1.0, seed) - b for seed in range(400)])
    for change in changes[:3]:
        torch.testing.assert_close(change.T @ change, b.T @ b)
    assert changes.mean(0).norm() < 0.15 * b.norm()  # 1 / sqrt(400) of it, give or take
    shares = changes.square().sum(2).mean(0) / b.square().sum()
    assert (shares * 12).tolist() == pytest.approx([1.0] * 12, abs=0.25)


def test_factors_on_apples_gpus_are_turned_too() -> None:
    b = torch.randn(12, 3)
    assert torch.equal(turned(b.as_subclass(AppleTensor), 0.7, seed=1), turned(b, 0.7, seed=1))


def test_a_disturbed_model_is_itself_again(vit: torch.nn.Module, images: torch.Tensor) -> None:
    model = split_qkv(vit)
    add_lora(model, lora_config(2, None, ["k", "v"]), init_seed=0)
    for name, value in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value, generator=torch.Generator().manual_seed(0))

    def break_off() -> None:
        with disturbed(model, 1.0):
            assert not torch.allclose(model(images), before, atol=1e-3)
            raise ZeroDivisionError

    with torch.no_grad():
        before = model(images)
        with pytest.raises(ZeroDivisionError):
            break_off()
        assert torch.equal(model(images), before)


def test_retention_is_of_the_undisturbed_answers() -> None:
    task = Task(name="level", kind="regression", metric="rmse", outputs=1)
    targets = torch.zeros(4, 1)
    found = measure_robustness(lambda level: torch.full((4, 1), 1.0 + level), task, targets)
    assert found == pytest.approx([1 / (1 + level) for level in LEVELS])
    assert measure_robustness(lambda level: torch.full((4, 1), 1.0 if level == 0 else 1e-9), task, targets) == [2.0] * 4


def test_errors_are_interference_in_a_sum_of_two() -> None:
    generator = torch.Generator().manual_seed(0)

    def drawn(scale: float) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        return {
            f"blocks.{block}.attn.qkv.k": (
                scale * torch.randn(6, 2, generator=generator), torch.randn(2, 6, generator=generator)
            )
            for block in range(2)
        }  # fmt: skip

    deltas = {"one": drawn(1.0), "two": drawn(3.0)}
    grams = {name: {f"blocks.{block}.attn.qkv": torch.eye(6) for block in range(2)} for name in deltas}
    shares = []
    for module in deltas["one"]:
        one, two = (b @ a for b, a in (deltas["one"][module], deltas["two"][module]))
        shares.append((two.norm() / one.norm()) ** 2)
    found = relative_errors(cat(deltas), deltas, grams)
    assert found["one"] == pytest.approx(float(torch.stack(shares).mean().sqrt()), rel=1e-5)
    assert found["two"] < found["one"]
    assert relative_errors(deltas["one"], deltas, grams)["one"] == 0
    assert relative_errors({}, deltas, grams) == pytest.approx({"one": 1.0, "two": 1.0})


def test_predictions_lie_on_the_measured_line_and_fall_beyond_it() -> None:
    robustness = [0.9, 0.8, 0.6, 0.4]
    assert predict_by_error(robustness, 0.0) == pytest.approx((1.0, 1 - NOISE, 1 + NOISE))
    assert predict_by_error(robustness, 0.5) == pytest.approx((0.8, 0.6 - NOISE, 0.95 + NOISE))
    assert predict_by_error(robustness, 4.0) == pytest.approx((0.2, 0.1 - NOISE, 0.6 + NOISE))
    assert predict_by_error(robustness, 400.0)[1] == 0.0  # below nothing no score can fall
    gains = [1.05, 1.1, 1.2, 1.3]
    assert predict_by_error(gains, 1.0) == pytest.approx((1.2, 1.05 - NOISE, 1.3 + NOISE))


def test_training_measures_it_and_older_adapters_are_named(tmp_path: Path) -> None:
    outputs = train_members(tmp_path)
    card = read_member(bundle_path(outputs, "level", 2, 0)).bundle.card
    found = require_robustness("level", card)
    assert len(found) == len(LEVELS)
    assert all(0 < value <= 2 for value in found)
    with pytest.raises(AdapterError, match=r"adapter of level does not tell its robustness.*gram_images"):
        require_robustness("level", card | {"robustness": None})
