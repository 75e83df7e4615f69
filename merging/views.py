"""How each task of a model looks at a picture and what its output means: read from the cards of its adapters."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datamodules.crop import Fit
from launch.bundles import CARD
from launch.errors import AdapterError
from lightning_modules.tasks import Task

NAME = re.compile(r"[a-z0-9_]+")  # of a task: it becomes a folder, a column and an ONNX output
_FACE_SOURCES = {  # sources that cut around a face's box, and their argument that enlarges it
    "datamodules.expw.ExpW": "",
    "datamodules.wflw.Wflw": "box_scale",
    "datamodules.utkface.UtkFace": "face_scale",
}

FITS: dict[str, Fit] = {"crop": "crop", "pad": "pad", "squash": "squash"}


@dataclass(frozen=True)
class View:
    """One task as users of a model need it.

    Attributes:
        task: name, kind, classes, ...
        fit: how pictures become square, as in training.
        face_scale: side of the crop in sides of the face's box; None where training took whole pictures.
        factor: what the output is multiplied by to be in ``unit``: age is learned in decades.
        unit: of numbers, "" where there is none.
    """

    task: Task
    fit: Fit
    face_scale: float | None = None
    factor: float = 1.0
    unit: str = ""

    @property
    def columns(self) -> list[str]:
        """What a table's columns of its answers are called.

        ``<task>`` and ``<task>_probability`` of classes, ``<task>`` or ``<task>_<unit>`` of numbers, and ``<task>_x0``,
        ``<task>_y0``, ... of points in picture pixels.
        """
        name = self.task.name
        if self.task.kind == "classification":
            return [name, f"{name}_probability"]
        if self.task.kind == "regression":
            return [f"{name}_{self.unit}" if self.unit else name]
        return [f"{name}_{axis}{point}" for point in range(self.task.outputs // 2) for axis in "xy"]


def require_own_columns(views: Mapping[str, View]) -> None:
    """Refuses tasks whose answers no table could hold side by side.

    Raises:
        AdapterError: two of them have a column of the same name.
    """
    owners: dict[str, str] = {}
    for name, view in views.items():
        for column in view.columns:
            if column in owners:
                raise AdapterError(
                    f"Tasks {owners[column]} and {name} would both answer in the column {column} of a table. Leave one "
                    "of them out (tasks=[...]), or train it under another name (name=...)."
                )
            owners[column] = name


def read_view(task: Task, fit: str | None, card: Mapping[str, Any]) -> View:
    """The view of a task.

    Args:
        fit: from the card that tells it.
        card: of its adapter; may be empty, then pictures are taken whole and numbers as they come.
    """
    config = card.get("config") or {}
    source = config.get("data") or {}
    target = str(source.get("_target_"))
    if target in _FACE_SOURCES:
        scale = float(source.get(_FACE_SOURCES[target], 1.0)) if source.get("crop", "face") == "face" else None
    else:
        scale = source.get("box_scale")
    decades = (config.get("task") or {}).get("target") == "age_decades"
    return View(
        task=task,
        fit=FITS.get(str(fit), "crop"),
        face_scale=None if scale is None else float(scale),
        factor=10.0 if decades else 1.0,
        unit="years" if decades else "",
    )


def read_card(folder: Path) -> dict[str, Any]:
    """The card of a bundle.

    Raises:
        AdapterError: there is none, or it is no JSON object.
    """
    try:
        card = json.loads((folder / CARD).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise AdapterError(f"{folder / CARD} is missing or no card of ours ({error}); make the model again.") from error
    if not isinstance(card, dict):
        raise AdapterError(f"{folder / CARD} is no card of ours but a {type(card).__name__}; make the model again.")
    return card


def check_name(name: str, place: Path) -> str:
    """The name itself.

    Raises:
        AdapterError: it is no name of a task; it might be a path.
    """
    if not NAME.fullmatch(name):
        raise AdapterError(f"{place}: {name!r} is no name of a task (a-z, 0-9 and _); the bundle is not one of ours.")
    return name
