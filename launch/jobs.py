"""Hydra's part of running: one job, or the jobs of a sweep through whichever launcher is chosen."""

import functools
import itertools
import logging
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hydra._internal.hydra import Hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.core.utils import JobRuntime
from omegaconf import DictConfig

from launch import logs, sweep
from launch.compose import Composer
from launch.config import config_faults, job_config, validated
from launch.errors import UserError
from launch.files import write_json
from launch.perform import EXIT_COMMAND, EXIT_DONE, EXIT_FAILED, Outcome, perform
from launch.runs import Run, describe_run

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Script:
    """What an entry script hands to ``main``; picklable, so that launchers can carry it to other processes."""

    name: str
    schema: type[Any]
    job: Callable[[Any, Run], dict[str, Any]]
    command: tuple[str, ...]  # how it was called, up to the overrides
    composer: Callable[[], Composer]
    keeps_run: bool = True
    inputs: Callable[[Any], Mapping[str, str]] | None = None  # of a config: see ``runs.content_hash``
    skipped: Callable[[Any, Run], None] | None = None  # of a config and a run that is done: see ``perform``


@dataclass(frozen=True)
class Place:
    """Where a sweep keeps its records."""

    name: str
    folder: Path
    fail_fast: bool
    swept: tuple[str, ...]  # overrides whose keys take several values, up to the "="

    def label(self, overrides: list[str]) -> str:
        """What tells a job from its neighbours; all of it where nothing was swept."""
        telling = [text for text in overrides if text.partition("=")[0] in self.swept]
        return " ".join(telling or overrides)


def run_single(script: Script, composer: Composer, overrides: list[str]) -> Outcome:
    """Runs one job."""
    task = functools.partial(_run_config, script, None)
    return _hydra(script, composer).run(composer.config_name, task, overrides).return_value


def run_sweep(script: Script, composer: Composer, overrides: list[str], config: dict[str, Any]) -> int:
    """Runs every job of a sweep, whatever happens to the others, prints the table and returns the exit code.

    Args:
        script: what to run.
        composer: knows the yaml files.
        overrides: as ``Composer.for_hydra`` gives them.
        config: the first job's config as plain values, for ``sweep`` and ``paths``.

    Raises:
        UserError: the sweep's folder cannot be written.
    """
    wanted = config.get("sweep") or {}
    name = wanted.get("name") or sweep.sweep_name(script.name, overrides)
    folder = sweep.new_attempt(Path(config["paths"]["outputs"]), name)
    chosen = [text for text in overrides if not text.startswith("hydra")]
    # of a key that is given twice Hydra takes the last
    columns = list({text.partition("=")[0]: composer.spread(text) for text in chosen}.values())
    swept = tuple(column[0].removeprefix("++").partition("=")[0] for column in columns if len(column) > 1)
    place = Place(name, folder, bool(wanted.get("fail_fast")), swept)
    own = [f"hydra.sweep.dir={QuotedString(str(folder), Quote.single).with_quotes()}", "hydra.mode=MULTIRUN"]
    other_sweeper = any(text.startswith("hydra/sweeper=") for text in overrides)
    if not other_sweeper:
        own.append("hydra.sweeper.params=null")  # written out in the overrides already
    labels = [] if other_sweeper else _labels(script, place, columns)
    sweep.write_plan(folder, labels)
    log.info("Sweep %s: %s jobs, records in %s", name, len(labels) or "?", folder)
    code = died = 0
    try:
        task = functools.partial(_run_config, script, place)
        _hydra(script, composer).multirun(composer.config_name, task, [*overrides, *own])
    except (KeyboardInterrupt, SystemExit) as stop:
        code = stop.code if isinstance(stop, SystemExit) and isinstance(stop.code, int) else 130
    except Exception as error:  # a launcher whose worker was killed; what was done is still reported below
        log.error("The launcher stopped: %s", error, exc_info=error)
        died = 1
    records = sweep.fill_up(sweep.read_records(folder), labels, died=bool(died))
    write_json(folder / "summary.json", [asdict(record) for record in records])
    sweep.show(records, folder)
    return code or (EXIT_DONE if all(record.state in sweep.GOOD for record in records) and not died else EXIT_FAILED)


def _run_config(script: Script, place: Place | None, config: DictConfig) -> Outcome:
    """One job, in this process or in a launcher's worker."""
    logs.set_up()
    hydra_config = HydraConfig.get()
    if place is None:
        return _perform(script, None, config, sys.argv)
    chosen = [text.removeprefix("++") for text in hydra_config.overrides.task]
    command = [*script.command, *chosen]
    number = int(hydra_config.job.num)
    label = place.label(chosen)
    if place.fail_fast and any(record.state == "failed" for record in sweep.read_records(place.folder)):
        return Outcome("not started", EXIT_FAILED, place.folder)
    log.info("Job %d: %s", number, label)
    outcome = _perform(script, place.name, config, command)
    result = outcome.result or {}
    score = result.get("score")
    record = sweep.Record(
        job=number, label=label, command=command, state=outcome.state,
        run=str(outcome.path) if script.keeps_run else None, error=outcome.error,
        metric=result.get("metric"), score=score if isinstance(score, int | float) else None, seconds=outcome.seconds,
    )  # fmt: skip
    try:
        sweep.write_record(place.folder, record)
    except UserError as error:
        log.error("%s", error)
    if outcome.state == "interrupted":
        raise SystemExit(outcome.code)  # not an Exception: it ends the whole sweep
    return outcome


def _perform(script: Script, sweep_name: str | None, config: DictConfig, command: list[str]) -> Outcome:
    schema, config = job_config(script.composer, script.schema, list(HydraConfig.get().overrides.task), config)
    faults = config_faults(config, schema, multirun=sweep_name is not None)
    if faults:  # a combination of values that only this job of the sweep has
        for text in faults.values():
            log.error("%s", text)
        return Outcome("failed", EXIT_COMMAND, Path(), error=" ".join(faults.values()))
    model = validated(config, schema)
    plain = model.model_dump(mode="json", by_alias=True)
    try:
        inputs = None if script.inputs is None else script.inputs(model)
    except UserError as error:
        log.error("%s", error)
        return Outcome("failed", EXIT_COMMAND, Path(), error=str(error))
    run = describe_run(script.name, model.title, plain, sweep_name, script.keeps_run, inputs)
    skipped = None if script.skipped is None else functools.partial(script.skipped, model)
    return perform(run, functools.partial(script.job, model), command, skipped)


def _hydra(script: Script, composer: Composer) -> Hydra:
    GlobalHydra.instance().clear()
    hydra = Hydra(script.name, composer.loader)
    GlobalHydra.instance().initialize(hydra)
    JobRuntime().set("name", script.name)
    return hydra


def _labels(script: Script, place: Place, columns: list[list[str]]) -> list[tuple[str, list[str]]]:
    """Label and command of each job, in the order in which Hydra's own sweeper takes them."""
    jobs = [[value.removeprefix("++") for value in values] for values in itertools.product(*columns)]
    return [(place.label(chosen), [*script.command, *chosen]) for chosen in jobs]
