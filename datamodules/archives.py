"""Unpacking of downloaded archives, on the assumption that one day one of them is hostile."""

import bz2
import contextlib
import errno
import gzip
import io
import logging
import lzma
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, cast

from datamodules.archive_rules import Budget, special_entry, target_of
from datamodules.locks import locked
from datamodules.seven_zip import unpack_seven_zip
from datamodules.sources import require_room
from launch.errors import DataError, UserError
from launch.files import atomic_folder
from launch.progress import track

log = logging.getLogger(__name__)

BLOCK = 1 << 20


def unpack(archive: Path, folder: Path, max_bytes: int) -> None:
    """Unpacks .zip, .tar, .tar.gz/.bz2/.xz, .7z or the first volume .7z.001 into ``folder``, whole or not at all.

    If all of the archive lies below one folder of the same name as ``folder``, that level is dropped. A ``folder``
    that exists is left as it is: two processes at once unpack it once. .7z needs the program 7-Zip (7zz, 7z or 7za).

    Raises:
        DataError: damaged or of an unknown kind, an entry that is not a plain file or folder inside, more than
            ``max_bytes`` or ``MAX_RATIO`` times its own size; or 7-Zip is missing.
        UserError: the disk is full or the place cannot be written.
    """
    with locked(folder):
        if folder.exists():
            return
        log.info("Unpacking %s into %s", archive, folder)
        with atomic_folder(folder, alone=True) as temporary, _explained(archive, folder):
            inner = temporary / ".unpacking"
            inner.mkdir()
            _extractor(archive)(archive, inner, Budget(archive, max_bytes))
            found = list(inner.iterdir())
            if not found:
                raise DataError(f"{archive} is empty.")
            top = found[0] if len(found) == 1 and found[0].name == folder.name and found[0].is_dir() else inner
            for child in top.iterdir():
                child.rename(temporary / child.name)
            shutil.rmtree(inner)


def _extractor(archive: Path) -> Callable[[Path, Path, Budget], None]:
    with archive.open("rb") as file:
        start = file.read(512)
    if start.startswith(b"7z\xbc\xaf\x27\x1c"):
        return unpack_seven_zip
    if start.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _zip
    if start.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00")) or start[257:262] == b"ustar":
        return _tar
    raise DataError(
        f"{archive} is neither zip, tar nor 7z (it begins with {start[:12]!r}): "
        "a web page or a half-fetched file? Delete it and fetch it again."
    )


@contextlib.contextmanager
def _explained(archive: Path, folder: Path) -> Iterator[None]:
    try:
        yield
    except (
        zipfile.BadZipFile,
        tarfile.TarError,
        EOFError,
        zlib.error,
        lzma.LZMAError,
        gzip.BadGzipFile,
    ) as error:
        raise DataError(f"{archive} is damaged or cut short ({error}). Delete it and fetch it again.") from error
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise DataError(f"{archive} has two entries of one name ({Path(error.filename or '').name}).") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise UserError(
                f"No room to unpack {archive} in {folder.parent}: {error.strerror}. Nothing was left there. "
                "Free space, or name another folder with data.root=DIR."
            ) from error
        raise


def _junk(name: str) -> bool:
    """What macOS adds beside the data."""
    parts = PurePosixPath(name).parts
    return "__MACOSX" in parts or (bool(parts) and (parts[-1] == ".DS_Store" or parts[-1].startswith("._")))


def _write(source: IO[bytes], target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("xb") as out:
        shutil.copyfileobj(source, out, BLOCK)


def _zip(archive: Path, folder: Path, budget: Budget) -> None:
    with zipfile.ZipFile(archive) as file:
        members = [member for member in file.infolist() if not _junk(member.filename)]
        for member in members:
            target_of(member.filename, archive, folder)
            kind = stat.S_IFMT(member.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise special_entry(member.filename, "link" if kind == stat.S_IFLNK else "device", archive)
            if member.flag_bits & 1:
                raise DataError(f"{archive} is encrypted.")
            # The declared size is binding: the reader stops there and compares the checksum.
            budget.spend(member.file_size)
            budget.enter()
        require_room(folder, budget.spent, archive.name)
        for member in track(members, f"Unpacking {archive.name}"):
            target = target_of(member.filename, archive, folder)
            if member.is_dir():
                target.mkdir(parents=True, exist_ok=True)
                continue
            try:
                source = file.open(member)
            except RuntimeError as error:  # an unknown compression method
                raise DataError(f"{archive}: {member.filename} cannot be read ({error}).") from error
            with source:
                _write(source, target)


def _decompressed(archive: Path) -> IO[bytes]:
    with archive.open("rb") as file:
        start = file.read(2)
    if start == b"\x1f\x8b":
        return cast(IO[bytes], gzip.open(archive))
    if start == b"BZ":
        return cast(IO[bytes], bz2.open(archive))
    if start == b"\xfd7":
        return cast(IO[bytes], lzma.open(archive))
    return archive.open("rb")


class _Counted:
    """A forward-only byte stream that counts: a tar's headers can be bombs as well as its files."""

    def __init__(self, stream: IO[bytes], budget: Budget) -> None:
        self.stream, self.budget, self.position = stream, budget, 0
        self.last = b""

    def read(self, count: int) -> bytes:
        if count > 64 * BLOCK:  # only a forged header asks for so much at once
            raise DataError(f"{self.budget.archive} has a header of {count:,} bytes: it is not a sound archive.")
        block = self.stream.read(count)
        self.budget.spend(len(block))
        self.position += len(block)
        self.last = (self.last + block)[-tarfile.BLOCKSIZE :]
        return block

    def tell(self) -> int:
        return self.position

    def seek(self, position: int) -> int:
        if position < self.position:
            raise io.UnsupportedOperation("forward only")
        while self.position < position and self.read(min(BLOCK, position - self.position)):
            pass
        return self.position


def _tar(archive: Path, folder: Path, budget: Budget) -> None:
    with _decompressed(archive) as stream:
        counted = _Counted(stream, budget)
        with tarfile.open(fileobj=counted, mode="r:") as file:  # type: ignore[call-overload]
            for member in track(file, f"Unpacking {archive.name}"):
                budget.enter()
                target = target_of(member.name, archive, folder)
                if member.isdir():
                    target.mkdir(parents=True, exist_ok=True)
                elif not member.isreg() or member.issparse():
                    kind = "link" if member.issym() or member.islnk() else "device or sparse file"
                    raise special_entry(member.name, kind, archive)
                elif not _junk(member.name):
                    source = file.extractfile(member)
                    assert source is not None  # holds for every regular file
                    _write(source, target)
        # The reader takes a broken header, or none, for the end. The true end is zeros up to the last byte; reading
        # them also lets the decompressor compare its checksum.
        rest = b""
        while block := counted.read(BLOCK):
            rest = block.strip(b"\0") or rest
        if rest or counted.last.strip(b"\0"):
            raise tarfile.ReadError("its end is missing")
