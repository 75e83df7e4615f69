"""One process at a time: locks that die with their process."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from launch.errors import UserError

log = logging.getLogger(__name__)


@contextlib.contextmanager
def locked(path: Path, option: str = "data.root") -> Iterator[None]:
    """Holds the lock that belongs to ``path`` (a file ``.<name>.lock`` beside it), waiting while another has it.

    The empty lock file stays: removing it would let a third process lock a file that the second no longer sees.

    Args:
        path: need not be there.
        option: key of the config that puts ``path`` elsewhere, for the error.

    Raises:
        UserError: the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path.parent / f".{path.name}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            log.info("Waiting: another process is at work on %s", path)
            lock.acquire()
    except OSError as error:
        raise UserError(
            f"Cannot write to {path.parent}: {error.strerror or error}. "
            f"Allow writing there, or name another folder with {option}=DIR."
        ) from error
    try:
        yield
    finally:
        lock.release()
