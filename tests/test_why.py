"""The table of why members lose, from rows that are made up."""

import itertools

import pandas as pd

from benchmarks.why import why_markdown
from reporting.rows import Row, merge_row

TASKS = ("dots", "land", "stars")


def kept(task: str, by: str, value: float, **more: object) -> Row:
    given = {
        "data": "all", "backbone": "tiny@32", "set": f"{by}+{task}", "method": "cat", "realign": "none", "rank": 16,
        "seed": 0, "task": task, "metric": "accuracy", "score": 0.8 * value, "single": 0.8,
    }  # fmt: skip
    return merge_row(given | more)


def test_members_that_lose_stand_with_what_the_adapters_tell() -> None:
    pairs = list(itertools.permutations(TASKS, 2))
    disturbed = pd.DataFrame(
        [
            {"rank": 16, "seed": 0, "task": task, "by": by, "interference": 1 + place, "conflict": 0.5 + place / 1000}
            for place, (task, by) in enumerate(pairs)
        ]
    )
    rows = []
    for place, (task, by) in enumerate(pairs):
        rows.append(kept(task, by, 1 - 0.1 * place))
        rows.append(kept(task, by, 1 - 0.01 * place, method="regress", realign="deep"))
        high = 0.9 if (task, by) == ("stars", "dots") else 1.1
        rows.append(kept(task, by, 0.8 if high < 1 else 1 + 0.01 * place, realign="deep", retention_high=high))
        rows.append(kept(task, by, 0.1, lora="max_norm=0.1"))  # other adapters than those that are told of
    rows.append(kept("stars", "dots", 0.99, method="distill(steps=9)", realign="deep"))
    text = why_markdown(disturbed, rows)
    assert "| 16 | interference | a task's | -1.00 |" in text
    assert "| 16 | interference | all | -1.00 |" in text
    (line,) = [line for line in text.splitlines() if line.startswith("| 16 | stars")]
    assert line == "| 16 | stars | dots | 1 of 1 | 5.00 | 0.50 | 0.600 | 0.800 | 0.960 | 0.990 |"
    assert "| 16 | land |" not in text
