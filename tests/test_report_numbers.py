"""Numbers of a report that are easily told wrong: directions, units, what is one and what is two."""

import csv
import json
from types import SimpleNamespace
from typing import Any

import pytest

from reporting.curves import MAX_POINTS, read_curves
from reporting.load import collect
from reporting.online import log_report
from reporting.page import build_page, payload
from reporting.rows import Collected, fill_retention, merge_row, train_rows
from reporting.summaries import means
from reporting.tables import format_score, study_tables
from tests.report_rows import merge_rows, row_of, write_csv, write_train_run

MADE = {"time": "now", "commit": "c0ffee" + "0" * 34, "dirty": True}


@pytest.mark.parametrize(
    ("metric", "kept"), [("accuracy_night", 0.75), ("rmse_years", 4 / 3), ("nme_pose", 4 / 3), ("failure_rate", 4 / 3)]
)
def test_retention_of_a_subset_or_in_another_unit_has_the_direction_of_its_metric(metric, kept):
    row = {"data": "d", "backbone": "b", "set": "a+b", "method": "cat", "rank": 16, "seed": 0, "task": "a"}
    assert merge_row(row | {"metric": metric, "score": 6.0, "single": 8.0})["retention"] == pytest.approx(kept)
    found = Collected(merges=[merge_row(row | {"metric": metric, "score": 6.0, "single": 8.0})])
    assert payload(found)["higher"] == {metric: kept < 1}


def test_the_best_of_errors_is_the_least():
    own = {"set": "age_class+landmarks", "task": "landmarks", "metric": "nme", "rank": 16, "single": 8.0}
    rows = [row_of(**own, method=name, score=score) for name, score in (("cat", 9.0), ("ties", 12.0), ("gram", 8.5))]
    (table,) = [table for table in study_tables(Collected(merges=rows)) if table.name == "V"]
    (line,) = [row for row in table.rows if row[0].text == "with age_class"]
    assert [cell.text for cell in line[5:8]] == ["9.000 (1)", "8.500 (1)", "gram"]


@pytest.mark.parametrize(
    ("metric", "value", "text"),
    [("accuracy", 0.7931, "79.3"), ("macro_f1", 0.5, "50.0"), ("auc", 0.25, "25.0"), ("rmse", 0.8694, "0.869"),
     ("rmse_years", 8.694, "8.694"), ("nme", 8.4831, "8.483"), ("failure_rate", 12.34, "12.3")],
)  # fmt: skip
def test_fractions_are_told_in_percent_and_nothing_else(metric, value, text):
    assert format_score(metric, value) == text


@pytest.mark.parametrize(
    "other",
    [{"seed": 1}, {"rank": 64}, {"data": "other"}, {"backbone": "other@98"}, {"lora": "max_norm=0.1"},
     {"method": "ties"}, {"realign": "deep"}, {"set": "age_class+galaxy"}, {"metric": "macro_f1"}],
)  # fmt: skip
def test_rows_of_the_same_score_that_differ_elsewhere_are_all_told(tmp_path, other):
    row = merge_rows(1)[0] | {"lora": ""}
    write_csv(tmp_path / "merges.csv", [row, row | other, row])
    found = collect([tmp_path])
    (name,) = other
    assert ["" if item[name] is None else item[name] for item in found.merges] == [row[name], other[name]]
    alone = {"data": "d", "backbone": "b", "task": "t", "rank": 16, "lora": "", "seed": 0, "metric": "accuracy"}
    if name in alone:
        columns = [*alone, "score"]
        with (tmp_path / "trains.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows([alone | {"score": 0.5}, alone | {"score": 0.5} | other])
        assert len(collect([tmp_path]).trains) == 2


@pytest.mark.parametrize(
    "other", [{"seed": 1}, {"backbone": "other@98"}, {"lora": "max_norm=0.1"}, {"rank": 64}, {"task": "emotion"}]
)
def test_a_joint_training_is_compared_with_adapters_trained_just_so(other):
    alone = {"data": "d", "backbone": "b", "task": "galaxy", "rank": 16, "seed": 0, "metric": "accuracy"}
    joint = {"set": "emotion+galaxy", "method": "joint", "score": 0.6}

    def kept(*scored: Any) -> Any:
        trains = [row for one, score in scored for row in train_rows(one | {"score": score})]
        ((row),) = list(fill_retention([merge_row(alone | joint)], trains))
        return row["retention"]

    assert kept((alone, 0.8), (alone | other, 0.5)) == pytest.approx(0.75)
    assert kept((alone | other, 0.5)) is None


def test_a_deviation_is_that_of_a_sample():
    rows = [row_of(seed=seed, retention=kept) for seed, kept in enumerate((0.8, 0.9, 1.0))]
    assert means(rows, lambda row: row["method"])["cat"] == (pytest.approx(0.9), pytest.approx(0.1), 3)


def test_a_curve_is_of_the_last_attempt_and_ends_with_the_last_epoch(tmp_path):
    run = write_train_run(tmp_path, "galaxy", 16)
    for version, value, epochs in ((2, 0.2, range(300)), (10, 0.6, range(250, 300))):
        folder = run / "csv" / f"version_{version}"
        folder.mkdir()
        lines = [f"{epoch},{value}" for epoch in epochs]
        (folder / "metrics.csv").write_text("\n".join(["epoch,val/galaxy/accuracy", *lines]))
    result = json.loads((run / "result.json").read_text())
    ((curve),) = read_curves(run, result, 0)
    points = dict(curve["points"])
    assert len(points) <= MAX_POINTS
    assert points[300] == 0.6
    assert {value for epoch, value in points.items() if epoch <= 250} == {0.2}
    assert {value for epoch, value in points.items() if epoch > 250} == {0.6}


def test_configs_of_the_page_are_those_of_the_runs():
    configs = [{"a": 1, "b": [2]}, {"a": 1, "b": [3], "c": None}, {"a": 2, "b": [2]}]
    told = payload(Collected(origins=[{"config": config} for config in configs]))
    found = [
        {name: value for name, value in (told["config"] | origin["config"]).items() if name not in origin["without"]}
        for origin in told["origins"]
    ]
    assert found == configs


def test_what_the_page_counts(tmp_path):
    write_train_run(tmp_path, "galaxy", 16)  # with two metrics
    write_train_run(tmp_path, "emotion", 16)
    rows = merge_rows(3)  # a set of two tasks and one member of the next
    write_csv(tmp_path / "merges.csv", rows)
    page = build_page(collect([tmp_path]), [], ["outputs"], MADE)
    assert "<b>2</b><span>adapters and heads trained" in page
    assert "<b>2</b><span>merges scored" in page
    assert f"<b>{len({'galaxy', 'emotion', *(row['task'] for row in rows)})}</b><span>tasks" in page
    assert "now, commit c0ffee0000 with changes; from outputs" in page


def test_a_training_took_as_long_as_its_fit(tmp_path):
    write_train_run(tmp_path, "galaxy", 16, seconds={"fit": 12.5, "total": 99.0}, epochs=6)
    assert {(row["seconds"], row["epochs"]) for row in collect([tmp_path]).trains} == {(12.5, 6)}


def test_no_control_is_the_best_merge_that_wandb_is_told(tmp_path):
    run = SimpleNamespace(log=lambda values: None, summary={})
    kept = {"cat": 0.7, "ties": 0.8, "joint": 0.99, "frozen": 0.9}
    rows = [row_of(method=name, retention=value, set=f"age_class+{name}", origin=0) for name, value in kept.items()]
    log_report(Collected(merges=rows, origins=[{}]), tmp_path, run)
    told = {f"retention/{name}": pytest.approx(value) for name, value in kept.items()}
    assert run.summary == told | {"retention/best": pytest.approx(0.8)}, "no two were measured alike"
