"""Adapters that peft made, ours and foreign ones, as deltas."""

from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict

from launch.errors import AdapterError
from lightning_modules.adapter import load_bundle
from lightning_modules.backbone import create_backbone
from lightning_modules.lora import lora_config
from merging.fold import FoldableWeights
from merging.frozen_backbone import require_whole
from merging.members import read_delta
from tests.conftest import SIZE, TINY, randomize_lora
from tests.model_cases import adapter


def foreign(**settings: object) -> tuple[PeftModel, dict[str, torch.Tensor], LoraConfig]:
    """peft on a plain timm model, fused ``qkv`` and all; its state dict as a file would hold it."""
    torch.manual_seed(0)
    model = timm.create_model(TINY, num_classes=0, img_size=SIZE).eval()
    config = LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": ["attn.qkv", "mlp.fc1"], **settings})
    adapted = get_peft_model(model, config)
    randomize_lora(adapted)
    return adapted.eval(), get_peft_model_state_dict(adapted, save_embedding_layers=False), config


@pytest.mark.parametrize("rslora", [False, True])
def test_lora_on_a_fused_qkv_is_taken_apart(images: torch.Tensor, rslora: bool) -> None:
    adapted, tensors, config = foreign(use_rslora=rslora)
    delta = read_delta(tensors, config, Path("there"))
    assert {name.rpartition(".")[2] for name in delta} == {"q", "k", "v", "fc1"}
    torch.manual_seed(0)
    plain = timm.create_model(TINY, num_classes=0, img_size=SIZE).eval()
    with FoldableWeights(plain, delta).folded(delta) as folded:
        torch.testing.assert_close(folded(images), adapted(images), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_scales_are_not_rounded_to_half_precision(dtype: torch.dtype) -> None:
    """Else adapters that share their A, at other scales, would not share it any more."""
    _, tensors, config = foreign(target_modules=["mlp.fc1"], lora_alpha=12, r=5)
    halves = {name: value.to(dtype) for name, value in tensors.items()}
    for module, (_, a) in read_delta(halves, config, Path("there")).items():
        stored = next(value for name, value in halves.items() if module in name and "lora_A" in name)
        assert torch.equal(a, 2.4 * stored.float())


def test_rows_that_were_not_adapted_are_left_out() -> None:
    _, tensors, config = foreign(target_modules=["attn.qkv"])
    width = next(value.shape[0] for name, value in tensors.items() if "lora_B" in name) // 3
    for name, value in tensors.items():
        if "lora_B" in name:
            value[:width] = 0
    assert {name.rpartition(".")[2] for name in read_delta(tensors, config, Path("there"))} == {"k", "v"}


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights=pissa_niter_4 may change the frozen weights"),
        ({"init_lora_weights": "OLoRA"}, "init_lora_weights=OLoRA"),
        ({"use_dora": True}, "use_dora is set: DoRA rescales"),
        ({"lora_bias": True}, "lora_bias is set"),
        ({"bias": "lora_only"}, "bias=lora_only"),
        ({"rank_pattern": {"blocks.0.attn.qkv": 2}}, "rank_pattern is set"),
        ({"alpha_pattern": {"blocks.0.attn.qkv": 2}}, "alpha_pattern is set"),
        ({"modules_to_save": ["norm"]}, "modules_to_save is set"),
    ],
)
def test_what_is_no_plain_lora_is_refused_by_name(settings: dict[str, object], reason: str) -> None:
    _, tensors, config = foreign(**settings)
    with pytest.raises(AdapterError, match=reason):
        read_delta(tensors, config, Path("there"))


def test_a_start_that_only_a_newer_peft_knows_is_refused() -> None:
    """Any but the known ones may have changed the frozen weights, as LoRA-GA does."""
    _, tensors, config = foreign()
    config.init_lora_weights = "lora_ga"
    with pytest.raises(AdapterError, match="init_lora_weights=lora_ga"):
        read_delta(tensors, config, Path("there"))
    config.init_lora_weights = "gaussian"
    assert read_delta(tensors, config, Path("there"))


def test_factors_of_another_rank_than_the_configurations_are_refused() -> None:
    """Their scale, alpha / r, would be another."""
    _, tensors, config = foreign()
    config.r = 8
    with pytest.raises(AdapterError, match=r"has rank 4, but adapter_config\.json says r=8"):
        read_delta(tensors, config, Path("there"))


@pytest.mark.parametrize("fault", ["a block lost", "keys lost", "more than named"])
def test_an_adapter_of_other_modules_than_its_configuration_names_is_refused(tmp_path: Path, fault: str) -> None:
    vit = create_backbone(TINY, SIZE)
    bundle = load_bundle(adapter(tmp_path, "leaves"))
    require_whole(bundle, vit)
    tensors, config = dict(bundle.tensors), bundle.config
    assert config is not None
    if fault == "more than named":
        config = lora_config(2, None, ["v"])
    else:
        part = ".blocks.3." if fault == "a block lost" else ".k."
        tensors = {name: value for name, value in tensors.items() if part not in name}
    with pytest.raises(AdapterError, match="also has" if fault == "more than named" else "lacks"):
        require_whole(replace(bundle, tensors=tensors, config=config), vit)


def test_a_foreign_adapter_on_the_fused_projection_is_whole(tmp_path: Path) -> None:
    _, tensors, config = foreign()
    bundle = replace(load_bundle(adapter(tmp_path, "leaves")), tensors=tensors, config=config)
    require_whole(bundle, create_backbone(TINY, SIZE))


def test_a_lost_factor_is_named() -> None:
    _, tensors, config = foreign()
    lost = next(name for name in tensors if "lora_A" in name)
    with pytest.raises(AdapterError, match="has no pair of factors"):
        read_delta({name: value for name, value in tensors.items() if name != lost}, config, Path("there"))
