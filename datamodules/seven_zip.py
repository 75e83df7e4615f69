"""Unpacking of .7z and its volumes by the program 7-Zip.

The Python package for the format, py7zr, is LGPL and brings seven compiled packages along for one dataset's archive.
"""

import errno
import logging
import os
import shutil
import subprocess
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from datamodules.archive_rules import Budget, special_entry, target_of
from datamodules.sources import require_room
from launch.errors import DataError
from launch.progress import track

log = logging.getLogger(__name__)
SEVEN_ZIP = ("7zz", "7z", "7za")


def unpack_seven_zip(archive: Path, folder: Path, budget: Budget) -> None:
    """Lists, judges, and only then unpacks; ``archive`` may be the first of several volumes.

    Raises:
        DataError: 7-Zip is missing, the archive is damaged, or an entry is refused.
        OSError: the disk is full.
    """
    program = next(filter(None, map(shutil.which, SEVEN_ZIP)), None)
    if program is None:
        raise DataError(
            f"{archive} needs the program 7-Zip, and none of {', '.join(SEVEN_ZIP)} is installed. Install it (Debian: "
            f"apt install 7zip; macOS: brew install sevenzip), or unpack the archive by hand beside itself."
        )
    listed = subprocess.run(
        [program, "l", "-slt", "-sccUTF-8", "--", str(archive)],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
    )  # fmt: skip
    text = listed.stdout.decode("utf-8", "replace").replace("\r\n", "\n")
    if listed.returncode or "\n----------\n" not in text:
        raise DataError(f"{archive} is damaged, or a volume is missing: {_last_lines(text)}")
    blocks = text.partition("\n----------\n")[2].strip().split("\n\n")
    for block in blocks:
        entry = dict(line.partition(" = ")[::2] for line in block.splitlines())
        name, mode = entry.get("Path", ""), entry.get("Attributes", "").split(" ")[-1]
        target_of(name, archive, folder)
        if entry.get("Symbolic Link") or entry.get("Hard Link") or (len(mode) == 10 and mode[0] not in "-d"):
            raise special_entry(name, "link or device", archive)
        budget.spend(int(entry.get("Size") or 0))
        budget.enter()
    require_room(folder, budget.spent, archive.name)
    command = [program, "x", "-y", "-bb1", "-sccUTF-8", f"-o{folder}", "--", str(archive)]
    for line in track(_lines_of(command), f"Unpacking {archive.name}", len(blocks)):
        log.debug("%s", line)
    for path in folder.rglob("*"):  # the listing is text, and a name may have been made to look like another line
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise special_entry(str(path.relative_to(folder)), "link or device", archive)


def _lines_of(command: list[str]) -> Iterator[str]:
    """Runs the program to its end, yielding a line for each file it wrote."""
    last: deque[str] = deque(maxlen=20)
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        encoding="utf-8", errors="replace",
    )  # fmt: skip
    try:
        for line in process.stdout or ():
            last.append(line)
            if line.startswith("- "):
                yield line
        code = process.wait()
    finally:
        process.kill()  # nothing when it has ended; at a KeyboardInterrupt it must not go on writing
        process.wait()
    output = "".join(last)
    if code and ("No space left" in output or "not enough space" in output):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if code:
        raise DataError(f"{command[-1]} could not be unpacked: {_last_lines(output)}")


def _last_lines(text: str) -> str:
    return " / ".join([line.strip() for line in text.splitlines() if line.strip()][-3:]) or "no message"
