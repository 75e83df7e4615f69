"""Outputs that appear whole or not at all: written under a temporary name, then renamed."""

import contextlib
import errno
import fnmatch
import glob
import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from launch.errors import UserError

_DRAWN = "?" * 8  # what mkdtemp puts into a name
STALE = 24 * 3600  # seconds after which an unfinished folder is a killed process's: writing one takes minutes

_UMASK = os.umask(0o022)  # it can only be read by setting it, which is not safe later, with threads
os.umask(_UMASK)

_LEFT_BY_BROWSERS = (".DS_Store", "Thumbs.db", "desktop.ini")  # where a folder was looked at
_ONLY_WRITING = {  # codes that no reading ends in
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "your disk quota is used up",
    errno.EFBIG: "the file is larger than this system allows",
    errno.EROFS: "it lies on a read-only file system",
}
_REASONS = _ONLY_WRITING | {
    errno.EACCES: "you may not write there",
    errno.EPERM: "you may not write there",
    errno.ENOTDIR: "a part of its path is a file, not a folder",
    errno.EEXIST: "a part of its path is a file, not a folder",
    errno.EISDIR: "there is a folder of that name",
    errno.ENAMETOOLONG: "the name is too long for this file system",
}


def write_fault(error: BaseException, path: Path | None = None) -> UserError | None:
    """The text for any exception that can only come from writing (full disk, read-only); None for all others."""
    code = error.errno if isinstance(error, OSError) else None
    if code is None and not isinstance(error, UserError):
        # safetensors and shutil.copytree have errors of their own, in whose text alone the system's is found
        told = re.search(r"(?:\(os error |\[Errno )(\d+)", str(error))
        code = int(told[1]) if told else None
    if code not in _ONLY_WRITING:
        return None
    named = error.filename if isinstance(error, OSError) else None
    return cannot_write(OSError(code, os.strerror(code)), path or Path(named or "the output"))


def cannot_write(error: OSError, path: Path) -> UserError:
    """The text for an ``OSError`` that is known to come from writing ``path``, whatever its code."""
    reason = _REASONS.get(error.errno or 0, error.strerror or str(error))
    return UserError(
        f"Cannot write {path}: {reason}. "
        "Free space or allow writing there, or choose another folder with paths.outputs=DIR."
    )


def atomic_write(path: Path, data: bytes | str) -> None:
    """Writes a whole file or leaves what was there.

    Raises:
        UserError: the folder is read-only, the disk is full, or a parent is not a folder.
    """
    payload = data.encode() if isinstance(data, str) else data
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name[:80]}.", suffix=".tmp", dir=path.parent)
        temporary = Path(name)
        with os.fdopen(handle, "wb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_UMASK)
        temporary.replace(path)
        temporary = None
    except OSError as error:
        raise cannot_write(error, path) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: Path, alone: bool = False) -> Iterator[Path]:
    """Yields an empty temporary sibling of ``path`` that takes its place when the block ends well.

    An earlier folder of that name is kept until the new one is whole; of several writers at once the last one's stays.
    Errors of the block that have nothing to do with writing (an input that cannot be read) pass through unchanged;
    nothing is left behind either way. A process that is killed cannot tidy up: the next writer puts back the folder
    that it had moved away, and clears what it had begun a day later.

    Args:
        alone: the caller holds a lock under which alone ``path`` is written: what was begun is cleared at once.

    Raises:
        UserError: writing failed (read-only, disk full).
    """
    if path.is_symlink():  # what it leads to is replaced, not the link
        path = path.resolve()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in path.parent.glob(f"{glob.escape(_hidden(path))}{_DRAWN}.tmp"):
            with contextlib.suppress(FileNotFoundError):  # its writer has just ended
                if left.is_dir() and (alone or time.time() - left.stat().st_mtime > STALE):
                    shutil.rmtree(left, ignore_errors=True)
        for left in path.parent.glob(f"{glob.escape(_hidden(path))}{_DRAWN}.old"):
            if path.exists():  # the new one is in place
                shutil.rmtree(left, ignore_errors=True)
            else:
                with contextlib.suppress(FileNotFoundError):  # another writer was faster
                    left.replace(path)
        temporary = Path(tempfile.mkdtemp(prefix=_hidden(path), suffix=".tmp", dir=path.parent))
        temporary.chmod(0o777 & ~_UMASK)
    except OSError as error:
        raise cannot_write(error, path) from error
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():  # safetensors lets the owner alone read
                file.chmod(0o666 & ~_UMASK)
        _replace_folder(temporary, path)
    except Exception as error:
        named = error.filename if isinstance(error, OSError) else None
        is_ours = isinstance(named, str) and Path(named).is_relative_to(temporary)
        if isinstance(error, OSError) and is_ours and error.errno in _REASONS:
            raise cannot_write(error, path) from error
        if (fault := write_fault(error, path)) is not None:
            raise fault from error
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _hidden(path: Path) -> str:
    """How the names of its temporary siblings begin, and no other folder's: what is left of them is its own."""
    name = (
        path.name if len(path.name) <= 80 else f"{path.name[:63]}-{hashlib.sha256(path.name.encode()).hexdigest()[:16]}"
    )
    return f".{name}."


def require_replaceable(path: Path, card: str, key: str, ours: Sequence[str] = ("*",)) -> None:
    """Refuses a folder that ``atomic_folder`` would replace though it holds something else than is written there.

    Args:
        card: JSON file that earlier ones of its kind have.
        key: in it.
        ours: see ``require_ours``.

    Raises:
        UserError: the folder is not empty and has no such file, or has others.
    """
    names = require_ours(path, ours)
    if not names:
        return
    try:
        content = json.loads((path / card).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        content = None
    if not isinstance(content, dict) or key not in content:
        raise _would_be_lost(path, names)


def require_ours(path: Path, ours: Sequence[str]) -> list[str]:
    """What a folder holds that ``atomic_folder`` would replace, refused if it is not of what is written there.

    Args:
        ours: shell patterns of the names that are written there.

    Raises:
        UserError: ``path`` is a file, or the folder has other names.
    """
    if path.is_file():
        raise UserError(f"{path} is a file; name a folder that is new or empty.")
    names = sorted(entry.name for entry in path.iterdir()) if path.is_dir() else []
    names = [name for name in names if name not in _LEFT_BY_BROWSERS]
    if strangers := [name for name in names if not any(fnmatch.fnmatchcase(name, own) for own in ours)]:
        raise _would_be_lost(path, strangers)
    return names


def _would_be_lost(path: Path, names: Sequence[str]) -> UserError:
    listed = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return UserError(
        f"The folder {path} is written as a whole and holds something else ({listed}), which would be lost. "
        "Move it, or name a folder that is new or empty."
    )


def _replace_folder(new: Path, path: Path) -> None:
    # Tried again while other writers are faster. A lock would do, but leave its file in every folder with outputs.
    old = new.with_suffix(".old")
    while not _take_place(new, path, old):
        shutil.rmtree(old, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def _take_place(new: Path, path: Path, old: Path) -> bool:
    """Moves ``path`` to ``old`` and ``new`` to ``path``; False when another writer's folder was there by then."""
    with contextlib.suppress(FileNotFoundError):  # nothing was there, or another writer has just moved it
        path.replace(old)
    try:
        new.replace(path)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False
        if old.exists():
            old.replace(path)
        raise
    return True


def write_json(path: Path, content: Any) -> None:
    """Writes sorted, indented JSON.

    Raises:
        ValueError: a number is NaN or infinite.
        UserError: as ``atomic_write``.
    """
    atomic_write(path, json.dumps(content, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n")


def sha256_file(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
