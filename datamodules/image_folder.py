"""Pictures sorted into one folder per class.

``python train.py task=classification name=... data=image_folder data.root=DIR``
"""

import os
from pathlib import Path

import pandas as pd

from datamodules.base import Records, Source
from datamodules.decode import SUFFIXES
from datamodules.splits import split_name
from launch.errors import DataError, DatasetNotFoundError

_SPLIT_FOLDERS = {"train", "val", "valid", "validation", "test"}
_SHOWN = 5


class ImageFolder(Source):
    """Class = name of the first folder level below the root; deeper folders may be anything.

    When the first level is nothing but train, val (or valid, validation) and test, at least train and one
    more, these are official splits and the classes are one level below. Files without a picture's suffix are
    left out and counted; names that begin with a dot are passed over.

    Args:
        root: the folder.
        name: of the data in result rows; the root folder's own name by default.
    """

    def __init__(self, root: str | Path, name: str | None = None) -> None:
        super().__init__(root=root, name=name or Path(root).expanduser().resolve().name)

    def check(self) -> None:
        if not self.root.is_dir():
            raise DatasetNotFoundError(
                f"There is no folder {self.root}. "
                "Name the folder that holds one folder of pictures per class: data.root=DIR"
            )

    def records(self) -> Records:
        """Reads the names.

        Raises:
            DataError: there is no picture, or names of pictures or of their folders are not UTF-8.
        """
        self.check()
        splits = self._split_folders()
        rows: list[tuple[str, str, str | None]] = []
        other = loose = 0
        for file in _walk(self.root):
            parts = file.split("/")
            split = split_name(parts[0]) if splits else None
            inner = parts[1:] if splits else parts
            if not file.lower().endswith(SUFFIXES):
                other += 1
            elif len(inner) < 2:
                loose += 1
            else:
                rows.append((file, inner[0], split))
        if nameless := sorted({_undecoded(file) for file, _, _ in rows} - {""}):
            raise DataError(
                f"{self.root}: {len(nameless)} names are not UTF-8, as archives of old Windows programs make them: "
                f"{', '.join(nameless[:_SHOWN])}{', ...' * (len(nameless) > _SHOWN)}. Rename them, e.g. with convmv."
            )
        if not rows:
            raise DataError(
                f"{self.root} has no pictures in class folders"
                + (f" ({loose} lie outside any class folder)" if loose else "")
                + f". Wanted: {self.root}/CLASS/PICTURE with one of the suffixes {' '.join(SUFFIXES)}."
            )
        table = pd.DataFrame(rows, columns=["file", "label", "split"])
        table.insert(0, "key", table["file"])
        counted = {"not a picture by its name": other, "not in a class folder": loose}
        dropped = {reason: count for reason, count in counted.items() if count}
        return Records(table if splits else table.drop(columns="split"), dropped)

    def _split_folders(self) -> bool:
        names = {entry.name.lower() for entry in os.scandir(self.root) if entry.is_dir() and entry.name[0] != "."}
        return names <= _SPLIT_FOLDERS and "train" in names and len(names) > 1


def _undecoded(file: str) -> str:
    """``file`` up to its first folder or name that is not UTF-8, with those bytes escaped; empty where all are."""
    try:
        file.encode()
    except UnicodeEncodeError as error:
        end = file.find("/", error.start)
        return os.fsencode(file if end < 0 else file[:end]).decode("utf-8", "backslashreplace")
    return ""


def _walk(root: Path) -> list[str]:
    """Sorted posix paths of all files below root; links to folders are followed, circles are not."""
    found: list[str] = []
    seen: set[str] = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        inside = Path(folder).relative_to(root)
        found += [(inside / name).as_posix() for name in files if not name.startswith(".")]
    return sorted(found)
