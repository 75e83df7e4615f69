"""What W&B is told of a merge's inputs and outputs; its server is a stand-in here."""

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
import wandb
from lightning.pytorch.loggers import WandbLogger
from wandb.sdk.lib.service.service_connection import WandbApiFailedError

from launch.bundles import bundle_content
from lightning_modules.adapter import load_bundle
from lightning_modules.lineage import artifact_name, log_bundle, log_inputs, log_model, reference
from merging import run as merging_run
from tests.merge_runs import command, merge_here
from tests.model_cases import adapter
from tests.wandb_file import config, read_records


class StandIn:
    """As much of an online W&B run as lineage needs; it has the artifacts that were logged through it.

    Attributes:
        refusal: raised when it is asked for an artifact that it has not.
        done: what was asked of it, in order.
    """

    offline = disabled = False

    def __init__(self, refusal: Exception | None = None) -> None:
        self.config = wandb.Config()
        self.summary: dict[str, Any] = {}
        self.refusal = refusal or ValueError("artifact membership not found in 'me/test'")
        self.known: set[str] = set()
        self.done: list[tuple[str, str]] = []
        self.logged: list[wandb.Artifact] = []

    def use_artifact(self, name: str, type: str) -> None:
        assert type == "adapter"
        if name not in self.known:
            raise self.refusal
        self.done.append(("use", name))

    def log_artifact(self, artifact: wandb.Artifact, aliases: list[str]) -> None:
        self.logged.append(artifact)
        self.known |= {f"{artifact.name}:{alias}" for alias in aliases}
        self.done.append(("log", f"{artifact.name}:{aliases[-1]}"))

    def log(self, values: dict[str, Any]) -> None:
        self.done += [("table", name) for name in values]


def logger_of(run: Any) -> WandbLogger:
    return WandbLogger(experiment=run)


@pytest.fixture(autouse=True)
def own_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    for name in ("WANDB_DATA_DIR", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))


def test_an_offline_merge_tells_its_inputs_and_leaves_no_model_in_the_staging_folder(outputs: Path) -> None:
    more = ["logger=wandb", "logger.wandb.mode=offline", "merge=cat", "tasks=[leaves,level]", "advice_images=null"]
    given = [text for text in command(outputs, *more) if text != "logger=csv"]
    result, run = merge_here(given)
    _, found = read_records(run.path)
    contents = {task: bundle_content(outputs / "adapters" / task / "r2-s0") for task in ("leaves", "level")}
    assert config(found)["inputs"] == [
        {"name": task, "folder": "r2-s0", "sha256": content} for task, content in contents.items()
    ]
    assert len(result["models"]) == 1
    assert {record.artifact.type for record in found if record.HasField("artifact")} <= {"run_table"}


def test_an_online_merge_uses_its_members_and_logs_its_models(
    outputs: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = StandIn()
    loggers = [logger_of(run)]
    leaves = outputs / "adapters" / "leaves" / "r2-s0"
    log_bundle(loggers, leaves, "leaves-r2-s0", {})  # the other was trained under another logger
    monkeypatch.setattr(merging_run, "open_loggers", lambda *_, **__: contextlib.nullcontext(loggers))
    result, _ = merge_here(command(outputs, "merge=ties", "tasks=[leaves,level]", "realign=[none,linear]"))
    used = reference(load_bundle(leaves))
    assert used == f"adapter-leaves-r2-s0:{bundle_content(leaves)[:12]}"
    models = [("log", f"merged-ties-leaves-level:{realign}") for realign in ("none", "linear")]
    assert run.done[1:4] == [("use", used), *models]
    assert f"{outputs / 'adapters' / 'level' / 'r2-s0'}: W&B gave no artifact adapter-level-r2-s0:" in caplog.text
    assert "artifact membership not found" in caplog.text
    assert [entry["name"] for entry in run.config["inputs"]] == ["leaves", "level"]
    for model, artifact in zip(result["models"], run.logged[1:], strict=True):
        assert artifact.type == "merged-model"
        held = {str(file.relative_to(model)) for file in Path(model).rglob("*") if file.is_file()}
        assert set(artifact.manifest.entries) == held
        assert all(Path(entry.local_path).is_relative_to(model) for entry in artifact.manifest.entries.values())
        assert artifact.metadata["inputs"]["leaves"] == bundle_content(leaves)
        assert set(artifact.metadata["retention"]) == {"leaves", "level"}


@pytest.mark.parametrize("error", [ValueError, wandb.errors.CommError, WandbApiFailedError])
def test_no_merge_fails_for_its_lineage(
    tmp_path: Path, error: type[Exception], caplog: pytest.LogCaptureFixture
) -> None:
    bundle = load_bundle(adapter(tmp_path, "leaves"))
    log_inputs([logger_of(StandIn(error("no such thing")))], {"leaves": bundle})
    assert f"{bundle.path}: W&B gave no artifact {reference(bundle)} (no such thing)" in caplog.text


def test_a_fault_of_ours_is_no_missing_artifact(tmp_path: Path) -> None:
    bundle = load_bundle(adapter(tmp_path, "leaves"))
    with pytest.raises(ZeroDivisionError):
        log_inputs([logger_of(StandIn(ZeroDivisionError()))], {"leaves": bundle})


@pytest.mark.parametrize("mode", ["offline", "disabled"])
def test_without_a_server_nothing_is_asked_of_it(tmp_path: Path, mode: Any) -> None:
    """W&B's own run: offline it raises where an artifact is used."""
    bundle = load_bundle(adapter(tmp_path, "leaves"))
    with wandb.init(project="test", mode=mode, dir=str(tmp_path)) as run:
        log_inputs([logger_of(run)], {"leaves": bundle})
        log_inputs([logger_of(run)], {"leaves": bundle})  # a resumed run tells them again
        log_model([logger_of(run)], bundle.path, "merged-cat-leaves", "none", {})
        assert [entry["sha256"] for entry in run.config["inputs"]] == [bundle.content]
    assert not list((tmp_path / "WANDB_DATA_DIR").rglob("*.safetensors"))


def test_a_bundle_is_named_as_the_training_that_logged_it(tmp_path: Path) -> None:
    path = adapter(tmp_path, "leaves")
    run = StandIn()
    card = json.loads((path / "card.json").read_text())
    for told, title in (
        ({"run": "train-leaves-r2-s0-0123456789", "config_hash": "0123456789"}, "leaves-r2-s0"),
        ({"run": "train-joint_age_leaves-r2-s0-0123456789", "config_hash": "0123456789"}, "joint_age_leaves-r2-s0"),
        ({"run": None, "config_hash": None}, "leaves-r2-s0"),  # written by other means
    ):
        (path / "card.json").write_text(json.dumps(card | told))
        log_bundle([logger_of(run)], path.parent, title, {})  # a joint one has several below its folder
        assert reference(load_bundle(path)) in run.known


def test_names_that_the_server_refuses_are_not_asked_for() -> None:
    assert artifact_name("merged", "ties", "age_class", "leaves") == "merged-ties-age_class-leaves"
    assert artifact_name("adapter", "a+b/c:d (e)") == "adapter-a-b-c-d--e-"
    long = [artifact_name("merged", "tsv", *(f"task_{place}" * 3 for place in range(last))) for last in (9, 10)]
    assert {len(name) for name in long} == {128}
    assert long[0] != long[1]
    for name in long:
        wandb.Artifact(name, type="merged-model")
