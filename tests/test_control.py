"""The control of realignment: the same readouts on the bare backbone, in every row and table of realigned merges."""

from pathlib import Path
from typing import Any

import pytest

from merging.features import read_features
from merging.run import _open as open_
from merging.run import show
from reporting.load import collect
from reporting.making import write_report
from reporting.rows import MERGE_COLUMNS
from reporting.summaries import methods
from tests.browser import chromium
from tests.merge_runs import command, merge_here
from tests.report_rows import merge_rows, write_csv


def test_rows_tell_what_the_same_readouts_score_on_the_bare_backbone(outputs: Path) -> None:
    given = command(outputs, "tasks=[leaves,level]", "realign=[none,linear,deep,head]", "images=24", "save=false")
    merged, bare = (merge_here([*given, f"merge={method}"])[0]["rows"] for method in ("cat", "frozen"))
    alone = {(row["task"], row["realign"]): row["score"] for row in bare}
    for row in [*merged, *bare]:
        wanted = None if row["realign"] == "none" else pytest.approx(alone[row["task"], row["realign"]])
        assert row["control"] == wanted
    assert {row["score"] for row in merged} != {row["control"] for row in merged}


def test_controls_are_worked_out_once_for_all_sets(outputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_.cache_clear()
    passed: list[bool] = []
    monkeypatch.setattr(
        "merging.workbench.read_features",
        lambda *given, **more: passed.append(more["deep"]) or read_features(*given, **more),
    )
    given = ["merge=average", "advice_images=null", "realign=deep", "images=24", "save=false"]
    result, _ = merge_here(command(outputs, *given, "sets=[[dots,level],[dots,leaves],[leaves,level]]"))
    assert len(result["rows"]) == 6
    # training and test pictures: class tokens of each task's adapter, deep ones bare and of both tasks of each set
    assert [passed.count(deep) for deep in (False, True)] == [3 * 2, 3 * 2 + 6 * 2]


def test_more_images_have_a_control_of_their_own(outputs: Path) -> None:
    given = command(outputs, "merge=average", "tasks=[level]", "realign=linear", "save=false")
    few, many = (merge_here([*given, f"images={count}"])[0]["rows"][0] for count in (8, 24))
    assert few["control"] != many["control"]


def test_the_table_with_all_columns_fits_into_80(
    outputs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    given = ["merge=average", "tasks=[leaves,level]", "realign=[none,deep]", "images=24", "save=false"]
    result, _ = merge_here(command(outputs, *given))
    longest = {"task": "age_regression", "metric": "macro_f1"}
    longest |= dict.fromkeys(("score", "single", "head_only", "control"), 0.12345)
    show([*result["rows"], result["rows"][-1] | longest])
    own, _, long = capsys.readouterr().out.partition("age_regression")
    assert long.split()[:6] == ["deep", "macro_f1", "0.1235", "0.1235", "0.1235", "0.1235"]
    lines = own.splitlines()
    assert any("control" in line for line in lines)
    for row in result["rows"]:
        found = [line.split() for line in lines if line.split()[:2] == [row["task"], row["realign"]]]
        for line in found:
            assert line[2] == row["metric"]
            assert (row["control"] is None) or f"{row['control']:.4g}" in line
        assert found


def test_a_report_has_the_control_as_rows_of_its_own(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = []
    for row in merge_rows(4, methods={"cat": 0.1, "gram": 0.2}):
        interval = {"retention_low": 0.9, "retention_high": 1.0}
        rows += [row | interval | {"realign": "deep", "images": 99, "control": row["single"] / 2}]
        rows += [rows[-1] | {"method": "gram"}, row | interval | {"control": ""}]
    write_csv(tmp_path / "rows.csv", rows)
    found = collect([tmp_path])
    control = [row for row in found.merges if row["method"] == "frozen"]
    assert len(control) == 4  # the same of both merges, of realigned ones alone
    for row, given in zip(control, rows[::3], strict=True):
        assert set(MERGE_COLUMNS) <= set(row)
        assert (row["set"], row["task"], row["realign"]) == (given["set"], given["task"], "deep")
        assert row["score"] == pytest.approx(given["single"] / 2)
        assert row["retention"] == pytest.approx(0.5 if row["metric"] == "accuracy" else 2.0)
        assert [row[name] for name in ("retention_high", "predicted", "seconds", "control")] == [None] * 4
    again = tmp_path / "again"
    write_csv(
        again / "rows.csv", [{name: row.get(name) for name in (*MERGE_COLUMNS, "control")} for row in found.merges]
    )
    assert len(collect([again]).merges) == len(found.merges)


def test_figures_name_controls_after_all_merges(tmp_path: Path) -> None:
    rows = [row | {"control": row["single"] / 2, "realign": "deep"} for row in merge_rows(40, methods={"ties": 0.1})]
    rows += [row for name in ("svd", "cat") for row in merge_rows(40, methods={name: 0.1})]
    write_csv(tmp_path / "rows.csv", [{"control": None} | row for row in rows])
    found = collect([tmp_path])
    wanted = ["cat", "svd", "ties + deep", "frozen + deep"]
    assert methods(found.merges) == wanted
    write_report(found, tmp_path / "report", ["html"], ["<outputs>"])
    with chromium(tmp_path / "profile") as window:
        window.get((tmp_path / "report" / "report.html").as_uri())
        shown = window.execute_script(
            "return [...document.querySelectorAll('#figure-pairs .panel b')].map(b => b.innerText)"
        )
    assert [name.partition(", rank")[0] for name in dict.fromkeys(shown)] == wanted
