"""Where ``predict.py`` may write: nothing is replaced but its own earlier answers and drawings. No torch here."""

import csv
import glob
import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq

from launch.errors import CommandError
from launch.files import require_ours, require_replaceable
from merging.picture_list import matches

FRAME = ("file", "face", "left", "top", "right", "bottom")  # columns of each table, before those of the tasks
ERROR = "error"  # the last one
ANSWERS = "answers"  # the last key of a JSON line
DRAWN, DRAWINGS = "drawings.json", "drawings"  # beside drawings, and the key in it that names them
_LONGEST = 2**20  # characters that are read of a first line


def check_places(images: Sequence[str], output: str, pictures: str | None) -> None:
    """Cheap, unless ``images`` are globs and something lies where the answers or drawings go: then those are searched.

    Raises:
        CommandError: the answers would take the place of something else or of pictures that are asked about, or lie
            among the drawings; or the same command would be about its own drawings the next time.
        UserError: the drawings would take the place of something else.
    """
    check_output(images, output)
    if pictures is not None:
        check_drawn(images, pictures)
        folder = Path(pictures).expanduser().resolve()
        require_drawings(folder)
        if Path(output).expanduser().resolve().is_relative_to(folder):
            raise CommandError(
                f"output={output}: lies in pictures={pictures}, which is written as a whole. Name a file outside, or "
                "for the pictures a folder of their own."
            )


def check_output(images: Sequence[str], output: str) -> None:
    """Refuses a file that answers would replace though it is no earlier answers file, or is asked about.

    Raises:
        CommandError: it is such a file, or a folder.
    """
    path = Path(output).expanduser()
    if path.is_dir():
        raise CommandError(f"output={output}: there is a folder of that name; name a file.")
    if not path.exists():
        return
    for text in images:
        if any(file.exists() and file.samefile(path) for file in _named(text)):
            raise CommandError(f"output={output}: is one of images={text}, which it would replace. Name another file.")
    if path.stat().st_size and not _is_ours(path):
        raise CommandError(
            f"output={output}: there is a file of that name that predict.py has not written, and it would be lost. "
            "Name another file, or move this one away."
        )


def check_drawn(images: Sequence[str], pictures: str) -> None:
    """Refuses to draw answers into a folder whose pictures are asked about: the next time they would be, too.

    Raises:
        CommandError: it is such a folder, or a glob matches files in it.
    """
    place = Path(pictures).expanduser().resolve()
    for text in images:
        path = Path(text).expanduser()
        if path.is_dir():
            is_asked = place.is_relative_to(path.resolve())
        else:
            is_asked = any(folder.resolve().is_relative_to(place) for folder in {file.parent for file in _named(text)})
        if is_asked:
            raise CommandError(
                f"pictures={pictures}: holds some of images={text} or lies in it, so that the same command would "
                "answer its own drawings the next time. Name a folder outside."
            )


def require_drawings(folder: Path) -> None:
    """Refuses a folder that drawings would replace though it holds something else than earlier ones.

    Raises:
        UserError: it is such a folder, or a file.
    """
    require_replaceable(folder, DRAWN, DRAWINGS)
    if not (folder / DRAWN).is_file():
        return
    listed = json.loads((folder / DRAWN).read_text(encoding="utf-8"))[DRAWINGS]
    require_ours(folder, (DRAWN, *(map(str, listed) if isinstance(listed, list) else ())))


def _named(text: str) -> list[Path]:
    """The files that ``images`` names itself or by a glob; not those in a folder or a CSV."""
    path = Path(text).expanduser()
    if path.exists() or not glob.has_magic(text):
        return [path]
    return matches(path)


def _is_ours(path: Path) -> bool:
    try:
        if path.suffix.lower() == ".parquet":
            names = pq.read_schema(path).names
        else:
            with path.open(newline="", encoding="utf-8") as file:
                first = file.readline(_LONGEST)
            if path.suffix.lower() == ".jsonl":
                told = json.loads(first)
                return isinstance(told, dict) and [*told][:1] == ["file"] and [*told][-1] == ANSWERS
            names = next(csv.reader([first]), [])
    except (OSError, ValueError, RecursionError, csv.Error):  # a damaged file, or one of another kind
        return False
    return tuple(names[: len(FRAME)]) == FRAME and names[-1] == ERROR
