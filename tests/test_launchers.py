"""Sweeps of two real trainings through each launcher that is shipped or recommended."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from launch.app import CONF
from launch.compose import Composer
from tests.commands import ROOT
from tests.runs import leaves, read_results

LAUNCHERS = {
    "processes": ["hydra/launcher=processes"],
    "submitit_local": ["hydra/launcher=submitit_local"],
    "gpus": ["hydra/launcher=gpus", "hydra.launcher.ray.remote.num_gpus=0", "++hydra.launcher.ray.init.num_cpus=2"],
}


@pytest.fixture
def ray_folder(tmp_path):
    """A short path (sockets lie in it). Processes that name it or ``tmp_path`` are this test's; none is left behind."""
    folder = Path(tempfile.mkdtemp(prefix="ray"))
    yield folder
    listed = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True, check=True).stdout
    for line in listed.splitlines():
        if str(folder) in line or str(tmp_path) in line:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(line.split()[0]), signal.SIGKILL)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_jobs_train_in_processes_of_their_own(tmp_path, ray_folder, launcher):
    own = leaves(tmp_path, "seed=0,1", "trainer.max_epochs=1")
    command = [sys.executable, "train.py", "-m", *own, *LAUNCHERS[launcher]]
    environment = os.environ | {"RAY_TMPDIR": str(ray_folder), "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip
    try:
        out, err = process.communicate(timeout=1800)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, err
    assert "2 done" in out
    results = read_results(tmp_path / "out")
    assert sorted(result["seed"] for result in results) == [0, 1]
    (summary,) = (tmp_path / "out").glob("sweeps/*/1/summary.json")
    assert [record["state"] for record in json.loads(summary.read_text())] == ["done", "done"]
    statuses = [json.loads(path.read_text()) for path in (tmp_path / "out").glob("runs/*/status.json")]
    pids = {status["pid"] for status in statuses}
    assert len(pids) == 2
    assert process.pid not in pids
    assert {path.name for path in (tmp_path / "out" / "adapters" / "leaves").iterdir()} == {"r2-s0", "r2-s1"}


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONF / "hydra" / "launcher").glob("*.yaml")))
def test_every_launcher_of_ours_composes(name):
    faults: list[str] = []
    config = Composer("train", CONF).compose((f"hydra/launcher={name}",), faults)
    assert not faults
    assert config is not None
    assert config.hydra.launcher._target_.startswith("hydra_plugins.")
