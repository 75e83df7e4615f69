"""ExpW (Expression in-the-Wild): 91,793 faces on web pictures, in seven expressions.

Paper and citation: Z. Zhang, P. Luo, C. C. Loy, X. Tang, "From Facial Expression Recognition to Interpersonal Relation
Prediction", International Journal of Computer Vision 126, 2018 (arXiv:1609.06426).
Licence: none is given with the data; web pictures, so research use only.

Layout ``image/origin/<name>.jpg`` and ``label/label.lst``: one line a face, in the order name, face number, box
**top, left, right, bottom**, confidence, expression. There is no official split, and pictures have several faces.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from datamodules.base import BOX, Records
from datamodules.csv_files import read_lines
from datamodules.file_index import per_file
from datamodules.sources import Part, Publication, PublishedSource, RemoteFile
from launch.errors import DataError

CLASSES = ["angry", "disgust", "fear", "happy", "sad", "surprise", "neutral"]
_COLUMNS = ["picture", "face", "top", "left", "right", "bottom", "confidence", "label"]
_VOLUMES = tuple(
    RemoteFile(
        f"image/origin.7z.{volume:03d}",
        about="of 8, over 8 GB in all",
        also="image/origin.7z.001.001" if volume == 1 else None,
    )
    for volume in range(1, 9)
)
PUBLICATION = Publication(
    key="expw",
    title="ExpW",
    licence="none given; research use only",
    url="http://mmlab.ie.cuhk.edu.hk/projects/socialrelation/index.html",
    parts=(
        Part("image/origin", _VOLUMES, max_bytes=40_000_000_000),
        Part("label/label.lst", (RemoteFile("label/label.lst"),), max_bytes=0),
    ),
)


class ExpW(PublishedSource):
    """Records with ``label``, box, ``confidence``; all faces of a picture are one ``group``."""

    publication = PUBLICATION

    def __init__(
        self,
        *,
        root: str | Path,
        name: str = "expw",
        download: bool = False,
        min_confidence: float = 10.0,
        cache_root: str | Path | None = None,
    ) -> None:
        """Takes the place (see ``PublishedSource``) and the threshold.

        Args:
            root: folder that holds ``image`` and ``label`` (the publisher's folder ``data``).
            name, download: as there; no direct link is known, so that all must be fetched by hand.
            min_confidence: the face detector's score (0 to about 130) below which a line is left out.
            cache_root: folder in which the pictures' sizes are kept; None reads them anew each time.
        """
        super().__init__(root=root, name=name, download=download)
        self.min_confidence = min_confidence
        self.cache_root = None if cache_root is None else Path(cache_root)

    def records(self) -> Records:
        """Reads the list, and the size of every picture so that boxes end where the picture does.

        Raises:
            DataError: a line is not of the published form, or no listed picture is there.
        """
        table = _read_list(self.root / "label" / "label.lst")
        dropped: dict[str, int] = {}
        notes: list[str] = []

        def keep(table: pd.DataFrame, mask: Sequence[bool], reason: str) -> pd.DataFrame:
            chosen = np.asarray(mask, bool)
            if not chosen.all():
                dropped[reason] = int((~chosen).sum())
            return table[chosen].reset_index(drop=True)

        there = {path.name for path in (self.root / "image" / "origin").iterdir()}
        table = keep(table, [name in there for name in table["picture"]], "picture is not in image/origin")
        if table.empty:
            raise DataError(f"None of the pictures in label/label.lst is in {self.root / 'image' / 'origin'}.")
        if dropped:
            notes.append("only a part of the listed pictures is here")
        table = keep(table, table["confidence"] >= self.min_confidence, f"confidence below {self.min_confidence:g}")
        table["file"] = "image/origin/" + table["picture"]
        table["key"] = table["file"] + "#" + table["face"].astype(str)
        table = keep(table, ~table["key"].duplicated(), "face listed twice")
        index = None if self.cache_root is None else self.cache_root / f"{self.name}-sizes.parquet"
        sizes = per_file(
            self.root, list(table["file"]), _size, ["width", "height"], index, f"Reading sizes of {self.name}"
        )
        table[list(BOX)] = np.clip(table[list(BOX)].to_numpy(), 0.0, np.tile(sizes, 2))
        inside = (table["right"] - table["left"] >= 2) & (table["bottom"] - table["top"] >= 2)
        table = keep(table, inside, "box outside the picture")
        table["group"] = table["file"]
        columns = ["key", "file", *BOX, "label", "group", "confidence"]
        return Records(table[columns], dropped, CLASSES, notes)


def _read_list(path: Path) -> pd.DataFrame:
    rows, faults = [], []
    for number, line in enumerate(read_lines(path), start=1):
        fields = line.split()
        if not fields:
            continue
        try:
            name, face, *box, confidence, expression = fields
            top, left, right, bottom = map(float, box)
            if int(expression) < 0:
                raise IndexError(expression)
            rows.append((name, int(face), top, left, right, bottom, float(confidence), CLASSES[int(expression)]))
        except (ValueError, IndexError):
            faults.append(f"  line {number}: {line[:100]}")
    if faults:
        raise DataError(
            f"{path}: {len(faults)} lines are not 'name face top left right bottom confidence expression(0-6)':\n"
            + "\n".join(faults[:5])
            + "\nThe file may be cut short: fetch it again."
        )
    return pd.DataFrame(rows, columns=_COLUMNS)


def _size(path: Path) -> tuple[float, float]:
    """Width and height from the header; infinite where unreadable (the pixel cache will name it)."""
    try:
        with Image.open(path) as image:
            width, height = image.size
            turned = image.getexif().get(0x0112, 1) >= 5
        return (height, width) if turned else (width, height)
    except (OSError, SyntaxError, ValueError):
        return math.inf, math.inf
