"""UTKFace: 23,708 faces with age (1 to 116), gender and ethnicity, aligned and cropped to 200 x 200 px.

Paper and citation: Z. Zhang, Y. Song, H. Qi, "Age Progression/Regression by Conditional Adversarial Autoencoder",
CVPR 2017 (arXiv:1702.08423).
Licence: non-commercial research purposes only; the pictures' copyright stays with their owners.

Layout ``UTKFace/[age]_[gender]_[race]_[yyyymmddHHMMSSFFF].jpg.chip.jpg`` (in the wild: ``.jpg``). Eight published
names are odd: three lack one of gender and race, so that both are unknown here and only the age is used; five have a
blank, a missing dot, or 16 or 18 digits of time, which changes nothing. About 390 files are copies of others: they are
grouped by content. There is no official split, and who is who is not published.
"""

import functools
import re
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from datamodules.base import BOX, Records
from datamodules.decode import SUFFIXES
from datamodules.faces import detect_faces, enlarge
from datamodules.parquet import ParquetPictures
from datamodules.sources import Part, Publication, PublishedSource, RemoteFile
from launch.errors import DataError

AGE_CLASSES = {"0-3": 3, "4-16": 16, "17-30": 30, "31-45": 45, "46-59": 59, "60+": 116}  # name -> oldest
GENDERS = ("male", "female")
RACES = ("White", "Black", "Asian", "Indian", "Others")
_NAME = re.compile(r"(?P<age>\d{1,3})_(?:(?P<gender>[01])_(?P<race>[0-4])_|\d_)\d{14,18} ?\.?jpg(?:\.chip\.jpg)?")
_ARCHIVE = RemoteFile(
    "UTKFace.tar.gz",
    ("https://huggingface.co/datasets/py97/UTKFace-Cropped/resolve/main/UTKFace.tar.gz",),
    md5="ae1a16905fbd795db921ff1d940df9cc",
    about="107 MB",
)
PUBLICATION = Publication(
    key="utkface",
    title="UTKFace",
    licence="non-commercial research purposes only",
    url="https://susanqq.github.io/UTKFace/, https://huggingface.co/datasets/py97/UTKFace-Cropped",
    parts=(Part("UTKFace", (_ARCHIVE,), max_bytes=2_000_000_000),),
)


class UtkFace(PublishedSource):
    """Records with ``age`` (years), ``age_decades``, ``age_class``, ``gender``, ``race`` and the face's box."""

    publication = PUBLICATION

    def __init__(
        self,
        *,
        root: str | Path,
        name: str = "utkface",
        download: bool = False,
        format: Literal["auto", "files", "parquet"] = "auto",
        folder: str = "UTKFace",
        crop: Literal["face", "whole"] = "face",
        face_scale: float = 1.3,
        without_face: Literal["keep", "drop"] = "keep",
        cache_root: str | Path | None = None,
    ) -> None:
        """Takes the place (see ``PublishedSource``) and the crop.

        Args:
            root, name, download, format: as there; parquet files must be fetched by hand.
            folder: below root; another name for the copies that circulate as crop_part1, or the in-the-wild pictures.
            crop: "face" (found by dlib) or "whole" picture.
            face_scale: side of the crop in sides of the box found, which spans brows to chin.
            without_face: "keep" takes the whole picture (right for aligned chips), "drop" leaves it out (right for
                in-the-wild pictures).
            cache_root: folder in which the boxes found are kept; None finds them anew each time.
        """
        super().__init__(root=root, name=name, download=download, format=format)
        if crop not in ("face", "whole"):
            raise DataError(f"data.crop={crop} must be face or whole.")
        if without_face not in ("keep", "drop"):
            raise DataError(f"data.without_face={without_face} must be keep or drop.")
        if not face_scale > 0:
            raise DataError(f"data.face_scale={face_scale} must be more than 0.")
        part = replace(PUBLICATION.parts[0], folder=folder)
        self.publication = replace(PUBLICATION, parts=(part,))
        self.folder, self.crop, self.face_scale, self.without_face = folder, crop, face_scale, without_face
        self.cache_root = None if cache_root is None else Path(cache_root)

    def records(self) -> Records:
        """Reads the names and finds the faces.

        Raises:
            DataError: there is no picture with an age in its name.
        """
        read = self._names if self.parquet is None else functools.partial(self._mirrored, self.parquet)
        table, nameless = read()
        table["age_class"] = [age_class(age) for age in table["age"]]
        table["age"] = table["age"].astype("float64")
        table["age_decades"] = table["age"] / 10
        # Both age tasks draw and split by it, so that they learn and are tested on the same pictures.
        table["stratum"] = table["age_class"].map({name: index for index, name in enumerate(AGE_CLASSES)})
        dropped = {"no age in the name": nameless} if nameless else {}
        notes = ["people are not identified, so that one person may be in several splits"]
        unknown = int(table["gender"].isna().sum())
        if unknown:
            notes.append(f"{unknown} names lack gender or race; their age was used")
        if self.crop == "face":
            table = self._crop_faces(table, dropped, notes)
        return Records(table, dropped, list(AGE_CLASSES), notes)

    def _names(self) -> tuple[pd.DataFrame, int]:
        place = self.root / self.folder
        rows, nameless = [], 0
        for path in place.rglob("*"):
            if path.suffix.lower() not in SUFFIXES or path.name.startswith("."):
                continue
            facts = facts_of(path.name)
            if facts is None:
                nameless += 1
                continue
            rows.append((path.relative_to(self.root).as_posix(), *facts))
        if not rows:
            raise DataError(f"{place} has no pictures named [age]_[gender]_[race]_[time].jpg.chip.jpg.")
        table = pd.DataFrame(sorted(rows), columns=["file", "age", "gender", "race"])
        table.insert(0, "key", table["file"])
        return table, nameless

    def _mirrored(self, pictures: ParquetPictures) -> tuple[pd.DataFrame, int]:
        """Ages from a column ``age``, else from the pictures' names in whichever column has them."""
        given = pictures.table()
        facts: list[tuple[int, str | None, str | None] | None] | None = None
        if "age" in given:
            whole = pd.to_numeric(given["age"], errors="coerce").round()
            facts = [(int(age), None, None) if 0 <= age <= AGE_CLASSES["60+"] else None for age in whole]
        for column in () if facts is not None else ("path", "__key__", "file_name", "image_path", "filename", "name"):
            if column in given and any(found := [facts_of(str(name)) for name in given[column]]):
                facts = found
                break
        if facts is None:
            raise DataError(
                f"{self.root}: no column of the parquet files is age or has names such as "
                f"[age]_[gender]_[race]_[time].jpg; the columns are {', '.join(given.columns)}."
            )
        rows = [(key, *fact) for key, fact in zip(given["key"], facts, strict=True) if fact is not None]
        return pd.DataFrame(rows, columns=["key", "age", "gender", "race"]), len(facts) - len(rows)

    def _crop_faces(self, table: pd.DataFrame, dropped: dict[str, int], notes: list[str]) -> pd.DataFrame:
        pictures = self.parquet
        if pictures is None:
            sizes, boxes = detect_faces(self.root, list(table["file"]), self.cache_root, self.name)
        else:
            sizes, boxes = detect_faces(
                self.root, list(table["key"]), self.cache_root, self.name, read=pictures.read, stamp=pictures.stamp
            )
        found = np.isfinite(boxes).all(axis=1)
        notes.append(f"a face was found in {int(found.sum()):,} of {len(found):,} pictures")
        whole = np.concatenate([np.zeros_like(sizes), sizes], axis=1)
        table[list(BOX)] = np.where(found[:, None], enlarge(boxes, sizes, self.face_scale), whole)
        if self.without_face == "drop" and not found.all():
            dropped["no face found"] = int((~found).sum())
            table = table[found].reset_index(drop=True)
        return table


def facts_of(name: str) -> tuple[int, str | None, str | None] | None:
    """Age, gender and race as a picture's name tells them; gender and race may be missing, without an age it is None.

    Folders before the name are passed over, and so is a missing end: ``UTKFace/82_0_2_20170111210110290``.
    """
    name = name.rpartition("/")[2]
    match = _NAME.fullmatch(name if "jpg" in name else f"{name}.jpg")
    if match is None or int(match["age"]) > AGE_CLASSES["60+"]:
        return None
    gender = None if match["gender"] is None else GENDERS[int(match["gender"])]
    return int(match["age"]), gender, None if match["race"] is None else RACES[int(match["race"])]


def age_class(age: int) -> str:
    """Name of the class that an age in whole years belongs to."""
    return next(name for name, oldest in AGE_CLASSES.items() if age <= oldest)
