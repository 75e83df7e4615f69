"""Loggers: who is asked, what lands on disk, and the truth about how a run ended."""

import csv

import pytest
import wandb

from launch.account import wandb_mode
from launch.errors import UserError
from lightning_modules import tracking
from lightning_modules.lineage import log_bundle
from lightning_modules.tasks import Task
from lightning_modules.tracking import define_metrics, log_summary, open_loggers
from tests.wandb_file import read_records

WANDB = {"project": "test", "entity": None, "mode": "offline"}


@pytest.fixture(autouse=True)
def logged_out(monkeypatch, tmp_path):
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "staging"))


def test_mode_is_offline_unless_logged_in(monkeypatch, tmp_path):
    assert wandb_mode("auto") == "offline"
    assert wandb_mode("online") == "online"
    (tmp_path / ".netrc").write_text("machine api.wandb.ai login user password secret\n")
    (tmp_path / ".netrc").chmod(0o600)
    assert wandb_mode("auto") == "online"
    assert wandb_mode("offline") == "offline"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert wandb_mode("online") == "disabled"


def test_a_login_to_a_server_of_ones_own_counts(monkeypatch, tmp_path):
    monkeypatch.delenv("WANDB_CONFIG_DIR", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".netrc").write_text("machine wandb.example.org login user password secret\n")
    (tmp_path / ".netrc").chmod(0o600)
    assert wandb_mode("auto") == "offline"
    settings = tmp_path / ".config" / "wandb" / "settings"  # as `wandb login --host` leaves it
    settings.parent.mkdir(parents=True)
    settings.write_text("[default]\nbase_url = https://wandb.example.org\n")
    assert wandb_mode("auto") == "online"
    settings.write_text("no settings")
    assert wandb_mode("auto") == "offline"


def test_an_api_key_is_a_login(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    assert wandb_mode("auto") == "online"


def test_offline_run_holds_what_was_logged(tmp_path):
    folder = tmp_path / "run"
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    (bundle / "card.json").write_text("{}")
    task = Task("leaves", "regression", "rmse", 1)
    config = {"lora": {"rank": 2}}
    keywords = {"run_id": "abc123", "group": "sweep1", "tags": ["leaves"], "wandb": WANDB}
    with open_loggers(folder, "train-leaves", config, **keywords) as loggers:
        define_metrics(loggers, {"leaves": task})
        for logger in loggers:
            logger.log_metrics({"val/leaves/rmse": 0.5}, step=3)
            logger.save()
        log_summary(loggers, {"best/rmse": 0.25})
        log_bundle(loggers, bundle, "leaves-r2-s0", {"score": 0.25})
    assert wandb.run is None
    path, found = read_records(folder)
    assert "abc123" in path.name
    (run,) = [record.run for record in found if record.HasField("run")][:1]
    assert (run.run_group, run.job_type, list(run.tags), run.display_name) == (
        "sweep1", "train", ["leaves"], "train-leaves",
    )  # fmt: skip
    assert any("rank" in update.value_json for update in run.config.update)
    names = {item.key or "/".join(item.nested_key) for r in found if r.HasField("history") for item in r.history.item}
    assert "val/leaves/rmse" in names
    defined = {record.metric.name: record.metric for record in found if record.HasField("metric")}
    assert defined["val/leaves/rmse"].summary.min
    assert defined["val/leaves/rmse"].step_metric == defined[""].step_metric == "trainer/global_step"
    assert any(record.HasField("artifact") or "artifact" in str(record.request)[:200] for record in found)
    (exits,) = [record.exit.exit_code for record in found if record.HasField("exit")]
    assert exits == 0
    (table,) = folder.glob("csv/version_0/metrics.csv")
    assert next(iter(csv.DictReader(table.open())))["val/leaves/rmse"] == "0.5"


def test_each_metric_is_summed_up_by_its_better_end(tmp_path):
    kinds = {"leaves": Task("leaves", "classification", "accuracy", 2), "face": Task("face", "keypoints", "nme", 4)}
    with open_loggers(tmp_path, "x", {}, run_id="both", wandb=WANDB) as loggers:
        define_metrics(loggers, kinds)
    defined = [record.metric for record in read_records(tmp_path)[1] if record.HasField("metric")]
    better = {metric.name: (metric.summary.min, metric.summary.max) for metric in defined if "/" in metric.name}
    del better["trainer/global_step"]
    higher = {"val/leaves/accuracy", "val/leaves/macro_f1", "val/face/auc", "val/skill"}
    lower = {"val/leaves/loss", "val/face/loss", "val/face/nme", "val/face/failure_rate"}
    assert better == {name: (name in lower, name in higher) for name in higher | lower}


def test_a_failed_run_is_told_as_failed(tmp_path):
    def fail():
        with open_loggers(tmp_path / "run", "x", {}, run_id="f1", wandb=WANDB) as loggers:
            loggers[-1].log_metrics({"loss": 1.0}, step=0)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert wandb.run is None
    _, found = read_records(tmp_path / "run")
    assert [record.exit.exit_code for record in found if record.HasField("exit")] == [1]


def test_a_second_run_does_not_go_on_in_the_first(tmp_path):
    """Two jobs of one process, the first of which left its run open."""
    leaked = wandb.init(project="test", mode="offline", dir=str(tmp_path), id="leaked")
    with open_loggers(tmp_path / "run", "x", {}, run_id="second", wandb=WANDB) as loggers:
        assert loggers[-1].experiment.id == "second" != leaked.id


def test_a_resumed_run_keeps_its_earlier_curves(tmp_path):
    for value in (1.0, 2.0):
        with open_loggers(tmp_path, "x", {}, run_id="r") as loggers:
            loggers[0].log_metrics({"loss": value}, step=0)
            loggers[0].save()
    tables = sorted(tmp_path.glob("csv/version_*/metrics.csv"))
    assert [next(iter(csv.DictReader(table.open())))["loss"] for table in tables] == ["1.0", "2.0"]


def test_tensorboard_writes_events(tmp_path):
    with open_loggers(tmp_path, "x", {}, run_id="r", tensorboard=True) as loggers:
        assert len(loggers) == 2
        loggers[1].log_metrics({"loss": 1.0}, step=0)
        loggers[1].save()
    assert list(tmp_path.glob("tensorboard/**/events.out.*"))


def test_missing_tensorboard_is_told(tmp_path, monkeypatch):
    def absent(*_, **__):
        raise ModuleNotFoundError("Neither `tensorboard` nor `tensorboardX` is available.")

    monkeypatch.setattr(tracking, "TensorBoardLogger", absent)
    with (
        pytest.raises(UserError, match=r"pip install tensorboard"),
        open_loggers(tmp_path, "x", {}, run_id="r", tensorboard=True),
    ):
        pass


def test_online_without_a_key_is_refused_and_nobody_is_asked(tmp_path):
    with (
        pytest.raises(UserError, match="mode=online: no W&B key is known"),
        open_loggers(tmp_path / "run", "train-leaves", {}, run_id="abc", wandb=WANDB | {"mode": "online"}),
    ):
        pytest.fail("W&B was opened")
