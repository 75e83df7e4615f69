"""The way from a command line to jobs: check everything, then run one job or a sweep, and exit with the truth."""

import functools
import logging
import os
import sys
import tempfile
from argparse import Namespace
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from omegaconf import DictConfig

from launch import logs
from launch.compose import Composer, own_folder
from launch.config import find_faults, first_config
from launch.errors import CommandError, UserError
from launch.files import cannot_write
from launch.perform import EXIT_COMMAND, EXIT_DONE, EXIT_FAILED, EXIT_INTERRUPTED

CONF = Path(__file__).resolve().parents[1] / "conf"
HYDRA_VERSION = "1.3"  # whose behaviour is asked for

log = logging.getLogger(__name__)


def main(
    script: str,
    schema: type[Any],
    job: Callable[[Any, Any], dict[str, Any]],
    conf: Path = CONF,
    keeps_run: bool = True,
    inputs: Callable[[Any], Mapping[str, str]] | None = None,
    skipped: Callable[[Any, Any], None] | None = None,
) -> None:
    """Runs a script: the only thing that ``train.py`` and the others call. Ends the process.

    Exit codes: 0 done, 1 something failed, 2 the command was wrong, 130 Ctrl-C, 143 SIGTERM.

    Args:
        script: ``train``, ``merge``, ...: the primary config and the first word of the runs' names.
        schema: pydantic model of the config, with ``title`` and ``checks`` (see ``launch.schema``).
        job: takes the validated config and its ``Run``, returns the content of ``result.json``; ``metric`` and
            ``score`` in it are shown in a sweep's table. It imports what is heavy only when it is called.
        conf: folder of the yaml files.
        keeps_run: False for a job that sees by itself what is done already: it gets no run folder and is never skipped.
        inputs: takes the validated config, returns what tells the contents of the files apart that the job reads, by
            name: a run is done anew when they change. Raises a ``UserError`` where one is missing.
        skipped: takes the validated config and the ``Run`` of a job that is done already and puts back what it keeps
            outside its folder.
    """
    arguments = get_args_parser().parse_intermixed_args()  # flags may stand between overrides
    logs.set_up()
    try:
        code = _run(script, schema, job, conf, keeps_run, inputs, skipped, arguments)
    except UserError as error:
        log.error("%s", error)
        code = EXIT_COMMAND if isinstance(error, CommandError) else EXIT_FAILED
    except KeyboardInterrupt:
        code = EXIT_INTERRUPTED
    except BrokenPipeError:  # --help | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = EXIT_DONE
    sys.exit(code)


def _run(
    script: str,
    schema: type[Any],
    job: Any,
    conf: Path,
    keeps_run: bool,
    inputs: Any,
    skipped: Any,
    arguments: Namespace,
) -> int:
    hydra.version.setbase(HYDRA_VERSION)
    if arguments.experimental_rerun:
        raise CommandError("--experimental-rerun: not here; repeat the command, and a run goes on where it stopped.")
    if arguments.multirun and (arguments.cfg or arguments.info or arguments.shell_completion):
        raise CommandError("-m runs a sweep, and --cfg, --info and --shell-completion show one job: leave one out.")
    conf = Path(arguments.config_path).absolute() if arguments.config_path else conf
    made = functools.partial(Composer, script, conf, arguments.config_dir, arguments.config_name)
    if arguments.hydra_help or arguments.info or arguments.shell_completion:
        return _let_hydra(script, conf, arguments, arguments.overrides)
    composer = made()
    if arguments.help:
        return _let_hydra(script, conf, arguments, [*arguments.overrides, _help_template(composer)])
    overrides = composer.quoted(arguments.overrides)
    multirun = arguments.multirun or "hydra.mode=MULTIRUN" in overrides
    if multirun and not any(text.startswith("hydra/sweeper=") for text in overrides):
        overrides = composer.with_recipe_sweep(overrides)
    command = composer.parse(overrides, multirun)
    faults = find_faults(composer, schema, command, multirun, complete=not arguments.cfg)
    if faults:
        sys.stderr.write(_faults_text(faults))
        return EXIT_COMMAND
    overrides = composer.for_hydra(overrides)
    if arguments.cfg:
        return _let_hydra(script, conf, arguments, overrides)
    config = first_config(composer, command)
    check_writable(Path(config["paths"]["outputs"]))

    from launch import jobs  # what only running needs, a fault in the command should not wait for

    called = jobs.Script(script, schema, job, tuple(_called(arguments)), made, keeps_run, inputs, skipped)
    if multirun:
        return jobs.run_sweep(called, composer, overrides, config)
    return jobs.run_single(called, composer, overrides).code


def check_writable(folder: Path) -> None:
    """Really writes into a folder, since permissions alone do not tell.

    Raises:
        UserError: it cannot be made or written; says why.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"0" * 4096)
            file.flush()
    except OSError as error:
        raise cannot_write(error, folder) from error


def _let_hydra(script: str, conf: Path, arguments: Namespace, overrides: list[str]) -> int:
    """Lets Hydra answer ``--help``, ``--cfg``, ``--info`` and the like."""
    flags, given = [], list(arguments.overrides)
    for text in sys.argv[1:]:
        if given and text == given[0]:
            given.pop(0)
        else:
            flags.append(text)
    if not any(text.startswith("hydra.job.name=") for text in overrides):
        overrides = [*overrides, f"hydra.job.name={script}"]
    if (own := own_folder(conf, script)) and not arguments.config_dir:
        flags.append(f"--config-dir={own}")
    if arguments.info:
        logs.leave_to_hydra()
    sys.argv[1:] = [*overrides, *flags]  # in one piece, as Hydra demands, and before --info, which may take a word
    hydra.main(version_base=HYDRA_VERSION, config_path=str(conf), config_name=script)(_nothing)()
    return EXIT_DONE


def _help_template(composer: Composer) -> str:
    """An override for ``--help``: Hydra's own template lists every group of the folder, those of other scripts, too."""
    lines = [f"{group}: {', '.join(composer.options(group))}" for group in sorted(composer.groups)]
    groups = ["== Groups ==", "Choose with group=option", "", *lines, ""] if lines else []
    config = ["== Config ==", "Change anything with key=value or section.key=value", "", "$CONFIG"]
    template = "\n".join(["${hydra.help.header}", *groups, *config, "${hydra.help.footer}", ""])
    return f"hydra.help.template='{template}'"


def _nothing(config: DictConfig) -> None:
    """Hydra wants a function to show the config of."""


def _called(arguments: Namespace) -> list[str]:
    """The command up to its overrides, without what makes it a sweep."""
    flags = {"--config-path": arguments.config_path, "--config-name": arguments.config_name}
    flags["--config-dir"] = arguments.config_dir
    return [
        "python",
        sys.argv[0],
        *(text for flag, value in flags.items() if value for text in (flag, value)),
    ]


def _faults_text(faults: list[str]) -> str:
    count = "one fault" if len(faults) == 1 else f"{len(faults)} faults"
    lines = "".join(f"  - {fault}\n" for fault in faults)
    return f"{Path(sys.argv[0]).name}: {count} in the command; nothing was started.\n{lines}"
