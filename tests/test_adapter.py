import json
import shutil

import pytest
import safetensors.torch
import timm
import torch
from peft import PeftModel

from launch.errors import AdapterError, UserError
from lightning_modules.adapter import load_bundle
from lightning_modules.backbone import create_backbone, split_qkv
from lightning_modules.lora import folded_state_dict
from merging.members import read_member
from tests.conftest import SIZE, TINY
from tests.peft_bundle import apply_bundle


def fresh():
    torch.manual_seed(7)
    return split_qkv(create_backbone(TINY, SIZE))


def test_bundle_gives_the_trained_models_answers(bundle, images):
    path, model, mark = bundle
    backbone, head = apply_bundle(fresh(), load_bundle(path, mark))
    with torch.no_grad():
        assert torch.equal(head(backbone(images)), model(images)["leaves"])


def test_plain_peft_and_plain_timm_give_the_same_features(bundle, images):
    path, model, _ = bundle
    wrapped = PeftModel.from_pretrained(fresh(), str(path)).eval()
    folded = timm.create_model(TINY, num_classes=0, img_size=SIZE).eval()
    folded.load_state_dict(folded_state_dict(model.backbone))
    with torch.no_grad():
        expected = model.backbone(images)
        torch.testing.assert_close(wrapped(images), expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(folded(images), expected, rtol=0, atol=1e-5)


def test_bundle_holds_no_pickle_and_tells_its_origin(bundle):
    path, _, mark = bundle
    names = {file.name for file in path.iterdir()}
    assert names == {"adapter_config.json", "adapter_model.safetensors", "head.safetensors", "card.json", "README.md"}
    readme = (path / "README.md").read_text()
    assert "leaves" in readme
    assert mark[:16] in readme
    assert "0.5000" in readme


def test_config_file_is_the_same_each_time(bundle):
    content = json.loads((bundle[0] / "adapter_config.json").read_text())
    assert content["target_modules"] == ["attn.qkv.k", "attn.qkv.v"]
    assert (content["r"], content["lora_alpha"], content["inference_mode"]) == (4, 8.0, True)


def _truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _rewrite(path, change):
    tensors = safetensors.torch.load_file(path)
    safetensors.torch.save_file(change(tensors), path)


def _without_adapter(path):
    card = json.loads((path / "card.json").read_text())
    (path / "card.json").write_text(json.dumps(card | {"lora": {"rank": 4}}))
    (path / "adapter_model.safetensors").unlink()
    (path / "adapter_config.json").unlink()


def _without_first(tensors):
    return dict(list(tensors.items())[1:])


def _narrower(tensors):
    name = next(name for name in tensors if ".lora_A." in name)
    return tensors | {name: tensors[name][:1].clone()}


def _zero_b(tensors):
    return {name: value * 0 if ".lora_B." in name else value for name, value in tensors.items()}


FAULTS = {
    "no folder": (lambda path: shutil.rmtree(path), "No adapter bundle"),
    "truncated adapter": (lambda path: _truncate(path / "adapter_model.safetensors"), "adapter_model.safetensors"),
    "truncated head": (lambda path: _truncate(path / "head.safetensors"), "head.safetensors"),
    "no adapter file": (lambda path: (path / "adapter_model.safetensors").unlink(), "adapter_model.safetensors"),
    "neither": (_without_adapter, "are missing from an adapter of rank 4"),
    "no config": (lambda path: (path / "adapter_config.json").unlink(), "adapter_config.json"),
    "no card": (lambda path: (path / "card.json").unlink(), "card.json"),
    "card is no json": (lambda path: (path / "card.json").write_text("{"), "card.json"),
    "foreign adapter": (
        lambda path: _rewrite(path / "adapter_model.safetensors", lambda _: {"conv.weight": torch.ones(3)}),
        "no LoRA adapter",
    ),
    "foreign head": (
        lambda path: _rewrite(path / "head.safetensors", lambda _: {"fc.weight": torch.ones(3)}),
        "head.safetensors",
    ),
    "missing layer": (
        lambda path: _rewrite(path / "adapter_model.safetensors", _without_first),
        "blocks.0.attn.qkv.k has no pair of factors of one rank",
    ),
    "narrower layer": (
        lambda path: _rewrite(path / "adapter_model.safetensors", _narrower),
        "blocks.0.attn.qkv.k has no pair of factors of one rank",
    ),
    "head of two parts": (
        lambda path: _rewrite(path / "head.safetensors", lambda t: t | {"output.bias": torch.ones(7)}),
        "head.safetensors does not fit our head",
    ),
    "all-zero B": (lambda path: _rewrite(path / "adapter_model.safetensors", _zero_b), "every B is zero"),
    "NaN": (
        lambda path: _rewrite(
            path / "adapter_model.safetensors", lambda t: {name: value * float("nan") for name, value in t.items()}
        ),
        "not finite",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_damaged_bundles_are_refused_naming_the_file(bundle, fault):
    path, _, mark = bundle
    damage, words = FAULTS[fault]
    damage(path)
    with pytest.raises(AdapterError) as error:
        read_member(path, mark)
    assert words in str(error.value)


def test_another_backbone_is_refused(bundle):
    with pytest.raises(AdapterError, match="fingerprint"):
        load_bundle(bundle[0], "0" * 64)


def test_what_exists_is_listed(bundle):
    path, _, mark = bundle
    with pytest.raises(AdapterError, match=r"leaves.r4-s0"):
        load_bundle(path.parent.parent / "galaxy" / "r4-s0", mark)


def test_a_failed_save_leaves_the_old_bundle(bundle, monkeypatch):
    from lightning_modules import adapter

    path, model, _ = bundle
    before = {file.name: file.read_bytes() for file in path.iterdir()}

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(adapter, "write_json", full)
    with pytest.raises(UserError, match="disk is full"):
        adapter.save_bundle(path, model, "leaves", None, json.loads(before["card.json"]))
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]
