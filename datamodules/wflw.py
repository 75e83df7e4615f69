"""WFLW (Wider Facial Landmarks in-the-Wild): 98 points on 10,000 faces, with six attributes.

Paper and citation: W. Wu, C. Qian, S. Yang, Q. Wang, Y. Cai, Q. Zhou, "Look at Boundary: A Boundary-Aware Face
Alignment Algorithm", CVPR 2018 (arXiv:1805.10483).
Licence: none is given with the annotations; the pictures are WIDER FACE's (CC BY-NC-ND 4.0).

Layout ``WFLW_images/<event>/<name>.jpg`` and ``WFLW_annotations/list_98pt_rect_attr_train_test/*.txt``: 207 fields a
line: x0 y0 ... x97 y97 (pixels), rectangle x_min y_min x_max y_max, six attributes (0 | 1), picture. 7,500 faces train,
2,500 test. Points: contour 0-32, brows 33-50, nose 51-59, eyes 60-75, mouth 76-95, pupils 96-97.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from datamodules.base import BOX, Records
from datamodules.csv_files import read_lines
from datamodules.sources import Part, Publication, PublishedSource, RemoteFile
from launch.errors import DataError

POINTS = 98
ATTRIBUTES = ["pose", "expression", "illumination", "make_up", "occlusion", "blur"]
LISTS = {"train": ("list_98pt_rect_attr_train.txt", 7500), "test": ("list_98pt_rect_attr_test.txt", 2500)}
_LISTS_FOLDER = "WFLW_annotations/list_98pt_rect_attr_train_test"
_LISTS_ARCHIVE = RemoteFile(
    "WFLW_annotations.tar.gz", ("https://wywu.github.io/projects/LAB/support/WFLW_annotations.tar.gz",)
)
PUBLICATION = Publication(
    key="wflw",
    title="WFLW",
    licence="none given for the annotations; pictures CC BY-NC-ND 4.0 (WIDER FACE)",
    url="https://wywu.github.io/projects/LAB/WFLW.html (pictures: Google Drive 1hzBd48JIdWTJSsATBEB_eFVvPL1bx6UC)",
    parts=(
        Part("WFLW_images", (RemoteFile("WFLW_images.tar.gz"),), max_bytes=10_000_000_000),
        Part("WFLW_annotations", (_LISTS_ARCHIVE,), max_bytes=1_000_000_000),
    ),
)


class Wflw(PublishedSource):
    """Records with ``points`` (98, 2), box, six 0/1 attribute columns; all faces of a picture are one ``group``."""

    publication = PUBLICATION

    def __init__(self, *, root: str | Path, name: str = "wflw", download: bool = False, box_scale: float = 1.2) -> None:
        """Takes the place (see ``PublishedSource``) and the crop.

        Args:
            root, name, download: as there; only the annotations can be fetched, the pictures lie on Google Drive.
            box_scale: side of the square crop, in longer sides of the annotated rectangle (1.2: as PIPNet).
        """
        super().__init__(root=root, name=name, download=download)
        if not box_scale > 0:
            raise DataError(f"data.box_scale={box_scale} must be more than 0.")
        self.box_scale = box_scale

    def records(self) -> Records:
        """Reads the lists that are there; with one alone there is no ``split`` column.

        Raises:
            DataError: there is no list, or a line is not of the published form.
        """
        folder = self.root / _LISTS_FOLDER
        found = {split: folder / name for split, (name, _) in LISTS.items() if (folder / name).is_file()}
        if not found:
            raise DataError(f"{folder} has neither of {', '.join(name for name, _ in LISTS.values())}.")
        # test first, so that its keys do not depend on whether the train list is there
        tables = [_read_list(path).assign(split=split) for split, path in sorted(found.items())]
        table = pd.concat(tables, ignore_index=True)
        table["file"] = "WFLW_images/" + table["picture"]
        table["key"] = table["file"] + "#" + table.groupby("file").cumcount().astype(str)
        table["group"] = table["file"]
        half = (table[["x_max", "y_max"]].to_numpy() - table[["x_min", "y_min"]].to_numpy()).max(axis=1)
        half *= self.box_scale / 2
        for low, high, start, end in (("left", "right", "x_min", "x_max"), ("top", "bottom", "y_min", "y_max")):
            middle = (table[start] + table[end]) / 2
            table[low], table[high] = middle - half, middle + half
        notes = [
            f"{path.name} has {len(part):,} of the published {LISTS[split][1]:,} faces"
            for part, (split, path) in zip(tables, sorted(found.items()), strict=True)
            if len(part) != LISTS[split][1]
        ]
        columns = ["key", "file", *BOX, "points", "group", "split", *ATTRIBUTES]
        if len(found) == 1:
            notes.append(
                f"only the official {next(iter(found))} list is here: it is split by picture, unlike WFLW's own"
            )
            columns.remove("split")
        return Records(table[columns], notes=notes)


def _read_list(path: Path) -> pd.DataFrame:
    numbers, pictures, faults = [], [], []
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        *fields, picture = line.split()
        try:
            values = np.array(fields, np.float64)
        except ValueError:
            values = np.empty(0)
        outside = picture.startswith("/") or ".." in picture.split("/")
        if len(values) != 2 * POINTS + 10 or not np.isfinite(values).all() or outside:
            faults.append(f"  line {number}: {len(fields) + 1} fields, ends in {picture[-60:]}")
            continue
        numbers.append(values)
        pictures.append(picture)
    if faults or not numbers:
        raise DataError(
            f"{path}: {len(faults)} lines are not 206 numbers and a picture"
            + ":\n" * bool(faults) + "\n".join(faults[:5])
            + "\nThe file may be cut short: fetch it again."
        )  # fmt: skip
    values = np.stack(numbers)
    table = pd.DataFrame(values[:, 2 * POINTS : 2 * POINTS + 4], columns=["x_min", "y_min", "x_max", "y_max"])
    table["points"] = list(values[:, : 2 * POINTS].reshape(-1, POINTS, 2))
    table[ATTRIBUTES] = values[:, 2 * POINTS + 4 :].astype(np.int64)
    table["picture"] = pictures
    return table
