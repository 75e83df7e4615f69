import pytest
import safetensors.torch
import torch

from launch.errors import AdapterError
from lightning_modules.backbone import split_qkv
from lightning_modules.lora import add_lora, lora_config
from merging.grams import collect_grams, exact_gram, load_grams, read_modules, save_grams
from tests.conftest import AppleTensor, randomize_lora


@pytest.fixture
def adapted(vit):
    add_lora(split_qkv(vit), lora_config(2, None, ["k", "v", "mlp"]), init_seed=0)
    randomize_lora(vit)
    return vit


def test_keys_and_values_share_what_they_read(adapted):
    paths = list(read_modules(adapted))
    assert "blocks.0.attn.qkv" in paths
    assert "blocks.5.mlp.fc2" in paths
    assert len(paths) == 6 * 3
    assert not any(path.endswith((".k", ".v")) for path in paths)


def test_grams_are_the_second_moments_of_the_inputs(adapted, images):
    """Against the normed input of a block, computed by hand from the block before."""
    grams = collect_grams(adapted, [images[:1], images[1:]])
    with torch.no_grad():
        tokens = adapted.norm_pre(adapted._pos_embed(adapted.patch_embed(images)))
        for block in adapted.blocks[:2]:
            tokens = block(tokens)
        rows = adapted.blocks[2].norm1(tokens).flatten(0, 1).double()
    torch.testing.assert_close(grams["blocks.2.attn.qkv"], rows.t() @ rows / len(rows), rtol=1e-5, atol=1e-5)
    assert grams["blocks.2.mlp.fc2"].shape == (192, 192)
    assert not adapted.blocks[2].attn.qkv._forward_pre_hooks


def test_sums_are_exact_for_apples_gpus_too():
    rows = torch.randn(5, 3)
    gram = exact_gram(rows.as_subclass(AppleTensor))
    assert gram.dtype == torch.float64
    assert torch.equal(gram, exact_gram(rows))


def test_sums_are_not_rounded_under_autocast():
    rows = torch.randn(50, 20)
    with torch.autocast("cpu", torch.bfloat16):
        gram = exact_gram(rows)
    assert torch.equal(gram, exact_gram(rows))


def test_hooks_are_gone_when_the_model_fails(adapted):
    with pytest.raises(RuntimeError, match="channels"):
        collect_grams(adapted, [torch.zeros(1, 4, 32, 32)])
    assert not adapted.blocks[0].attn.qkv._forward_pre_hooks


def test_saved_grams_come_back_to_half_precision(adapted, images, tmp_path):
    grams = collect_grams(adapted, [1000 * images])
    path = tmp_path / "grams.safetensors"
    save_grams(path, grams)
    loaded = load_grams(path)
    assert loaded.keys() == grams.keys()
    for name, gram in grams.items():
        assert torch.equal(loaded[name], loaded[name].t())
        torch.testing.assert_close(loaded[name], gram, rtol=1e-3, atol=1e-3 * float(gram.abs().max()))
    entries = sum(len(gram) * (len(gram) + 1) // 2 for gram in grams.values())
    assert path.stat().st_size < 2 * entries + 10_000


def test_grams_that_rounding_made_indefinite_come_back_without_negative_eigenvalues(tmp_path):
    rows = 100 * torch.randn(5, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(0))  # of rank 5
    save_grams(tmp_path / "grams.safetensors", {"k": rows.t() @ rows})
    values = torch.linalg.eigvalsh(load_grams(tmp_path / "grams.safetensors")["k"])
    assert values.min() > -1e-12 * values.max()


@pytest.mark.parametrize("fault", ["missing", "truncated", "foreign", "cut", "nan"])
def test_damaged_files_are_refused(adapted, images, tmp_path, fault):
    path = tmp_path / "grams.safetensors"
    save_grams(path, collect_grams(adapted, [images]))
    tensors = safetensors.torch.load_file(path)
    if fault == "missing":
        path.unlink()
    elif fault == "truncated":
        path.write_bytes(path.read_bytes()[:500])
    elif fault == "foreign":
        safetensors.torch.save_file({"x": torch.ones(2)}, path)
    else:
        half = tensors["blocks.0.attn.qkv.half"]
        tensors["blocks.0.attn.qkv.half"] = half[:-1].clone() if fault == "cut" else half * float("nan")
        safetensors.torch.save_file(tensors, path)
    with pytest.raises(AdapterError, match=r"grams\.safetensors"):
        load_grams(path)
