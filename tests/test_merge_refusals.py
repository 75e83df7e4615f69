"""``merge.py`` on adapters, backbones and data that do not belong together, each refused by name."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch

from launch.errors import AdapterError, CommandError, DataError
from merging import run
from merging.members import read_member
from merging.methods import require_delta
from tests.commands import run_command
from tests.merge_runs import command, merge_here


def test_an_adapter_is_not_taken_for_that_of_another_task(outputs: Path) -> None:
    folder = outputs / "adapters" / "level" / "r2-s0"
    given = command(outputs, "tasks=[leaves,dots]", "save=false")
    with pytest.raises(AdapterError, match=r"adapters: leaves: .*level/r2-s0 is an adapter of level"):
        merge_here([*given, f"+adapters.leaves={folder}"])
    with pytest.raises(CommandError, match=r"adapters: levaes is in no set here. Did you mean 'leaves'"):
        merge_here([*given, f"+adapters.levaes={folder}"])


def test_missing_adapters_are_named_with_what_exists(outputs: Path) -> None:
    done = run_command("merge.py", command(outputs, "tasks=[leaves,levels]"))
    assert done.returncode == 2
    assert "no adapter of task levels" in done.stderr
    assert "Did you mean 'level'?" in done.stderr
    assert "dots/r2-s0" in done.stderr
    assert "python train.py" not in done.stderr  # there may be no such task
    done = run_command("merge.py", command(outputs, "tasks=[leaves,galaxy]"))
    told = "with the settings of the others (experiment, backbone): python train.py task=galaxy lora.rank=2 seed=0"
    assert f"{told} paths.outputs={outputs}" in done.stderr


def test_an_adapter_of_another_rank_is_offered(outputs: Path) -> None:
    (outputs / "adapters" / "leaves" / ".r9-s0.killed.tmp").mkdir()
    (outputs / "adapters" / "leaves" / ".r9-s0.killed.tmp" / "card.json").write_text("{}")
    done = run_command("merge.py", [*command(outputs, "tasks=[leaves,dots]"), "lora.rank=16"])
    shutil.rmtree(outputs / "adapters" / "leaves" / ".r9-s0.killed.tmp")
    assert done.returncode == 2
    assert "no adapter of task leaves with rank 16 and seed 0" in done.stderr
    assert "Of this task there is lora.rank=2 seed=0." in done.stderr
    assert "python train.py task=KIND name=leaves data=... lora.rank=16 seed=0" in done.stderr
    assert "killed" not in done.stderr


def test_faults_of_the_command_come_first(outputs: Path) -> None:
    done = run_command("merge.py", command(outputs, "tasks=[a,a]", "merge=gram", "merge.rigde=1", "realign=deeep"))
    assert done.returncode == 2
    assert "named twice: a" in done.stderr
    assert "merge.rigde=1: unknown argument of gram. Did you mean 'ridge'?" in done.stderr
    assert "realign" in done.stderr
    done = run_command("merge.py", command(outputs, "name=two", "realign=[none,deep]"))
    assert done.returncode == 2
    assert "tasks is missing" in done.stderr
    assert "name=two: it names one model, and several would be written" in done.stderr
    blind = ["advise=true", "advice_images=null", "realign=deep", "branch_at=1"]
    done = run_command("merge.py", command(outputs, "tasks=[leaves,level]", *blind))
    assert done.returncode == 2
    assert "realign=deep: without images (advice_images=null) nothing is known of realigned heads" in done.stderr
    assert "branch_at=1: without images" in done.stderr


def test_tasks_that_would_share_a_column_of_answers_are_refused(
    outputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(outputs / "adapters" / "level" / "r2-s0", tmp_path / "leaves_probability" / "r2-s0")
    card = json.loads((folder / "card.json").read_text())
    card["task"]["name"] = "leaves_probability"
    (folder / "card.json").write_text(json.dumps(card))
    given = command(outputs, "tasks=[dots,leaves,leaves_probability]", f"+adapters.leaves_probability={folder}")
    monkeypatch.setattr(run, "backbone_of", None)  # it is told before anything heavy
    with pytest.raises(AdapterError, match="leaves and leaves_probability would both answer in the column leaves_prob"):
        merge_here([*given, "save=false"])


def test_rank_zero_is_refused(outputs: Path) -> None:
    member = read_member(outputs / "adapters" / "leaves" / "r2-s0")
    with pytest.raises(AdapterError, match="r2-s0 has rank 0"):
        require_delta(replace(member, delta=None))


def test_foreign_backbones_are_refused(outputs: Path, tmp_path: Path) -> None:
    foreign = tmp_path / "foreign"
    shutil.copytree(outputs / "adapters" / "leaves" / "r2-s0", foreign)
    card = json.loads((foreign / "card.json").read_text())
    card["backbone"]["fingerprint"] = "0" * 64
    (foreign / "card.json").write_text(json.dumps(card))
    with pytest.raises(AdapterError, match="different backbones"):
        merge_here(command(outputs, "tasks=[leaves,level]", f"adapters={{leaves:{foreign}}}"))


@pytest.mark.parametrize("fault", ["nan", "zero", "missing"])
def test_damaged_adapters_are_refused_by_name(outputs: Path, tmp_path: Path, fault: str) -> None:
    bad = tmp_path / "bad"
    shutil.copytree(outputs / "adapters" / "leaves" / "r2-s0", bad)
    file = bad / "adapter_model.safetensors"
    tensors = safetensors.torch.load_file(file)
    if fault == "nan":
        tensors["base_model.model.blocks.0.attn.qkv.k.lora_A.weight"][0, 0] = float("nan")
    elif fault == "zero":
        tensors = {name: 0 * value if "lora_B" in name else value for name, value in tensors.items()}
    else:
        tensors = {name: value for name, value in tensors.items() if "blocks.0.attn.qkv.k" not in name}
    safetensors.torch.save_file(tensors, file)
    with pytest.raises(AdapterError, match=r"bad|blocks\.0"):
        merge_here(command(outputs, "tasks=[leaves,level]", f"adapters={{leaves:{bad}}}", "merge=cat"))


def test_other_data_than_the_adapter_was_tested_on_is_refused(outputs: Path, tmp_path: Path) -> None:
    from tests.runs import draw_folder

    other = draw_folder(tmp_path / "other", 12)
    with pytest.raises(DataError, match="holds other data"):
        merge_here(command(outputs, "tasks=[leaves]", f"roots={{leaves:{other}}}"))
