"""What a report collects, what it leaves out and why, and the study's tables with ours beside."""

import json
from collections import Counter

import pandas as pd
import pytest

from launch.errors import CommandError
from reporting.figures import write_figures
from reporting.load import collect
from reporting.making import write_report
from reporting.page import build_page, payload
from reporting.rows import Collected, RowError, merge_row, method_label, primary_metrics, train_rows
from reporting.rows import merge_rows as rows_of
from reporting.study import study_numbers
from reporting.summaries import best_merge, front, means, own_metric, pairs
from reporting.tables import NOTE, study_tables, to_markdown
from tests.report_rows import merge_rows, row_of, write_csv, write_merge_run, write_outputs, write_train_run

MEASURED = {"cat": 0.7, "ties": 0.8, "joint": 0.99, "frozen": 0.9}  # of which two are merges


def test_runs_and_committed_csv_are_one_list(tmp_path):
    outputs, committed = tmp_path / "outputs", tmp_path / "results"
    rows = merge_rows(40)
    write_merge_run(outputs, rows[:24])
    write_train_run(outputs, "galaxy", 16)
    write_csv(committed / "merges.csv", rows)  # the first 24 again
    (committed / "table1.csv").write_text(
        "data,backbone,task,rank,seed,metric,score,macro_f1,nme\nreal,vit_base,galaxy,16,0,accuracy,0.79,0.76,\n"
    )
    found = collect([committed, outputs])
    assert len(found.merges) == 40
    assert [row["score"] for row in found.merges] == pytest.approx([row["score"] for row in rows])
    assert {found.origins[row["origin"]]["kind"] for row in found.merges} == {"merge", "csv"}
    from_csv = [row for row in found.trains if row["backbone"] == "vit_base"]
    assert [(row["metric"], row["score"], row["primary"]) for row in from_csv] == [
        ("accuracy", 0.79, True),
        ("macro_f1", 0.76, False),
    ]
    assert found.left_out == [
        (str(committed / "merges.csv"), "24 of 40 rows are in an earlier source with the same score")
    ]


def test_rows_say_where_they_come_from(tmp_path):
    run = write_train_run(tmp_path, "galaxy", 16, seed=3, hash="abcdef0123")
    found = collect([tmp_path])
    origin = found.origins[found.trains[0]["origin"]]
    assert origin["file"] == str(run / "result.json")
    assert (origin["hash"], origin["seed"], origin["data_fingerprint"]) == ("abcdef0123", 3, "d" * 64)
    assert origin["commit"].startswith("c0ffee")
    assert origin["config"]["optimizer.lr"] == 5e-4
    (curve,) = found.curves
    assert [epoch for epoch, _ in curve["points"]] == [1, 2, 3, 4, 5, 6]
    assert curve["points"][0][1] == pytest.approx(found.trains[0]["score"] / 2)


def test_what_cannot_be_used_is_named_with_its_reason(tmp_path):
    runs = tmp_path / "runs"
    good = write_train_run(tmp_path, "galaxy", 0)
    write_train_run(tmp_path, "emotion", 0, schema_version=0, hash="1" * 10)
    write_train_run(tmp_path, "emotion", 16, schema_version=99, hash="2" * 10)
    write_train_run(tmp_path, "emotion", 64, metrics=None, hash="3" * 10)
    short = write_train_run(tmp_path, "galaxy", 1)
    (short / "config.yaml").write_text("trainer: {limit_test_batches: 4, max_epochs: 1}\n")
    predicted = json.dumps({"what": "predict", "schema_version": 1})
    for name, content in (("half", '{"what": "tra'), ("foreign", "[1, 2]"), ("predicted", predicted)):
        (runs / name).mkdir()
        (runs / name / "result.json").write_text(content)
    (runs / "numbered").mkdir()
    (runs / "numbered" / "result.json").write_text('{"what": "merge", "schema_version": "1.0"}')
    (runs / "endless").mkdir()
    (runs / "endless" / "result.json").write_text('{"what": "train", "schema_version": 1, "score": NaN}')
    (runs / "stranger").mkdir()
    (runs / "died").mkdir()
    status = {"state": "failed", "error": "ValueError: three\nmore", "command": ["python", "train.py", "seed=3"]}
    (runs / "died" / "status.json").write_text(json.dumps(status))
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    (tmp_path / "bytes.csv").write_bytes(b"\xff\xfe\x00data")
    lines = merge_rows(3)
    lines[1]["score"] = "much"
    lines[2]["task"] = "galaxy"
    write_csv(tmp_path / "merges.csv", lines)
    found = collect([tmp_path])
    assert [row["task"] for row in found.trains if row["primary"]] == ["galaxy"]
    assert found.origins[found.trains[0]["origin"]]["file"] == str(good / "result.json")
    assert len(found.merges) == 1
    reasons = {path.removeprefix(f"{tmp_path}/"): reason for path, reason in found.left_out}
    wanted = {
        "r0-s0-1111111111": "old schema 0, this version reads 1: run its command again with resume=restart",
        "r16-s0-2222222222": "schema 99 is of a newer version",
        "r64-s0-3333333333": "unknown layout",
        "numbered": "foreign: schema_version is '1.0'",
        "endless": "no JSON: NaN is no number in JSON",
        short.name: "cut short by trainer.limit_test_batches=4",
        "half": "half-written, no JSON",
        "foreign": "foreign: not a result of ours",
        "predicted": "a predict run holds no scores",
        "stranger": "neither result.json nor a readable status.json",
        "died": "not done: failed (ValueError: three); again: python train.py seed=3",
        "other.csv": "foreign: a CSV without the columns data, backbone, task",
        "bytes.csv": "cannot be read as CSV",
        "merges.csv": "2 of 3 lines: line 3: score='much' is no number; line 4: task=galaxy is no member",
    }
    assert len(reasons) == len(wanted), reasons
    for part, reason in wanted.items():
        assert any(part in path and reason in said for path, said in reasons.items()), (part, reasons)


def test_a_folder_that_is_not_there_is_an_error(tmp_path):
    (tmp_path / "outputs").mkdir()
    with pytest.raises(CommandError, match=r"no folder .*output \(looked in .*Did you mean '.*outputs'"):
        collect([tmp_path / "output"])
    file = write_csv(tmp_path / "outputs" / "rows.csv", merge_rows(1))
    with pytest.raises(CommandError, match=rf"rows\.csv is a file; name its folder, {tmp_path / 'outputs'}\."):
        collect([file])


def test_retention_is_worked_out_when_it_is_missing():
    row = {"data": "d", "backbone": "b", "set": "b+a", "method": "cat", "rank": "16", "seed": "0", "task": "a"}
    higher = merge_row(row | {"metric": "accuracy", "score": "0.6", "single": "0.8"})
    lower = merge_row(row | {"metric": "rmse", "score": 1.0, "single": 0.8})
    assert (higher["retention"], lower["retention"]) == (pytest.approx(0.75), pytest.approx(0.8))
    assert (higher["set"], higher["tasks"], higher["realign"], higher["rank"]) == ("a+b", 2, "none", 16)
    zeros = [("accuracy", 0, 0.8, 0.0), ("accuracy", 0.6, 0, None), ("rmse", 0, 0.8, None), ("nme", 0.6, 0, 0.0)]
    for metric, score, single, kept in [*zeros, ("accuracy", 0, 0, 1.0)]:
        assert merge_row(row | {"metric": metric, "score": score, "single": single})["retention"] == kept
    with pytest.raises(RowError, match="score=nan is not finite"):
        merge_row(row | {"metric": "rmse", "score": "nan"})
    with pytest.raises(RowError, match=r"rank=1\.5 is no whole number"):
        list(train_rows(row | {"metric": "rmse", "score": 1.0, "rank": "1.5"}))


def test_a_merges_other_metrics_are_rows_of_their_own(tmp_path):
    row = merge_rows(1)[0] | {"scores": {"accuracy": 0.7, "macro_f1": 0.6, "loss": 1.0}, "lora": "max_norm=0.1"}
    write_merge_run(tmp_path, [row])
    write_merge_run(tmp_path, [row], digest="9999999999", split="val")
    found = collect([tmp_path])
    assert [(item["metric"], item["retention"], item["lora"]) for item in found.merges] == [
        ("accuracy", row["retention"], "max_norm=0.1"),
        ("macro_f1", None, "max_norm=0.1"),
    ]
    assert found.merges[1]["score"] == 0.6
    write_merge_run(tmp_path, [{"task": "galaxy", "predicted": 0.9}], digest="8888888888")
    assert [why for _, why in collect([tmp_path]).left_out] == [
        "advice: predictions without measured scores",
        "scored on the val split; a report holds test scores",
    ]
    ((_, reason),) = found.left_out
    assert reason == "scored on the val split; a report holds test scores"


def test_a_head_trained_after_a_merge_reaches_its_rows(tmp_path):
    rows = [row | {"head_only": None} for row in merge_rows(2)]
    write_merge_run(tmp_path, rows)
    assert {row["head_only"] for row in collect([tmp_path]).merges} == {None}
    first = rows[0]
    write_train_run(tmp_path, first["task"], 0, first["seed"], score=0.625)
    found = {(row["set"], row["task"], row["head_only"]) for row in collect([tmp_path]).merges}
    assert found == {(row["set"], row["task"], 0.625 if row["task"] == first["task"] else None) for row in rows}


def test_a_joint_training_stands_beside_the_merges(tmp_path):
    write_train_run(tmp_path, "galaxy", 16, score=0.8, metrics={"accuracy": 0.8, "macro_f1": 0.7})
    parts = {
        name: {"data": {"name": f"drawn_{name}"}, "metric": metric, "score": score, "metrics": {metric: score, **more}}
        for name, metric, score, more in (
            ("galaxy", "accuracy", 0.6, {"macro_f1": 0.56}),
            ("age_regression", "rmse", 1.0, {"rmse_years": 10.0}),
        )
    }
    write_train_run(tmp_path, "emotion", 16, tasks=parts, metric="skill", balance="relative", hash="5" * 10)
    found = collect([tmp_path])
    rows = {(row["task"], row["metric"]): row for row in found.merges}
    assert {row["method"] for row in rows.values()} == {"joint"}
    assert rows["galaxy", "accuracy"]["retention"] == pytest.approx(0.75)
    assert rows["galaxy", "macro_f1"]["retention"] == pytest.approx(0.8)
    assert rows["age_regression", "rmse"]["retention"] is None
    assert rows["age_regression", "rmse_years"]["score"] == 10.0
    write_train_run(tmp_path, "emotion", 16, tasks=parts, metric="skill", balance="sum", hash="6" * 10)
    kept = {row["method"]: row["retention"] for row in collect([tmp_path]).merges if row["metric"] == "accuracy"}
    assert kept == {"joint": pytest.approx(0.75), "joint(balance=sum)": pytest.approx(0.75)}
    assert rows["galaxy", "accuracy"]["set"] == "age_regression+galaxy"
    assert found.left_out == []
    write_train_run(tmp_path, "galaxy", 8, score=0.75)  # two of rank 8 merge to the joint adapter's rank
    write_train_run(tmp_path, "galaxy", 0, score=0.5)
    told = {(row["single"], row["head_only"]) for row in collect([tmp_path]).merges if row["metric"] == "accuracy"}
    assert told == {(0.75, 0.5)}


def test_what_the_page_has_no_room_for_is_told_and_every_task_is_on_it():
    item = {"rank": 16, "seed": 0, "data": "d", "backbone": "b", "origin": 0}
    found = Collected(
        curves=[item | {"task": task, "points": [[1, number]]} for task in "abc" for number in range(300)],
        refinements=[item | {"set": members, "points": [[1, 1]]} for members in ("a+b", "b+c") for _ in range(399)],
        examples=[item | {"task": "a", "image": number} for number in range(60)] + [item | {"task": "b", "image": 60}],
    )
    given = payload(found)
    assert Counter(curve["task"] for curve in given["curves"]) == {"a": 134, "b": 133, "c": 133}
    assert [curve["points"][0][1] for curve in given["curves"]] == [*range(134), *range(133), *range(133)]
    assert Counter(curve["set"] for curve in given["refinements"]) == {"a+b": 200, "b+c": 200}
    assert [example["image"] for example in given["examples"]] == [*range(47), 60]
    page = build_page(found, [], ["outputs"], {"time": "now", "commit": None})
    for text in ("500 of 900 curves", "398 of 798 refinements", "13 of 61 examples: the page has room for 48"):
        assert f"<td>{text}" in page
    assert "Nothing: everything" not in page
    found = Collected(examples=found.examples[:48])
    assert "Nothing: everything" in build_page(found, [], ["outputs"], {"time": "now", "commit": None})


def test_adapters_trained_otherwise_have_lines_of_their_own(tmp_path):
    write_train_run(tmp_path, "galaxy", 16, score=0.8)
    capped = {"rank": 16, "max_norm": 0.1, "init_seed": "shared", "parameters": 9}
    write_train_run(tmp_path, "galaxy", 16, score=0.6, lora=capped, hash="7" * 10)
    table = study_tables(collect([tmp_path]))[0]
    lines = [[cell.text for cell in row] for row in table.rows]
    ours = {line[0]: line[5] for line in lines if line[0].startswith("galaxy") and line[1] == "accuracy"}
    assert ours == {"galaxy": "80.0 (1)", "galaxy (max_norm=0.1)": "60.0 (1)"}
    row = merge_rows(1)[0]
    assert method_label(merge_row(row | {"realign": "deep", "lora": "max_norm=0.1"})) == "cat + deep (max_norm=0.1)"
    assert method_label(merge_row(row | {"lora": ""})) == "cat"


def test_a_head_on_deep_features_stands_beside_the_merges_at_each_rank(tmp_path):
    for rank, score in ((16, 0.8), (64, 0.9)):
        write_train_run(tmp_path, "galaxy", rank, score=score, metrics={"accuracy": score, "macro_f1": score})
    write_train_run(tmp_path, "galaxy", 0, features="deep", score=0.72, metrics={"accuracy": 0.72}, hash="4" * 10)
    found = collect([tmp_path])
    assert {row["rank"] for row in found.trains} == {16, 64}
    told = [[row[name] for name in ("set", "method", "realign", "rank", "single")] for row in found.merges]
    assert told == [["galaxy", "head_only", "deep", 16, 0.8], ["galaxy", "head_only", "deep", 64, 0.9]]
    assert [row["retention"] for row in found.merges] == [pytest.approx(0.9), pytest.approx(0.8)]
    write_train_run(tmp_path, "galaxy", 64, score=0.7, hash="6" * 10)  # which of the two is meant is not known
    assert [row["rank"] for row in collect([tmp_path]).merges] == [16]


def test_adapters_of_other_data_are_not_compared_with(tmp_path):
    for name, score in (("drawn_galaxy", 0.8), ("galaxy10", 0.4)):
        write_train_run(tmp_path, "galaxy", 16, score=score, data={"name": name}, hash=f"{name:.10}")
    head = {"features": "deep", "score": 0.6, "metrics": {"accuracy": 0.6}}
    write_train_run(tmp_path, "galaxy", 0, **head, data={"name": "galaxy10"}, hash="1" * 10)
    write_train_run(tmp_path, "galaxy", 0, **head, data={"name": "galaxy_gz1"}, hash="2" * 10)
    part = {"metric": "accuracy", "score": 0.6, "metrics": {"accuracy": 0.6}}
    parts = {
        name: part | {"data": {"name": data}}
        for name, data in (("galaxy", "drawn_galaxy"), ("emotion", "drawn_emotion"))
    }
    write_train_run(tmp_path, "galaxy", 32, tasks=parts, metric="skill", balance="relative", hash="3" * 10)
    told = {(row["method"], row["data"]): row for row in collect([tmp_path]).merges if row["task"] == "galaxy"}
    assert {key: row["single"] for key, row in told.items()} == {
        ("head_only", "galaxy10"): 0.4,
        ("head_only", "galaxy_gz1"): None,
        ("joint", "drawn_emotion+drawn_galaxy"): 0.8,
    }
    assert told["joint", "drawn_emotion+drawn_galaxy"]["retention"] == pytest.approx(0.75)


def test_the_studys_numbers_are_all_in_the_tables(tmp_path):
    tables = study_tables(collect([tmp_path]))
    assert [table.name for table in tables] == ["I", "II", "III", "IV", "V", "VI", "VII", "VIII"]
    for table in tables:
        wanted = [number for number in study_numbers() if number.table == table.name and number.value is not None]
        shown = [cell.text for row in table.rows for cell in row if cell.text[:1].isdigit()]
        assert sorted(map(float, shown)) == sorted(number.value for number in wanted)


def test_trainings_of_one_seed_are_other_settings_and_no_mean(tmp_path):
    for place, (seed, score) in enumerate(((0, 0.80), (0, 0.62), (1, 0.82))):
        write_train_run(tmp_path, "galaxy", 16, seed, score=score, metrics={"accuracy": score}, hash=f"{place}" * 10)
    (table,) = [table for table in study_tables(collect([tmp_path])) if table.name == "I"]
    (line,) = [row for row in table.rows if row[0].text == "galaxy" and row[1].text == "accuracy"]
    assert line[5].text == "62.0 to 82.0 (3 settings)"
    assert len(line[5].rows) == 3


def test_ours_stand_beside_the_studys(tmp_path):
    for seed, score in ((0, 0.80), (1, 0.82)):
        write_train_run(tmp_path, "galaxy", 16, seed, score=score, metrics={"accuracy": score, "macro_f1": score - 0.1})
    row = {"data": "x", "backbone": "vit", "set": "age_class+galaxy", "rank": 16, "seed": 0, "task": "galaxy"}
    rows = [
        row | {"method": method, "metric": "macro_f1", "score": score, "single": 0.8, "realign": realign}
        for method, realign, score in (("cat", "none", 0.7), ("ties", "none", 0.6), ("cat", "deep", 0.75))
    ]
    write_merge_run(tmp_path, rows)
    tables = {table.name: table for table in study_tables(collect([tmp_path]))}
    (line,) = [row for row in tables["I"].rows if row[0].text == "galaxy" and row[1].text == "accuracy"]
    assert [cell.text for cell in line[2:6]] == ["drawn_galaxy", "vit_tiny_patch16_224@112", "79.1", "81.0 ± 1.4 (2)"]
    assert len(line[5].rows) == 2
    (line,) = [row for row in tables["VII"].rows if row[0].text == "with age_class"]
    assert [cell.text for cell in line] == [
        "with age_class", "macro_f1", "x", "vit", "76.7", "70.0 (1)", "75.0 (1)", "cat + deep", "79.9", "-", "-", "-",
    ]  # fmt: skip
    assert "| with age_class | macro_f1 | x | vit | 76.7 | 70.0 (1) | 75.0 (1) | cat + deep |" in to_markdown(
        tables.values()
    )


def test_another_metric_is_named_when_the_studys_is_missing(tmp_path):
    write_merge_run(tmp_path, merge_rows(2))  # accuracy, where the study has F1
    table = study_tables(collect([tmp_path]))[1]
    (line,) = [row for row in table.rows if row[0].text == "with age_regression"]
    assert line[1].text == "macro_f1; ours accuracy"


def test_figures_take_each_tasks_own_metric(tmp_path):
    row = merge_rows(1)[0]
    write_merge_run(tmp_path, [row, row | {"metric": "macro_f1", "retention": 0.1}])
    found = collect([tmp_path])
    assert primary_metrics(found) == {"age_class": "accuracy"}
    assert [item["metric"] for item in own_metric(found)] == ["accuracy"]


def test_the_best_is_named_among_merges_of_the_same_sets_only():
    sets = ("age_class+galaxy", "age_class+emotion")
    rows = [row_of(method=name, set=members, retention=kept) for members in sets for name, kept in MEASURED.items()]
    rows += [row_of(method="ladder", set=sets[0], retention=1.0)]
    name, mean, merges, number = best_merge(rows)
    assert (name, mean.mean, mean.number, merges, number) == ("ties", pytest.approx(0.8), 2, 2, 2)
    assert best_merge(rows[:1]) is None
    page = build_page(Collected(merges=rows), [], ["outputs"], {"time": "now", "commit": None})
    assert "<b>ties</b><span>keeps most on average of 2 merges measured on the same 2 sets: 0.800" in page


def test_the_best_in_a_table_is_a_merge_of_plain_adapters_with_the_most_seeds():
    own = {"set": "age_class+galaxy", "task": "galaxy", "metric": "macro_f1", "rank": 16}
    rows = [row_of(**own, method="ties", seed=seed, score=0.6, single=0.8) for seed in (0, 1)]
    rows += [row_of(**own, method=name, seed=0, score=0.9, single=0.8) for name in ("gram", "joint", "frozen")]
    rows += [row_of(**own, method="svd", seed=seed, score=0.9, single=0.8, lora="max_norm=0.1") for seed in (0, 1)]
    tables = {table.name: table for table in study_tables(Collected(merges=rows))}
    (line,) = [row for row in tables["VII"].rows if row[0].text == "with age_class"]
    assert [cell.text for cell in line[6:8]] == ["60.0 ± 0.0 (2)", "ties"]
    assert "chosen by the test score" in NOTE


def test_each_backbone_has_its_own_figures_and_of_many_methods_the_first_are_drawn(tmp_path):
    rows = [row_of(method=f"m{number}", retention=0.01 * number) for number in range(40)]
    rows += [row_of(method="m0", set="age_class+galaxy"), row_of(backbone="other/small@98", retention=0.1)]
    drawn = write_figures(Collected(merges=rows), tmp_path, ["svg"])
    assert {"methods", "other_small@98/methods"} <= set(drawn)
    text = (tmp_path / "methods.svg").read_text()
    assert "30 of 40 methods: those of the most sets, then the best" in text
    assert [f">{name}<" in text for name in ("m0", "m39", "m11", "m10", "cat")] == [True, True, True, False, False]
    assert rows[0]["backbone"] in text
    assert "other/small@98" in (tmp_path / "other_small@98" / "methods.svg").read_text()
    assert "the interval is meant to hold 90 %" in (tmp_path / "advisor.svg").read_text()


def test_both_directions_of_a_pair():
    rows = [merge_row(row) for row in merge_rows(2)]
    (panel,) = pairs(rows).values()
    assert panel[("age_class", "age_regression")].mean == pytest.approx(rows[0]["retention"])
    assert panel[("age_regression", "age_class")].mean == pytest.approx(rows[1]["retention"])
    assert means(rows, lambda row: "all")["all"].number == 2


def test_front_is_what_nothing_beats():
    assert front([(3, 0.9), (1, 0.5), (2, 0.4), (1, 0.6), (4, 0.9)]) == [(1, 0.6), (3, 0.9)]


def test_the_folder_holds_every_format_and_the_same_numbers(tmp_path):
    found = collect([write_outputs(tmp_path / "outputs", 120)])
    folder = tmp_path / "report"
    formats = ["html", "csv", "parquet", "markdown", "svg"]
    write_report(found, folder, formats, ["outputs"])
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert {len(curve["points"]) for curve in found.refinements} == {5}
    drawn = ("pairs", "methods", "tasks", "ranks", "cost", "advisor", "curves", "refinement")
    figures = {f"figures/{name}.svg" for name in drawn}
    assert names == figures | {
        "report.html", "merges.csv", "merges.parquet", "trains.csv", "trains.parquet", "tables.md", "left_out.json",
    }  # fmt: skip
    table, same = pd.read_csv(folder / "merges.csv"), pd.read_parquet(folder / "merges.parquet")
    assert list(table["score"]) == pytest.approx([row["score"] for row in merge_rows(120)])
    assert list(table["score"]) == pytest.approx(list(same["score"]))
    assert set(table["commit"]) == {"c0ffee" + "0" * 34}
    before = {name: (folder / name).read_bytes() for name in ("figures/cost.svg", "merges.csv", "tables.md")}
    write_report(found, folder, formats, ["outputs"])
    assert {name: (folder / name).read_bytes() for name in before} == before


def test_a_further_metric_has_no_interval_of_the_first():
    (given,) = merge_rows(1)
    interval = {"retention_low": 0.9, "retention_high": 0.95}
    own, other = rows_of(given | interval | {"scores": {given["metric"]: given["score"], "auc": 0.4}})
    assert {name: own[name] for name in interval} == interval
    assert {name: other[name] for name in interval} == dict.fromkeys(interval)
