"""The study's tables beside those of stand-in tasks, from drawn rows."""

import csv
import json
import re
import statistics
from pathlib import Path
from typing import Any

import pytest

from benchmarks.collect_rows import earlier_rows
from benchmarks.collect_rows import main as collect_rows
from benchmarks.study_tables import TASKS, draw_members, methods_markdown, study_markdown
from reporting.load import collect
from reporting.realigned import (
    HEAD,
    SUMMARY,
    realigned_markdown,
    summary_markdown,
    targets_markdown,
    with_lines,
    with_table,
)
from reporting.rows import Collected, merge_row, train_rows
from reporting.tables import NONE
from tests.report_rows import write_csv, write_train_run

STANDS = {
    "firerisk": "land", "galaxy": "stars", "landmarks": "dots",
    "age_class": "age_class", "age_regression": "age_regression", "emotion": "emotion",
}  # fmt: skip


def row(task: str, members: str, score: float, **more: Any) -> dict[str, Any]:
    given = {
        "data": "all", "backbone": "tiny@32", "set": members, "method": "cat", "realign": "none", "rank": 16,
        "seed": 0, "task": task, "metric": "macro_f1", "score": score, "single": 0.8, "images": 0,
    }  # fmt: skip
    return merge_row(given | more)


def found(*rows: dict[str, Any]) -> Collected:
    trained = {"data": "plates", "backbone": "tiny@32", "task": "stars", "rank": 16, "seed": 0}
    return Collected(trains=list(train_rows(trained | {"metric": "macro_f1", "score": 0.8})), merges=list(rows))


def lines(text: str, *cells: str) -> list[list[str]]:
    """Cells of the table rows that begin with ``cells``."""
    rows = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in text.splitlines()]
    return [cell for cell in rows if cell[: len(cells)] == list(cells)]


def test_ours_stand_beside_the_study_under_their_own_names() -> None:
    scores = (0.6, 0.64, 0.7)
    text = study_markdown(
        found(
            *(row("stars", "land+stars", score, seed=seed) for seed, score in enumerate(scores)),
            row("stars", "land+stars", 0.5, method="peft_linear"),
            row("stars", "land+stars", 0.79, realign="deep"),  # not what the study did
            row("stars", "land+stars", 0.1, lora="init_seed=per_task"),
        ),
        STANDS,
    )
    (line,) = lines(text, "galaxy", "firerisk", "16")
    shown = f"{100 * statistics.fmean(scores):.1f} ± {100 * statistics.stdev(scores):.1f} (3)"
    assert line[3:8] == ["74.0", "0.97", "stars (plates)", "land (data unknown)", "macro_f1"]
    assert line[8:] == [shown, "0.81 ± 0.06 (3)", "50.0 (1)", "0.62 (1)"]


def test_every_number_of_the_study_has_a_line_and_missing_ones_are_shown() -> None:
    text = study_markdown(found(), STANDS)
    assert [name for name in ("II", "III", "IV", "V", "VI", "VII", "VIII") if f"## Table {name}. " not in text] == []
    assert len(lines(text, "firerisk")) == 18
    (line,) = lines(text, "age_class", "emotion", "16")
    assert line[3:5] == ["-", "-"]
    assert line[-5:] == ["-"] * 5


def test_errors_are_shares_the_other_way_round() -> None:
    text = study_markdown(found(row("dots", "dots+stars", 10.0, single=8.0, metric="nme")), STANDS)
    (line,) = lines(text, "landmarks", "galaxy", "16")
    assert line[4] == f"{8.483 / float(line[3]):.2f}"
    assert line[8:10] == ["10.000 (1)", "0.80 (1)"]


def test_another_metric_than_the_study_is_named() -> None:
    text = study_markdown(found(row("emotion", "emotion+stars", 0.4, metric="accuracy")), STANDS)
    (line,) = lines(text, "emotion", "galaxy", "16")
    assert line[7:9] == ["accuracy", "40.0 (1)"]


def test_who_disturbs_whom() -> None:
    rows = [row("land", "land+stars", 0.4), row("stars", "land+stars", 0.8), row("land", "land+stars", 0.6, seed=1)]
    text = study_markdown(found(*rows, row("dots", "dots+land", 0.2)), STANDS)
    assert "### Ours beside each other, `cat`, rank 16, seeds 0 1" in text
    (line,) = lines(text, "land")
    assert line == ["land", "-", "-", "0.62", "0.62"]
    assert lines(text, "mean") == [["mean", "-", "0.62", "0.62", f"{(0.5 + 0.75 + 1 + 0.25) / 4:.2f}"]]


def test_methods_by_size_rank_and_images() -> None:
    text = methods_markdown(
        found(
            row("stars", "land+stars", 0.8), row("land", "land+stars", 0.4),
            row("stars", "land+stars", 0.72, seed=1), row("land", "land+stars", 0.56, seed=1),
            row("land", "dots+land", 0.8, seed=1),
            row("stars", "land+stars", 0.8, realign="deep", images=100),
            row("stars", "land+stars", 0.4, realign="deep", images=50),
            row("stars", "dots+land+stars", 0.6, rank=64), row("stars", "drawn+stars", 0.1),
        ),
        STANDS,
    )  # fmt: skip
    means = [statistics.fmean([1.0, 0.5]), statistics.fmean([0.9, 0.7, 1.0])]
    least = [0.5, 0.7]
    shown = [f"{statistics.fmean(v):.3f} ± {statistics.stdev(v):.3f} (2)" for v in (means, least)]
    assert lines(text, "cat", "0", "1 to 2") == [["cat", "0", "1 to 2", *shown]]
    assert lines(text, "cat + deep", "100") == [["cat + deep", "100", "1", "1.000 (1)", "1.000 (1)"]]
    assert lines(text, "cat + deep", "50") == [["cat + deep", "50", "1", "0.500 (1)", "0.500 (1)"]]
    triples = text[text.index("### Triples with land + stars, rank 64") :]
    assert lines(triples, "cat") == [["cat", "0", "1", "0.750 (1)", "0.750 (1)"]]


def test_realigned_merges_stand_beside_raw_ones_with_the_losses_that_a_test_set_can_show() -> None:
    pair = "land+stars"
    text = realigned_markdown(
        found(
            row("stars", pair, 0.72, retention_low=0.8, retention_high=0.95),
            row("land", pair, 0.8, retention_low=0.95, retention_high=1.05),
            row("stars", pair, 0.76, realign="deep", images=100, seconds=2, retention_low=0.9, retention_high=1.01),
            row("land", pair, 0.8, realign="deep", images=100, retention_low=0.9, retention_high=1.01),
            row("stars", pair, 0.72, realign="head", images=100, seconds=9),
            row("stars", pair, 0.6, method="tsv"),
            row("stars", "land+stars+dots", 0.8), row("stars", "dots+emotion+stars", 0.1),
            *(row(task, "+".join(sorted(STANDS.values())), 0.4) for task in STANDS.values()),
        ),
        STANDS,
    )  # fmt: skip
    best, other, against = lines(text, "pairs", "16")
    assert against[2:] == ["`tsv`", "-0.150 (-0.150 to -0.150)", "-", "-", "-"]
    cells = ["0.950 / 0.90 (1 of 2)", "-", "0.975 / 0.95 (0 of 2)", "0.900 / 0.90"]
    assert best[2:] == ["`cat` (2 of 30)", "0", "100", "2", *cells]  # the deep readout's seconds
    none = ["-", "-", "-"]
    assert other[2:] == ["`tsv` (1 of 30)", "0", "-", "-", "0.750 / 0.75", *none]
    assert lines(text, "triples with land + stars")[0][2:] == ["`cat` (1 of 12)", "0", "-", "-", "1.000 / 1.00", *none]
    assert lines(text, "other triples")[0][2:] == ["`cat` (1 of 48)", "0", "-", "-", "0.125 / 0.12", *none]
    assert lines(text, "all six in one")[0][2:] == ["`cat`", "0", "-", "-", "0.500 / 0.50", *none]


def test_readouts_of_more_images_have_a_line_of_their_own() -> None:
    pair = "land+stars"
    text = realigned_markdown(
        found(
            row("stars", pair, 0.8), row("stars", pair, 0.4, seed=1), row("stars", pair, 0.6, seed=2),
            row("stars", pair, 0.72, realign="deep", images=50),
            row("stars", pair, 0.6, realign="deep", images=100, seed=1),
            row("stars", pair, 0.64, realign="head", images=200, seed=1),
            row("stars", pair, 0.8, method="gram"), row("stars", pair, 0.8, method="gram", realign="deep", images=50),
        ),
        STANDS,
    )  # fmt: skip
    fewer = ["`cat` (1 of 30)", "0", "50", "-", "1.000 / 1.00", "-", "0.900 / 0.90", "-"]
    more = ["`cat` (2 of 60)", "1 2", "100, 200", "-", "0.625 / 0.50", "-", "0.750 / 0.75", "0.800 / 0.80"]
    assert sorted(line[2:] for line in lines(text, "pairs", "16") if line[2].startswith("`cat`")) == [fewer, more]
    *_, against = lines(text, "pairs", "16", "`gram`")
    assert against[3:] == ["+0.000 (+0.000 to +0.000)", "-", "+0.100 (+0.100 to +0.100)", "-"]


def test_a_page_shows_the_lines_of_some_merges_and_keeps_its_words() -> None:
    rows = [row("stars", "land+stars", 0.8, method=method) for method in ("cat", "gram", "gram_seq")]
    table = realigned_markdown(found(*rows), STANDS)
    page = f"# Page\n\nBefore.\n\n{HEAD}\n|---|\n| an old line |\n\nAfter.\n\n| other | table |\n"
    made = with_lines(page, table, ["gram", "tsv"])
    assert made.startswith("# Page\n\nBefore.\n\n")
    assert made.endswith("\n\nAfter.\n\n| other | table |\n")
    assert [line[2] for line in lines(made, "pairs")] == ["`gram` (1 of 30)"]
    assert "old line" not in made
    assert with_lines(made, table, ["gram", "tsv"]) == made


def test_users_choose_from_a_line_for_each_kind_of_set() -> None:
    pair, triple = "land+stars", "dots+land+stars"
    text = summary_markdown(
        found(
            row("stars", pair, 0.4), row("stars", pair, 0.8, seed=1, retention_low=0.4, retention_high=0.9),
            row("stars", pair, 0.1, lora="max_norm=0.1"), row("stars", pair, 0.1, realign="deep"),
            row("stars", pair, 0.64, method="distill", realign="deep"),  # of fewer members than with other settings
            *(row(task, pair, 0.72, method="distill(steps=9)", realign="deep") for task in pair.split("+")),
            row("stars", triple, 0.8),  # by one way alone
        ),
        STANDS, [("cat", "none"), ("tsv", "head"), ("distill", "deep")],
    )  # fmt: skip
    assert lines(text, "set") == [["set", "rank", "`cat` raw", "`tsv` head", "`distill` deep"]]
    assert lines(text, "pairs", "16") == [["pairs", "16", "0.750 / 0.50 (1 of 1)", NONE, "0.900 / 0.90"]]
    assert len(text.splitlines()) == 3
    page = with_table("Before.\n\n| set | rank | `old` |\n|---|\n| pairs | 4 |\n\nAfter.\n", SUMMARY, text)
    assert page == f"Before.\n\n{text}\n\nAfter.\n"
    assert with_table(page, SUMMARY, text) == page


def test_a_target_is_missed_for_sure_only_where_the_interval_ends_below_it() -> None:
    pair = "land+stars"
    ends = {"retention_low": 0.5}
    text = targets_markdown(
        found(
            row("stars", pair, 0.72, retention_high=0.94, **ends), row("land", pair, 0.72, retention_high=0.96, **ends),
            row("stars", pair, 0.4, retention_high=0.6, lora="max_norm=0.1", **ends),
            row("dots", "dots+stars", 0.1),  # without an interval nothing is told
            *(row(task, pair, 0.76, method="distill", retention_high=0.98, **ends) for task in pair.split("+")),
        ),
        STANDS, [("cat", "none"), ("distill", "none"), ("tsv", "deep")], {"": {2: 0.95}, "distill": {2: 0.99}},
    )  # fmt: skip
    assert lines(text, "2") == [
        ["2", "16", "`cat` raw", "0.95", "2", "2", "1", "stars 1"],
        ["2", "16", "`distill` raw", "0.99", "2", "2", "2", "land 1, stars 1"],
    ]


def test_differences_are_of_the_same_members_and_their_interval_of_whole_sets() -> None:
    pairs = ["land+stars", "dots+land", "dots+stars"]
    kept = {"cat": (0.4, 0.5, 0.6), "gram": (0.48, 0.5, 0.76)}
    rows = [
        row(task, name, score, method=method, seed=seed)
        for method, scores in kept.items()
        for name, score in zip(pairs, scores, strict=True)
        for task in name.split("+")
        for seed in range(9)  # no more is known of other sets for it
    ]
    rows += [row("stars", "emotion+stars", 0.8, method="gram")]  # cat was not measured there
    text = realigned_markdown(found(*rows), STANDS)
    (line,) = [found for found in lines(text, "pairs", "16", "`gram`") if found[3][0] in "+-"]
    mean, low, high = (float(number) for number in re.findall(r"[+-]\d\.\d+", line[3]))
    assert mean == pytest.approx((0.1 + 0 + 0.2) / 3, abs=1e-3)
    assert (low, high) == (0.0, 0.2)  # of three sets some draws hold one alone


def test_earlier_rows_stay_until_they_are_made_anew(tmp_path: Path) -> None:
    write_csv(tmp_path / "merges.csv", [row("stars", "land+stars", 0.7), row("stars", "land+stars", 0.6, seed=1)])
    made = [row("stars", "land+stars", 0.8)]
    names = ("rank", "seed", "set", "task", "lora")
    assert [kept["score"] for kept in earlier_rows(tmp_path / "merges.csv", names, made)] == ["0.6"]
    assert earlier_rows(tmp_path / "none.csv", names, made) == []


def test_larger_sets_than_the_studys_have_lines_of_their_own_and_settings_stay_apart() -> None:
    tasks = sorted(STANDS.values())
    ten = [*tasks, "spiral", "happy"]
    rows = [row(task, "+".join(ten), 0.72, method="distill(steps=9)") for task in ten]
    rows += [row(task, "+".join(tasks), 0.76, method="distill") for task in tasks]
    rows += [row(task, "land+spiral", 0.1) for task in ("land", "spiral")]  # no pair of the study's
    text = realigned_markdown(found(*rows), STANDS)
    (line,) = lines(text, "all 8 in one")
    assert line[1:5] == ["16", "`distill(steps=9)`", "0", NONE]
    assert line[6] == "0.900 / 0.90"
    (line,) = lines(text, "all six in one")
    assert (line[2], line[6]) == ("`distill`", "0.950 / 0.95")
    assert not lines(text, "pairs")
    page = with_lines(f"before\n\n{HEAD}\n|---|\n| old |\n\nafter", text, ["distill"])
    assert [name in page for name in ("`distill(steps=9)`", "`distill`", "old")] == [True, True, False]


def test_adapters_trained_otherwise_have_lines_of_their_own() -> None:
    own = {"stars": 0.6, "land": 0.7}
    rows = [row(task, "land+stars", score) for task, score in own.items()]
    rows += [row(task, "land+stars", score + 0.1, lora="max_norm=0.1") for task, score in own.items()]
    text = realigned_markdown(found(*rows), STANDS)
    labels = {line[2].partition(" (")[0] for line in lines(text, "pairs")}
    assert labels == {"`cat`", "`cat` of max_norm=0.1"}
    page = with_lines(f"before\n\n{HEAD}\n|---|\n| old |\n\nafter", text, ["cat"])
    assert "`cat`" in page
    assert "max_norm" not in page


def test_rows_of_runs_join_those_of_cleared_runs_a_file_per_rank_and_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def collected() -> dict[str, list[tuple[str, str]]]:
        monkeypatch.setattr("sys.argv", ["collect_rows.py", str(tmp_path / "out"), str(tmp_path / "rows")])
        collect_rows()
        return {
            file.name: [(line["seed"], line["score"]) for line in csv.DictReader(file.open(encoding="utf-8"))]
            for file in sorted((tmp_path / "rows").glob("merges*.csv"))
        }

    def run_folder(name: str, split: str) -> Path:
        run = tmp_path / "out" / "runs" / name
        (run / "sets").mkdir(parents=True)
        (run / "config.yaml").write_text(f"split: {split}\n", encoding="utf-8")
        return run / "sets"

    sets = run_folder("merge-pairs-cat", "test")
    (tmp_path / "rows").mkdir()
    measured = {"predicted": None, "lora": ""}
    validation = {"rows": [row("stars", "land+stars", 0.99) | measured]}  # what a method was chosen by
    (run_folder("merge-pairs-cat-val", "val") / "0.json").write_text(json.dumps(validation), encoding="utf-8")
    for rank, score in ((16, 0.7), (64, 0.6)):
        rows = [row("stars", "land+stars", score, rank=rank) | measured]
        (sets / f"{rank}.json").write_text(json.dumps({"rows": rows}), encoding="utf-8")
    assert collected() == {"merges_rank16_seed0.csv": [("0", "0.7")], "merges_rank64_seed0.csv": [("0", "0.6")]}
    for file in sets.iterdir():
        file.unlink()
    rows = [row("stars", "land+stars", score, seed=seed) | measured for seed, score in ((1, 0.5), (0, 0.9))]
    (sets / "again.json").write_text(json.dumps({"rows": rows}), encoding="utf-8")
    assert collected() == {
        "merges_rank16_seed0.csv": [("0", "0.9")],
        "merges_rank16_seed1.csv": [("1", "0.5")],
        "merges_rank64_seed0.csv": [("0", "0.6")],
    }


def test_heads_on_the_frozen_backbone_are_rows_at_each_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for rank, score in ((16, 0.8), (64, 0.9), (0, 0.4)):
        write_train_run(tmp_path / "out", "galaxy", rank, score=score, validation={"accuracy": score})
    write_train_run(tmp_path / "out", "galaxy", 0, features="deep", score=0.6, metrics={"accuracy": 0.6}, hash="4" * 10)
    monkeypatch.setattr("sys.argv", ["collect_rows.py", str(tmp_path / "out"), str(tmp_path)])
    collect_rows()
    table = list(csv.DictReader((tmp_path / "table1.csv").open(encoding="utf-8")))
    assert [(line["rank"], line["score"]) for line in table] == [("0", "0.4"), ("16", "0.8"), ("64", "0.9")]
    for rank, kept in ((16, {"none": "0.5", "deep": "0.75"}), (64, {"none": "0.444444", "deep": "0.666667"})):
        lines = list(csv.DictReader((tmp_path / f"merges_rank{rank}_seed0.csv").open(encoding="utf-8")))
        assert {line["method"] for line in lines} == {"head_only"}
        assert {line["realign"]: line["retention"] for line in lines} == kept


def test_from_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import study_tables

    rows = [{"task": name, "set": "galaxy_gz+land_use"} for name in ("galaxy_gz", "land_use")]
    write_csv(tmp_path / "merges.csv", [row(item["task"], item["set"], 0.4) for item in rows])
    monkeypatch.setattr("sys.argv", ["study_tables.py", str(tmp_path)])
    study_tables.main()
    (line,) = lines((tmp_path / "study_tables.md").read_text(), "galaxy", "firerisk", "16")
    assert line[-4:-2] == ["40.0 (1)", "0.50 (1)"]
    assert "| cat | 0 | 1 | 0.500 (1) | 0.500 (1) |" in (tmp_path / "methods.md").read_text()
    assert collect([tmp_path]).left_out == []
    assert TASKS.is_file()


def test_every_member_is_drawn_once_the_same_bytes_each_time() -> None:
    tasks = ["land", "stars", "dots"]
    pairs = [("land", "stars"), ("dots", "stars"), ("dots", "land")]
    rows = [row(task, "+".join(pair), 0.7, retention_high=0.9) for pair in pairs for task in pair]
    rows += [row(task, "+".join(tasks), 0.76, method="gram", retention_high=1.1) for task in tasks]
    rows += [row("stars", "land+stars", 0.8, method="tsv")]  # not all pairs
    svg = draw_members(found(*rows), tasks, 16)
    assert svg is not None
    text = svg.decode()
    assert [label in text for label in (">cat<", ">gram<", ">tsv<")] == [True, True, False]
    assert svg == draw_members(found(*rows), tasks, 16)
    assert draw_members(found(*rows), tasks, 64) is None
