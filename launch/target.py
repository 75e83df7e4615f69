"""The one place where a class named in a config is imported."""

import importlib
from typing import Any

from launch.checks import source_file
from launch.errors import CommandError


def instantiate(target: str, arguments: dict[str, Any]) -> Any:
    """Makes the object of a ``_target_`` such as ``datamodules.image_csv.ImageCsv``.

    Raises:
        CommandError: the class is not one of ours. Nothing else is ever imported by name.
    """
    file, name = source_file(target)
    if file is None or not file.is_file():
        raise CommandError(f"data._target_={target}: no such data source of ours.")
    return getattr(importlib.import_module(target.rpartition(".")[0]), name)(**arguments)
