"""``device``: its form is checked with the command, its presence before anything is read."""

from pathlib import Path
from typing import Any

import pytest
import torch

from launch.app import CONF
from launch.compose import Composer
from launch.config import find_faults
from launch.errors import CommandError
from launch.merge_schema import MergeConfig
from launch.predict_schema import PredictConfig
from launch.serve_schema import ServeConfig
from lightning_modules.building import chosen_device
from merging.predicting import open_model
from merging.run import open_bench
from tests.commands import run_command
from tests.merge_runs import merge_config

SCRIPTS = {
    "merge": (MergeConfig, ["tasks=[leaves]"]),
    "predict": (PredictConfig, ["model=m", "images=i"]),
    "serve": (ServeConfig, ["model=m"]),
}


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    def holds(gpus: int = 0, mps: bool = False) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)

    return holds


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_device_of_no_known_form_is_a_fault_of_the_command(script: str) -> None:
    schema, needed = SCRIPTS[script]
    composer = Composer(script, CONF)

    def faults(device: str) -> list[str]:
        command = composer.parse([*needed, f"device={device}"], multirun=False)
        return find_faults(composer, schema, command, multirun=False)

    for device in ("auto", "cpu", "mps", "cuda", "cuda:0", "cuda:12"):
        assert faults(device) == []
    for device in ("cud", "cuda:", "cuda:x", "cuda:01", "cuda:300", "cpu:0", "gpu", "0", "meta", "null"):
        assert faults(device) == [f"device={device}: must be auto, cpu, mps, cuda or cuda:N (from cuda:0)."]


def test_a_wrong_device_ends_with_the_exit_code_of_a_wrong_command() -> None:
    done = run_command("merge.py", ["tasks=[leaves]", "device=cud"])
    assert done.returncode == 2
    assert "device=cud: must be auto, cpu" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("name", "gpus", "mps", "expected"),
    [
        ("auto", 0, False, "cpu"),
        ("auto", 2, False, "cuda"),
        ("auto", 0, True, "cpu"),
        ("cpu", 2, True, "cpu"),
        ("mps", 0, True, "mps"),
        ("cuda", 1, False, "cuda"),
        ("cuda:1", 2, False, "cuda:1"),
    ],
)
def test_the_device_of_a_name(machine: Any, name: str, gpus: int, mps: bool, expected: str) -> None:
    machine(gpus, mps)
    assert chosen_device(name) == torch.device(expected)


@pytest.mark.parametrize(
    ("name", "gpus", "way_out"),
    [
        ("cuda", 0, "device=auto or device=cpu."),
        ("mps", 0, "device=auto or device=cpu."),
        ("cuda:1", 1, "device=auto or device=cuda:0."),
        ("cuda:2", 2, "device=auto or device=cuda:0 to cuda:1."),
    ],
)
def test_a_device_that_is_not_there_names_those_that_are(machine: Any, name: str, gpus: int, way_out: str) -> None:
    machine(gpus)
    with pytest.raises(CommandError) as caught:
        chosen_device(name)
    assert str(caught.value) == f"device={name}: torch finds no such device on this machine. Take {way_out}"


def test_the_device_is_looked_for_before_anything_is_read(machine: Any, tmp_path: Path) -> None:
    machine()
    with pytest.raises(CommandError, match="device=cuda: "):
        open_model(str(tmp_path / "absent"), None, None, "cuda", tmp_path)
    config = merge_config([f"paths.outputs={tmp_path}", "tasks=[absent]", "device=cuda"])
    with pytest.raises(CommandError, match="device=cuda: "):
        open_bench(config, {"absent": tmp_path / "absent"})
