"""What ``prepare.py`` may be told: a dataset, or several, and what is made of them."""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar

import yaml  # type: ignore[import-untyped]
from pydantic import Field

from launch import checks
from launch.errors import nearest
from launch.schema import Check, Data, Logger, Name, Paths, Strict, Sweep, Task, Text

CONF = checks.ROOT / "conf"
_DATA_OF_TASK = "override /data@_global_.data"


@functools.cache
def tasks_of(source: str, conf: Path = CONF) -> dict[str, Task]:
    """The shipped tasks whose dataset is read by a class such as ``datamodules.galaxy10.Galaxy10``, by name."""
    found = {}
    for file in sorted((conf / "task").glob("*.yaml")):
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        chosen = [default[_DATA_OF_TASK] for default in content.pop("defaults", []) if _DATA_OF_TASK in default]
        if not chosen:
            continue
        data = yaml.safe_load((conf / "data" / f"{chosen[0]}.yaml").read_text(encoding="utf-8"))
        if data["_target_"] == source:
            found[file.stem] = Task.model_validate(content)
    return found


def _arguments_of_all(datasets: dict[str, dict[str, Any]] | None) -> Iterator[str]:
    for name, data in (datasets or {}).items():
        for text in checks.source_arguments(data):
            yield text.replace("data.", f"datasets.{name}.", 1)


def _arguments(data: dict[str, Any] | None) -> Iterator[str]:
    if data is not None:
        yield from checks.source_arguments(data)


def _task(data: dict[str, Any] | None, task: dict[str, Any] | None) -> Iterator[str]:
    source = None if data is None else data.get("_target_")
    if task is None and source is not None and not tasks_of(str(source)):
        yield (
            "task is missing: what is learned from this data? Give task=classification, task=regression or "
            "task=keypoints."
        )


def _sets(sets: list[str] | None, datasets: dict[str, Any] | None) -> Iterator[str]:
    if sets is None:
        return
    if datasets is None:
        yield f"sets={checks.show(sets)}: only data=all and data=sample have several sets."
        return
    for name in sets:
        if name not in datasets:
            hint = nearest(name, datasets) or f" Known: {checks.known(datasets)}."
            yield f"sets={checks.show(sets)}: there is no set {name}.{hint}"


class PrepareConfig(Strict):
    """Config of ``prepare.py``: either ``data`` or ``datasets``."""

    data: Data | None = Field(default=None, description="data=galaxy10, data=all, data=sample or another")
    datasets: dict[str, Data] | None = Field(default=None, description="a mapping name: keys of a dataset")
    task: Task | None = Field(default=None, description="a task: task=age_class, ...")
    download: bool = Field(description="true or false")
    image_size: int = Field(ge=8, le=4096, description="pixels of a side, 8 to 4096")
    sets: Annotated[list[Name], Field(min_length=1)] | None = Field(description="a list of sets, or null (all)")
    sample: Text | None = Field(default=None, description="a folder to draw into; set by data=sample")
    count: int = Field(ge=20, le=100_000, description="a number of examples, 20 to 100000")
    seed: int = Field(ge=0, lt=2**32, description="a whole number from 0 to 4294967295")
    logger: Logger = Field(default_factory=Logger, description="logger=wandb or csv")
    sweep: Sweep
    paths: Paths

    checks: ClassVar[tuple[Check, ...]] = (
        (("data",), _arguments),
        (("datasets",), _arguments_of_all),
        (("data", "task"), _task),
        (("sets", "datasets"), _sets),
    )

    @property
    def title(self) -> str:
        """What is prepared, in one word."""
        if self.data is None:
            return "sample" if self.sample else "all"
        return self.data.source.split(".")[-2]

    def chosen(self) -> dict[str, Data]:
        """The datasets to prepare by their key in commands."""
        if self.datasets is None:
            assert self.data is not None  # a missing ``data._target_`` is a fault
            return {self.title: self.data}
        return {name: data for name, data in self.datasets.items() if self.sets is None or name in self.sets}

    def tasks(self, data: Data) -> dict[str, Task]:
        """What is learned from a dataset: the task that was asked for, or all that are shipped for it."""
        if self.task is not None:
            return {self.task.name or self.task.kind: self.task}
        return tasks_of(data.source)
