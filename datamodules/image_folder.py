"""Pictures sorted into one folder per class.

``python train.py task=classification name=... data=image_folder data.root=DIR``
"""

import os
from pathlib import Path

import pandas as pd

from datamodules.base import Records, Source
from datamodules.decode import SUFFIXES
from datamodules.splits import SPELLINGS, split_name
from launch.errors import DataError, DatasetNotFoundError

_SHOWN = 5


class ImageFolder(Source):
    """Class = name of the first folder level below the root; deeper folders may be anything.

    When the pictures of the first level lie in nothing but train (or training), val (valid, validation, dev) and test
    (testing), at least train and one more, these are official splits and the classes are one level below. Files
    without a picture's suffix are left out and counted; names that begin with a dot are passed over.

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
            DataError: there is no picture, names of pictures or of their folders are not UTF-8, or folders of splits
                lie beside others.
        """
        self.check()
        files = _walk(self.root)
        splits = self._has_splits(files)
        rows: list[tuple[str, str, str | None]] = []
        other = loose = 0
        for file in files:
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

    def _has_splits(self, files: list[str]) -> bool:
        folders = {file.split("/")[0] for file in files if "/" in file and file.lower().endswith(SUFFIXES)}
        splits = {name: split for name in sorted(folders) if (split := SPELLINGS.get(name.lower())) is not None}
        found = set(splits.values())
        if "train" not in found or len(found) < 2:
            return False
        if others := sorted(folders - set(splits)):
            pictures = [file for file in files if file.split("/")[0] in splits and file.lower().endswith(SUFFIXES)]
            if any(file.count("/") < 2 for file in pictures):
                return False  # pictures lie in them without a class: they are classes
            raise DataError(
                f"{self.root}: {', '.join(splits)} look like splits and lie beside {', '.join(others[:_SHOWN])}"
                f"{', ...' * (len(others) > _SHOWN)}. Move the others elsewhere if these are splits; rename these "
                "if all are classes."
            )
        return True


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
