"""One job from start to end: claim its run, skip what is done, keep its state truthful, whatever happens."""

import contextlib
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from launch import logs
from launch.errors import CommandError, UserError
from launch.files import cannot_write, write_fault
from launch.provenance import git_state, provenance
from launch.runs import Run, claim, commits_of, finish, now, prepare, read_result, reported_otherwise, write_status

log = logging.getLogger(__name__)
EXIT_DONE, EXIT_FAILED, EXIT_COMMAND, EXIT_INTERRUPTED, EXIT_TERMINATED = 0, 1, 2, 130, 143


class Terminated(BaseException):
    """SIGTERM came: the machine or its scheduler wants the process gone."""


@dataclass(frozen=True)
class Outcome:
    """How a job ended: done, skipped, failed, busy (another process has the run) or interrupted."""

    state: str
    code: int
    path: Path
    error: str | None = None
    result: dict[str, Any] | None = None
    seconds: float = 0.0


def perform(
    run: Run,
    job: Callable[[Run], dict[str, Any]],
    command: list[str],
    skipped: Callable[[Run], None] | None = None,
) -> Outcome:
    """Runs ``job`` in its folder and never raises.

    Args:
        run: see ``runs.describe_run``.
        job: does the work and returns the content of ``result.json`` (in the further processes of a distributed run
            it may return anything).
        command: the command line, for ``status.json``.
        skipped: called for a run that is done already; sees to what it keeps outside its folder.
    """
    begun = time.monotonic()
    try:
        with claim(run):
            if run.kept and (result := read_result(run)) is not None and run.config.get("resume") != "restart":
                told = "Skipped, done already%s: %s (its images are not read again; resume=restart does it anew)"
                log.info(told, _by_other_code(result), run.result_file)
                if others := reported_otherwise(run):
                    log.warning("It was asked for other %s then; resume=restart tells them too", " and ".join(others))
                if skipped is not None and run.writes:
                    skipped(run)
                return Outcome("skipped", EXIT_DONE, run.path, result=result)
            prepare(run)
            with _log_file(run), _sigterm_raises():
                outcome = _work(run, job, command)
    except UserError as error:  # the folder could not even be claimed or made
        log.error("%s", error)
        state = "busy" if type(error).__name__ == "RunBusyError" else "failed"
        outcome = Outcome(state, EXIT_FAILED, run.path, error=str(error))
    return Outcome(**{**outcome.__dict__, "seconds": time.monotonic() - begun})


def _work(run: Run, job: Callable[[Run], dict[str, Any]], command: list[str]) -> Outcome:
    started, result, error = now(), None, None
    made_with: dict[str, Any] = {}
    commits: list[str] = []
    try:
        if run.writes:
            made_with = provenance()  # before the job: the code that runs is the code of now
            commits = commits_of(run, made_with["git"])
            made_with["commits"] = commits
            write_status(run, "running", command, started, commits=commits)
        if run.kept:
            log.info("%s %s", "Going on with" if run.resume else "Started", run.path)
        if len(commits) > 1:
            earlier = ", ".join(commit[:7] for commit in commits[:-1])
            log.warning("Part of it was made by other code: %s (resume=restart does it anew)", earlier)
        result = job(run)
        if run.writes:
            result = finish(run, made_with, result, started)
        state, code = "done", EXIT_DONE
    except (KeyboardInterrupt, Terminated) as stop:
        state, code, error = _interrupted(stop)
    except SystemExit as stop:
        if _caused_by_interrupt(stop):  # Lightning turns Ctrl-C into exit(1)
            state, code, error = _interrupted(KeyboardInterrupt())
        else:
            state, code, error = "failed", EXIT_FAILED, f"the job left with exit code {stop.code}"
            log.error("%s", error)
    except Exception as fault:  # noqa: BLE001 - whatever it is, it must end in status.json and in the exit code
        state, code, error = _failed(fault)
    if state == "interrupted":
        again = "the same command goes on from where it stopped" if run.kept else "the same command begins anew"
        if run.kept and run.config.get("resume") == "restart":
            again = "without resume=restart the same command goes on from where it stopped"
        log.warning("Interrupted: %s; %s", run.name, again)
    if state == "failed" and run.kept:
        log.error("Failed: %s; its log is %s", run.name, run.path / "run.log")
    if run.writes:
        _last_status(run, state, command, started, error, commits)
    return Outcome(state, code, run.path, error=error, result=result if state == "done" else None)


def _by_other_code(result: Mapping[str, Any]) -> str:
    present, then = git_state(), result.get("git")
    if present is None or then is None or then["commit"] == present["commit"]:
        return ""
    return f" by other code ({then['commit'][:7]})"


def _failed(fault: Exception) -> tuple[str, int, str]:
    fault = write_fault(fault) or fault
    if isinstance(fault, UserError):
        log.error("%s", fault)
        return "failed", EXIT_COMMAND if isinstance(fault, CommandError) else EXIT_FAILED, str(fault)
    log.error("%s", fault, exc_info=fault)
    return "failed", EXIT_FAILED, f"{type(fault).__name__}: {fault}"


def _interrupted(stop: BaseException) -> tuple[str, int, str]:
    if isinstance(stop, Terminated):
        return "interrupted", EXIT_TERMINATED, "SIGTERM"
    return "interrupted", EXIT_INTERRUPTED, "Ctrl-C"


def _caused_by_interrupt(error: BaseException) -> bool:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, KeyboardInterrupt):
            return True
        cause = cause.__context__
    return False


def _last_status(run: Run, state: str, command: list[str], started: str, error: str | None, commits: list[str]) -> None:
    try:
        write_status(run, state, command, started, error, commits)
    except UserError as fault:  # a full disk: the exit code and the console still tell
        log.error("%s", fault)


@contextlib.contextmanager
def _log_file(run: Run) -> Iterator[None]:
    if not run.writes:
        yield
        return
    file = run.path / "run.log"
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(logs.to_file(file))
        except OSError as error:
            raise cannot_write(error, file) from error
        yield


@contextlib.contextmanager
def _sigterm_raises() -> Iterator[None]:
    """SIGTERM unwinds like Ctrl-C, so that the state is written; only the main thread may say so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(signum: int, frame: FrameType | None) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
