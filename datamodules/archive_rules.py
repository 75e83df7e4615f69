"""What an archive may unpack to: plain files and folders, inside, and not too much."""

import re
from pathlib import Path, PurePosixPath

from datamodules.sources import human_bytes
from launch.errors import DataError

MAX_FILES = 2_000_000
MAX_RATIO = 100  # unpacked to packed; pictures and their lists stay below 20
RATIO_FLOOR = 100_000_000  # bytes; smaller outputs may have any ratio: an empty table packs 1,000 to 1


class Budget:
    """Counts what an archive unpacks to, against its limits."""

    def __init__(self, archive: Path, max_bytes: int) -> None:
        self.archive = archive
        packed = sum(path.stat().st_size for path in _volumes(archive))
        self.limit = min(max_bytes, max(MAX_RATIO * packed, RATIO_FLOOR))
        self.spent = self.files = 0

    def spend(self, count: int) -> None:
        """Adds unpacked bytes.

        Raises:
            DataError: there are now too many.
        """
        self.spent += count
        if self.spent > self.limit:
            raise DataError(
                f"{self.archive} unpacks to more than {human_bytes(self.limit)}, which is more than the dataset or "
                f"than {MAX_RATIO} times its own size: it is not the published archive. Delete it and fetch it again."
            )

    def enter(self) -> None:
        """Adds an entry.

        Raises:
            DataError: there are now too many.
        """
        self.files += 1
        if self.files > MAX_FILES:
            raise DataError(f"{self.archive} has more than {MAX_FILES:,} entries: it is not the published archive.")


def _volumes(archive: Path) -> list[Path]:
    if not archive.name.endswith(".001"):
        return [archive]
    return sorted(path for path in archive.parent.glob(archive.stem + ".*") if path.suffix[1:].isdigit())


def target_of(name: str, archive: Path, folder: Path) -> Path:
    """Where an entry goes.

    Raises:
        DataError: that could be outside ``folder``.
    """
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or re.match(r"[A-Za-z]:", name) or "\0" in name:
        raise DataError(f"{archive} has an entry outside its own folder: {name!r}. It was not unpacked.")
    return folder / path


def special_entry(name: str, kind: str, archive: Path) -> DataError:
    """The error for a link, device, pipe or the like."""
    return DataError(f"{archive} has an entry that is no plain file or folder: {name!r} ({kind}). It was not unpacked.")
