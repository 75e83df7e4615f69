"""Static figures of drawn rows: what is named, what is joined, what is left out."""

import pytest

from reporting.figures import advisor, cost, curve, method_heatmap, pair_heatmaps, refinement, training
from reporting.rows import merge_row
from reporting.summaries import alike
from tests.report_rows import TASKS, merge_rows, row_of


def test_figures_of_many_methods_name_the_longest_lines_and_what_nothing_beats():
    rows = []
    for number in range(30):
        for rank in (16, 64) if number % 2 else (16,):
            told = {"method": f"m{number}", "rank": rank, "seconds": 1.0 + number, "retention": 0.5 + number / 100}
            rows.append(merge_row(merge_rows(1)[0] | told))
    free = merge_row(merge_rows(1)[0] | {"method": "frozen", "seconds": 0.0, "retention": 0.4})
    lines = {text.get_text() for text in curve(rows, "rank", "rank").axes[0].get_legend().get_texts()}
    assert lines == {f"m{number}" for number in range(7, 30, 2)}  # those of two ranks, the best twelve
    drawn = cost([*rows, free, *(row | {"method": "beaten", "seconds": 40.0, "retention": 0.6} for row in rows[:1])])
    named = {text.get_text() for text in drawn.axes[0].get_legend().get_texts()}
    assert named == {f"m{number}, r=16" for number in range(30)} | {f"m{number}, r=64" for number in range(1, 30, 2)}
    assert drawn.axes[0].get_xscale() == "log"
    assert len(pair_heatmaps(rows).axes) == 8 + 1


def test_the_cost_figure_leaves_out_what_merges_nothing_and_tells_ranks_apart():
    rows = [row_of(method="cat", rank=rank, seconds=1.0, retention=0.9) for rank in (16, 64)]
    rows += [
        row_of(method="ties", rank=16, seconds=seconds, retention=kept) for seconds, kept in ((0.0, 0.5), (4, 0.7))
    ]
    rows += [row_of(method="frozen", seconds=0.001, retention=0.2)]
    axis = cost(rows).axes[0]
    drawn = {line.get_label(): line for line in axis.get_lines() if ", r=" in line.get_label()}
    assert set(drawn) == {"cat, r=16", "cat, r=64", "ties, r=16"}
    assert [list(line) for line in drawn["ties, r=16"].get_data()] == [[2.0], [pytest.approx(0.6)]]
    looks = {name: (line.get_color(), line.get_marker()) for name, line in drawn.items()}
    assert looks["cat, r=16"][0] == looks["cat, r=64"][0] != looks["ties, r=16"][0]
    assert looks["cat, r=16"][1] == looks["ties, r=16"][1] != looks["cat, r=64"][1]


def test_the_line_of_the_cost_figure_joins_merges_of_the_same_sets_and_seeds_alone():
    six = "+".join(TASKS)
    rows = [row_of(method="cat", set=own, seconds=1.0, retention=0.8) for own in ("age_class+galaxy", six)]
    rows += [row_of(method="tsv", set=own, seconds=9.0, retention=0.9) for own in ("age_class+galaxy", six)]
    rows += [row_of(method="easy", set="age_class+galaxy", seconds=2.0, retention=0.99)]  # the six were not tried
    rows += [row_of(method="frozen", realign="deep", set=own, seconds=0.5, retention=0.85) for own in (six,)]
    (line,) = [line for line in cost(rows).axes[0].get_lines() if line.get_drawstyle() == "steps-post"]
    assert [list(values) for values in line.get_data()] == [[1.0, 9.0], [pytest.approx(0.8), pytest.approx(0.9)]]


def test_a_line_along_the_ranks_is_of_the_sets_measured_at_each_of_them():
    pair = [row_of(rank=16, retention=0.9)]
    six = [row_of(set="+".join(TASKS), rank=rank, retention=0.5) for rank in (16, 64)]
    elsewhere = [row_of(set="age_class+galaxy", rank=96, retention=0.1)]
    assert alike([*pair, *six, *elsewhere], "rank") == six
    assert alike(pair, "rank") == pair
    (line,) = [item for item in curve([*pair, *six], "rank", "rank").axes[0].containers if item.get_label() == "cat"]
    assert list(line.lines[0].get_ydata()) == [0.5, 0.5]


def texts(axis):
    """The numbers in a heatmap by their column and row."""
    columns, rows = ([label.get_text() for label in one.get_ticklabels()] for one in (axis.xaxis, axis.yaxis))
    return {
        (rows[round(y)], columns[round(x)]): text.get_text() for text in axis.texts for x, y in [text.get_position()]
    }


def test_a_row_of_a_heatmap_is_a_task_and_a_column_what_it_was_merged_with():
    pair = "age_class+galaxy"
    rows = [row_of(set=pair, task=task, retention=kept) for task, kept in (("age_class", 0.9), ("galaxy", 0.7))]
    (axis,) = [axis for axis in pair_heatmaps(rows).axes if axis.get_title() == "cat, r=16"]
    assert texts(axis) == {("age_class", "galaxy"): "0.90", ("galaxy", "age_class"): "0.70"}
    rows += [row_of(set=pair, task="galaxy", method="ties", retention=0.6)]
    assert texts(method_heatmap(rows).axes[0]) == {
        ("cat", "age_class"): "0.90", ("cat", "galaxy"): "0.70", ("cat", "all"): "0.80",
        ("ties", "galaxy"): "0.60", ("ties", "all"): "0.60",
    }  # fmt: skip


def test_what_was_measured_stands_along_the_foot_and_what_was_predicted_along_the_side():
    axis = advisor([row_of(retention=0.7, predicted=0.9, low=0.8, high=1.0)]).axes[0]
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("measured retention", "predicted retention")
    interval, point, _ = [[list(values) for values in line.get_data()] for line in axis.get_lines()]
    assert (interval, point) == ([[0.7, 0.7], [0.8, 1.0]], [[0.7], [0.9]])


def test_curves_are_of_their_own_panel_and_along_their_own_axes():
    known = {"rank": 16, "points": [[1, 0.5], [2, 0.6]]}
    curves = [{"task": task, "metric": metric, **known} for task, metric in (("age", "rmse"), ("galaxy", "accuracy"))]
    panels = {axis.get_title(): axis for axis in training(curves).axes if axis.get_title()}
    assert [(name, axis.get_ylabel(), len(axis.get_lines())) for name, axis in panels.items()] == [
        ("age", "rmse", 1), ("galaxy", "accuracy", 1),
    ]  # fmt: skip
    (line,) = panels["age"].get_lines()
    seconds = refinement([{"rank": 16, "points": [[10.0, 0.8], [20.0, 0.9]]}]).axes[0]
    assert [list(values) for values in line.get_data()] == [[1, 2], [0.5, 0.6]]
    assert [list(values) for values in seconds.get_lines()[0].get_data()] == [[10.0, 20.0], [0.8, 0.9]]
