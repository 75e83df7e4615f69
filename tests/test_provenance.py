"""What a result says of the source that it was made with."""

import subprocess
from pathlib import Path

from launch.provenance import git_state

OWN = ("-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "commit.gpgsign=false")


def git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *OWN, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_a_source_that_is_not_as_it_was_committed_is_dirty(tmp_path: Path) -> None:
    git(tmp_path, "init")
    file = tmp_path / "code.py"
    file.write_text("one")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "one")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert git_state(tmp_path) == {"commit": commit, "dirty": False}
    file.write_text("two")
    assert git_state(tmp_path) == {"commit": commit, "dirty": True}
    file.write_text("one")
    (tmp_path / "more.py").write_text("")
    assert git_state(tmp_path) == {"commit": commit, "dirty": True}
