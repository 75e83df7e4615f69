"""``python report.py`` as a user calls it."""

import pytest

from tests.commands import run_command


@pytest.fixture
def script(tmp_path, monkeypatch):
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "nothing"))

    def run(*arguments: str) -> tuple[int, str]:
        done = run_command("report.py", list(arguments), tmp_path)
        return done.returncode, done.stderr

    return run


def test_empty_outputs_give_a_page_that_says_what_to_run(script, tmp_path):
    code, err = script("formats=[html,csv,png]")
    assert code == 0, err
    page = (tmp_path / "outputs" / "reports" / "all" / "report.html").read_text(encoding="utf-8")
    for text in ("Nothing was measured yet", "make demo", "python train.py task=galaxy"):
        assert text in page


def test_a_users_own_notes_beside_a_report_are_not_lost(script, tmp_path):
    (tmp_path / "outputs").mkdir()
    for _ in range(2):
        code, err = script("formats=[csv]")
        assert code == 0, err
    notes = tmp_path / "outputs" / "reports" / "all" / "notes.md"
    notes.write_text("mine")
    code, err = script("formats=[csv]")
    assert code == 1
    assert "holds something else (notes.md), which would be lost" in err
    assert notes.read_text() == "mine"


def test_faults_of_the_command_are_told_together(script):
    code, err = script("formats=[htm]", "wandb=true", "logger=csv", "folder=[a]")
    assert code == 2
    for text in ("Did you mean 'folders'", "formats=[htm]: must be a list of html", "no project is named"):
        assert text in err


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["folders=[outputs,nowhere]"], 2, "there is no folder nowhere"),
        (["watch=table1"], 2, "no such sweep"),
        (["watch=table1", "wandb=true"], 2, "give one of them"),
        (["wandb=true"], 1, "nobody is logged in"),
    ],
)
def test_what_is_missing_is_named(script, tmp_path, arguments, code, text):
    (tmp_path / "outputs").mkdir()
    found, err = script(*arguments)
    assert found == code
    assert text in err
