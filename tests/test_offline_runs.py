"""What W&B is told offline, read back from the ``.wandb`` file: a training, a merge sweep, a report."""

import dataclasses
import functools
import json
from pathlib import Path

import pytest
import wandb
from PIL import Image

from lightning_modules.adapter import load_bundle
from lightning_modules.lineage import reference
from lightning_modules.tracking import log_picture, log_summary, log_table, open_loggers
from reporting import online
from reporting.load import collect
from reporting.making import write_report
from reporting.online import alone_means, build_report, build_workspace, log_report, sections
from tests.report_rows import TASKS, merge_rows, write_outputs, write_train_run
from tests.runs import leaves, train_here
from tests.wandb_file import artifact, config, history, read_records, summary

WANDB = {"project": "test", "entity": None, "mode": "offline"}


@pytest.fixture(autouse=True)
def logged_out(monkeypatch, tmp_path):
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "staging"))


def test_a_training_is_whole_offline_and_its_examples_are_on_the_page(tmp_path):
    result, run = train_here(leaves(tmp_path, "logger=wandb", "logger.wandb.mode=offline"))
    path, found = read_records(run.path)
    assert run.hash in path.name
    logged = history(found)
    with next(run.path.glob("csv/version_*/metrics.csv")).open() as file:
        names = set(file.readline().strip().split(",")) - {"step", "epoch"}
    assert names <= set(logged), "the CSV's metrics under the same names"
    assert len(logged["val/leaves/accuracy"]) == result["epochs"]
    final = summary(found)
    best = {name.removeprefix("best/"): value for name, value in final.items() if name.startswith("best/")}
    assert best == pytest.approx(result["validation"])
    assert best["loss"] != pytest.approx(result["metrics"]["loss"]), "of other images than the test's"
    assert logged["test/leaves/accuracy"] == [pytest.approx(result["score"])]
    assert config(found)["lora"]["rank"] == 2
    (adapter,) = [r.artifact for r in found if r.HasField("artifact") and r.artifact.type == "adapter"]
    named = {f"{adapter.name}:{alias}" for alias in adapter.aliases}
    assert reference(load_bundle(Path(result["bundle"]))) in named, "as a merge asks for it"
    assert logged["examples/leaves"][0]["_type"] == "table-file"
    files = artifact(found, "run_table")  # where W&B keeps a table's pictures
    table = json.loads(files["examples/leaves.table.json"].read_text())
    assert table["columns"] == ["task", "image", "target", "single"]
    assert {row[2] for row in table["data"]} == {"dark", "light"}
    examples = json.loads((run.path / "examples" / "examples.json").read_text())
    pictures = [files[row[1]["path"]].read_bytes() for row in table["data"]]
    assert pictures == [(run.path / "examples" / item["image"]).read_bytes() for item in examples]
    assert {"test/leaves/confusion", "test/leaves/worst"} <= set(logged)
    right = sum(item["target"] == item["single"] for item in examples) / len(examples)
    assert len(examples) == len(pictures) > 3
    assert right == pytest.approx(result["metrics"]["accuracy"], abs=0.35)
    (run.path / "result.json").write_text(
        json.dumps(result | {"schema_version": 1, "what": "train", "seed": 0, "hash": run.hash})
    )
    collected = collect([run.path.parents[1]])
    assert [item["task"] for item in collected.examples] == ["leaves"] * len(examples)
    assert collected.examples[0]["image"].startswith("data:image/jpeg;base64,")
    assert len(collected.curves[0]["points"]) == result["epochs"]


def test_a_merge_sweep_is_whole_offline(tmp_path):
    rows = merge_rows(4)
    figure = tmp_path / "picture.png"
    Image.new("RGB", (8, 8)).save(figure)
    keywords = {"run_id": "m1", "group": "pairs", "job_type": "merge", "tags": ["cat", "r16"], "wandb": WANDB}
    with open_loggers(tmp_path / "run", "merge-pairs", {"merge": {"name": "cat"}}, **keywords) as loggers:
        log_table(loggers, "rows", rows)
        log_picture(loggers, "retention", figure)
        log_summary(loggers, {"retention/cat": 0.9})
    path, found = read_records(tmp_path / "run")
    (run,) = [record.run for record in found if record.HasField("run")][:1]
    assert (run.run_group, run.job_type, list(run.tags)) == ("pairs", "merge", ["cat", "r16"])
    logged = history(found)
    table = json.loads((path.parent / "files" / logged["rows"][0]["path"]).read_text())
    assert [dict(zip(table["columns"], row, strict=True)) for row in table["data"]] == rows
    assert logged["retention"][0]["_type"] == "images/separated"
    assert summary(found)["retention/cat"] == 0.9


# wandb-workspaces still writes some of its validators as pydantic 1 did
pytestmark = pytest.mark.filterwarnings("ignore::pydantic.PydanticDeprecatedSince20")


@pytest.fixture
def report(tmp_path):
    found = collect([write_outputs(tmp_path / "outputs", 60)])
    write_report(found, tmp_path / "all", ["html", "png"], ["outputs"])
    return found, tmp_path / "all"


def test_the_reports_own_run_holds_tables_figures_and_page(report, tmp_path):
    found, folder = report
    run = wandb.init(project="test", mode="offline", dir=str(tmp_path / "w"), job_type="report")
    log_report(found, folder, run)
    run.finish()
    path, records = read_records(tmp_path / "w")
    logged, final = history(records), summary(records)
    assert {"merges", "trains", "page", "figures/pairs", "figures/cost"} <= set(logged)
    table = json.loads((path.parent / "files" / logged["merges"][0]["path"]).read_text())
    scores = [row[table["columns"].index("score")] for row in table["data"]]
    assert scores == pytest.approx([row["score"] for row in merge_rows(60)])
    kept = [row["retention"] for row in merge_rows(60)]
    assert final["retention/cat"] == pytest.approx(sum(kept) / 60) == final["retention/best"]
    assert final["alone/galaxy/r0"] == pytest.approx(0.8 * 0.8)


def test_a_report_that_fails_while_logging_is_told_as_failed(report, monkeypatch):
    def fail(*_):
        raise ZeroDivisionError

    monkeypatch.setattr(wandb, "init", functools.partial(wandb.init, mode="offline"))
    monkeypatch.setattr(online, "log_report", fail)
    with pytest.raises(ZeroDivisionError):
        online.publish(*report, "test", None)
    _, records = read_records(report[1])
    assert [record.exit.exit_code for record in records if record.HasField("exit")] == [1]


def test_workspace_and_report_have_the_pages_panels(report, monkeypatch):
    found, _ = report
    merged = ["Retention", "More tasks, other ranks", "Cost", "Refinement", "Advisor"]
    headings = [*merged, "Training", "Rank of the adapters alone", "Every number"]
    assert list(sections(found)) == headings
    unrefined = dataclasses.replace(found, refinements=[])
    assert list(sections(unrefined)) == [name for name in headings if name != "Refinement"]
    space = build_workspace(found, "p", "e")._to_model().model_dump_json(by_alias=True)
    interface = "wandb_workspaces.reports.v2.interface."
    monkeypatch.setattr(interface + "_get_api", lambda: None)
    monkeypatch.setattr(interface + "execute_graphql", lambda *_: {"project": {"internalId": "1"}})
    page = build_report(found, "p", "e")._to_model().model_dump_json(by_alias=True)
    for text in (space, page):
        for part in (
            "figures/pairs",
            "figures/cost",
            "figures/refinement",
            "figures/advisor",
            "retention/best",
            "Every number",
        ):
            assert part in text
        for task, (metric, _) in TASKS.items():
            assert f"val/{task}/{metric}" in text
            assert f"test/{task}/{metric}" in text, "ranks are compared by what the page compares: test scores"


def test_adapters_trained_otherwise_have_a_mean_of_their_own(tmp_path):
    for seed, score in ((0, 0.8), (1, 0.9)):
        write_train_run(tmp_path, "galaxy", 16, seed, score=score)
        write_train_run(tmp_path, "emotion", 16, seed, score=score)
    capped = {"rank": 16, "max_norm": 0.1}
    write_train_run(tmp_path, "galaxy", 16, score=0.5, lora=capped, hash="1" * 10)
    write_train_run(tmp_path, "emotion", 16, score=0.4, data={"name": "faces"}, hash="2" * 10)
    write_train_run(tmp_path, "emotion", 16, score=0.3, data={"name": "faces"}, lora=capped, hash="3" * 10)
    for number, seed in enumerate((0, 0, 1)):  # as of a learning rate
        write_train_run(tmp_path, "galaxy", 64, seed, score=0.7 + 0.1 * number, hash=f"{number + 4}" * 10)
    assert alone_means(collect([tmp_path])) == pytest.approx(
        {
            "alone/galaxy/r16": 0.85,
            "alone/galaxy/r16 (max_norm=0.1)": 0.5,
            "alone/emotion/r16 (drawn_emotion)": 0.85,
            "alone/emotion/r16 (faces)": 0.4,
            "alone/emotion/r16 (faces, max_norm=0.1)": 0.3,
        }
    )
