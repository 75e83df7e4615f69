"""Reads CSV files and lists with line numbers, and gathers what is wrong with them."""

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from launch.errors import DataError

_SHOWN = 5


class Faults:
    """Everything wrong with a set of CSV files, by kind, so that a user mends it in one go."""

    def __init__(self) -> None:
        self.count = 0
        self._kinds: dict[str, list[str]] = {}
        self._totals: dict[str, int] = {}

    def add(self, kind: str, file: str, line: int, detail: str = "") -> None:
        """Notes one fault; only the first five of a kind keep their line and detail."""
        self.count += 1
        self._totals[kind] = self._totals.get(kind, 0) + 1
        shown = self._kinds.setdefault(kind, [])
        if len(shown) < _SHOWN:
            shown.append(f"{file} line {line}" + (f": {detail}" if detail else ""))

    def raise_if_any(self, way: str = "Mend or remove these lines.") -> None:
        """Raises DataError with all of them and the way out."""
        if not self.count:
            return
        parts = []
        for kind, shown in self._kinds.items():
            total = self._totals[kind]
            parts.append(f"- {kind} ({total} {'line' if total == 1 else 'lines'})")
            parts += [f"    {text}" for text in shown]
            if total > len(shown):
                parts.append(f"    and {total - len(shown)} more")
        raise DataError("The CSV cannot be used as it is:\n" + "\n".join(parts) + f"\n{way}")


@dataclass(frozen=True)
class CsvFile:
    """An open table.

    Attributes:
        name: as given in the config.
        folder: posix folder of the file relative to the root; "" at the root.
        header: column names.
        rows: line number and cells of each row that has as many cells as the header; read as it is consumed.
    """

    name: str
    folder: str
    header: list[str]
    rows: Iterator[tuple[int, list[str]]]


def read_lines(path: Path) -> list[str]:
    """Lines of a published list.

    Raises:
        DataError: it is not UTF-8 text.
    """
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not a text in UTF-8 ({error}); it may be damaged: fetch it again.") from error


def read_header(path: Path) -> tuple[list[str], str]:
    """Names of a CSV's columns, and what stands between cells: comma, semicolon or tab, the one that it has most of.

    Raises:
        DataError: the file is empty or unreadable, or has a column name twice.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            first = file.readline()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as a CSV in UTF-8: {error}") from error
    delimiter = max(",;\t", key=first.count)
    header = [cell.strip() for cell in next(csv.reader([first], delimiter=delimiter), [])]
    if not any(header):
        raise DataError(f"{path} is empty: its first line must name the columns.")
    twice = sorted({column for column in header if header.count(column) > 1})
    if twice:
        raise DataError(f"{path} has the column '{twice[0]}' twice.")
    return header, delimiter


def read_csv(path: Path, name: str, faults: Faults) -> CsvFile:
    """Opens a UTF-8 CSV.

    Raises:
        DataError: see ``read_header``.
    """
    header, delimiter = read_header(path)
    parent = PurePosixPath(name.replace("\\", "/")).parent.as_posix()
    return CsvFile(name, "" if parent == "." else parent, header, _rows(path, name, header, delimiter, faults))


def _rows(
    path: Path, name: str, header: Sequence[str], delimiter: str, faults: Faults
) -> Iterator[tuple[int, list[str]]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter=delimiter)
            next(reader)
            for cells in reader:
                if not any(cell.strip() for cell in cells):
                    continue
                if len(cells) == len(header):
                    yield reader.line_num, cells
                else:
                    faults.add(f"not {len(header)} cells", name, reader.line_num, f"{len(cells)} cells")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
