"""Distillation on drawn pictures: nearer answers, resuming, gentle rates, wider factors."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from peft import PeftModel

from launch.errors import CommandError
from lightning_modules.backbone import create_backbone, split_qkv
from merging import distill as module
from merging.methods import Outcome, merge_function
from merging.model import load
from tests.merge_cases import dense, distance
from tests.merge_runs import command, merge_here, open_here

pytestmark = pytest.mark.usefixtures("few_pictures")


def test_distillation_brings_answers_nearer_and_resumes_to_the_same(
    outputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ["merge=distill", "merge.steps=20", "merge.batch=8", "merge.lr=2e-3", "merge.patience=9", "save=false"]
    settings.append("merge.widen=[]")  # so few steps suffice
    pair = command(outputs, "tasks=[leaves,dots]", *settings)
    result, run = merge_here(pair)
    (curve,) = (run.path / "scratch").glob("distill-*.csv")
    lines = [dict(zip(module.CURVE, line.split(","), strict=True)) for line in curve.read_text().splitlines()[1:]]
    drifts = [float(line["mean_drift"]) for line in lines]
    assert len(drifts) == 5
    assert min(drifts) < drifts[0]
    (looks,) = result["curves"].values()
    assert [look["mean_drift"] for look in looks] == drifts
    best = min(looks, key=lambda look: look["mean_drift"])
    assert looks[0]["worst_retention"] < best["worst_retention"] <= best["mean_retention"]
    assert not list((run.path / "scratch").glob("*.pt"))

    save = module._save

    def stop(*given: Any) -> None:
        save(*given[:5], 1000.0, *given[6:])
        if given[4] == 10:
            raise KeyboardInterrupt

    shutil.rmtree(run.path)
    monkeypatch.setattr(module, "_save", stop)
    with pytest.raises(KeyboardInterrupt):
        merge_here(pair)
    monkeypatch.setattr(module, "_save", save)
    result, _ = merge_here(pair)
    assert all(row["seconds"] > 1000 for row in result["rows"])  # those of the attempt that was killed count
    (again,) = (run.path / "scratch").glob("distill-*.csv")
    assert [float(line.split(",")[3]) for line in again.read_text().splitlines()[1:]] == drifts
    assert len(again.read_text().splitlines()) == 6


def test_a_start_from_images_sees_none_that_is_held_out(outputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, seen = module.merge_members, []

    def watched(settings: Any, *given: Any) -> Outcome:
        seen.append(settings["images"])
        return plain(settings, *given)

    monkeypatch.setattr(module, "merge_members", watched)
    given = ["merge=distill", "merge.start=regress", "merge.steps=1", "merge.images=20", "merge.widen=[]"]
    config, bench = open_here(command(outputs, "tasks=[leaves,dots]", *given))
    merge_function(config.merge)(bench, ["leaves", "dots"])
    assert seen == [16]


@pytest.mark.parametrize(("budget", "looks"), [("merge.steps=10", 3), ("merge.seconds=0.001", 2)])
def test_a_distillation_that_ended_is_not_trained_again(
    outputs: Path, monkeypatch: pytest.MonkeyPatch, budget: str, looks: int
) -> None:
    settings = ["merge=distill", budget, "merge.batch=8", "merge.widen=[]", "save=false"]
    pair = command(outputs, "tasks=[dots,leaves]", *settings, "merge.seed=7")
    with monkeypatch.context() as broken:
        broken.setattr("merging.run.score_set", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            merge_here(pair)
    monkeypatch.setattr(module, "_loss", lambda *_: pytest.fail("it was trained again"))
    result, run = merge_here(pair)
    assert len(result["curves"]["dots+leaves"]) == looks
    assert not list((run.path / "scratch").glob("*.pt"))


def test_a_distillation_of_other_weights_is_another(outputs: Path, tmp_path: Path) -> None:
    """It does not go on from the checkpoint that the first left in the same run."""
    given = ["merge=distill", "merge.widen=[]", "merge.steps=1", "merge.lr=1e-9", "merge.batch=2", "merge.images=20"]
    changes = []
    for weights in ("{leaves:0.2,dots:2.0}", "{leaves:2.0,dots:0.2}"):
        config, bench = open_here(command(outputs, "tasks=[leaves,dots]", *given, f"merge.weights={weights}"))
        bench.scratch = tmp_path
        changes.append(dense(merge_function(config.merge)(bench, ["leaves", "dots"]).delta))
    assert len(list(tmp_path.glob("*.pt"))) == 2
    assert distance(*changes) > 0.1


@pytest.mark.parametrize(
    "given", ["merge.lr=-1", "merge.lr=0", "merge.patience=0", "merge.images=4", "merge.seconds=0"]
)
def test_impossible_budgets_are_refused(outputs: Path, given: str) -> None:
    with pytest.raises(CommandError, match=f"{given.partition('=')[0]}=.* is not possible"):
        merge_here(command(outputs, "tasks=[leaves,dots]", "merge=distill", given, "save=false"))


def test_factors_are_trained_in_float32_beside_a_backbone_in_bfloat16(
    outputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    students = []
    make = module._student
    monkeypatch.setattr(module, "_student", lambda *given: students.append(make(*given)) or students[-1])
    settings = ["merge=distill", "merge.steps=1", "merge.batch=8", "precision=bf16-mixed", "save=false"]
    merge_here(command(outputs, "tasks=[leaves,dots]", *settings))
    (student,) = students
    kinds = {(value.requires_grad, value.dtype) for name, value in student.named_parameters() if ".attn." in name}
    assert (True, torch.float32) in kinds
    assert (True, torch.bfloat16) not in kinds
    assert (False, torch.bfloat16) in kinds


def test_a_fifth_of_few_pictures_is_held_out(outputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HELD_OUT", 64)
    _, bench = open_here(command(outputs, "tasks=[leaves,dots]"))
    pool = module._Pool(bench, "leaves", 100, mirror=False)
    assert (len(pool.pixels), pool.count) == (56, 45)
    with pytest.raises(CommandError, match="needs ten images of leaves or more, and got 9"):
        module._Pool(bench, "leaves", 9, mirror=False)


def test_a_loss_that_is_not_finite_ends_it(outputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def diverged(student: torch.nn.Module, *_: Any) -> torch.Tensor:
        return sum(value.sum() for value in student.parameters() if value.requires_grad) * torch.tensor(float("nan"))

    monkeypatch.setattr(module, "_loss", diverged)
    settings = ["merge=distill", "merge.steps=5", "merge.batch=8", "merge.widen=[]", "save=false", "merge.seed=9"]
    with pytest.raises(CommandError, match=r"dots\+leaves diverged: after 5 steps .* merge\.lr=0\.001"):
        merge_here(command(outputs, "tasks=[leaves,dots]", *settings))


def test_a_start_that_is_near_is_moved_gently(outputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moved = {}
    settings = ["merge=distill", "merge.steps=5", "merge.batch=8", "merge.widen=[]", "merge.lr=0.01", "save=false"]
    for far in (1e-6, 1e6):
        monkeypatch.setattr(module, "FAR", far)
        result, _ = merge_here(command(outputs, "tasks=[leaves,dots]", f"name=far{far:.0e}", *settings))
        (looks,) = result["curves"].values()
        moved[far] = abs(looks[1]["mean_drift"] - looks[0]["mean_drift"])
    assert moved[1e6] < 1e-4 < moved[1e-6]


def test_distillation_counts_changes_of_numbers_in_the_models_own_error(outputs: Path) -> None:
    _, bench = open_here(command(outputs, "tasks=[leaves,level]"))
    pool = module._Pool(bench, "level", 100, mirror=False)
    drawn = pool.draw(4, torch.Generator().manual_seed(0))
    head, error = bench.members["level"].head, bench.members["level"].validation["rmse"]
    moved = drawn[1] + 0.1
    loss = module._loss(lambda _: moved, bench, {"level": head}, {"level": drawn})
    change = ((head(moved) - head(drawn[1])) / error).square().mean()
    assert error > 0
    assert float(loss) == pytest.approx(float(0.01 / bench.single("level", "train", 100).var(0).mean() + change))


def test_widened_distillation_changes_more_projections_and_loads_in_peft(outputs: Path) -> None:
    given = ["merge=distill", "merge.steps=20", "merge.batch=8", "merge.lr=2e-3", "tasks=[leaves,dots]", "name=wide"]
    merge_here(command(outputs, *given, "merge.widen=[v,proj,mlp]", "merge.widen_rank=3", "precision=32-true"))
    path = outputs / "models" / "wide"
    merged = load(path)
    ranks = {}
    for name, value in safetensors.torch.load_file(path / "adapter_model.safetensors").items():
        stem, _, kind = name.removeprefix("base_model.model.").rpartition(".lora_")
        if kind == "A.weight":
            ranks[stem] = len(value)
            continue
        assert value.abs().sum() > 0  # each of them was trained
    first = {name.removeprefix("blocks.0."): rank for name, rank in ranks.items() if name.startswith("blocks.0.")}
    assert first == {"attn.qkv.k": 4, "attn.qkv.v": 4, "attn.proj": 3, "mlp.fc1": 3, "mlp.fc2": 3}
    card = json.loads((path / "card.json").read_text())["backbone"]
    base = safetensors.torch.load_file(path / "base.safetensors")
    assert {key.split(".", 2)[2] for key in base} == {
        "attn.qkv.weight", "attn.proj.weight", "mlp.fc1.weight", "mlp.fc2.weight",
    }  # fmt: skip
    plain = create_backbone(card["name"], card["image_size"])
    plain.load_state_dict(merged.backbone.state_dict() | base)
    images = torch.randn(3, 3, card["image_size"], card["image_size"], generator=torch.Generator().manual_seed(0))
    peft = PeftModel.from_pretrained(split_qkv(plain).requires_grad_(False), path).eval()
    with torch.no_grad():
        assert torch.allclose(peft(images), merged.backbone(images), atol=1e-4)
    with pytest.raises(CommandError, match=r"merge.widen=\['key'\] is not possible"):
        merge_here(command(outputs, *given, "merge.widen=[key]"))
