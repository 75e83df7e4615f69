"""The table at the end of preparing: what was read, what was left out and why, and what is in each split."""

from rich.table import Table
from rich.text import Text

from datamodules.base import SPLITS
from datamodules.pipeline import Pixels
from datamodules.prepare import split_counts


def count_table(pixels: Pixels) -> Table:
    """Examples per class and split, then from those read to those used, reason by reason."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("", overflow="fold")
    for name in (*SPLITS, "all"):
        table.add_column(name, justify="right")
    counts = used_counts(pixels)
    names = list(counts[SPLITS[0]])
    for name in names:
        row = [counts[split][name] for split in SPLITS]
        table.add_row(Text(name), *(f"{count:,}" for count in (*row, sum(row))))
    totals = [sum(counts[split].values()) for split in SPLITS]
    if len(names) > 1:
        table.add_row(Text("all", style="bold"), *(f"{count:,}" for count in (*totals, sum(totals))), end_section=True)
    table.add_row(Text("read", style="dim"), "", "", "", f"{pixels.read:,}")
    for reason, count in left_out(pixels).items():
        table.add_row(Text(f"left out: {reason}", style="dim"), "", "", "", f"{count:,}")
    return table


def used_counts(pixels: Pixels) -> dict[str, dict[str, int]]:
    """Split -> class name (or "all") -> examples whose picture could be used."""
    table = pixels.prepared.table
    return split_counts(table[table["key"].isin(set(pixels.cache.keys))], pixels.prepared.classes)


def left_out(pixels: Pixels) -> dict[str, int]:
    """Reason -> examples that were read and are not used."""
    broken = {"broken picture": len(pixels.cache.broken)} if pixels.cache.broken else {}
    return pixels.prepared.dropped | broken
