"""What several runs and tables hold is in a report once."""

from reporting.load import collect
from reporting.making import write_report
from reporting.rows import primary_metrics
from reporting.summaries import own_metric
from tests.report_rows import TASKS, merge_rows, write_csv, write_merge_run, write_train_run


def test_merges_on_fewer_images_are_no_further_seeds(tmp_path):
    rows = merge_rows(2)
    more = [row | {"images": 400, "score": 0.9 * row["score"], "retention": None} for row in rows]
    write_csv(tmp_path / "merges.csv", [*rows, *more])
    found = collect([tmp_path])
    assert [row["images"] for row in found.merges] == [400, 400]
    ((_, reason),) = found.left_out
    assert reason == "2 rows: the same merges of the same adapters were measured on more images"


def test_a_control_is_there_once_with_the_images_that_its_readout_had(tmp_path):
    """Distillation needs more images than the readout after it, and its rows tell the larger number."""
    (one,) = merge_rows(1)
    merges = [
        one | {"method": method, "realign": realign, "images": images, "control": control}
        for method, realign, images, control in (
            ("a_distill", "none", 1500, 0.1), ("a_distill", "deep", 1500, 0.5),
            ("cat", "none", 0, 0.1), ("cat", "deep", 1500, 0.6),
        )
    ]  # fmt: skip
    write_csv(tmp_path / "merges.csv", merges)
    found = collect([tmp_path])
    controls = [row for row in found.merges if row["method"] == "frozen"]
    assert {row["realign"]: row["score"] for row in controls} == {"none": 0.1, "deep": 0.6}
    assert len(controls) == 2
    write_csv(tmp_path / "merges.csv", merges[:2])
    assert [row["score"] for row in collect([tmp_path]).merges if row["method"] == "frozen"] == [0.1, 0.5]


def test_a_report_reads_its_own_tables(tmp_path):
    rows = [row | {"scores": {row["metric"]: row["score"], "macro_f1": 0.5}} for row in merge_rows(40)]
    write_merge_run(tmp_path / "out", rows)
    for task in TASKS:
        write_train_run(tmp_path / "out", task, 16)
    copy = write_train_run(tmp_path / "out", "galaxy", 0) / "csv" / "version_old"
    copy.mkdir()  # by hand
    (copy / "metrics.csv").write_text("epoch\n")
    found = collect([tmp_path / "out", tmp_path / "out"])
    assert len(found.curves) == len(TASKS) + 1
    write_report(found, tmp_path / "report", ["csv"], ["out"])
    again = collect([tmp_path / "report"])
    assert primary_metrics(again) == primary_metrics(found)
    assert len(own_metric(again)) == len(own_metric(found)) > 0
    assert [row["primary"] for row in again.trains] == [row["primary"] for row in found.trains]


def test_a_head_that_a_table_holds_too_is_taken_once(tmp_path):
    out = tmp_path / "out"
    for rank in (16, 64):
        write_train_run(out, "galaxy", rank)
    write_train_run(out, "galaxy", 0, features="deep", hash="f" * 10)
    found = collect([out])
    assert len(found.merges) == 2 * len({row["metric"] for row in found.merges})
    write_report(found, tmp_path / "report", ["csv"], ["out"])
    assert len(collect([out, tmp_path / "report"]).merges) == len(found.merges)
