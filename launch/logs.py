"""One line format for the console and for each run's ``run.log``."""

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

CONSOLE_FORMAT = "%(asctime)s %(levelname)-7s %(message)s"
FILE_FORMAT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"
QUIET = (
    "matplotlib",
    "PIL",
    "urllib3",
    "fsspec",
    "filelock",
    "git",
    "asyncio",
    "hydra",
)  # talk of themselves at INFO

log = logging.getLogger(__name__)


class _FileHandler(logging.FileHandler):
    """Gives up with one line when the disk is full: the log must not end the run that it tells of."""

    def handleError(self, record: logging.LogRecord) -> None:
        logging.getLogger().removeHandler(self)
        log.warning("%s cannot be written any more: %s", self.baseFilename, sys.exc_info()[1])


class _Console(logging.StreamHandler):
    """Writes to whatever ``sys.stderr`` is at the moment: a progress bar replaces it to print above itself."""

    @property
    def stream(self) -> TextIO:
        return sys.stderr

    @stream.setter
    def stream(self, _: TextIO) -> None:
        """``StreamHandler`` sets it once."""


def set_up(verbose: bool = False) -> None:
    """Sends the log to stderr; calling it again does nothing (worker processes of launchers call it, too)."""
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # ten lines of retries before the error that says it all
    root = logging.getLogger()
    if any(getattr(handler, "is_console", False) for handler in root.handlers):
        return
    console = _Console()
    console.is_console = True  # type: ignore[attr-defined]
    console.setFormatter(logging.Formatter(CONSOLE_FORMAT, "%H:%M:%S"))
    root.addHandler(console)
    root.setLevel(logging.DEBUG if verbose else logging.INFO)
    logging.captureWarnings(True)
    warnings.formatwarning = lambda message, category, *where, **more: f"{category.__name__}: {message}"
    # Lightning's own, against a newer torch; nothing that a user could change
    warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\)")
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)


def leave_to_hydra() -> None:
    """Lets Hydra write its log, which is what ``--info`` shows, to stdout by its own handler."""
    logging.getLogger().handlers.clear()
    logging.getLogger("hydra").setLevel(logging.NOTSET)


def take_over(*names: str) -> None:
    """Sends the log of packages that print it themselves our way only; call it once they are imported."""
    for name in names:
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True


@contextlib.contextmanager
def to_file(path: Path) -> Iterator[None]:
    """Appends the log to a file as well, as long as the block runs.

    Raises:
        OSError: the file cannot be opened.
    """
    handler = _FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter(FILE_FORMAT))
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
        with contextlib.suppress(OSError):  # the last lines of a full disk
            handler.close()
