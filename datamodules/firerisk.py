"""FireRisk: wildfire risk of 91,872 aerial tiles of the United States (NAIP, 320 x 320 px of 1 m), in seven classes.

Paper and citation: S. Shen, S. Seneviratne, X. Wanyan, M. Kirley, "FireRisk: A Remote Sensing Dataset for Fire Risk
Assessment with Benchmarks Using Supervised and Self-supervised Learning", DICTA 2023 (arXiv:2303.07035).
Licence: CC BY-NC 4.0 (as torchgeo gives it; the authors' repository has no licence file).

Layout ``FireRisk/<train|val>/<class>/<point id>_<grid code>_<longitude>_<latitude>.png``. There is no official test
split and the authors publish their scores on ``val``: so val is the test split here, and validation is carved from
train. Neighbouring tiles lie in both official splits; ``split="spatial"`` keeps whole blocks of land together instead.
"""

import math
import re
from pathlib import Path
from typing import Literal

import pandas as pd

from datamodules.base import Records
from datamodules.parquet import ParquetPictures, label_names
from datamodules.sources import Part, Publication, PublishedSource, RemoteFile, hub_files
from launch.errors import DataError

CLASSES = ["High", "Low", "Moderate", "Non-burnable", "Very_High", "Very_Low", "Water"]
_GRID_CODES = {1: "Very_Low", 2: "Low", 3: "Moderate", 4: "High", 5: "Very_High", 6: "Non-burnable", 7: "Water"}
_NAME = re.compile(r"\d+_(?P<code>\d+)_(?P<x>-?\d+(?:\.\d+)?)_(?P<y>-?\d+(?:\.\d+)?)")
_REVISION = "https://huggingface.co/datasets/torchgeo/fire_risk/resolve/e6046a04350c6f1ab4ad791fb3a40bf8940be269"
_ARCHIVE = RemoteFile(
    "FireRisk.zip", (f"{_REVISION}/FireRisk.zip",), md5="a77b9a100d51167992ae8c51d26198a6", about="15.2 GB"
)
PUBLICATION = Publication(
    key="firerisk",
    title="FireRisk",
    licence="CC BY-NC 4.0",
    url="https://github.com/CharmonyShen/FireRisk (Google Drive), https://huggingface.co/datasets/torchgeo/fire_risk",
    parts=(Part("FireRisk", (_ARCHIVE,), max_bytes=40_000_000_000),),
    mirror=hub_files(
        "blanchon/FireRisk/resolve/234b2e7fe6be2da773472e83bd4d42cc9815a630",
        {f"data/train-{number:05d}-of-00024.parquet": "of 24, 11.6 GB in all" for number in range(24)},
    ),
)


class FireRisk(PublishedSource):
    """Records with ``label``, ``longitude`` and ``latitude`` (degrees), and ``split`` or (spatial split) ``group``."""

    publication = PUBLICATION

    def __init__(
        self,
        *,
        root: str | Path,
        name: str = "firerisk",
        download: bool = False,
        format: Literal["auto", "files", "parquet"] = "auto",
        split: Literal["official", "spatial"] = "official",
        block: float = 0.25,
    ) -> None:
        """Takes the place (see ``PublishedSource``) and the kind of split.

        Args:
            root, name, download, format: as there; the mirror has the train tiles only, and no coordinates.
            split: "official" (train; val as test) or "spatial" (groups of one block, official splits ignored).
            block: side of a block in degrees of longitude and latitude, about 28 km north to south at 0.25.
        """
        super().__init__(root=root, name=name, download=download, format=format)
        if split not in ("official", "spatial"):
            raise DataError(f"data.split={split} must be official or spatial.")
        if not block > 0:
            raise DataError(f"data.block={block} must be more than 0 degrees.")
        self.split, self.block = split, block

    def records(self) -> Records:
        """Reads the tree's names.

        Raises:
            DataError: there is no picture in it.
        """
        if self.parquet is not None:
            return self._mirrored(self.parquet)
        rows, unplaced, other = [], 0, 0
        for folder, split in (("train", "train"), ("val", "test")):
            for label in CLASSES:
                place = self.root / "FireRisk" / folder / label
                names = [path.name for path in place.iterdir()] if place.is_dir() else []
                for name in sorted(name for name in names if name.endswith(".png") and not name.startswith(".")):
                    match = _NAME.fullmatch(name.removesuffix(".png"))
                    x, y = (float(match["x"]), float(match["y"])) if match else (math.nan, math.nan)
                    other += match is not None and _GRID_CODES.get(int(match["code"])) != label
                    if match is None:
                        unplaced += 1
                        if self.split == "spatial":
                            continue
                    rows.append((f"FireRisk/{folder}/{label}/{name}", label, split, x, y))
        if not rows:
            raise DataError(f"{self.root / 'FireRisk'} has no pictures below train/<class> and val/<class>.")
        table = pd.DataFrame(rows, columns=["file", "label", "split", "longitude", "latitude"])
        table.insert(0, "key", table["file"])
        notes = [f"{other} tiles lie in another class's folder than their name says; the folder counts"] * (other > 0)
        if self.split == "official":
            notes.append("the official val split is the test split; neighbouring tiles may lie on both sides")
            return Records(table, {}, CLASSES, notes)
        columns = (table["longitude"] // self.block).astype(int), (table["latitude"] // self.block).astype(int)
        table["group"] = [f"{column}:{row}" for column, row in zip(*columns, strict=True)]
        dropped = {"no coordinates in the name": unplaced} if unplaced else {}
        notes.append(f"split by blocks of {self.block:g} degrees; the official splits were not used")
        return Records(table.drop(columns="split"), dropped, CLASSES, notes)

    def _mirrored(self, pictures: ParquetPictures) -> Records:
        if self.split == "spatial":
            raise DataError(f"data.split=spatial: the tiles in {self.root} have no coordinates; use split=official.")
        table = pictures.table()
        if "label" not in table:
            raise DataError(f"{self.root}: the parquet files have no column label, only {', '.join(table.columns)}.")
        table["label"] = label_names(pictures, list(table["label"]), "label", sorted(CLASSES, key=str.lower))
        notes = ["read from the Hub's mirror of the official train split; neighbouring tiles may lie on both sides"]
        return Records(table[["key", "label"]], {}, CLASSES, notes)
