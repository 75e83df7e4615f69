"""peft as a second opinion where it is right, and a record of where it is not (peft 0.21).

The last four tests describe faults and surprises of peft. If one fails, a new peft has mended it: update the test.
"""

import warnings

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn

from merging.delta import Delta
from tests.merge_cases import Case, dense, distance, merge, one_thread  # noqa: F401


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(24, 20) for _ in range(3))


def adapted(**adapters: LoraConfig) -> PeftModel:
    """Two blocks with the named adapters, their B random as after training, A drawn for each adapter anew."""
    torch.manual_seed(0)
    names = list(adapters)
    model = get_peft_model(nn.Sequential(Block(), Block()).double(), adapters[names[0]], adapter_name=names[0])
    for name in names[1:]:
        model.add_adapter(name, adapters[name])
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, dtype=torch.float64)
    return model


def lora(rank: int, alpha: int, rslora: bool = False) -> LoraConfig:
    return LoraConfig(r=rank, lora_alpha=alpha, target_modules=["k", "v"], use_rslora=rslora)


def layers(model: PeftModel) -> dict[str, nn.Module]:
    return {n.removeprefix("base_model.model."): m for n, m in model.named_modules() if hasattr(m, "lora_A")}


def delta(model: PeftModel, name: str) -> Delta:
    """The adapter as our algebra takes it: peft's scale folded into A."""
    return {
        path: (layer.lora_B[name].weight.data, layer.scaling[name] * layer.lora_A[name].weight.data)
        for path, layer in sorted(layers(model).items())
    }


def by_peft(model: PeftModel, kind: str, weights: dict[str, float], **options: object) -> dict[str, Tensor]:
    """What peft would add to each weight after its own merge."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.add_weighted_adapter(list(weights), list(weights.values()), "merged", combination_type=kind, **options)
    return {path: layer.get_delta_weight("merged").detach() for path, layer in sorted(layers(model).items())}


def by_us(name: str, model: PeftModel, weights: dict[str, float], **hyper: object) -> dict[str, Tensor]:
    return dense(merge(name, Case({n: delta(model, n) for n in weights}, {}, weights), **hyper))


def test_delta_is_what_peft_adds() -> None:
    model = adapted(plain=lora(4, 8), stabilised=lora(9, 6, rslora=True))
    for name in ("plain", "stabilised"):
        added = {p: layer.get_delta_weight(name).detach() for p, layer in sorted(layers(model).items())}
        assert distance(dense(delta(model, name)), added) < 1e-12


@pytest.mark.parametrize("weights", [{"a": 0.5, "b": 0.7}, {"a": 1.0, "b": -1.0}])
def test_cat_agrees(weights: dict[str, float]) -> None:
    model = adapted(a=lora(2, 4), b=lora(5, 5))
    assert distance(by_us("cat", model, weights), by_peft(model, "cat", weights)) < 1e-7


@pytest.mark.parametrize("rank", [None, 3])
def test_svd_agrees(rank: int | None) -> None:
    """From peft 0.21 on; before, the scale is applied twice."""
    model, weights = adapted(a=lora(2, 4), b=lora(5, 5)), {"a": 0.5, "b": 0.7}
    assert distance(by_us("svd", model, weights, rank=rank), by_peft(model, "svd", weights, svd_rank=rank)) < 1e-6


@pytest.mark.parametrize("weights", [{"a": 0.5, "b": 0.7}, {"a": 1.0, "b": -1.0}])
def test_peft_linear_agrees_and_is_no_sum(weights: dict[str, float]) -> None:
    model = adapted(a=lora(4, 8), b=lora(4, 8))
    ours, theirs = by_us("peft_linear", model, weights, scale=1.0), by_peft(model, "linear", weights)
    assert distance(ours, theirs) < 1e-6
    assert distance(theirs, by_us("cat", model, weights)) > 0.5


def test_magnitude_prune_and_ties_agree_on_one_matrix() -> None:
    """peft has a threshold for each matrix, so that only a single matrix can be compared."""
    torch.manual_seed(1)
    model = get_peft_model(nn.Sequential(nn.Linear(24, 20)).double(), LoraConfig(r=3, target_modules=["0"]), "a")
    model.add_adapter("b", LoraConfig(r=3, target_modules=["0"]))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, dtype=torch.float64)
    weights = {"a": 1.0, "b": 1.0}
    options = {"density": 0.25, "svd_rank": 20}
    for name in ("magnitude_prune", "ties"):
        theirs = by_peft(model, f"{name}_svd", weights, **options)
        assert distance(by_us(name, model, weights, density=0.25), theirs) < 1e-6
        model.delete_adapter("merged")


def test_peft_ignores_weights_in_the_election() -> None:
    """Ours lets weighted deltas vote. peft's ties_svd elects on unweighted ones, then weighs what is left."""
    model = adapted(a=lora(4, 4), b=lora(4, 4))
    weights = {"a": 0.1, "b": 1.0}
    theirs = by_peft(model, "ties_svd", weights, density=0.999999, svd_rank=20)
    ours = by_us("ties", model, weights, density=1.0)
    a, b = dense(delta(model, "a")), dense(delta(model, "b"))
    outvoted = {p: (a[p] * b[p] < 0) & (a[p].abs() > b[p].abs()) & (0.1 * a[p].abs() < b[p].abs()) for p in a}
    assert all(mask.any() for mask in outvoted.values())
    for path, mask in outvoted.items():
        assert torch.allclose(ours[path][mask], b[path][mask])
        agree = (theirs[path][mask] - 0.1 * a[path][mask]).abs() < 1e-4
        assert agree.double().mean() > 0.9


def test_peft_merges_rslora_wrongly() -> None:
    """One adapter with weight 1 must come back as it was; peft's comes back sqrt(r) times as large."""
    model = adapted(a=lora(9, 6, rslora=True))
    single = dense(delta(model, "a"))
    assert distance(by_us("cat", model, {"a": 1.0}), single) < 1e-12
    assert distance(by_peft(model, "cat", {"a": 1.0}), {p: 3 * x for p, x in single.items()}) < 1e-6


def test_peft_keeps_an_old_merge_of_the_same_name() -> None:
    model = adapted(a=lora(2, 2), b=lora(2, 2))
    first = by_peft(model, "cat", {"a": 1.0, "b": 1.0})
    assert distance(by_peft(model, "cat", {"a": 5.0, "b": -5.0}), first) == 0


def test_peft_adds_factors_of_equal_rank_only() -> None:
    model = adapted(a=lora(2, 2), b=lora(5, 5))
    for kind in ("linear", "ties"):
        with pytest.raises(ValueError, match="same r value"):
            by_peft(model, kind, {"a": 1.0, "b": 1.0}, density=0.5)
