"""Rows as CSV and parquet, with where each comes from."""

from pathlib import Path
from typing import Any

import pandas as pd

from launch.files import atomic_write
from reporting.rows import MERGE_COLUMNS, MERGE_FURTHER, TRAIN_COLUMNS, Collected, Row

ORIGIN = ("run", "hash", "commit", "file")


def frame(rows: list[Row], columns: tuple[str, ...], origins: list[dict[str, Any]]) -> pd.DataFrame:
    """The named columns of the rows and their origin, in the rows' order."""
    table = pd.DataFrame([{name: row.get(name) for name in columns} for row in rows], columns=list(columns))
    for name in ORIGIN:
        table[name] = [row.get(name) or origins[row["origin"]].get(name) for row in rows]
    return table.convert_dtypes()


def write_frames(found: Collected, folder: Path, formats: list[str]) -> None:
    """``merges`` and ``trains`` as ``.csv`` and ``.parquet``."""
    further = tuple(name for name in MERGE_FURTHER if any(row.get(name) is not None for row in found.merges))
    tables = {
        "merges": frame(found.merges, (*MERGE_COLUMNS, *further), found.origins),
        "trains": frame(found.trains, TRAIN_COLUMNS, found.origins),
    }
    for name, table in tables.items():
        if "csv" in formats:
            atomic_write(folder / f"{name}.csv", table.to_csv(index=False, lineterminator="\n"))
        if "parquet" in formats:
            atomic_write(folder / f"{name}.parquet", table.to_parquet(index=False))
