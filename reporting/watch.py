"""A live view of a sweep in the terminal: done, running, failed, the best so far, the time left."""

import datetime
import json
import os
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from launch.errors import CommandError, nearest
from launch.sweep import GOOD, STATES, Record, read_plan, read_records
from reporting.rows import higher_is_better

LATEST = "latest"
SHOWN = 12  # rows of a list; the rest is counted


@dataclass(frozen=True)
class View:
    """A sweep at one moment.

    Attributes:
        records: jobs that ended, by number.
        planned: label of every job; empty when it is not known (a foreign Hydra sweeper).
        running: (label, seconds so far) of the jobs at work.
        lost: labels of jobs whose process died without a word.
        ended: whether the sweep has written its summary.
    """

    name: str
    folder: Path
    records: list[Record]
    planned: list[str]
    running: list[tuple[str, float]]
    lost: list[str]
    ended: bool

    @property
    def total(self) -> int | None:
        """Number of jobs, None when it is not known."""
        return len(self.planned) or None

    def seconds_left(self) -> float | None:
        """From the mean of the jobs that really ran and the number at work now; None when nothing tells."""
        took = [record.seconds for record in self.records if record.state == "done"]
        if self.ended or self.total is None or not took:
            return None
        mean, at_work = sum(took) / len(took), max(1, len(self.running))
        waiting = self.total - len(self.records) - len(self.running) - len(self.lost)
        rest = sum(max(0.0, mean - passed) for _, passed in self.running)
        return (max(0, waiting) * mean + rest) / at_work


def watch(outputs: Path, name: str, refresh: float, console: Console | None = None) -> dict[str, Any]:
    """Shows the newest attempt of a sweep until it ends; without a terminal shows it once.

    Raises:
        CommandError: there is no such sweep; says which there are.
    """
    console = console or Console()
    folder = find_attempt(outputs, name)
    if not console.is_terminal:
        console.print(render(look(outputs, folder)))
        return {}
    with Live(console=console, refresh_per_second=4, screen=False) as live:
        while True:
            view = look(outputs, folder)
            live.update(render(view))
            if view.ended:
                return {}
            time.sleep(refresh)


def find_attempt(outputs: Path, name: str) -> Path:
    """Folder of the newest attempt of a sweep, ``latest`` for the sweep that was started last."""
    place = outputs / "sweeps"
    names = sorted(path.name for path in place.glob("*") if path.is_dir())
    if name == LATEST and names:
        attempts = [path for path in place.glob("*/*") if path.name.isdigit()]
        if attempts:
            return max(attempts, key=lambda path: (_begun(path), int(path.name)))
    attempts = [path for path in (place / name).glob("*") if path.name.isdigit()] if name in names else []
    if not attempts:
        known = f" Known: {', '.join(names)}." if names else " None was started yet: python train.py -m ..."
        near = nearest(name, [*names, LATEST]) if names else ""
        raise CommandError(f"watch={name}: there is no such sweep in {place}.{near}{known}")
    return max(attempts, key=lambda path: int(path.name))


def look(outputs: Path, folder: Path) -> View:
    """What the sweep's records and the runs' states say now."""
    records, plan = read_records(folder), read_plan(folder)
    ended = {record.job for record in records}
    waiting = {tuple(command): label for job, (label, command) in enumerate(plan) if job not in ended}
    running, lost, begun = [], [], int(_begun(folder))  # whole seconds, as the runs' states tell them
    for file in sorted((outputs / "runs").glob("*/status.json")):
        status = _read(file)
        label = waiting.get(tuple(status.get("command") or ()))
        if label is None or status.get("state") != "running":
            continue
        if not _is_dead(status):
            running.append((label, max(0.0, time.time() - _stamp(status))))
        elif _stamp(status) >= begun:  # what was killed in an earlier attempt waits in this one
            lost.append(label)
    has_summary = (folder / "summary.json").exists()
    return View(
        folder.parent.name, folder, records, [label for label, _ in plan], running, lost, has_summary
    )  # fmt: skip


def render(view: View) -> Group:
    """The view as rich draws it."""
    counts = {state: sum(record.state == state for record in view.records) for state in STATES}
    line = Text(f"{view.name}  ", style="bold")
    for state, count in counts.items():
        if count:
            line.append(f"{count} {state}  ", style=STATES[state])
    line.append(f"{len(view.running)} running  ", style="blue")
    if view.lost:
        line.append(f"{len(view.lost)} killed  ", style="red")
    line.append(f"of {view.total if view.total is not None else '?'}")
    if view.ended:
        line.append("  (ended)", style="dim")
    elif (left := view.seconds_left()) is not None:
        line.append(f"  about {_duration(left)} left", style="dim")
    parts: list[Any] = [line, ProgressBar(total=view.total or max(1, len(view.records)), completed=len(view.records))]
    if best := best_records(view.records):
        parts += [Text("best so far", style="dim"), _rows([(b.metric or "", f"{b.score:.4g}", b.label) for b in best])]
    if view.running:
        parts += [Text("running", style="dim"), _rows([(label, _duration(took)) for label, took in view.running])]
    failed = [(record.label, _first(record.error)) for record in view.records if record.state not in GOOD]
    failed += [(label, "its process is gone without a word") for label in view.lost]
    if failed:
        parts += [Text("failed", style="red"), _rows(failed)]
    return Group(*parts)


def best_records(records: list[Record]) -> list[Record]:
    """The best job of each metric; of jobs that differ in their task, of each metric and task."""
    best: dict[tuple[str, str], Record] = {}
    for record in records:
        if record.score is None or record.metric is None:
            continue
        key = (record.metric, _task(record))
        sign = 1 if higher_is_better(record.metric) else -1
        before = best.get(key)
        if before is None or before.score is None or sign * record.score > sign * before.score:
            best[key] = record
    return list(best.values())


def _begun(folder: Path) -> float:
    """When an attempt began: its plan is written once, while each job's record changes the folder."""
    plan = folder / "plan.json"
    return (plan if plan.exists() else folder).stat().st_mtime


def _task(record: Record) -> str:
    given = [text.partition("=")[2] for text in record.command if text.startswith(("task=", "name="))]
    return " ".join(given)


def _rows(rows: Sequence[tuple[str, ...]]) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 1))
    for row in rows[:SHOWN]:
        table.add_row(*(Text(cell) for cell in row))
    if len(rows) > SHOWN:
        table.add_row(Text(f"and {len(rows) - SHOWN} more", style="dim"))
    return table


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def _first(text: str | None) -> str:
    return (text or "").splitlines()[0] if text else ""


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _is_dead(status: dict[str, Any]) -> bool:
    """Whether a run's process is gone; of another machine nobody knows."""
    if status.get("host") != socket.gethostname() or not isinstance(status.get("pid"), int):
        return False
    try:
        os.kill(status["pid"], 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def _stamp(status: dict[str, Any]) -> float:
    """When a run began; now, where its state does not tell."""
    try:
        return datetime.datetime.fromisoformat(str(status.get("started"))).timestamp()
    except ValueError:
        return time.time()
