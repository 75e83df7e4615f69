"""Whole commands in processes of their own: exit codes, and what lies there afterwards."""

import json
import logging
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch import logs

JOB = Path(__file__).with_name("launch_job.py")
TRAIN = JOB.parents[1] / "train.py"
OWN = ("task=classification", "data=image_folder", "data.root=pictures", "logger=csv")


@pytest.fixture
def start(tmp_path):
    running: list[subprocess.Popen] = []

    def begin(*arguments: str, script: Path = JOB, **more: object) -> subprocess.Popen:
        command = [sys.executable, str(script), *arguments]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": tmp_path}
        running.append(subprocess.Popen(command, **pipes, **more))
        return running[-1]

    yield begin
    for process in running:
        process.kill()
        process.wait()


def end(process: subprocess.Popen) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def files(folder: Path) -> list[str]:
    return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())


def run_folder(tmp_path: Path) -> Path:
    (folder,) = (tmp_path / "outputs" / "runs").glob("train-*")
    return folder


def read(file: Path) -> dict:
    return json.loads(file.read_text(encoding="utf-8"))


def wait_for_job(tmp_path: Path, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("outputs/runs/*/working")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_wrong_command_ends_with_two_and_writes_nothing(start, tmp_path):
    code, out, err = end(start("lora.rnk=8", "task=galxy", "backbone=vit_larg", script=TRAIN))
    assert (code, out) == (2, "")
    lines = err.splitlines()
    assert lines[0] == "train.py: 3 faults in the command; nothing was started."
    assert lines[1].startswith("  - task=galxy: no such option. Did you mean 'galaxy'?")
    assert lines[3] == "  - lora.rnk=8: unknown key. Did you mean 'lora.rank'?"
    assert list(tmp_path.iterdir()) == []


def test_missing_data_is_told_without_a_traceback(start, tmp_path):
    code, _, err = end(start("name=x", *OWN, script=TRAIN))
    assert code == 1
    assert "There is no folder pictures." in err
    assert "Traceback" not in err
    assert read(run_folder(tmp_path) / "status.json")["state"] == "failed"


def test_a_run_and_the_same_again(start, tmp_path):
    (tmp_path / "other").mkdir()
    code, _, err = end(start("name=x", "trainer.fast_dev_run=true", "paths.outputs='a=b,c'", *OWN))
    assert code == 0, err
    (folder,) = (tmp_path / "a=b,c" / "runs").glob("train-x-r16-s0-*")
    assert files(folder) == ["config.yaml", "result.json", "run.log", "status.json", "working"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a=b,c", "other"], "no stray folders of Hydra's"
    assert read(folder / "result.json")["torch"] is False
    code, _, err = end(start("name=x", "trainer.fast_dev_run=true", "paths.outputs='a=b,c'", *OWN))
    assert code == 0
    assert "Skipped, done already" in err


def test_sigkill_then_the_same_command(start, tmp_path):
    code, _, _ = end(start("name=kill", *OWN))
    assert code == -signal.SIGKILL
    folder = run_folder(tmp_path)
    assert read(folder / "status.json")["state"] == "running"  # nobody was left to say otherwise
    code, _, err = end(start("name=kill", *OWN))
    assert code == 0, err
    assert "Going on with" in err
    assert read(folder / "result.json")["resumed"] is True
    assert read(folder / "status.json")["state"] == "done"


def test_two_processes_on_one_run_then_sigterm(start, tmp_path):
    first = start("name=slow", *OWN)
    wait_for_job(tmp_path, first)
    code, _, err = end(start("name=slow", *OWN))
    assert code == 1
    assert f"is being worked on by process {first.pid} on " in err
    assert first.poll() is None
    first.send_signal(signal.SIGTERM)
    code, _, err = end(first)
    assert code == 143, err
    assert read(run_folder(tmp_path) / "status.json")["state"] == "interrupted"


def test_full_disk(start, tmp_path):
    """A file size limit stands for it: small files can be written, the checkpoint cannot."""

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    code, _, err = end(start("name=disk", *OWN, preexec_fn=limit))
    assert code == 1
    assert "the file is larger than this system allows. Free space" in err
    assert "Traceback" not in err
    assert read(run_folder(tmp_path) / "status.json")["state"] == "failed"
    assert not (run_folder(tmp_path) / "result.json").exists()


def test_outputs_that_cannot_be_written(start, tmp_path):
    (tmp_path / "outputs").write_text("")
    code, _, err = end(start("name=x", *OWN))
    assert code == 1
    assert "Cannot write outputs: a part of its path is a file, not a folder." in err
    assert "Traceback" not in err


def test_a_line_of_another_package_is_logged_once(tmp_path, capsys):
    foreign = logging.getLogger("foreign_package")
    foreign.addHandler(logging.StreamHandler(sys.stderr))
    logs.take_over("foreign_package")
    with logs.to_file(tmp_path / "run.log"):
        foreign.warning("hello")
    foreign.warning("later")
    assert "hello" not in capsys.readouterr().err
    (line,) = (tmp_path / "run.log").read_text(encoding="utf-8").splitlines()
    assert line.endswith(" WARNING foreign_package: hello")


def test_help_lists_the_groups_of_its_own_script(start):
    _, out, _ = end(start("--help", script=TRAIN.with_name("prepare.py")))
    listed = dict(line.split(": ", 1) for line in out.partition("== Config ==")[0].splitlines() if ": " in line)
    assert listed.keys() == {"data", "logger", "task"}
    assert "sample" in listed["data"].split(", ")  # an option of this script alone


@pytest.mark.parametrize(
    ("flags", "code", "text"),
    [
        (("--cfg", "job", "task=keypoints", "trainer.limit_val_batches=3"), 0, "limit_val_batches: 3"),
        (("lora.rank=3", "--cfg", "job", "task=keypoints"), 0, "rank: 3"),
        (("-m", "task=keypoints", "--cfg", "job", "seed=3"), 2, ""),
        (("--cfg", "job", "lora.rnk=3"), 2, ""),
        (("lora.rnk=3", "-m", "task=keypoints"), 2, ""),
        (("--help",), 0, "python train.py [group=option ...] [key=value ...]"),
        (("task=keypoints", "--help"), 0, "python train.py [group=option ...] [key=value ...]"),
        (("--info", "defaults-tree", "task=keypoints"), 0, "task: keypoints"),
        (("--info", "config"), 0, "Config search path"),
        (("--config-dir", "nowhere"), 2, ""),
        (("--nope",), 2, ""),
    ],
)
def test_hydras_flags(start, tmp_path, flags, code, text):
    found, out, err = end(start(*flags))
    assert found == code, err
    assert text in out
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []
