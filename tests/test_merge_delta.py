"""What is refused before a merge begins, and how weights are looked up."""

from collections.abc import Callable

import pytest
import torch

from launch.errors import AdapterError, CommandError
from merging.delta import module_weight
from merging.linear import cat
from merging.sparse import ties
from merging.spectral import iso_cts
from merging.svd import svd
from merging.wudi import wudi
from tests.merge_cases import dense, distance, make_case, one_thread  # noqa: F401

KEY = "blocks.0.attn.qkv.k"


def test_weights_by_part_of_the_model() -> None:
    spec = {"blocks.3": 0.5, "k": 0.8}
    assert module_weight(spec, "blocks.3.attn.qkv.k") == pytest.approx(0.4)
    assert module_weight(spec, "blocks.3.attn.qkv.v") == 0.5
    assert module_weight(spec, "blocks.30.attn.qkv.k") == 0.8
    assert module_weight(spec, "blocks.1.attn.qkv.v") == 1.0
    assert module_weight({"v": 0.5}, "blocks.1.attn.qkv") == 1.0  # whole parts only
    assert module_weight(-2, "blocks.1.attn.qkv.v") == -2.0


def test_cat_with_weights_of_every_kind() -> None:
    case = make_case((2, 5), seed=1)
    merged = dense(cat(case.deltas, {"galaxy": {"k": -0.5, "blocks.0": 3}, "emotion": 2}))
    factor = {m: (3 if ".0." in m else 1) * (-0.5 if m.endswith(".k") else 1) for m in merged}
    galaxy, emotion = dense(case.deltas["galaxy"]), dense(case.deltas["emotion"])
    assert distance(merged, {m: factor[m] * galaxy[m] + 2 * emotion[m] for m in merged}) < 1e-12


def drop(name: str, module: str) -> Callable:
    return lambda deltas: deltas[name].pop(module)


def put(b: torch.Tensor, a: torch.Tensor) -> Callable:
    return lambda deltas: deltas["galaxy"].update({KEY: (b, a)})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (drop("emotion", KEY), rf"'galaxy' adapts {KEY} and 'emotion' does not \(1 modules differ\)"),
        (drop("galaxy", KEY), rf"'emotion' adapts {KEY} and 'galaxy' does not"),
        (lambda deltas: [d.clear() for d in deltas.values()], "adapts no module"),
        (put(torch.ones(32, 0), torch.ones(0, 32)), rf"'galaxy', module {KEY}: rank 0"),
        (put(torch.ones(32, 2), torch.ones(3, 32)), r"B \(32, 2\) and A \(3, 32\) are no pair"),
        (put(torch.ones(32), torch.ones(32)), "are no pair"),
        (put(torch.ones(16, 2), torch.ones(2, 32)), "changes a 16 x 32 weight, that of adapter 'emotion' is 32 x 32"),
        (put(torch.full((32, 2), torch.nan), torch.ones(2, 32)), rf"'galaxy', module {KEY} holds NaN"),
        (put(torch.ones(32, 2), torch.full((2, 32), torch.inf)), "holds NaN or infinity"),
    ],
)
def test_faulty_adapters(spoil: Callable, message: str) -> None:
    deltas = make_case((2, 5), seed=2).deltas
    spoil(deltas)
    with pytest.raises(AdapterError, match=message):
        cat(deltas)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"galaxy": 1, "emotoin": 1}, r"names 'emotoin', which is not in the set.*Did you mean 'emotion'\?"),
        ({"galaxy": 1}, "no weight for 'emotion'"),
        ({"galaxy": 1, "emotion": float("nan")}, "of 'emotion' holds nan"),
        ({"galaxy": 1, "emotion": {"q": 0.5}}, "of 'emotion' names 'q', and no adapted module begins or ends so"),
        ({"galaxy": 1, "emotion": {"block": 0.5}}, "names 'block'"),
    ],
)
def test_faulty_weights(weights: dict, message: str) -> None:
    with pytest.raises(CommandError, match=message):
        cat(make_case((2, 5), seed=3).deltas, weights)


def test_nothing_to_merge() -> None:
    with pytest.raises(CommandError, match="the set of adapters is empty"):
        cat({})


def test_impossible_hyperparameters() -> None:
    deltas = make_case((2,), seed=4).deltas
    for call, key in (
        (lambda: svd(deltas, rank=0), "rank=0"),
        (lambda: ties(deltas, density=1.2, scale=1.0, rank=None), r"density=1\.2"),
        (lambda: ties(deltas, density=0.2, scale=1.0, rank=0), "rank=0"),
        (lambda: iso_cts(deltas, common=-0.1, scale=1.0), r"common=-0\.1"),
        (lambda: wudi(deltas, ridge=-1.0), r"ridge=-1\.0"),
        (lambda: wudi(deltas, ridge=1e-30), "ridge=1e-30"),
    ):
        with pytest.raises(CommandError, match=rf"merge\.{key} is not possible: give a"):
            call()


def test_types_are_widened_not_narrowed() -> None:
    deltas = make_case((2, 2), seed=5).deltas
    deltas["galaxy"] = {m: (b.bfloat16(), a.bfloat16()) for m, (b, a) in deltas["galaxy"].items()}
    deltas["emotion"] = {m: (b.float(), a.float()) for m, (b, a) in deltas["emotion"].items()}
    b, a = cat(deltas)[KEY]
    assert (b.dtype, a.dtype) == (torch.float32, torch.float32)


def test_a_factor_that_is_finer_than_the_other_is_not_narrowed() -> None:
    """As adapters in half precision are read: the scale is folded into A in float32."""
    b, a = torch.ones(4, 1, dtype=torch.float16), torch.full((1, 4), 1 + 1e-4)
    assert torch.equal(cat({"galaxy": {KEY: (b, a)}})[KEY][1], a)


def test_trained_parameters_are_left_alone() -> None:
    """Factors straight from a model: no graph is built, no gradient asked for."""
    deltas = make_case((2,), seed=6).deltas
    deltas["galaxy"] = {m: (b.requires_grad_(), a.requires_grad_()) for m, (b, a) in deltas["galaxy"].items()}
    assert not any(x.requires_grad for pair in cat(deltas).values() for x in pair)
