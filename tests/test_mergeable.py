"""Options of training that make adapters mergeable: a cap on their size, and A in directions that others do not use."""

import pytest
import torch
from peft.tuners.lora import LoraLayer

from launch.errors import CommandError
from lightning_modules.adapter import load_bundle
from lightning_modules.backbone import create_backbone, split_qkv
from lightning_modules.lora import NormCap, add_lora, folded_state_dict, lora_config, start_in_unused_directions
from merging.grams import FILE, load_grams
from merging.members import read_delta
from tests.conftest import SIZE, TINY, randomize_lora
from tests.runs import draw_folder, leaves, overrides, train_here


def adapted(vit, rank=3, targets=("k", "v", "mlp"), alpha=None):
    return add_lora(split_qkv(vit), lora_config(rank, alpha, targets), init_seed=0)


def shares(model):
    """|W's change| / |W| of each adapted module, from the folded weights."""
    folded, plain = folded_state_dict(model), {}
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer) and "qkv" not in name:
            base = module.get_base_layer().weight.double()
            plain[name] = float((folded[f"{name}.weight"].double() - base).norm() / base.norm())
    return plain


def test_the_cap_scales_down_what_is_above_it_and_nothing_else(vit):
    model = adapted(vit, alpha=6.0)
    randomize_lora(model)
    before = shares(model)
    limit = sorted(before.values())[len(before) // 2]
    cap = NormCap(model, limit)
    ups = {name: value.clone() for name, value in model.named_parameters() if ".lora_B" in name}
    cap()
    after = shares(model)
    assert any(value > limit for value in before.values())
    for name, value in before.items():
        assert after[name] == pytest.approx(min(value, limit), rel=1e-4)
        if value < limit:
            assert torch.equal(
                model.get_parameter(f"{name}.lora_B.default.weight"), ups[f"{name}.lora_B.default.weight"]
            )


def test_a_leaves_the_avoided_inputs_alone(vit):
    torch.manual_seed(0)
    model = adapted(vit, rank=2, targets=("k", "v"))
    sizes = {name: float(value.detach().norm()) for name, value in model.named_parameters() if ".lora_A" in name}
    width = model.num_features
    inputs = torch.randn(200, width - 4) @ torch.linalg.qr(torch.randn(width, width - 4))[0].t()
    gram = (inputs.double().t() @ inputs.double()) / len(inputs)
    start_in_unused_directions(model, [{f"blocks.{i}.attn.qkv": gram for i in range(len(model.blocks))}])
    for name, value in model.named_parameters():
        if ".lora_A" in name:
            assert float(value.detach().norm()) == pytest.approx(sizes[name], rel=1e-5)
            assert float((inputs @ value.detach().t()).norm()) < 1e-4 * sizes[name]
            assert torch.linalg.matrix_rank(value) == 2


def test_grams_that_miss_a_module_are_refused(vit):
    model = adapted(vit, targets=("mlp",))
    with pytest.raises(CommandError, match=r"lora\.avoid: adapter number 1 .* blocks\.0\.mlp\.fc1"):
        start_in_unused_directions(model, [{"blocks.0.attn.qkv": torch.eye(64)}])


def test_a_capped_training_stays_under_its_cap(tmp_path):
    train_here(leaves(tmp_path, "lora=norm_cap", "lora.max_norm=0.001", "lora.rank=2"))
    bundle = load_bundle(tmp_path / "out/adapters/leaves/r2-s0")
    plain = split_qkv(create_backbone(TINY, SIZE, tmp_path / "tiny.safetensors"))
    sizes = {
        module: float((b.double() @ a.double()).norm() / plain.get_submodule(module).weight.double().norm())
        for module, (b, a) in read_delta(bundle.tensors, bundle.config, bundle.path).items()
    }
    assert all(0 < size <= 0.001 * (1 + 1e-3) for size in sizes.values()), sizes
    # An adapter that grew less would be no test of the cap.
    assert max(sizes.values()) == pytest.approx(0.001, rel=1e-3)


def test_training_that_avoids_a_task_reads_its_inputs_less(tmp_path):
    train_here(leaves(tmp_path, "gram_images=16"))
    grams = load_grams(tmp_path / "out/adapters/leaves/r2-s0" / FILE)
    draw_folder(tmp_path / "others", 24)
    task = ["task=classification", "data=image_folder", f"data.root={tmp_path / 'others'}", "trainer.max_epochs=1"]

    def read(name, *more):
        train_here(overrides(tmp_path, *task, f"name={name}", *more))
        bundle = load_bundle(tmp_path / f"out/adapters/{name}/r2-s0")
        deltas = read_delta(bundle.tensors, bundle.config, bundle.path)
        return sum(
            float((a.double() @ grams[m.rpartition(".")[0]] @ a.double().t()).trace()) for m, (_, a) in deltas.items()
        )

    assert read("apart", "lora=osrm", "lora.avoid=[leaves,apart]") < 0.1 * read("plain")


def test_avoiding_what_was_never_trained_says_how_to_train_it(tmp_path):
    with pytest.raises(CommandError, match=r"no adapter of task galaxy .*\n?.*python train.py task=galaxy"):
        train_here(leaves(tmp_path, "lora.avoid=[galaxy]"))


def test_each_avoided_task_counts_alike_however_large_its_inputs_are():
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randn(100, 64, generator=generator) * torch.rand(64, generator=generator) for _ in range(2)]
    one, other = (own.double().t() @ own.double() for own in rows)
    found = []
    for scale in (1.0, 1000.0):
        model = adapted(create_backbone(TINY, SIZE), rank=2, targets=("k",))
        paths = [f"blocks.{index}.attn.qkv" for index in range(len(model.blocks))]
        start_in_unused_directions(model, [dict.fromkeys(paths, scale * one), dict.fromkeys(paths, other)])
        a = model.blocks[0].attn.qkv.k.lora_A["default"].weight.detach().double()
        found.append(a.t() @ a / a.norm() ** 2)
    torch.testing.assert_close(*found, rtol=0, atol=1e-5)
