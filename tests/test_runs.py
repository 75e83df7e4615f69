"""Run folders, and the keeping of a job's state, with jobs that are plain functions."""

import dataclasses
import json
import logging
import os
import signal
from pathlib import Path

import pytest
import yaml

from launch.errors import CommandError, UserError
from launch.perform import Outcome, perform
from launch.provenance import provenance
from launch.runs import RANKS, Run, claim, content_hash, describe_run, read_result, set_aside_path

CONFIG = {
    "name": "leaves",
    "task": {"kind": "regression"},
    "seed": 3,
    "lora": {"rank": 8},
    "data": {"root": "x", "batch_size": 64, "num_workers": "auto"},
    "trainer": {"devices": 1, "accelerator": "auto", "max_epochs": 2},
    "logger": {"wandb": None},
    "resume": "auto",
    "sweep": {"name": None},
    "paths": {"outputs": "outputs", "data": "data"},
}


@pytest.fixture
def describe(tmp_path):
    def make(**changes: object) -> Run:
        paths = {"outputs": str(tmp_path / "outputs"), "data": "data"}
        return describe_run("train", "leaves-r8-s3", {**CONFIG, "paths": paths, **changes})

    return make


def status(run: Run) -> dict:
    return json.loads((run.path / "status.json").read_text(encoding="utf-8"))


def done(run: Run) -> dict:
    return {"metric": "accuracy", "score": 0.5}


def test_a_run_leaves_everything_that_describes_it(describe):
    run = describe()
    outcome = perform(run, done, ["train.py", "seed=3"])
    assert (outcome.state, outcome.code) == ("done", 0)
    assert run.name == f"train-leaves-r8-s3-{run.hash}" == run.path.name
    assert run.path.parent.name == "runs"
    assert yaml.safe_load((run.path / "config.yaml").read_text(encoding="utf-8")) == run.config
    result = read_result(run)
    assert result is not None
    assert outcome.result == result
    expected = {"schema_version": 1, "what": "train", "run": run.name, "hash": run.hash, "name": "leaves", "seed": 3}
    assert {key: result[key] for key in expected} == expected
    assert result["score"] == 0.5
    assert result["versions"]["torch"]
    assert result["python"].startswith("3.")
    state = status(run)
    assert (state["state"], state["error"], state["command"]) == ("done", None, ["train.py", "seed=3"])
    assert state["started"] <= state["ended"]


def test_a_job_cannot_change_what_identifies_its_result(describe):
    run = describe()
    assert perform(run, lambda run: {"hash": "other", "seed": 9}, []).result["hash"] == run.hash


def test_while_it_runs_the_state_is_running(describe):
    run = describe()
    perform(run, lambda run: {"seen": status(run)["state"], "pid": status(run)["pid"]}, [])
    result = read_result(run)
    assert result is not None
    assert (result["seen"], result["pid"]) == ("running", os.getpid())


@pytest.mark.parametrize(
    ("key", "value", "same"),
    [
        ("paths", {"outputs": "elsewhere", "data": "there"}, True),
        ("logger", {"wandb": {"project": "x"}}, True),
        ("resume", "restart", True),
        ("sweep", {"name": "x"}, True),
        ("data", {"root": "x", "batch_size": 64, "num_workers": 3}, True),
        ("data", {"root": "x", "batch_size": 64, "download": True, "cache_root": "elsewhere"}, True),
        ("data", {"root": "./y/../x/", "batch_size": 64, "num_workers": "auto"}, True),
        ("task", {"kind": "regression", "units": {"years": 10.0}, "subsets": None}, True),
        ("trainer", {"devices": [2], "accelerator": "cpu", "max_epochs": 2, "enable_progress_bar": False}, True),
        ("trainer", {"devices": 2, "accelerator": "auto", "max_epochs": 2}, False),
        ("trainer", {"devices": 1, "accelerator": "auto", "max_epochs": 3}, False),
        ("data", {"root": "x", "batch_size": 32, "num_workers": "auto"}, False),
        ("data", {"root": "y", "batch_size": 64, "num_workers": "auto"}, False),
        ("seed", 4, False),
        ("lora", {"rank": 16}, False),
        ("lora", {"rank": 8, "targets": ["v", "k"]}, False),
    ],
)
def test_the_hash_covers_what_decides_the_result(key, value, same):
    assert (content_hash("train", {**CONFIG, key: value}) == content_hash("train", CONFIG)) is same


def test_the_order_of_targets_makes_no_other_run():
    one, two = ({**CONFIG, "lora": {"rank": 8, "targets": targets}} for targets in (["k", "v"], ["v", "k"]))
    assert content_hash("train", one) == content_hash("train", two)


def test_the_hash_looks_at_the_tasks_of_a_joint_training_as_at_one():
    def of(**data):
        return content_hash("train", {**CONFIG, "members": {"a": {"data": {"root": "x", **data}}, "b": {"data": {}}}})

    assert of() == of(download=True) == of(num_workers=2) != of(size=3)


MERGE = {
    "tasks": None,
    "sweep": {"name": None, "fail_fast": False, "sizes": [2], "of": ["a", "b", "c"], "including": []},
}


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({"name": "x", "fail_fast": True}, True),
        ({"of": ["a", "b", "d"]}, False),
        ({"sizes": [3]}, False),
        ({"including": ["a"]}, False),
    ],
)
def test_the_hash_covers_the_sets_that_a_sweep_merges(changes, same):
    other = {**MERGE, "sweep": MERGE["sweep"] | changes}
    assert (content_hash("merge", other) == content_hash("merge", MERGE)) is same


def test_a_sweep_that_chooses_no_sets_is_not_hashed():
    single = {"tasks": ["a", "b"], "sweep": MERGE["sweep"] | {"sizes": None}}
    assert content_hash("merge", single) == content_hash("merge", {"tasks": ["a", "b"]})
    assert content_hash("train", CONFIG) == "219e334859"


def test_the_hash_is_the_same_everywhere():
    assert content_hash("train", {"name": "ä", "lr": 0.001, "list": [1, None]}) == "e4ba6f0da3"
    assert content_hash("merge", {"name": "ä", "lr": 0.001, "list": [1, None]}) != "e4ba6f0da3"


def test_a_done_run_is_skipped_and_says_where(describe, caplog):
    caplog.set_level(logging.INFO)
    perform(describe(), done, [])
    outcome = perform(describe(), lambda run: pytest.fail("must not run"), [])
    assert (outcome.state, outcome.code, outcome.result["score"]) == ("skipped", 0, 0.5)
    assert f"Skipped, done already: {describe().result_file}" in caplog.text


def test_a_run_that_other_code_has_done_is_skipped_and_says_so(describe, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    git = {"commit": "a" * 40, "dirty": False}
    monkeypatch.setattr("launch.perform.provenance", lambda: {"git": git})
    monkeypatch.setattr("launch.perform.git_state", lambda: git)
    perform(describe(), done, [])
    perform(describe(), done, [])
    assert "Skipped, done already: " in caplog.text
    monkeypatch.setattr("launch.perform.git_state", lambda: git | {"commit": "b" * 40})
    assert perform(describe(), done, []).state == "skipped"
    assert "Skipped, done already by other code (aaaaaaa): " in caplog.text


@pytest.mark.parametrize(
    ("kept", "resume", "told"),
    [
        (True, "auto", "; the same command goes on from where it stopped"),
        (True, "restart", "; without resume=restart the same command goes on from where it stopped"),
        (False, "auto", "; the same command begins anew"),
    ],
)
def test_an_interrupted_run_says_how_to_go_on(describe, caplog, kept, resume, told):
    def stop(_):
        raise KeyboardInterrupt

    run = describe()
    perform(dataclasses.replace(run, kept=kept, config=run.config | {"resume": resume}), stop, [])
    assert f"Interrupted: {run.name}{told}" in caplog.text


def test_a_done_run_that_told_other_numbers_says_so(describe, caplog):
    run = describe()
    asked = {"task": {"units": {"years": 10.0}, "subsets": None}, "members": {"age": {"task": {"subsets": ["pose"]}}}}
    perform(dataclasses.replace(run, config=run.config | asked), done, [])
    perform(dataclasses.replace(run, config=run.config | asked), done, [])
    assert "It was asked for other" not in caplog.text
    asked = {"task": {"units": {"years": 10.0}, "subsets": ["blur"]}, "members": {"age": {"task": {}}}}
    assert perform(dataclasses.replace(run, config=run.config | asked), done, []).state == "skipped"
    assert "It was asked for other task.subsets and members.age.task.subsets then; resume=restart" in caplog.text


def test_half_a_result_is_no_result(describe):
    run = describe()
    run.path.mkdir(parents=True)
    run.result_file.write_text("{")
    assert perform(describe(), done, []).state == "done"


def test_a_failed_run_is_gone_on_with(describe):
    def fail(run: Run) -> dict:
        (run.path / "half").write_text("")
        raise ValueError("three is bad")

    first, outcome = describe(), perform(describe(), fail, [])
    assert (outcome.state, outcome.code, outcome.error) == ("failed", 1, "ValueError: three is bad")
    assert (status(first)["state"], status(first)["error"]) == ("failed", "ValueError: three is bad")
    assert "Traceback" in (first.path / "run.log").read_text(encoding="utf-8")
    assert not first.resume
    second = describe()
    assert second.resume
    assert perform(second, lambda run: {"half": (run.path / "half").exists()}, []).result["half"]


def test_a_run_that_other_code_began_says_so(describe, monkeypatch, caplog):
    def at(commit: str) -> None:
        monkeypatch.setattr("launch.perform.provenance", lambda: {"git": {"commit": commit * 40, "dirty": False}})

    def fail(run: Run) -> dict:
        raise ValueError("three is bad")

    at("a")
    perform(describe(), fail, [])
    perform(describe(), fail, [])
    assert "other code" not in caplog.text
    at("b")
    result = perform(describe(), done, []).result
    assert result["commits"] == status(describe())["commits"] == ["a" * 40, "b" * 40]
    assert result["git"]["commit"] == "b" * 40
    assert "Part of it was made by other code: aaaaaaa (resume=restart" in caplog.text
    assert perform(describe(resume="restart"), done, []).result["commits"] == ["b" * 40]


def test_restart_keeps_the_old_run_until_the_new_one_is_done(describe):
    def fail(run: Run) -> dict:
        assert not run.result_file.exists()
        raise UserError("no data")

    perform(describe(), done, [])
    assert perform(describe(resume="restart"), fail, []).state == "failed"
    aside = set_aside_path(describe())
    assert (aside / "result.json").exists()
    assert perform(describe(resume="restart"), fail, []).state == "failed"
    assert (aside / "result.json").exists(), "a second failed restart must not replace the good old run"
    assert perform(describe(resume="restart"), lambda run: {"score": 0.7}, []).result["score"] == 0.7
    assert not aside.exists()


@pytest.mark.parametrize(
    ("error", "code", "text", "traceback"),
    [
        (UserError("no data at X"), 1, "no data at X", False),
        (CommandError("no such adapter"), 2, "no such adapter", False),
        (
            OSError(28, "No space left on device", "/x/last.ckpt"),
            1,
            "Cannot write /x/last.ckpt: the disk is full.",
            False,
        ),
        (PermissionError(13, "Permission denied", "/x/in.jpg"), 1, "PermissionError: [Errno 13]", True),
        (ZeroDivisionError("by zero"), 1, "ZeroDivisionError: by zero", True),
        (SystemExit(3), 1, "the job left with exit code 3", False),
    ],
)
def test_failures(describe, error, code, text, traceback):
    def fail(run: Run) -> dict:
        raise error

    run = describe()
    outcome = perform(run, fail, [])
    assert (outcome.state, outcome.code) == ("failed", code)
    assert outcome.error.startswith(text)
    assert status(run)["error"] == outcome.error
    log = (run.path / "run.log").read_text(encoding="utf-8")
    assert text in log
    assert ("Traceback" in log) is traceback
    assert not run.result_file.exists()


def interrupt(run: Run) -> dict:
    raise KeyboardInterrupt


def interrupt_as_lightning_does(run: Run) -> dict:
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt:
        raise SystemExit(1)  # noqa: B904


def terminate(run: Run) -> dict:
    os.kill(os.getpid(), signal.SIGTERM)
    return {}


@pytest.mark.parametrize(("job", "code"), [(interrupt, 130), (interrupt_as_lightning_does, 130), (terminate, 143)])
def test_interruptions(describe, job, code):
    before = signal.getsignal(signal.SIGTERM)
    run = describe()
    outcome = perform(run, job, [])
    assert (outcome.state, outcome.code, status(run)["state"]) == ("interrupted", code, "interrupted")
    assert signal.getsignal(signal.SIGTERM) is before
    assert perform(describe(), done, []).state == "done"


def test_a_result_must_be_finite(describe):
    run = describe()
    outcome = perform(run, lambda run: {"metrics": {"rmse": float("nan")}, "list": [1.0, float("inf")]}, [])
    assert outcome.state == "failed"
    assert outcome.error.startswith(f"The result of {run.name} is not finite: metrics.rmse=nan, list[1]=inf.")
    assert not run.result_file.exists()


def test_a_claimed_run_is_left_alone(describe, caplog):
    run = describe()
    outcomes: list[Outcome] = []

    def job(run: Run) -> dict:
        outcomes.append(perform(describe(), lambda run: pytest.fail("must not run"), []))
        return {}

    assert perform(run, job, []).state == "done"
    assert (outcomes[0].state, outcomes[0].code) == ("busy", 1)
    assert f"{run.name} is being worked on by process {os.getpid()} on " in outcomes[0].error


def test_a_claim_is_given_back(describe):
    for _ in range(2):
        with claim(describe()):
            pass


@pytest.fixture
def started_as(monkeypatch):
    def set_only(variables: dict[str, str]) -> None:
        for name in (*RANKS, "NODE_RANK"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return set_only


@pytest.mark.parametrize(
    "variables",
    [
        {"LOCAL_RANK": "1"},
        {"RANK": "1"},
        {"NODE_RANK": "1"},
        {"NODE_RANK": "1", "LOCAL_RANK": "0"},
        {"RANK": "8", "LOCAL_RANK": "0"},
        {"SLURM_PROCID": "1"},
        {"SLURM_PROCID": "1", "RANK": ""},
        {"JSM_NAMESPACE_RANK": "1"},
    ],
)
def test_further_processes_of_a_distributed_run_write_nothing(describe, started_as, variables):
    started_as({})
    main = describe()
    main.path.mkdir(parents=True)
    started_as(variables)
    with claim(main):  # the first process has it
        outcome = perform(describe(), done, [])
    assert outcome.state == "done"
    assert list(main.path.iterdir()) == []


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"SLURM_PROCID": "0"},
        {"RANK": "0", "LOCAL_RANK": "0", "SLURM_PROCID": "1"},
        {"LOCAL_RANK": "0", "NODE_RANK": "0", "SLURM_PROCID": "1"},
    ],
)
def test_the_first_process_keeps_the_run(describe, started_as, variables):
    started_as(variables)
    assert describe().is_main


def test_outputs_in_place_of_a_file(tmp_path, describe):
    (tmp_path / "outputs").write_text("")
    outcome = perform(describe(), done, [])
    assert (outcome.state, outcome.code) == ("failed", 1)
    assert outcome.error.startswith(f"Cannot write {tmp_path / 'outputs'}")
    assert "a part of its path is a file, not a folder" in outcome.error


def test_provenance_outside_a_checkout(tmp_path):
    assert provenance(tmp_path)["git"] is None
    assert set(provenance(Path(__file__).resolve().parents[1])) == {"versions", "git", "python", "platform"}
