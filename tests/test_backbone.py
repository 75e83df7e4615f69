import copy

import pytest
import safetensors.torch
import timm
import torch
from peft import PeftModel

from launch.errors import WeightsError
from lightning_modules import backbone as backbone_module
from lightning_modules.backbone import (
    create_backbone,
    fingerprint,
    fused_state_dict,
    hold_frozen_weights,
    load_weights,
    split_qkv,
)
from lightning_modules.lora import TARGET_MODULES, add_lora, folded_state_dict, init_seed, lora_config
from tests.conftest import SIZE, TINY, randomize_lora


def test_split_gives_the_fused_models_features(vit, images):
    with torch.no_grad():
        expected = vit(images)
        torch.testing.assert_close(split_qkv(vit)(images), expected, rtol=0, atol=1e-5)


def test_split_and_fused_state_dicts_are_inverse(vit):
    plain = copy.deepcopy(vit.state_dict())
    fused = fused_state_dict(split_qkv(vit).state_dict())
    assert fused.keys() == plain.keys()
    assert all(torch.equal(fused[key], plain[key]) for key in plain)


def test_class_token_is_the_output(vit, images):
    with torch.no_grad():
        tokens = vit.forward_features(images)
        assert torch.equal(vit(images), tokens[:, 0])
    assert tokens.shape == (4, 1 + (SIZE // 16) ** 2, 64)


@pytest.mark.parametrize("targets", [["k", "v"], ["q"], ["q", "k", "v"], ["proj"], ["mlp"], ["k", "mlp", "proj"]])
def test_only_the_targets_are_adapted_and_trained(vit, targets):
    add_lora(split_qkv(vit), lora_config(2, None, targets), init_seed=0)
    trained = {name for name, parameter in vit.named_parameters() if parameter.requires_grad}
    wanted = {module for target in targets for module in TARGET_MODULES[target]}
    depth = len(vit.blocks)
    expected = {f"blocks.{i}.{m}.lora_{f}.default.weight" for i in range(depth) for m in wanted for f in "AB"}
    assert trained == expected


@pytest.mark.parametrize("targets", [["k", "v"], ["q", "k", "v"], ["v"]])
@pytest.mark.parametrize("alpha", [None, 6.0])
def test_fused_low_rank_product_equals_pefts_branches(vit, images, targets, alpha, monkeypatch):
    """Same outputs and gradients as calling each projection's own forward; in float64, where rounding hides nothing."""
    add_lora(split_qkv(vit), lora_config(3, alpha, targets), init_seed=0)
    randomize_lora(vit)
    vit.double()
    images = images.double()

    def run():
        vit.zero_grad()
        inputs = images.clone().requires_grad_()
        output = vit(inputs)
        output.square().sum().backward()
        return [output.detach(), inputs.grad] + [p.grad.clone() for p in vit.parameters() if p.requires_grad]

    ours = run()
    monkeypatch.setattr(backbone_module, "plain_lora", lambda _: None)
    theirs = run()
    assert len(ours) == 2 + 2 * len(targets) * len(vit.blocks)
    for mine, reference in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-9, atol=1e-9 * float(reference.abs().max()))


def test_fused_low_rank_product_passes_gradcheck(vit):
    add_lora(split_qkv(vit), lora_config(2, None, ["k", "v"]), init_seed=0)
    randomize_lora(vit)
    layer = vit.blocks[0].attn.qkv.double()
    x = torch.randn(2, 3, 64, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: layer(x).sin(), (x,), fast_mode=True)
    factors = [p for p in layer.parameters() if p.requires_grad]
    assert len(factors) == 4
    assert torch.autograd.gradcheck(lambda *_: layer(x.detach()).sin(), factors, fast_mode=True)


def test_dropout_takes_pefts_own_forward(vit, images):
    """The fused product has no dropout; an adapter that asks for it must get it."""
    add_lora(split_qkv(vit), lora_config(2, None, ["k", "v"], dropout=0.5), init_seed=0)
    randomize_lora(vit)
    vit.train()
    torch.manual_seed(0)
    first, second = vit(images), vit(images)
    assert not torch.equal(first, second)


def test_rows_of_several_adapters_are_each_its_own(vit, images):
    """peft hands ``adapter_names`` to the projections by hooks, which the fused product would pass over."""
    config = lora_config(2, None, ["k", "v"])
    model = PeftModel(split_qkv(vit), config, "a")
    model.add_adapter("b", config)
    randomize_lora(model)
    model.eval()
    alone = []
    for name in ("a", "b"):
        model.set_adapter(name)
        alone.append(model(images))
    with model.disable_adapter():
        alone.append(model(images))
    mixed = model(images[:3], adapter_names=["b", "a", "__base__"])
    expected = torch.stack([alone[1][0], alone[0][1], alone[2][2]])
    torch.testing.assert_close(mixed, expected, atol=1e-5, rtol=1e-4)
    assert (alone[0] - alone[1]).abs().max() > 0.1


def test_autocast_follows_float32(vit, images):
    add_lora(split_qkv(vit), lora_config(2, None, ["k", "v"]), init_seed=0)
    randomize_lora(vit)
    with torch.no_grad():
        expected = vit(images)
    hold_frozen_weights(vit, torch.bfloat16)
    assert vit.blocks[0].attn.qkv.q.weight.dtype == torch.bfloat16
    assert vit.blocks[0].norm1.weight.dtype == torch.float32
    assert vit.blocks[0].attn.qkv.k.lora_A["default"].weight.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        output = vit(images)
        output.float().square().sum().backward()
    assert torch.cosine_similarity(output.float(), expected).min() > 0.99
    gradient = vit.blocks[0].attn.qkv.k.lora_A["default"].weight.grad
    assert gradient.dtype == torch.float32
    assert gradient.abs().sum() > 0


def test_an_a_that_is_not_trained_stays_as_it_was_drawn(vit):
    add_lora(split_qkv(vit), lora_config(2, None, ["k", "v"]), init_seed=0, train_a=False)
    layer = vit.blocks[0].attn.qkv.k
    drawn = layer.lora_A["default"].weight.clone()
    hold_frozen_weights(vit, torch.bfloat16)
    assert layer.base_layer.weight.dtype == torch.bfloat16
    assert layer.lora_A["default"].weight.dtype == torch.float32
    assert torch.equal(layer.lora_A["default"].weight, drawn)


def test_folded_weights_load_into_plain_timm(vit, images):
    add_lora(split_qkv(vit), lora_config(4, 8.0, ["k", "v", "proj", "mlp"]), init_seed=0)
    randomize_lora(vit)
    before = copy.deepcopy(vit.state_dict())
    state = folded_state_dict(vit)
    plain = timm.create_model(TINY, num_classes=0, img_size=SIZE).eval()
    plain.load_state_dict(state)
    with torch.no_grad():
        torch.testing.assert_close(plain(images), vit(images), rtol=1e-5, atol=1e-5)
    assert all(torch.equal(before[key], value) for key, value in vit.state_dict().items())


def test_folding_keys_and_values_leaves_queries_alone(vit):
    plain = {key: value.clone() for key, value in vit.state_dict().items()}
    add_lora(split_qkv(vit), lora_config(4, None, ["k", "v"]), init_seed=0)
    randomize_lora(vit)
    change = folded_state_dict(vit)["blocks.2.attn.qkv.weight"] - plain["blocks.2.attn.qkv.weight"]
    queries, keys, values = change.chunk(3)
    assert not queries.any()
    assert keys.abs().max() > 0.01
    assert values.abs().max() > 0.01


def test_init_seed_alone_decides_a(vit):
    def drawn(seed, noise):
        model = split_qkv(copy.deepcopy(vit))
        torch.manual_seed(noise)
        add_lora(model, lora_config(2, None, ["k", "v"]), init_seed=seed)
        return model.blocks[1].attn.qkv.k.lora_A["default"].weight

    assert torch.equal(drawn(3, noise=0), drawn(3, noise=1))
    assert not torch.equal(drawn(3, noise=0), drawn(4, noise=0))


def test_the_order_of_targets_decides_nothing(vit):
    """Runs are the same whatever it is (``launch.runs.content_hash``)."""
    first, second = (
        add_lora(split_qkv(copy.deepcopy(vit)), lora_config(2, None, targets), init_seed=3).state_dict()
        for targets in (["k", "v"], ["v", "k"])
    )
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_init_seed_is_shared_or_the_tasks_own():
    assert init_seed(5, "galaxy", "shared") == init_seed(5, "emotion", "shared") == 5
    assert init_seed(5, "galaxy", "per_task") != init_seed(5, "emotion", "per_task")
    assert init_seed(5, "galaxy", "per_task") == init_seed(5, "galaxy", "per_task")


def test_fingerprint_sees_weights_and_size(vit):
    mark = fingerprint(vit)
    assert mark == fingerprint(copy.deepcopy(vit))
    with torch.no_grad():
        vit.pos_embed += 1e-8 * torch.randn_like(vit.pos_embed)  # as another processor resamples
    assert fingerprint(vit) == mark
    with torch.no_grad():
        vit.blocks[3].attn.qkv.weight[0, 0] += 1e-3
    assert fingerprint(vit) != mark


def test_weights_from_a_file_of_another_image_size(vit, tmp_path):
    path = tmp_path / "weights.safetensors"
    extra = {"head.weight": torch.zeros(10, 64), "head.bias": torch.zeros(10)}
    safetensors.torch.save_file(dict(vit.state_dict()) | extra, path)
    larger = create_backbone(TINY, 64, path)
    assert larger.pos_embed.shape[1] == 1 + 16
    assert torch.equal(larger.blocks[0].attn.qkv.weight, vit.blocks[0].attn.qkv.weight)
    assert larger(torch.zeros(1, 3, 64, 64)).shape == (1, 64)
    assert fingerprint(larger) != fingerprint(vit)


@pytest.mark.parametrize(
    ("name", "size", "words"),
    [
        ("vit_bse_patch16_224", 224, ["vit_bse_patch16_224", "vit_base_patch16_224"]),
        ("resnet18", 224, ["resnet18", "Vision Transformer"]),
        ("eva02_tiny_patch14_224", 224, ["eva02_tiny_patch14_224", "Eva"]),
        ("vit_base_patch16_siglip_224", 224, ["vit_base_patch16_siglip_224", "class token"]),
        ("deit_tiny_distilled_patch16_224", 32, ["deit_tiny_distilled_patch16_224", "not its class token"]),
        ("hf-hub:timm/vit_tiny_patch16_224", 224, ["hf-hub:timm/vit_tiny_patch16_224", "backbone.weights=FILE"]),
        (TINY, 40, ["image_size=40", "32 or 48"]),
    ],
)
def test_unusable_models_are_refused_by_name(name, size, words):
    with pytest.raises(WeightsError) as error:
        create_backbone(name, size)
    for word in words:
        assert word in str(error.value)


def test_an_unreachable_hub_is_told_with_the_ways_out(monkeypatch):
    def unreachable(*_, **__):
        raise FileNotFoundError("cannot locate the file on the Hub.")

    monkeypatch.setattr(timm, "create_model", unreachable)
    with pytest.raises(WeightsError, match=r"hub.*backbone\.weights=FILE.*dinov2_small"):
        create_backbone(TINY, SIZE, pretrained=True)


def test_a_block_without_fused_qkv_is_refused(vit):
    vit.blocks[4].attn.qkv = torch.nn.Identity()
    with pytest.raises(WeightsError, match=r"blocks\.4"):
        backbone_module.require_fused_qkv(vit, TINY)


@pytest.mark.parametrize("fault", ["missing", "truncated", "foreign", "misshapen"])
def test_bad_weight_files_are_named(vit, tmp_path, fault):
    path = tmp_path / "weights.safetensors"
    state = dict(vit.state_dict())
    if fault == "foreign":
        state = {"conv.weight": torch.zeros(3)}
    if fault == "misshapen":
        state["norm.weight"] = torch.zeros(5)
    if fault != "missing":
        safetensors.torch.save_file(state, path)
    if fault == "truncated":
        path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(WeightsError, match=r"weights\.safetensors"):
        load_weights(vit, TINY, path)
