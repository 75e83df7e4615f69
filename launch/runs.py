"""Run folders: named by their content, worked on by one process at a time, skipped when done.

``<outputs>/runs/<what>-<title>-<hash>/`` holds ``config.yaml``, ``status.json``, ``run.log``, whatever the job keeps
to go on from, and at the end ``result.json``, which alone says that the run is done.
"""

import contextlib
import copy
import datetime
import hashlib
import json
import os
import shutil
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from filelock import FileLock, Timeout

from launch.errors import UserError
from launch.files import atomic_write, cannot_write, write_json
from launch.provenance import provenance

SCHEMA_VERSION = 1
CONFIG = "config.yaml"
REPORTED = ("task.units", "task.subsets")  # in which further numbers the same scores are told
# Keys that do not decide the result: where it goes (where the data lies says which data it is), how it is watched,
# which processor computes it, what else is told.
NOT_HASHED = (
    *REPORTED, "paths", "logger", "resume", "device", "data.num_workers", "data.download", "data.cache_root",
    "trainer.accelerator", "trainer.strategy", "trainer.enable_progress_bar",
    "trainer.enable_model_summary", "trainer.log_every_n_steps", "trainer.profiler", "trainer.enable_autolog_hparams",
)  # fmt: skip
SETS_OF_SWEEP = ("sizes", "of", "including")  # keys of ``sweep`` that say what merge.py merges, where sizes are given

# The first that is set says which process this is, as in Lightning: SLURM sets its own also where torchrun or Lightning
# number the processes themselves.
RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")


class RunBusyError(UserError):
    """Another process works on this run."""


@dataclass(frozen=True)
class Run:
    """One piece of work and its folder.

    Attributes:
        path: the run's folder; it exists, unless the run is not kept.
        name: the folder's name, ``<what>-<title>-<hash>``.
        hash: ten hex digits over everything that decides the result; the same on each machine that has the data at
            the same path.
        config: the validated config as plain values.
        resume: whether an earlier attempt may have left something in ``path`` to go on from.
        group: name of the sweep that the run belongs to, the same whenever the sweep is run; None for a single run.
        is_main: False in the further processes of a distributed run, which write nothing here.
        kept: False for a job that keeps what it makes elsewhere; nothing is written or looked for here.
    """

    path: Path
    name: str
    hash: str
    config: dict[str, Any]
    resume: bool
    group: str | None
    is_main: bool
    kept: bool = True

    def provenance(self) -> dict[str, Any]:
        """Versions, commit and machine: see ``launch.provenance``."""
        return provenance()

    @property
    def writes(self) -> bool:
        """Whether this process keeps the run's folder."""
        return self.is_main and self.kept

    @property
    def result_file(self) -> Path:
        """Where the result is, once there is one."""
        return self.path / "result.json"


def content_hash(what: str, config: dict[str, Any], inputs: Mapping[str, str] | None = None) -> str:
    """Ten hex digits over the keys that decide the result; ``NOT_HASHED`` lists the others.

    Of ``sweep`` counts what chooses the sets of a merge, and nothing where none are chosen there.
    A list of devices counts by its length: which ones does not matter, how many does (each gets its own batch).

    Args:
        inputs: what tells the contents of further files apart that decide the result, too.
    """
    kept = copy.deepcopy(config)
    for part in _parts(kept).values():
        for key in NOT_HASHED:
            *parents, last = key.split(".")
            node: Any = part
            for parent in parents:
                node = node.get(parent) if isinstance(node, dict) else None
            if isinstance(node, dict):
                node.pop(last, None)
        data = part.get("data")
        if isinstance(data, dict):
            if isinstance(data.get("root"), str):
                data["root"] = os.path.normpath(data["root"])  # ./x and x/ are one folder
            if isinstance(data.get("classes"), dict):
                data["classes"] = list(data["classes"].items())  # their order is that of the head's outputs
        lora = part.get("lora")
        if isinstance(lora, dict) and isinstance(lora.get("targets"), list):
            lora["targets"] = sorted(lora["targets"])  # adapters are drawn in the backbone's order
    sweep = kept.pop("sweep", None) or {}
    if sweep.get("sizes") is not None:
        kept["sweep"] = {key: sweep.get(key) for key in SETS_OF_SWEEP}
    trainer = kept.get("trainer")
    if isinstance(trainer, dict) and isinstance(trainer.get("devices"), list):
        trainer["devices"] = len(trainer["devices"])
    content = {"what": what, "config": kept} | ({"inputs": dict(inputs)} if inputs else {})
    text = json.dumps(content, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def _parts(config: Mapping[str, Any]) -> dict[str, Any]:
    """By prefix of its keys: the config, and of a joint training the members' own, each with a task and data."""
    members = config.get("members")
    own = members if isinstance(members, dict) else {}
    return {"": config, **{f"members.{name}.": member for name, member in own.items()}}


def reported_otherwise(run: Run) -> list[str]:
    """The keys of further numbers that the run, which is done, was not asked for as it is now."""
    try:
        made = _parts(yaml.safe_load((run.path / CONFIG).read_text(encoding="utf-8")))
    except (OSError, ValueError, AttributeError, yaml.YAMLError):
        return []
    found = []
    for prefix, part in _parts(run.config).items():
        for key in REPORTED:
            task, name = key.split(".")
            then, present = ((one.get(task) or {}).get(name) or None for one in (made.get(prefix) or {}, part))
            found += [prefix + key] if then != present else []
    return found


def describe_run(
    what: str,
    title: str,
    config: dict[str, Any],
    group: str | None = None,
    kept: bool = True,
    inputs: Mapping[str, str] | None = None,
) -> Run:
    """The run that a config and its ``inputs`` (see ``content_hash``) stand for, before anything is written."""
    digest = content_hash(what, config, inputs)
    name = f"{what}-{title}-{digest}"
    path = Path(config["paths"]["outputs"]) / "runs" / name
    restart = config.get("resume") == "restart"
    is_main = is_main_process()
    resume = path.exists() and not (restart and is_main)
    return Run(path, name, digest, config, resume, group, is_main, kept)


def is_main_process() -> bool:
    """False in the processes that Lightning, torchrun, SLURM or LSF started beside the first of a distributed run."""
    rank = next((os.environ[name] for name in RANKS if os.environ.get(name)), "0")
    # where Lightning is started by hand on each node, only the node's number tells its first processes apart
    return rank == "0" and os.environ.get("NODE_RANK", "0") in ("0", "")


@contextlib.contextmanager
def claim(run: Run) -> Iterator[None]:
    """Keeps other processes off the run; the system gives the claim back when this one dies, even by SIGKILL.

    Raises:
        RunBusyError: another process has it; says which.
        UserError: the outputs folder cannot be written.
    """
    if not run.writes:
        yield
        return
    folder = run.path.parent / ".locks"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / f"{run.name}.lock")
        lock.acquire(timeout=0)
    except Timeout as error:
        raise RunBusyError(f"{run.name} is being worked on {_by_whom(run)}; nothing was done here.") from error
    except OSError as error:
        raise cannot_write(error, folder) from error
    try:
        yield
    finally:
        lock.release()


def prepare(run: Run) -> None:
    """Makes the folder; ``resume=restart`` first sets an earlier one aside, where it stays until the new run is done.

    Raises:
        UserError: the outputs folder cannot be written.
    """
    if not run.writes:
        return
    try:
        if run.path.exists() and not run.resume:
            aside = set_aside_path(run)
            if aside.exists():  # a restart that never ended: what it replaced is worth more
                shutil.rmtree(run.path)
            else:
                aside.parent.mkdir(parents=True, exist_ok=True)
                run.path.replace(aside)
        run.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(error, run.path) from error
    atomic_write(run.path / CONFIG, yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True))


def require_finite(run: Run, result: Mapping[str, Any]) -> None:
    """Of what a run measured; to be asked before anything of it is published.

    Raises:
        UserError: a number is infinite or none.
    """
    if bad := list(_not_finite(result, "")):
        raise UserError(
            f"The result of {run.name} is not finite: {', '.join(bad)}. Did the training diverge? See its log."
        )


def finish(run: Run, made_with: dict[str, Any], returned: dict[str, Any], started: str) -> dict[str, Any]:
    """Writes ``result.json``: what the job returned, and what identifies it. Returns its content.

    Raises:
        UserError: the result holds a number that is not finite, or cannot be written.
    """
    require_finite(run, returned)
    what, _, _ = run.name.partition("-")
    result = {
        **returned, **made_with, "schema_version": SCHEMA_VERSION, "what": what, "run": run.name, "hash": run.hash,
        "name": run.config.get("name"), "seed": run.config.get("seed"), "started": started, "ended": now(),
    }  # fmt: skip
    write_json(run.result_file, result)
    shutil.rmtree(set_aside_path(run), ignore_errors=True)
    return result


def read_result(run: Run) -> dict[str, Any] | None:
    """The result of a run that is done, None for any other."""
    return read_json(run.result_file)


def read_json(path: Path) -> dict[str, Any] | None:
    """A mapping that was written whole, None where there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def write_status(
    run: Run, state: str, command: list[str], started: str, error: str | None = None, commits: Sequence[str] = ()
) -> None:
    """Writes ``status.json``.

    Args:
        state: running, done, failed or interrupted.
        commits: of the source, of each attempt that went on with the run, this one's last.
    """
    status = {
        "state": state, "error": error, "started": started, "ended": None if state == "running" else now(),
        "pid": os.getpid(), "host": socket.gethostname(), "command": command, "commits": list(commits),
    }  # fmt: skip
    write_json(run.path / "status.json", status)


def commits_of(run: Run, git: Mapping[str, Any] | None) -> list[str]:
    """The source's commits that worked on the run so far, and the present one last; each once.

    Args:
        git: of ``launch.provenance``; None outside a checkout.
    """
    before = (read_json(run.path / "status.json") or {}).get("commits") or []
    present = [] if git is None else [str(git["commit"])]
    return [commit for commit in before if commit not in present] + present


def set_aside_path(run: Run) -> Path:
    """Where ``resume=restart`` keeps the earlier folder until the new run is done."""
    return run.path.parent / ".aside" / run.name


def now() -> str:
    """Local time with its offset, to the second."""
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")


def _by_whom(run: Run) -> str:
    status = read_json(run.path / "status.json")
    if status is None or status.get("state") != "running":
        return "by another process"
    return f"by process {status['pid']} on {status['host']} since {status['started']}"


def _not_finite(value: Any, key: str) -> Iterator[str]:
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        yield f"{key}={value}"
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from _not_finite(item, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list | tuple):
        for place, item in enumerate(value):
            yield from _not_finite(item, f"{key}[{place}]")
