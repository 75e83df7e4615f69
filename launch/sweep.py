"""Sweeps: a folder for each, a record for each job, and the table at the end.

``<outputs>/sweeps/<name>/<attempt>/`` holds ``plan.json`` with all jobs to come, ``<job>.json`` for each job that was
started, ``summary.json`` with all of them, and Hydra's ``multirun.yaml``. The name comes from the command, so that the
same sweep keeps its name when it is started again; the attempt is the first number that is free, so that two at once
do not meet.
"""

import hashlib
import json
import shlex
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from launch.files import cannot_write, write_json

STATES = {
    "done": "green", "skipped": "cyan", "failed": "red", "busy": "yellow", "interrupted": "yellow",
    "not started": "dim",
}  # fmt: skip
GOOD = ("done", "skipped")
# Overrides, with all below them, that make no other sweep; the sets of merge.py (sweep=pairs, sweep.of) do.
NOT_NAMED = ("resume", "paths", "logger", "sweep.name", "sweep.fail_fast", "hydra")


@dataclass(frozen=True)
class Record:
    """How one job of a sweep ended. ``label`` is what tells it from its neighbours."""

    job: int
    label: str
    command: list[str]
    state: str
    run: str | None = None
    error: str | None = None
    metric: str | None = None
    score: float | None = None
    seconds: float = 0.0


def sweep_name(script: str, overrides: list[str]) -> str:
    """``<script>-<8 hex digits>`` over the overrides that make the sweep, in any order."""
    kept = [text.lstrip("+") for text in overrides]
    kept = sorted(text for text in kept if not _is_not_named(text.partition("=")[0].replace("/", ".")))
    return f"{script}-{hashlib.sha256(json.dumps(kept).encode()).hexdigest()[:8]}"


def _is_not_named(key: str) -> bool:
    return any(f"{key}.".startswith(f"{name}.") for name in NOT_NAMED)


def new_attempt(outputs: Path, name: str) -> Path:
    """Makes and returns ``<outputs>/sweeps/<name>/<first free number>``.

    Raises:
        UserError: the folder cannot be made.
    """
    parent = outputs / "sweeps" / name
    try:
        parent.mkdir(parents=True, exist_ok=True)
        number = 1
        while True:
            try:
                (parent / str(number)).mkdir()
                return parent / str(number)
            except FileExistsError:
                number += 1
    except OSError as error:
        raise cannot_write(error, parent) from error


def write_record(folder: Path, record: Record) -> None:
    """Writes ``<folder>/<job>.json``; read back by ``read_records``, also from other processes."""
    write_json(folder / f"{record.job:04d}.json", asdict(record))


def write_plan(folder: Path, labels: list[tuple[str, list[str]]]) -> None:
    """Writes ``<folder>/plan.json``: every job that is to come, for whoever watches."""
    write_json(folder / "plan.json", [{"label": label, "command": command} for label, command in labels])


def read_plan(folder: Path) -> list[tuple[str, list[str]]]:
    """Label and command of each job, in order; empty where nobody knew them beforehand."""
    file = folder / "plan.json"
    if not file.exists():
        return []
    return [(job["label"], job["command"]) for job in json.loads(file.read_text(encoding="utf-8"))]


def read_records(folder: Path) -> list[Record]:
    """The records of all jobs so far, by number."""
    return [Record(**json.loads(file.read_text(encoding="utf-8"))) for file in sorted(folder.glob("[0-9]*.json"))]


def fill_up(records: list[Record], labels: list[tuple[str, list[str]]], died: bool) -> list[Record]:
    """Adds the jobs that left no record: not started, or killed together with their process.

    Args:
        labels: label and command of each job of the sweep, in order.
        died: whether the launcher itself ended in an error, as it does when a worker process is killed.
    """
    known = {record.job: record for record in records}
    lost = ("failed", "its process ended without a word (killed, or out of memory?)") if died else ("not started", None)
    return [
        known.get(job) or Record(job, label, command, lost[0], error=lost[1])
        for job, (label, command) in enumerate(labels)
    ]


def show(records: list[Record], folder: Path, console: Console | None = None) -> None:
    """Prints the closing table, then for each job that is not done its error and the command that repeats it."""
    console = console or Console()
    table = Table(title=None, box=None, pad_edge=False, header_style="bold")
    for heading in ("#", "job", "state", "metric", "score"):
        table.add_column(heading, justify="right" if heading in ("#", "score") else "left", overflow="fold")
    for record in records:
        score = "" if record.score is None else f"{record.score:.4g}"
        state = Text(record.state, style=STATES[record.state])
        table.add_row(str(record.job), Text(record.label), state, record.metric or "", score)
    console.print(table)
    counts = {state: sum(record.state == state for record in records) for state in STATES}
    summary = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    console.print(f"{summary}; {folder}", soft_wrap=True, markup=False, highlight=False)
    for record in records:
        if record.state not in GOOD:
            reason = f": {record.error.splitlines()[0]}" if record.error else ""
            text = f"\n#{record.job} {record.state}{reason}\n    {shlex.join(record.command)}"
            console.print(text, soft_wrap=True, markup=False, highlight=False)
