"""The least-squares merge: against its formula, on the model it must follow, and where it may change weights."""

import functools
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

from launch.errors import CommandError
from lightning_modules.model import MLPHead
from lightning_modules.tasks import Task
from merging import regress as regressing
from merging.delta import Delta
from merging.distill import trained_rank
from merging.gram import gram
from merging.grams import input_grams
from merging.linear import cat
from merging.regress import regress
from merging.sequential import gram_seq
from merging.workbench import Workbench, outputs

SIZE = 32
GIVEN: dict[str, Any] = {
    "images": 40,
    "targets": ["q", "k", "v", "proj", "mlp"],
    "ridge": 1e-3,
    "class_weight": 1.0,
    "stride": 1,
    "by_error": False,
}


class Drawn(Workbench):
    """A workbench whose images are noise, of another kind for each task."""

    def batches(
        self, task: str, split: str, count: int | None = None, *, mirrored: bool = False, view: int = 0
    ) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(len(task))
        yield torch.randn(GIVEN["images"], 3, SIZE, SIZE, generator=generator) * len(task)


def bench(**model: Any) -> Drawn:
    """Two tasks, ``a`` and ``bb``, each with an adapter on K and V that changes much."""
    torch.manual_seed(0)
    backbone = timm.create_model("test_vit", num_classes=0, img_size=SIZE, **model).eval().requires_grad_(False)
    width, depth = backbone.num_features, len(backbone.blocks)
    members: dict[str, Any] = {}
    for seed, task in enumerate(("a", "bb")):
        generator = torch.Generator().manual_seed(seed)
        delta = {
            f"blocks.{index}.attn.qkv.{part}": (
                torch.randn(width, 2, generator=generator) * 0.3, torch.randn(2, width, generator=generator) * 0.3,
            )
            for index in range(depth)
            for part in ("k", "v")
        }  # fmt: skip
        members[task] = SimpleNamespace(delta=delta)
    return Drawn(backbone, members, {}, torch.device("cpu"))


def biased(**model: Any) -> Drawn:
    """Linears add something, as those of a trained model do; a fresh one's biases are zero."""
    place = bench(**model)
    generator = torch.Generator().manual_seed(5)
    for name, value in place.backbone.named_parameters():
        if name.endswith("bias"):
            value.data = 0.3 * torch.randn(value.shape, generator=generator)
    return place


def deltas(place: Drawn, *tasks: str) -> dict[str, Delta]:
    return {task: place.members[task].delta or {} for task in tasks or ("a", "bb")}


def distance(place: Drawn, merged: Delta, task: str) -> float:
    """Of the class tokens to those of the task's own adapter, as a share of their size."""
    own = place.single(task, "train")
    return float((place.features(merged, task, "train", deep=False) - own).norm() / own.norm())


@pytest.mark.parametrize("model", [{}, {"init_values": 0.4}], ids=["plain", "layer scale"])
def test_tokens_follow_each_adapter_far_nearer_than_in_the_sum(model: dict[str, Any]) -> None:
    place = bench(**model)
    refitted, summed = regress(deltas(place), bench=place, **GIVEN), cat(deltas(place))
    strided = regress(deltas(place), bench=place, **GIVEN | {"stride": 2})
    only_kv = regress(deltas(place), bench=place, **GIVEN | {"targets": ["k", "v"]})
    for task in ("a", "bb"):
        assert distance(place, refitted, task) < 0.5 * distance(place, summed, task)
        assert distance(place, refitted, task) < distance(place, only_kv, task)
        assert distance(place, strided, task) < 0.5 * distance(place, summed, task)


@pytest.mark.parametrize(("make", "ridge", "off"), [(bench, 1e-6, 1e-3), (biased, 1e-4, 1e-2)])
def test_one_adapter_comes_back(make: Callable[[], Drawn], ridge: float, off: float) -> None:
    place = make()
    merged = regress(deltas(place, "a"), bench=place, **GIVEN | {"ridge": ridge})
    assert distance(place, merged, "a") < off


def test_first_projection_is_the_least_squares_solution() -> None:
    """In the first block all read what they read alone: RegMean with a ridge towards the frozen weights."""
    place = bench()
    merged = regress(deltas(place), bench=place, **GIVEN | {"class_weight": 5.0, "ridge": 0.01})
    model: Any = place.backbone
    total, cross = 0.0, 0.0
    for task in ("a", "bb"):
        (images,) = place.batches(task, "train")
        with torch.no_grad():
            x = model.blocks[0].norm1(model._pos_embed(model.patch_embed(images))).double()
        squares = 5.0 * x[:, 0].T @ x[:, 0] + sum(x[:, index].T @ x[:, index] for index in range(1, x.shape[1]))
        squares = squares / squares.trace()
        b, a = deltas(place)[task]["blocks.0.attn.qkv.k"]
        total, cross = total + squares, cross + (b.double() @ a.double()) @ squares
    wanted = cross @ torch.linalg.inv(total + 0.01 * total.trace() / len(total) * torch.eye(len(total)))
    b, a = merged["blocks.0.attn.qkv.k"]
    assert torch.allclose((b @ a).double(), wanted, atol=1e-4 * float(wanted.abs().max()))


def test_the_residual_stream_itself_is_brought_back() -> None:
    """MLPs alone may change: the second one answers for what attention has spoilt before it."""
    place = biased(init_values=0.4)
    merged = regress(deltas(place), bench=place, **GIVEN | {"targets": ["mlp"], "ridge": 0.01})
    model: Any = place.backbone
    block = model.blocks[0]
    total, cross = 0.0, 0.0
    for task in ("a", "bb"):
        (images,) = place.batches(task, "train")
        own = {name: pair for name, pair in deltas(place)[task].items() if name.startswith("blocks.0.")}
        with torch.no_grad():
            x = model._pos_embed(model.patch_embed(images))
            with place.weights.folded(own):
                end = block(x)
            middle = x + block.ls1(block.attn(block.norm1(x)))
            with place.weights.folded({"blocks.0.mlp.fc1": merged["blocks.0.mlp.fc1"]}):
                hidden = block.mlp.act(block.mlp.fc1(block.norm2(middle))).flatten(0, 1).double()
            wanted = ((end - middle) / block.ls2.gamma - block.mlp.fc2.bias).flatten(0, 1).double()
        squares = hidden.T @ hidden
        left = wanted - hidden @ block.mlp.fc2.weight.double().T
        total, cross = total + squares / squares.trace(), cross + left.T @ hidden / squares.trace()
    change = cross @ torch.linalg.inv(total + 0.01 * total.trace() / len(total) * torch.eye(len(total)))
    b, a = merged["blocks.0.mlp.fc2"]
    assert torch.allclose((b @ a).double(), change, atol=1e-3 * float(change.abs().max()))


def test_a_task_with_more_say_is_followed_nearer(monkeypatch: pytest.MonkeyPatch) -> None:
    place = bench()
    equal = regress(deltas(place), bench=place, **GIVEN)
    monkeypatch.setattr(regressing, "_say", lambda _, task, __: 30.0 if task == "bb" else 1.0)
    tilted = regress(deltas(place), bench=place, **GIVEN | {"by_error": True})
    assert distance(place, tilted, "bb") < 0.9 * distance(place, equal, "bb")
    assert distance(place, tilted, "a") > 1.1 * distance(place, equal, "a")


def test_numbers_have_more_say_the_finer_they_are_told() -> None:
    place = bench()
    place.members["a"].task = Task("a", "classification", "accuracy", 3)
    level = place.members["bb"]
    level.task, level.validation = Task("bb", "regression", "rmse", 1), {"rmse": 0.5}
    level.head = MLPHead(place.width, 1).requires_grad_(False)
    own = outputs(level.head, place.single("bb", "train"))
    assert regressing._say(place, "bb", GIVEN["images"]) == pytest.approx(float(own.var()) / 0.5**2)
    assert regressing._say(place, "a", GIVEN["images"]) == 1.0


def test_each_chunk_is_fitted_to_other_patches() -> None:
    place: Any = bench()
    settings = regressing._Settings({}, frozenset(), ridge=1.0, class_weight=1.0, stride=3)
    block = regressing._Block(place, place.backbone.blocks[0], "blocks.0", settings)
    tokens = torch.arange(8.0)[None, :, None]  # a class token and 7 patches
    found = [block._some(tokens, chunk).flatten().tolist() for chunk in range(4)]
    assert found == [[0, 1, 4, 7], [0, 2, 5], [0, 3, 6], [0, 1, 4, 7]]


def test_only_targets_change_and_the_backbone_is_left_as_it_was() -> None:
    place = bench()
    before = {name: value.clone() for name, value in place.backbone.state_dict().items()}
    merged = regress(deltas(place), bench=place, **GIVEN | {"targets": ["v", "mlp"]})
    assert {module.split(".", 2)[2] for module in merged} == {"attn.qkv.v", "mlp.fc1", "mlp.fc2"}
    assert all(torch.equal(value, before[name]) for name, value in place.backbone.state_dict().items())
    again = regress(deltas(place), bench=place, **GIVEN | {"targets": ["v", "mlp"]})
    assert all(torch.equal(x, y) for module in merged for x, y in zip(merged[module], again[module], strict=True))


def test_a_weight_scales_what_is_wanted_of_its_adapter() -> None:
    place = bench()
    merged = regress(deltas(place, "a"), {"a": 0.0}, bench=place, **GIVEN)
    assert max(float((b @ a).abs().max()) for b, a in merged.values()) < 1e-2
    frozen = place.bare("a", "train", deep=False)
    assert torch.allclose(place.features(merged, "a", "train", deep=False), frozen, atol=1e-2)


@pytest.mark.parametrize(
    ("key", "value"),
    [("images", 1), ("ridge", 0.0), ("class_weight", -1.0), ("stride", 0), ("targets", []), ("targets", ["key"])],
)
def test_impossible_arguments_are_refused(key: str, value: Any) -> None:
    place = bench()
    with pytest.raises(CommandError, match=f"merge.{key}="):
        regress(deltas(place), bench=place, **GIVEN | {key: value})


def test_more_tokens_than_memory_are_refused_with_the_images_that_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    place = bench()
    held = 23 * 2 * GIVEN["images"] * 5 * 64 * 4  # two tasks, a class token and 4 patches of width 64, float32
    there = {"SC_PAGE_SIZE": 1, "SC_PHYS_PAGES": held // 2}
    monkeypatch.setattr(regressing.os, "sysconf", there.__getitem__)
    with pytest.raises(
        CommandError, match=rf"for 2 tasks.* of cpu\. Give merge\.images={GIVEN['images'] // 2} or less"
    ):
        regress(deltas(place), bench=place, **GIVEN)
    there["SC_PHYS_PAGES"] = held
    regress(deltas(place), bench=place, **GIVEN)


def test_inputs_that_are_too_much_alike_are_told_with_a_way_out() -> None:
    place = bench()
    with pytest.raises(CommandError, match=r"blocks\.\d\.\S+ are too much alike for merge.ridge=1e-20; give a larger"):
        regress(deltas(place), bench=place, **GIVEN | {"ridge": 1e-20})


def test_grams_of_a_merged_block_are_those_of_each_adapted_block() -> None:
    """What proj and MLP read depends on the block's own adapter, which RegMean++ leaves in."""
    place = bench()
    settings: dict[str, Any] = {"normalise": "trace", "ridge": 1e-3, "cat_share": 0.0}
    modules = {"attn.qkv.v": "attn.qkv", "attn.proj": "attn.proj", "mlp.fc2": "mlp.fc2"}
    read = {path: place.backbone.get_submodule(path) for path in (f"blocks.0.{name}" for name in modules.values())}
    wide: dict[str, Delta] = {}
    grams = {}
    for seed, task in enumerate(("a", "bb")):
        generator = torch.Generator().manual_seed(seed)
        wide[task] = {
            f"blocks.0.{name}": (
                torch.randn(64, 2, generator=generator),
                torch.randn(2, place.backbone.get_submodule(f"blocks.0.{own}").in_features, generator=generator),
            )
            for name, own in modules.items()
        }
        (images,) = place.batches(task, "train")
        with place.weights.folded(wide[task]) as model, torch.no_grad():
            grams[task] = input_grams(read, functools.partial(model, images))
    found = gram_seq(wide, bench=place, images=GIVEN["images"], **settings)
    for module, (b, a) in gram(wide, grams=grams, **settings).items():
        torch.testing.assert_close(found[module][0] @ found[module][1], b @ a, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("own", "given", "cut"), [(16, None, None), (17, None, 16), (40, None, 16), (8, 4, 4)])
def test_distillation_cuts_what_is_no_low_rank(own: int, given: int | None, cut: int | None) -> None:
    merged = {"k": (torch.zeros(32, own), torch.zeros(own, 32)), "fc1": (torch.zeros(128, own), torch.zeros(own, 32))}
    assert trained_rank(merged, given) == cut
