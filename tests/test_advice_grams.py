"""Predictions without images beside what was measured, from rows that are made up."""

import pandas as pd

from benchmarks.advice_grams import COLUMNS, FILE, tell
from launch.checks import ROOT


def test_rows_are_told_by_kind() -> None:
    rows = [
        (16, 0, "a+b", "cat", "a", 0.9, 0.85, 0.8, 1.0), (16, 0, "a+b", "cat", "b", 0.5, 0.7, 0.6, 0.8),
        (16, 0, "a+b", "gram", "a", 1.0, 0.95, 0.9, 1.0), (16, 1, "a+b+c", "cat", "c", 0.8, 0.8, 0.7, 0.9),
    ]  # fmt: skip
    text = tell(pd.DataFrame(rows, columns=list(COLUMNS))).splitlines()
    assert "| all | 4 | 1.00 | 0.075 | 0.033 | 75% |" in text
    assert "| members 2 | 3 | 1.00 | 0.100 | 0.050 | 67% |" in text
    assert "| cat | 3 | 1.00 | 0.083 | 0.025 | 67% |" in text


def test_the_page_tells_the_committed_rows() -> None:
    table = tell(pd.read_csv(ROOT / "docs" / "results" / FILE))
    assert table in (ROOT / "docs" / "measured.md").read_text(encoding="utf-8")
