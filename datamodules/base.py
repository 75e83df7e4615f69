"""What a dataset is: a place, a table of examples, and a way to read one picture."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from datamodules.decode import MAX_PIXELS, read_image
from launch.files import sha256_file

SPLITS = ("train", "val", "test")
BOX = ("left", "top", "right", "bottom")


@dataclass(frozen=True)
class Records:
    """The examples of a dataset as its own files tell them, before anything is filtered.

    Attributes:
        table: one row an example. Columns: ``key`` (unique, the same on every machine: posix path relative
            to the root, with "#i" for the i-th face of a picture, or "row 00012"); ``file`` (posix path
            relative to the root; absent when pixels do not come from files); optional ``left, top, right,
            bottom`` (crop box in picture pixels, may stick out); target columns (``label`` str, ``value``
            float, ``points`` float64 (K, 2) in picture pixels, or named ones such as ``age``); optional
            ``group`` (str, examples that must not be separated); optional ``split`` (official: train, val or
            test); any attribute columns. Picture pixels count from the picture's top left corner: the centre
            of the first pixel is (0.5, 0.5).
        dropped: reason -> how many examples the parser itself left out.
        classes: names in the official order; None where there is none (names are then sorted).
        notes: what a reader of the results should know.
    """

    table: pd.DataFrame
    dropped: dict[str, int] = field(default_factory=dict)
    classes: list[str] | None = None
    notes: list[str] = field(default_factory=list)


class Source(ABC):
    """One dataset at one place.

    Attributes:
        root: the folder it lies in.
        name: what result rows call the data.
        parallel: False when one reader must go through the pictures in the table's order (HDF5).
    """

    parallel = True

    def __init__(self, *, root: str | Path, name: str) -> None:
        self.root = Path(root).expanduser()
        self.name = name

    @abstractmethod
    def check(self) -> None:
        """Cheap look whether the data is there or could be fetched.

        Raises:
            DatasetNotFoundError: neither; the text says how to go on.
        """

    def prepare(self) -> None:
        """Fetches, verifies and unpacks what is missing."""
        self.check()

    @abstractmethod
    def records(self) -> Records:
        """Reads labels (and file names), not pixels.

        Raises:
            DataError: the labels cannot be used.
        """

    def read(self, row: dict[str, Any], max_pixels: int = MAX_PIXELS, side: int | None = None) -> np.ndarray:
        """The picture of one record, uint8 (H, W, 3) RGB, whole (crop boxes are applied by the cache).

        Args:
            row: one row of the records' table.
            max_pixels: pictures with more are refused before they are decoded.
            side: the picture is going to be shrunk to about this shorter side, so that a reader may return a
                picture reduced to no less than twice that. Given only where no box or point counts its
                pixels.

        Raises:
            BrokenImageError: the picture cannot be used.
        """
        return read_image(self.root / row["file"], max_pixels, side)

    def digest(self, row: dict[str, Any]) -> str:
        """Content hash (hex) of the picture of one record: equal pictures have equal hashes."""
        return sha256_file(self.root / row["file"])

    def stamp(self, row: dict[str, Any]) -> tuple[int, int]:
        """Size in bytes and mtime in ns of the picture's file; a kept hash is good while they last."""
        status = (self.root / row["file"]).stat()
        return status.st_size, status.st_mtime_ns
