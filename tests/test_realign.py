"""Readouts, features and folding: exact where they must be, harmless where nothing was changed."""

from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from launch.errors import AdapterError
from lightning_modules.model import MLPHead
from merging import realign
from merging.features import DEPTH, class_token, deep_width, read_features
from merging.fold import FoldableWeights, folded_state, locate
from merging.realign import RIDGES, choose_readout, fit_readouts, fold_readout, identity, refit_head
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


def test_a_chosen_readout_is_fitted_to_all_images() -> None:
    features, wanted = rows(50, 6), rows(50, 6, 1)
    readout, ridge = choose_readout(features, wanted)
    (again,) = fit_readouts(features, wanted, [ridge])
    torch.testing.assert_close(readout.weight, again.weight)


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


def test_a_whole_head_stays_as_it_is_where_a_merge_lost_nothing() -> None:
    head = MLPHead(10, 3)
    deep = [rows(60, 80, seed) for seed in (0, 1)]
    again = refit_head(head, deep, [class_token(own, 10) for own in deep])
    assert torch.equal(again.output.weight, head.output.weight)
    assert torch.equal(again.output.bias, head.output.bias)
    torch.testing.assert_close(again(deep[0]), head(class_token(deep[0], 10)), atol=1e-4, rtol=1e-4)


def drowned(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(merged, single) features: a merge that drowns the one direction that answers hang on in noise."""
    single = rows(count, 10, seed)
    return torch.cat([single[:, :1] + 2 * rows(count, 1, seed + 100), single[:, 1:]], 1), single


def test_a_whole_head_answers_nearer_than_a_readout_that_pulls_answers_together() -> None:
    head = MLPHead(10, 1).requires_grad_(False)
    torch.nn.init.zeros_(head.hidden.weight)[:, 0] = torch.tensor([1.0, -1.0]).repeat(256)
    torch.nn.init.zeros_(head.hidden.bias)
    torch.nn.init.constant_(head.output.weight, 1 / 256)  # so it answers |z_0|
    views = [drowned(300, seed) for seed in (1, 2)]
    merged, single = drowned(2000, 9)
    plain = fold_readout(head, choose_readout(*views[0])[0])
    whole = refit_head(head, [own for own, _ in views], [own for _, own in views])
    off = [float((one(merged) - head(single)).square().mean()) for one in (plain, whole)]
    assert off[1] < 0.7 * off[0]


def test_the_last_layer_is_fitted_to_images_that_the_readout_has_not_seen() -> None:
    """By hand, with one ridge to choose from on each side."""
    torch.manual_seed(0)
    head = MLPHead(4, 2).requires_grad_(False)
    merged, single = rows(90, 4), rows(90, 4, 1)
    found = refit_head(head, [merged], [single])
    head = head.double()
    place = torch.arange(90) % 5
    by_ridge = {}
    for ridge in RIDGES:
        guess = torch.empty(90, 4, dtype=torch.float64)
        for fold in range(5):
            (readout,) = fit_readouts(merged[place != fold], single[place != fold], [ridge])
            guess[place == fold] = readout(merged[place == fold])
        by_ridge[float((guess - single).square().sum())] = (ridge, guess)
    ridge, guess = by_ridge[min(by_ridge)]
    hidden = torch.relu(head.hidden(guess))
    spread = hidden.std(0, correction=0).clamp(min=1e-8)
    x = (hidden - hidden.mean(0)) / spread
    y = head(single.double()) - head.output(hidden)
    change = found.output.weight.double() - head.output.weight
    sizes = []
    for own in (0.01, 0.1, 1.0, 10.0):
        u = torch.linalg.solve(x.T @ x + own * 90 * torch.eye(512), x.T @ (y - y.mean(0)))
        sizes.append(float((change - (u / spread[:, None]).T).abs().max()))
    assert min(sizes) < 1e-6 * float(change.abs().max()) + 1e-7
    (readout,) = fit_readouts(merged, single, [ridge])
    torch.testing.assert_close(found.hidden(merged), head.float().hidden(readout(merged).float()), atol=1e-4, rtol=1e-4)


def test_the_readout_of_a_whole_head_is_chosen_on_plain_images_and_fitted_to_all_views() -> None:
    """The plain view needs no map, the others one and the same: what judges them too takes the weakest ridge."""
    head = MLPHead(6, 2).requires_grad_(False)
    merged = [rows(40, 6, seed) for seed in (1, 2, 3)]
    single = [merged[0], *(own + own @ rows(6, 6, 4) for own in merged[1:])]
    found = refit_head(head, merged, single)
    readouts = dict(zip(RIDGES, fit_readouts(torch.cat(merged), torch.cat(single), RIDGES), strict=True))
    off = {
        ridge: float((found.hidden(merged[0]) - head.hidden(readout(merged[0]).float())).abs().max())
        for ridge, readout in readouts.items()
    }
    assert min(off, key=lambda ridge: off[ridge]) == max(RIDGES)
    assert off[max(RIDGES)] < 1e-5
    assert off[min(RIDGES)] > 0.01


def test_a_whole_head_is_judged_on_groups_that_it_was_not_fitted_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight copies of each of ten images, whose change is noise: one by one, a weak ridge knows them by heart."""
    groups = torch.arange(10).repeat_interleave(8)
    merged, single = rows(10, 6)[groups] + 0.01 * rows(80, 6, 3), rows(10, 6, 1)[groups]
    chosen = []

    def watched(features: torch.Tensor, wanted: torch.Tensor, ridges: Any) -> Any:
        if len(ridges) == 1:
            chosen.append(*ridges)
        return fit_readouts(features, wanted, ridges)

    monkeypatch.setattr(realign, "fit_readouts", watched)
    head = MLPHead(6, 2).requires_grad_(False)
    refit_head(head, [merged], [single], groups)
    refit_head(head, [merged], [single])
    by_group, by_image = chosen
    assert by_group > by_image


def test_the_last_layer_is_judged_on_plain_images_alone() -> None:
    """They lack nothing; the augmented views lack what a weak ridge finds."""
    hidden = rows(3 * 40, 4).double().unflatten(0, (3, 40))
    missing = torch.cat([torch.zeros(1, 40, 2).double(), hidden[1:, :, :2]])
    folds = [torch.arange(40) % 5 == fold for fold in range(5)]
    assert realign._output_change(hidden, missing, folds) is None


def test_the_last_layer_stays_where_held_out_images_are_answered_no_better_with_another() -> None:
    """Ten images whose merged features tell nothing of the wanted ones; hidden units are in their linear range."""
    torch.manual_seed(1)  # by chance another last layer serves them better in one of three draws
    head = MLPHead(10, 2).requires_grad_(False)
    torch.nn.init.constant_(head.hidden.bias, 20.0)
    found = refit_head(head, [rows(10, 10)], [rows(10, 10, 1)])
    assert torch.equal(found.output.weight, head.output.weight)
    assert torch.equal(found.output.bias, head.output.bias)


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
