"""Run folders of others cannot end a report, nor put into it what is not theirs."""

import json

import pytest
import yaml
from PIL import Image

from reporting.load import collect
from reporting.making import write_report
from tests.report_rows import merge_rows, write_merge_run


@pytest.mark.parametrize("place", ["absolute", "above", "link"])
def test_pictures_outside_of_a_run_are_not_taken(tmp_path, place):
    run = write_merge_run(tmp_path / "outputs", merge_rows(2))
    private = tmp_path / "private.png"
    Image.new("RGB", (8, 8)).save(private)
    name = {"absolute": str(private), "above": "../../../../private.png", "link": "0.png"}[place]
    if place == "link":
        (run / "examples" / "0.png").unlink()
        (run / "examples" / "0.png").symlink_to(private)
    assert (run / "examples" / name).exists()
    (run / "examples" / "examples.json").write_text(json.dumps([{"task": "galaxy", "image": name, "target": "x"}]))
    found = collect([tmp_path / "outputs"])
    assert found.examples == []
    assert "lies outside of the run" in found.left_out[0][1]


def test_a_picture_of_too_many_pixels_is_left_out(tmp_path):
    run = write_merge_run(tmp_path / "outputs", merge_rows(2))
    Image.new("1", (14_000, 14_000)).save(run / "examples" / "0.png")
    found = collect([tmp_path / "outputs"])
    assert found.examples == []
    assert "14000 x 14000 pixels are more than" in found.left_out[0][1]
    assert len(found.merges) == 2


def test_settings_that_are_no_json_are_told_as_text(tmp_path):
    run = write_merge_run(tmp_path / "outputs", merge_rows(2))
    config = "x: .inf\ny: [.nan]\nz: 2026-11-28\nseed: 0\n"
    assert yaml.safe_load(config)["x"] == float("inf")
    (run / "config.yaml").write_text(config)
    found = collect([tmp_path / "outputs"])
    assert found.origins[0]["config"] == {"x": "inf", "y": "[nan]", "z": "2026-11-28", "seed": 0}
    write_report(found, tmp_path / "report", ["html"], ["outputs"])
    assert "2026-11-28" in (tmp_path / "report" / "report.html").read_text()
