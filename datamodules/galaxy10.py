"""Galaxy10 DECaLS: 17,736 galaxies in ten classes of shape, 256 x 256 px, g, r and z bands as RGB.

Paper and origin: H. W. Leung, J. Bovy, https://github.com/henrysky/Galaxy10; labels from Galaxy Zoo (Lintott et al.
2008, 2011; Walmsley et al. 2021), pictures from the DESI Legacy Imaging Surveys (Dey et al. 2019). To be cited:
Galaxy Zoo and the Legacy Surveys, as the repository's acknowledgements ask. Licence: MIT for the repository.
One file of 2.54 GB with the keys ``images`` (N, 256, 256, 3) uint8, ``ans``, ``ra``, ``dec``, ``redshift`` and
``pxscale`` (arcsec per pixel); no official split. (Zenodo 10844811 is the older Galaxy10 of 69 px and other classes.)

Known defects, dealt with here: rows with equal pixels and rows of equal (ra, dec), at times under two classes (never
separated by a split), and a group of constant pictures (left out, counted; those of the mirror as broken pictures, when
they are decoded for the pixel cache). "Cigar Shaped Smooth" has 334 rows only; the shipped config leaves it out through
``classes``.
"""

import hashlib
import logging
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
import pandas as pd

from datamodules.base import Records
from datamodules.decode import MAX_PIXELS, BrokenImageError
from datamodules.parquet import ParquetPictures, label_names
from datamodules.sources import Part, Publication, PublishedSource, RemoteFile, hub_files
from launch.errors import DataError, UserError
from launch.files import atomic_write, sha256_file
from launch.progress import track

log = logging.getLogger(__name__)

FILE_NAME = "Galaxy10_DECals.h5"
ROWS = 17_736
CLASSES = (
    "Disturbed", "Merging", "Round Smooth", "In-between Round Smooth", "Cigar Shaped Smooth", "Barred Spiral",
    "Unbarred Tight Spiral", "Unbarred Loose Spiral", "Edge-on without Bulge", "Edge-on with Bulge",
)  # fmt: skip
_SHA256 = "19aefc477c41bb7f77ff07599a6b82a038dc042f889a111b0d4d98bb755c1571"
_FILE = RemoteFile(
    FILE_NAME,
    (
        f"https://zenodo.org/records/10845026/files/{FILE_NAME}",
        f"https://astro.utoronto.ca/~hleung/shared/Galaxy10/{FILE_NAME}",
    ),
    sha256=_SHA256,
    about="2.54 GB",
)


class Galaxy10(PublishedSource):
    """The HDF5 file as published, or one of the same layout.

    Args:
        root: folder of ``Galaxy10_DECals.h5``.
        download: may the file be fetched when it is not there?
        name: of the data in result rows.
    """

    publication = Publication(
        key="galaxy10",
        title="Galaxy10 DECaLS",
        licence="MIT (the repository); cite Galaxy Zoo and the Legacy Surveys",
        url="https://zenodo.org/records/10845026",
        parts=(Part(FILE_NAME, (_FILE,), 4 * 10**9),),
        mirror=hub_files(
            "matthieulel/galaxy10_decals/resolve/0c1bdb4e157d7d86cc95f67d8895d354a28f7561",
            {f"default/train/{number:04d}.parquet": "458 MB" for number in range(5)}
            | {"default/test/0000.parquet": "255 MB"},
        ),
    )
    parallel = False

    def __init__(
        self,
        root: str | Path = "data/galaxy10",
        download: bool = False,
        name: str = "galaxy10",
        format: Literal["auto", "files", "parquet"] = "auto",
    ) -> None:
        super().__init__(root=root, name=name, download=download, format=format)
        self.path = self.root / FILE_NAME
        self._images: h5py.Dataset | None = None
        self._block: tuple[int, np.ndarray] = (0, np.empty((0, 0, 0, 3), np.uint8))

    def prepare(self) -> None:
        """Fetches the file when allowed, and checks its sha256 when it has as many rows as the published one.

        Raises:
            DataError: it has, but not the published bytes.
            UserError: as ``PublishedSource.prepare``.
        """
        super().prepare()
        if self.parquet is None and len(self._open()) == ROWS:
            self._verify()

    def records(self) -> Records:
        """One row a galaxy: key "row 00012", label, group (ra and dec equal to 1e-4 degrees), ra, ....

        Raises:
            DataError: not an HDF5 file of this layout.
        """
        if self.parquet is not None:
            self.parallel = True
            return self._mirrored(self.parquet)
        images = self._open()
        columns = {key: np.asarray(images.parent[key]) for key in ("ans", "ra", "dec")}
        table = pd.DataFrame({"key": [f"row {row:05d}" for row in range(len(images))]})
        if columns["ans"].min() < 0 or columns["ans"].max() >= len(CLASSES):
            raise DataError(
                f"{self.path}: labels from {columns['ans'].min()} to {columns['ans'].max()}, wanted 0 to 9."
            )
        table["label"] = [CLASSES[answer] for answer in columns["ans"]]
        table["group"] = [_place(ra, dec) for ra, dec in zip(columns["ra"], columns["dec"], strict=True)]
        for key in ("ra", "dec", "redshift", "pxscale"):
            if key in images.parent:
                table[key] = np.asarray(images.parent[key], np.float64)
        constant = self._constant_rows(images)
        table = table.drop(index=constant).reset_index(drop=True)
        notes = [] if len(images) == ROWS else [f"not the published file: {len(images)} rows instead of {ROWS}"]
        return Records(table, {"constant picture": len(constant)} if constant else {}, list(CLASSES), notes)

    def read(self, row: dict[str, Any], max_pixels: int = MAX_PIXELS, side: int | None = None) -> np.ndarray:
        """Pixels of one row; rows asked for in rising order are read and decompressed once.

        Raises:
            BrokenImageError: as ``Source.read``; or a picture of the mirror, which ``records`` knows by its label only,
                is constant.
        """
        if self.parquet is not None:
            picture = super().read(row, max_pixels, side)
            if np.ptp(picture[len(picture) // 2]) == 0 and np.ptp(picture) == 0:  # the middle line tells most apart
                raise BrokenImageError("constant picture")
            return picture
        images = self._open()
        number = int(row["key"].removeprefix("row "))
        first, block = self._block
        if not first <= number < first + len(block):
            rows = images.chunks[0] if images.chunks else 1
            first = number - number % rows
            block = images[first : first + rows]
            self._block = first, block
        return block[number - first]

    def digest(self, row: dict[str, Any]) -> str:
        if self.parquet is not None:
            return super().digest(row)
        return hashlib.sha256(self.read(row).tobytes()).hexdigest()

    def stamp(self, row: dict[str, Any]) -> tuple[int, int]:
        if self.parquet is not None:
            return super().stamp(row)
        status = self.path.stat()
        return status.st_size, status.st_mtime_ns

    def _mirrored(self, pictures: ParquetPictures) -> Records:
        table = pictures.table()
        if "label" not in table:
            raise DataError(f"{self.root}: the parquet files have no column label, only {', '.join(table.columns)}.")
        table["label"] = label_names(pictures, list(table["label"]), "label", CLASSES)
        notes = [
            "read from the Hub's mirror, which has no coordinates: only pictures of equal bytes are kept together",
            "the mirror's own split into train and test is a random one and was not used",
        ]
        return Records(table[["key", "label"]], {}, list(CLASSES), notes)

    def _open(self) -> h5py.Dataset:
        if self._images is not None:
            return self._images
        self.check()
        try:
            file = h5py.File(self.path, "r")
        except OSError as error:
            raise DataError(f"{self.path} is not a whole HDF5 file: {error}. Delete it and fetch it again.") from error
        missing = [key for key in ("images", "ans", "ra", "dec") if key not in file]
        if missing:
            raise DataError(f"{self.path} has no key {', '.join(missing)}; it has {', '.join(file)}.")
        images = file["images"]
        rows, *shape = images.shape
        if len(shape) != 3 or shape[2] != 3 or images.dtype != np.uint8 or min(shape[:2]) < 2:
            raise DataError(f"{self.path}: images are {images.dtype} {images.shape}, wanted uint8 (N, 256, 256, 3).")
        if shape[0] == 69:
            raise DataError(
                f"{self.path} holds pictures of 69 px: the older Galaxy10 SDSS, which has other classes. "
                f"Galaxy10 DECaLS is at {self.publication.url}."
            )
        lengths = {key: len(file[key]) for key in ("ans", "ra", "dec")}
        if set(lengths.values()) != {rows} or not rows:
            raise DataError(f"{self.path}: {rows} images, but {lengths}.")
        self._images = images
        return images

    def _constant_rows(self, images: h5py.Dataset) -> list[int]:
        """Pictures of one value only; the middle line tells most apart, and only the rest is read whole."""
        middle = images.shape[1] // 2
        step = max(1024, images.chunks[0] if images.chunks else 0)
        suspects: list[int] = []
        starts = range(0, len(images), step)
        for start in track(starts, "Looking for constant pictures") if len(starts) > 4 else starts:
            lines = images[start : start + step, middle].reshape(-1, images.shape[2] * 3)
            suspects += (start + np.flatnonzero((lines == lines[:, :1]).all(1))).tolist()
        return [row for row in suspects if np.ptp(self.read({"key": f"row {row:05d}"})) == 0]

    def _verify(self) -> None:
        """Compares the sha256 once; the outcome lies beside the file as long as its size and mtime stay."""
        memo = self.path.with_name(f".{FILE_NAME}.verified")
        stamp = "{} {}\n".format(*self.stamp({}))
        if memo.is_file() and memo.read_text(encoding="utf-8") == stamp:
            return
        log.info("Checking the sha256 of %s (2.54 GB)", self.path)
        found = sha256_file(self.path)
        if found != _SHA256:
            raise DataError(
                f"{self.path} has the published {ROWS} rows but not the published bytes: its sha256 is {found}, "
                f"wanted {_SHA256}. Delete it and fetch it again."
            )
        try:
            atomic_write(memo, stamp)
        except UserError as error:
            log.info("The check will be repeated next time: %s", error)


def _place(ra: float, dec: float) -> str | None:
    """Position to 1e-4 degrees (0.4 arcsec, about a pixel); None when unknown."""
    return f"{ra:.4f} {dec:.4f}" if np.isfinite(ra) and np.isfinite(dec) else None
