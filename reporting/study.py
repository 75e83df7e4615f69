"""The numbers of the study (Multi LoRA Meets Vision, arXiv 2411.14064), Tables I to VIII, from ``study.csv``."""

import csv
import functools
from dataclasses import dataclass
from pathlib import Path

TITLES = {
    "I": "Each task alone",
    "II": "Age classes, merged with one other",
    "III": "Emotions, merged with one other",
    "IV": "Fire risk, merged with one other",
    "V": "Landmarks, merged with one other",
    "VI": "Age as a number, merged with one other",
    "VII": "Galaxies, merged with one other",
    "VIII": "Three tasks merged",
}
RANKS = (16, 64)


@dataclass(frozen=True)
class Number:
    """One number of the study; ``value`` in its units (percent, decades), None where the scan cannot be read."""

    table: str
    task: str
    metric: str
    adapters: str
    rank: int
    value: float | None
    note: str

    @property
    def set(self) -> str:
        """The adapters as a result row names them: sorted by name."""
        return "+".join(sorted(self.adapters.split("+")))


@functools.cache
def study_numbers() -> tuple[Number, ...]:
    """All of them, in the study's order."""
    with Path(__file__).with_name("study.csv").open(encoding="utf-8", newline="") as file:
        return tuple(
            Number(
                line["table"], line["task"], line["metric"], line["adapters"], int(line["rank"]),
                float(line["value"]) if line["value"] else None, line["note"],
            )
            for line in csv.DictReader(file)
        )  # fmt: skip
