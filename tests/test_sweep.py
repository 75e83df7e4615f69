import io
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from launch.sweep import Record, fill_up, new_attempt, read_records, show, sweep_name, write_record

JOB = Path(__file__).with_name("launch_job.py")
OWN = ("task=classification", "name=x", "data=image_folder", "data.root=pictures", "logger=csv")


@pytest.fixture
def command(tmp_path):
    def run(*arguments: str) -> tuple[int, str, str]:
        full = [sys.executable, str(JOB), "-m", *OWN, *arguments]
        done = subprocess.run(full, capture_output=True, text=True, cwd=tmp_path, timeout=300)
        return done.returncode, done.stdout, done.stderr

    return run


def attempts(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "outputs" / "sweeps").glob("*/*"))


def states(folder: Path) -> list[str]:
    return [record["state"] for record in json.loads((folder / "summary.json").read_text(encoding="utf-8"))]


def test_a_failed_job_stops_nothing_and_a_second_call_does_the_rest(command, tmp_path):
    code, out, err = command("lora.rank=0,3,8")
    assert code == 1, err
    (folder,) = attempts(tmp_path)
    assert states(folder) == ["done", "failed", "done"]
    assert "2 done, 1 failed" in out
    assert "#1 failed: ValueError: three is bad" in out
    assert f"    python {JOB} {' '.join(OWN)} lora.rank=3" in out.splitlines()
    assert [line.split() for line in out.splitlines()[1:4]] == [
        ["0", "lora.rank=0", "done", "accuracy", "0"],
        ["1", "lora.rank=3", "failed"],
        ["2", "lora.rank=8", "done", "accuracy", "0.8"],
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["outputs"]
    (tmp_path / "fixed").write_text("")
    code, out, err = command("lora.rank=0,3,8")
    assert code == 0, err
    assert states(attempts(tmp_path)[1]) == ["skipped", "done", "skipped"]
    assert folder.parent == attempts(tmp_path)[1].parent, "the same sweep keeps its name"


def test_a_sweep_that_was_killed_goes_on_where_it_stopped(command, tmp_path):
    """SIGKILL in the second of three jobs: the first is not done again, the second goes on, the third is begun."""
    code, _, _ = command("name=first,kill,last")
    assert code == -signal.SIGKILL
    done = [path.parent.name for path in (tmp_path / "outputs" / "runs").glob("*/result.json")]
    assert [name.split("-")[1] for name in done] == ["first"]
    code, _, err = command("name=first,kill,last")
    assert code == 0, err
    assert states(attempts(tmp_path)[1]) == ["skipped", "done", "done"]
    resumed = {}
    for path in (tmp_path / "outputs" / "runs").glob("*/result.json"):
        result = json.loads(path.read_text())
        resumed[result["name"]] = result["resumed"]
    assert resumed == {"first": False, "kill": True, "last": False}


def test_two_sweeps_that_meet_and_one_that_is_told_to_stop(command, tmp_path):
    """What another process works on is not done here; SIGTERM ends a sweep, not just the job that it meets."""
    full = [sys.executable, str(JOB), "-m", *OWN, "sweep.name=first", "name=slow,last"]
    first = subprocess.Popen(full, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    try:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob("outputs/runs/*/working")):
            assert first.poll() is None, first.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        code, out, _ = command("sweep.name=second", "name=slow,other")
        first.terminate()
        _, err = first.communicate(timeout=120)
    finally:
        first.kill()
    sweeps = tmp_path / "outputs" / "sweeps"
    assert (code, states(sweeps / "second" / "1")) == (1, ["busy", "done"])
    assert "#0 busy: train-slow-r16-s0-" in out
    assert first.returncode == 143, err
    assert states(sweeps / "first" / "1") == ["interrupted", "not started"]


def test_joblib_spreads_the_jobs_over_processes(command, tmp_path):
    code, out, err = command("hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "lora.rank=0,3,8")
    assert code == 1, err
    (folder,) = attempts(tmp_path)
    assert states(folder) == ["done", "failed", "done"]
    assert "#1 failed: ValueError: three is bad" in out
    pids = {json.loads(path.read_text())["pid"] for path in (tmp_path / "outputs" / "runs").glob("*/status.json")}
    assert len(pids) == 2
    (tmp_path / "fixed").write_text("")
    code, _, err = command("hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "lora.rank=0,3,8")
    assert code == 0, err
    assert states(attempts(tmp_path)[1]) == ["skipped", "done", "skipped"]


def test_fail_fast_and_a_fault_that_only_one_combination_has(command, tmp_path):
    code, out, _ = command("sweep.fail_fast=true", "sweep.name=fast", "lora.rank=3,8")
    assert code == 1
    assert states(tmp_path / "outputs" / "sweeps" / "fast" / "1") == ["failed", "not started"]
    assert "#1 not started" in out
    shutil.rmtree(tmp_path / "outputs")
    code, out, _ = command("data.val_fraction=0.1,0.6", "data.test_fraction=0.1,0.6")
    assert code == 1
    assert states(attempts(tmp_path)[0]) == ["done", "done", "done", "failed"]
    assert "data.val_fraction=0.6 and data.test_fraction=0.6: together they must be below 1." in out


def test_sweep_name_is_of_what_is_swept():
    name = sweep_name("train", ["++lora.rank=0,16", "task=a,b"])
    assert name == sweep_name("train", ["task=a,b", "lora.rank=0,16", "resume=restart", "hydra/launcher=joblib"])
    assert name == sweep_name("train", ["task=a,b", "lora.rank=0,16", "++paths.outputs=x", "hydra.verbose=true"])
    assert name != sweep_name("train", ["task=a,b", "lora.rank=0,64"])
    assert name.startswith("train-")


def test_sweeps_of_other_sets_have_other_names():
    pairs = ["sweep=pairs", "merge=cat,gram"]
    name = sweep_name("merge", pairs)
    assert name == sweep_name("merge", [*pairs, "sweep.name=x", "++sweep.fail_fast=true"])
    others = [["sweep=triples", "merge=cat,gram"], [*pairs, "sweep.of=[a,b,c]"], [*pairs, "sweep.including=[a]"]]
    assert len({name, *(sweep_name("merge", other) for other in others)}) == 4


def test_attempts_do_not_meet(tmp_path):
    assert [new_attempt(tmp_path, "x").name for _ in range(3)] == ["1", "2", "3"]


def test_jobs_without_a_record(tmp_path):
    write_record(tmp_path, Record(1, "b", ["python", "b"], "done", score=0.5))
    labels = [(text, ["python", text]) for text in "abc"]
    records = fill_up(read_records(tmp_path), labels, died=False)
    assert [record.state for record in records] == ["not started", "done", "not started"]
    records = fill_up(read_records(tmp_path), labels, died=True)
    assert [record.state for record in records] == ["failed", "done", "failed"]
    assert "killed" in str(records[0].error)


def test_commands_are_shown_whole_and_quoted():
    text = io.StringIO()
    command = ["python", "train.py", "data.root='a b'", "lora.targets=[k,v]", "x" * 200]
    show([Record(0, "[k,v]", command, "failed", error="first\nsecond")], Path("out"), Console(file=text, width=60))
    lines = text.getvalue().splitlines()
    assert "[k,v]" in lines[1]
    assert "#0 failed: first" in lines
    assert f"""    python train.py 'data.root='"'"'a b'"'"'' 'lora.targets=[k,v]' {"x" * 200}""" in lines
