"""What docs/ tells is what the committed rows give: nobody has to remember to make the tables anew."""

import shutil
import statistics
import sys
from pathlib import Path

import pandas as pd
import pytest

from benchmarks import study_tables, why
from launch.checks import ROOT

DOCS = ROOT / "docs"


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return shutil.copytree(DOCS / "results", tmp_path / "results")


def assert_as_committed(results: Path, *names: str) -> None:
    for name in names:
        assert (results / name).read_bytes() == (DOCS / "results" / name).read_bytes(), name


def test_tables_of_merges(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page, summary = (shutil.copy(DOCS / name, results.parent / name) for name in ("measured.md", "merging.md"))
    monkeypatch.setattr(sys, "argv", ["study_tables.py", str(results), "--page", str(page), "--summary", str(summary)])
    study_tables.main()
    assert_as_committed(results, "study_tables.md", "methods.md", "realigned.md")
    for copy in (page, summary):
        assert copy.read_text(encoding="utf-8") == (DOCS / copy.name).read_text(encoding="utf-8")


def test_why_members_lose(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["why.py", str(results.parent / "no_runs"), str(results)])
    why.main()
    assert_as_committed(results, "why.md", "disturbance.csv")


def test_what_each_task_keeps_in_distilled_pairs() -> None:
    rows = pd.concat([pd.read_csv(file) for file in sorted((DOCS / "results").glob("merges_rank16_seed*.csv"))])
    pairs = rows[(rows["method"] == "distill(steps=400)") & (rows["set"].str.count(r"\+") == 1)]
    lines = []
    for task, own in pairs.groupby("task"):
        raw, deep = (list(own.loc[own["realign"] == realign, "retention"]) for realign in ("none", "deep"))
        lines.append(f"| {task} | {statistics.fmean(deep):.3f} | {min(deep):.3f} | {min(raw):.3f} |")
    assert len(lines) == 6
    assert "\n".join(lines) in (DOCS / "measured.md").read_text(encoding="utf-8")
