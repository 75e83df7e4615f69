"""The one owner of loggers: CSV always, W&B and TensorBoard when asked for."""

import contextlib
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger

from launch.account import logged_in, wandb_mode
from launch.errors import UserError
from lightning_modules.tasks import Task, higher_is_better

log = logging.getLogger(__name__)
STEP = "trainer/global_step"  # what Lightning's logger draws everything against


@contextlib.contextmanager
def open_loggers(
    folder: Path,
    name: str,
    config: Mapping[str, Any],
    *,
    run_id: str,
    group: str | None = None,
    job_type: str = "train",
    tags: list[str] | None = None,
    wandb: Mapping[str, Any] | None = None,
    tensorboard: bool = False,
) -> Iterator[list[Logger]]:
    """Yields Lightning's loggers and closes them with the truth about how the block ended.

    Args:
        folder: everything lands below it: ``csv/version_N/metrics.csv``, ``wandb/``, ``tensorboard/``.
        config: plain and resolved.
        run_id: stable, so that a resumed run goes on in the same W&B run.
        wandb: ``project``, ``entity`` and ``mode`` (``auto``, ``online``, ``offline``); None for no W&B.
    """
    # Lightning empties a metrics.csv that it finds: each attempt of a resumed run gets a version of its own.
    loggers: list[Logger] = [CSVLogger(folder, name="csv", flush_logs_every_n_steps=50)]
    if tensorboard:
        try:
            loggers.append(TensorBoardLogger(folder, name="tensorboard", version=""))
        except ModuleNotFoundError as error:
            raise UserError("logger=tensorboard: TensorBoard is not installed; `pip install tensorboard`.") from error
    if wandb is None:
        yield loggers
        return
    import wandb as wandb_sdk  # takes a second to import, so only when it is used

    if wandb_sdk.run is not None:  # one that an earlier job of this process left open would take our metrics
        wandb_sdk.finish()
    mode = wandb_mode(wandb.get("mode", "auto"))
    if mode == "online" and not logged_in():
        raise UserError("logger.wandb.mode=online: no W&B key is known. Run `wandb login`, or give mode=offline.")
    logger = WandbLogger(
        project=wandb["project"], entity=wandb.get("entity"), name=name, id=run_id, group=group, job_type=job_type,
        tags=tags, save_dir=folder, config=dict(config), mode=mode, log_model=False,
        settings=wandb_sdk.Settings(silent=mode != "online"),
    )  # fmt: skip
    exit_code = 1
    try:
        yield [*loggers, logger]
        exit_code = 0
    finally:
        wandb_sdk.finish(exit_code=exit_code)


def define_metrics(loggers: list[Logger], tasks: Mapping[str, Task]) -> None:
    """Tells W&B which way each metric is better, so that its summaries show the best value and not the last.

    A metric that is named falls out of Lightning's ``*`` and needs its axis told again.
    """
    better = {}
    for name, task in tasks.items():
        better[f"val/{name}/loss"] = "min"
        for metric in map(str, task.metrics()):
            better[f"val/{name}/{metric}"] = "max" if higher_is_better(metric) else "min"
    if len(tasks) > 1:
        better["val/skill"] = "max"
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            for name, summary in better.items():
                logger.experiment.define_metric(name, summary=summary, step_metric=STEP, step_sync=True)


def log_summary(loggers: list[Logger], values: Mapping[str, float]) -> None:
    """Final numbers into W&B's summary, where its tables read them."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.summary.update(dict(values))


def log_picture(loggers: list[Logger], name: str, path: Path) -> None:
    """Logs a picture file to W&B."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.log_image(name, [str(path)])


def log_table(
    loggers: list[Logger], name: str, rows: list[dict[str, Any]], pictures: Mapping[str, Path] | None = None
) -> None:
    """Logs rows as a W&B table, once, at the end; columns are those of all rows, what a row lacks stays empty.

    Args:
        pictures: column to the folder that its file names lie in; they become pictures.
    """
    columns = list(dict.fromkeys(key for row in rows for key in row))
    for logger in loggers:
        if isinstance(logger, WandbLogger) and rows:
            import wandb as wandb_sdk

            def cell(row: dict[str, Any], column: str) -> Any:
                value = row.get(column)
                if pictures and column in pictures and value is not None:
                    return wandb_sdk.Image(str(pictures[column] / value))
                return str(value) if isinstance(value, list) else value

            data = [[cell(row, column) for column in columns] for row in rows]
            logger.experiment.log({name: wandb_sdk.Table(columns=[*columns], data=data)})
