"""What ``benchmarks/advice.py`` says of predictions whose worth is known."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import advice


def rows(count: int, noise: float, half: float, seed: int = 0) -> list[dict[str, Any]]:
    """Predictions that are right but for what the test set adds; three tasks, ten sets."""
    generator = np.random.default_rng(seed)
    found = []
    for place in range(count):
        told = float(generator.uniform(0.7, 1.1))
        found.append(
            {
                "set": f"set{place % 10}",
                "method": "cat",
                "realign": "none",
                "rank": 16,
                "seed": 0,
                "task": "abc"[place % 3],
                "retention": told + noise * float(generator.standard_normal()),
                "predicted": told,
                "low": told - half,
                "high": told + half,
                "noise": noise,
                "unlabeled": told,
            }
        )
    return found


def test_ranks_as_by_hand() -> None:
    assert advice.spearman([1, 2, 3, 4], [10, 20, 40, 30]) == pytest.approx(0.8)
    assert advice.spearman([1, 1, 2], [3, 3, 9]) == pytest.approx(1)
    assert np.isnan(advice.spearman([1, 1], [1, 2]))


def test_the_best_possible_is_what_right_predictions_reach() -> None:
    told = rows(300, 0.05, 0.05)
    limit = advice.ceiling(told, rounds=50)
    assert limit is not None
    assert limit[0] == pytest.approx(advice.correlation(told), abs=0.04)
    assert limit[1] == pytest.approx(advice.mean_error(told), abs=0.008)
    assert advice.ceiling([row | {"noise": None} for row in told]) is None


def test_a_scale_found_on_other_tasks_holds_its_rate() -> None:
    told = rows(600, 0.05, 0.02)
    assert advice.coverage(told) < 0.4
    for task, (scale, held) in advice.left_out(told).items():
        assert scale == pytest.approx(1.645 * 0.05 / 0.02, rel=0.15), task
        assert 0.84 < held < 0.96


def test_chance_is_told_from_knowledge() -> None:
    told = rows(60, 0.02, 0.02)
    chance, usual = advice.null(told, rounds=200)
    assert chance < 0.01
    assert usual < 0.35
    blind = [
        row | {"predicted": float(value)} for row, value in zip(told, np.random.default_rng(5).random(60), strict=True)
    ]
    assert advice.null(blind, rounds=200)[0] > 0.02
    low, high = advice.interval(told, advice.correlation, rounds=100)
    assert low < advice.correlation(told) < high


def test_rows_are_read_as_they_were_written(tmp_path: Path) -> None:
    told = rows(6, 0.02, 0.02)
    advice.write_rows(tmp_path / "advice.csv", told)
    read = advice.read_rows(tmp_path / "advice.csv")
    assert [row["task"] for row in read] == [row["task"] for row in told]
    assert [row["low"] for row in read] == pytest.approx([row["low"] for row in told], rel=1e-5)
    assert "| task b | 2 |" in advice.table(told)
    advice.draw(read, tmp_path / "advice.svg")
    assert "measured retention" in (tmp_path / "advice.svg").read_text(encoding="utf-8")
