"""What tells two bundles apart."""

import shutil
from pathlib import Path

from launch.bundles import CARD, bundle_content

FILES = ("adapter_model.safetensors", "grams.safetensors", "head.safetensors")


def test_the_content_of_a_bundle_is_all_that_was_learned_wherever_it_lies(tmp_path: Path) -> None:
    first = tmp_path / "first"
    first.mkdir()
    for name in FILES:
        (first / name).write_bytes(name.encode())
    (first / CARD).write_text("{}")
    contents = {bundle_content(first)}
    for name in FILES:
        other = shutil.copytree(first, tmp_path / name)
        assert bundle_content(other) in contents
        (other / name).write_bytes(b"learned anew")
        contents.add(bundle_content(other))
    assert len(contents) == 4
    (first / CARD).write_text('{"run": "another"}')
    assert bundle_content(first) in contents
