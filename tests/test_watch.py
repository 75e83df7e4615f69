"""The live view of a sweep, on drawn records and on a real sweep."""

import dataclasses
import datetime
import io
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from launch.errors import CommandError
from launch.sweep import Record, read_plan, write_plan, write_record
from reporting.watch import View, best_records, find_attempt, look, render, watch

JOB = Path(__file__).with_name("launch_job.py")


@pytest.fixture
def sweep(tmp_path):
    """Six jobs, begun two hours ago: two done (10 s each), one failed, one running, one killed, one waiting."""
    folder = tmp_path / "sweeps" / "table1" / "1"
    folder.mkdir(parents=True)
    labels = [(f"lora.rank={rank}", ["python", "train.py", "task=galaxy", f"lora.rank={rank}"]) for rank in range(6)]
    write_plan(folder, labels)
    hour_ago = datetime.datetime.now().astimezone() - datetime.timedelta(hours=1)
    os.utime(folder / "plan.json", (hour_ago.timestamp() - 3600,) * 2)
    for job, state, score in ((0, "done", 0.7), (1, "done", 0.8), (2, "failed", None)):
        error = "ValueError: three is bad\nmore" if state == "failed" else None
        label, command = labels[job]
        write_record(
            folder,
            Record(job, label, command, state, error=error, metric="accuracy", score=score, seconds=10.0),
        )
    died = subprocess.Popen([sys.executable, "-c", ""])
    died.wait()
    for job, pid in ((3, os.getpid()), (4, died.pid), (1, os.getpid())):
        run = tmp_path / "runs" / f"train-{job}"
        run.mkdir(parents=True)
        status = {
            "state": "running", "started": hour_ago.isoformat(timespec="seconds"), "pid": pid,
            "host": socket.gethostname(), "command": labels[job][1],
        }  # fmt: skip
        (run / "status.json").write_text(json.dumps(status))
    return folder


def shown(view, width=100):
    text = io.StringIO()
    Console(file=text, width=width).print(render(view))
    return text.getvalue()


def test_every_job_is_in_its_place(tmp_path, sweep):
    view = look(tmp_path, sweep)
    assert view.total == 6
    assert [label for label, _ in view.running] == ["lora.rank=3"]
    assert view.lost == ["lora.rank=4"]
    assert view.seconds_left() == pytest.approx(10.0)  # one waits; the running one is over its time already
    text = shown(view)
    for part in (
        "table1", "2 done", "1 failed", "1 running", "1 killed", "of 6", "about 10 s left", "lora.rank=1",
        "ValueError: three is bad", "its process is gone",
    ):  # fmt: skip
        assert part in text
    assert "more" not in text


def test_the_time_left_is_that_of_whole_jobs_shared_by_those_at_work(tmp_path):
    def record(job, state, seconds):
        return Record(job, str(job), [], state, seconds=seconds)

    records = [record(0, "done", 40.0), record(1, "done", 20.0), record(2, "failed", 1.0), record(3, "skipped", 0.0)]
    planned = [str(job) for job in range(9)]
    view = View("s", tmp_path, records, planned, [("4", 10.0), ("5", 50.0)], [], ended=False)
    assert view.seconds_left() == pytest.approx((3 * 30 + 20) / 2)
    assert dataclasses.replace(view, records=records[2:]).seconds_left() is None


def test_what_an_earlier_attempt_left_running_waits_again(tmp_path, sweep):
    (sweep / "plan.json").touch()  # this attempt begins only now
    view = look(tmp_path, sweep)
    assert view.lost == []
    assert [label for label, _ in view.running] == ["lora.rank=3"]  # its process is alive


def test_the_end(tmp_path, sweep):
    (sweep / "summary.json").write_text("[]")
    view = look(tmp_path, sweep)
    assert view.ended
    assert view.seconds_left() is None
    assert "(ended)" in shown(view)
    text = io.StringIO()
    terminal = Console(file=text, force_terminal=True, width=100)
    watch(tmp_path, "table1", 0.01, terminal)  # comes back by itself
    assert "2 done" in text.getvalue()


def test_the_best_in_the_metrics_direction():
    records = [
        Record(job, str(job), ["train.py", f"task={task}"], "done", metric=metric, score=score)
        for job, (task, metric, score) in enumerate(
            [
                ("g", "accuracy", 0.7),
                ("g", "accuracy", 0.8),
                ("a", "rmse", 0.9),
                ("a", "rmse", 1.1),
                ("f", "accuracy", 0.1),
            ]
        )
    ]
    assert [record.job for record in best_records(records)] == [1, 2, 4]


def test_the_newest_attempt_and_the_latest_sweep(tmp_path, sweep):
    (sweep.parent / "10").mkdir()
    (sweep.parent / "9").mkdir()
    other = tmp_path / "sweeps" / "pairs" / "1"
    other.mkdir(parents=True)
    os.utime(other, (2e9, 2e9))
    assert find_attempt(tmp_path, "table1").name == "10"
    assert find_attempt(tmp_path, "latest") == other
    write_plan(other, [])
    os.utime(other / "plan.json", (1e9, 1e9))
    os.utime(other, (2e9, 2e9))  # as a job's record does that comes late
    assert find_attempt(tmp_path, "latest").parent.name == "table1"
    with pytest.raises(CommandError, match=r"Did you mean 'table1'\? Known: pairs, table1"):
        find_attempt(tmp_path, "tabel1")
    with pytest.raises(CommandError, match=r"Did you mean 'latest'\?"):
        find_attempt(tmp_path, "lates")


def test_a_real_sweep_leaves_its_plan(tmp_path):
    own = ["task=classification", "name=x", "data=image_folder", "data.root=pictures", "logger=csv", "sweep.name=s"]
    done = subprocess.run(
        [sys.executable, str(JOB), "-m", *own, "lora.rank=0,3"], cwd=tmp_path, capture_output=True, check=False
    )
    assert done.returncode == 1
    folder = find_attempt(tmp_path / "outputs", "s")
    assert [label for label, _ in read_plan(folder)] == ["lora.rank=0", "lora.rank=3"]
    view = look(tmp_path / "outputs", folder)
    assert (view.total, view.ended, view.running) == (2, True, [])
    assert "ValueError: three is bad" in shown(view)
    commands = {tuple(command) for _, command in read_plan(folder)}
    for file in (tmp_path / "outputs" / "runs").glob("*/status.json"):
        assert tuple(json.loads(file.read_text())["command"]) in commands
