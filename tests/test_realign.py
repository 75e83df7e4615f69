"""Readouts, features and folding: exact where they must be, harmless where nothing was changed."""

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from launch.errors import AdapterError
from lightning_modules.model import MLPHead
from merging.features import DEPTH, class_token, deep_width, read_features
from merging.fold import FoldableWeights, folded_state, locate
from merging.realign import RIDGES, choose_readout, fit_readouts, fold_readout, identity
from tests.conftest import SIZE


def rows(count: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def test_nothing_changed_means_nothing_is_mapped() -> None:
    deep, width = rows(50, 80), 10
    own = class_token(deep, width)
    readout, _ = choose_readout(deep, own)
    torch.testing.assert_close(readout(deep), own.double())


def test_a_linear_change_is_undone() -> None:
    single = rows(400, 10)
    merged = single @ (torch.eye(10) + 0.1 * rows(10, 10, 1)) + 0.5
    readout, ridge = choose_readout(merged, single)
    assert ridge == RIDGES[0]
    before, after = (merged - single).square().mean(), (readout(merged) - single).square().mean()
    assert after < 1e-3 * before


@pytest.mark.parametrize("count", [12, 200])
def test_ridge_equals_the_textbook(count: int) -> None:
    """Both ways through the algebra, fewer and more images than numbers, against a dense solve."""
    features, wanted = rows(count, 40).double(), rows(count, 40, 1).double()
    (readout,) = fit_readouts(features, wanted, [0.3])
    scale, mean = features.std(0, correction=0), features.mean(0)
    x, y = (features - mean) / scale, wanted - features
    m = torch.linalg.solve(x.T @ x + 0.3 * count * torch.eye(40, dtype=x.dtype), x.T @ (y - y.mean(0)))
    torch.testing.assert_close(readout(features), features + x @ m + y.mean(0))


def test_a_folded_head_is_the_readout_and_the_head() -> None:
    head = MLPHead(10, 3)
    deep = rows(60, 80)
    readout, _ = choose_readout(deep, rows(60, 10, 1))
    folded = fold_readout(head, readout)
    assert folded.hidden.in_features == 80
    torch.testing.assert_close(folded(deep), head(readout(deep).float()), atol=1e-4, rtol=1e-4)
    same = fold_readout(head, identity(10))
    assert torch.equal(same.hidden.weight, head.hidden.weight)


def test_deep_features_hold_the_tokens_of_the_last_blocks(vit: VisionTransformer, images: torch.Tensor) -> None:
    deep = read_features(vit, [images], deep=True)
    plain = read_features(vit, [images], deep=False)
    width = vit.num_features
    assert deep.shape == (4, deep_width(width))
    torch.testing.assert_close(class_token(deep, width), plain)
    states = vit.forward_intermediates(images, indices=DEPTH, norm=True, return_prefix_tokens=True, output_fmt="NLC")[1]
    expected = torch.cat([part for patches, prefix in states for part in (prefix[:, 0], patches.mean(1))], dim=1)
    torch.testing.assert_close(deep, expected)
    assert torch.equal(read_features(vit, [images], deep=True), deep)  # no hook stays behind


def test_folding_is_undone_bit_for_bit(vit: VisionTransformer, images: torch.Tensor) -> None:
    width = vit.num_features
    delta = {
        "blocks.1.attn.qkv.k": (rows(width, 2), rows(2, width, 1)),
        "blocks.2.mlp.fc1": (rows(3 * width, 2, 2), rows(2, width, 3)),
    }
    before = {name: value.clone() for name, value in vit.state_dict().items()}
    weights = FoldableWeights(vit, delta)
    plain = vit(images)
    with weights.folded(delta) as model:
        inside = model.state_dict()
        changed = [name for name, value in inside.items() if not torch.equal(value, before[name])]
        assert changed == ["blocks.1.attn.qkv.weight", "blocks.2.mlp.fc1.weight"]
        assert torch.equal(inside[changed[0]][:width], before[changed[0]][:width])  # q stays
        assert not torch.allclose(model(images), plain)
        state, base = folded_state_of(vit, before, delta)
        torch.testing.assert_close(inside[changed[0]], state[changed[0]])
        assert torch.equal(base[changed[1]], before[changed[1]])
    assert all(torch.equal(value, before[name]) for name, value in vit.state_dict().items())
    assert torch.equal(vit(images), plain)


def folded_state_of(
    vit: VisionTransformer, before: dict[str, torch.Tensor], delta: dict[str, tuple[torch.Tensor, torch.Tensor]]
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    import timm

    other = timm.create_model("test_vit", num_classes=0, img_size=SIZE)
    other.load_state_dict(before)
    return folded_state(other, delta)


def test_what_does_not_fit_is_refused(vit: VisionTransformer) -> None:
    with pytest.raises(AdapterError, match=r"no module blocks\.9\.attn"):
        locate(vit, "blocks.9.attn.qkv.k")
    with pytest.raises(AdapterError, match="not a Linear"):
        locate(vit, "blocks.0.norm1")
    weights = FoldableWeights(vit, ["blocks.0.attn.qkv.k"])
    with pytest.raises(AdapterError, match="another backbone"):
        weights.fold({"blocks.0.attn.qkv.k": (rows(5, 1), rows(1, 5))})
