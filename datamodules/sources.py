"""Where a dataset's files come from: what is published, what is here, what may be fetched, what to say otherwise."""

import functools
import hashlib
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from datamodules.base import Source
from datamodules.decode import MAX_PIXELS
from datamodules.locks import locked
from launch.errors import DataError, DatasetNotFoundError, UserError
from launch.progress import track

if TYPE_CHECKING:
    from datamodules.parquet import ParquetPictures

log = logging.getLogger(__name__)

DRAWN = "drawn.json"  # lies in a folder of stand-ins that we drew ourselves
_MIB = 1 << 20


@dataclass(frozen=True)
class RemoteFile:
    """One published file.

    Attributes:
        name: its name on disk, below the dataset's root.
        urls: mirrors in the order to try them; empty when a form, a login or Google Drive stands before it.
        size: exact bytes, None when not published.
        sha256: hex digest, any case; None when not published.
        md5: the same, for publishers who give only this one.
        about: size in words for people, such as "107 MB", where ``size`` is None.
        also: another name that it goes by in some copies.
    """

    name: str
    urls: tuple[str, ...] = ()
    size: int | None = None
    sha256: str | None = None
    md5: str | None = None
    about: str = ""
    also: str | None = None

    def find(self, root: Path) -> Path | None:
        """Where it lies in ``root``, under either name; None when it is not there."""
        names = (self.name,) if self.also is None else (self.name, self.also)
        return next((path for name in names if (path := root / name).exists()), None)

    @property
    def size_text(self) -> str:
        """For people: "2.5 GB", or "size unknown"."""
        return human_bytes(self.size) if self.size is not None else self.about or "size unknown"


def human_bytes(count: float) -> str:
    """Decimal units, as download pages and disks give them."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit in ("B", "kB") or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def not_found(
    dataset: str,
    place: Path,
    files: Sequence[RemoteFile],
    licence: str,
    url: str,
    commands: Sequence[str],
    missing: str = "",
) -> DatasetNotFoundError:
    """The error that tells a user all that is needed to go on; ``missing`` says what was looked for in vain."""
    lines = [f"{dataset} was not found in {place}" + (f": {missing}." if missing else ".")]
    listed = ", ".join(f"{file.name} ({file.size_text})" for file in files)
    lines.append(f"  archives:  {listed}")
    lines.append(f"  licence:   {licence}")
    lines.append(f"  get it at: {url}")
    by_hand = [file.name for file in files if not file.urls]
    if by_hand:
        which = "" if len(by_hand) == len(files) else f"{', '.join(by_hand)}: "
        lines.append(f"  by hand:   {which}no direct link; download with a browser into {place}")
    lines.append("Go on with one of:")
    lines.extend(f"  {command}" for command in commands)
    return DatasetNotFoundError("\n".join(lines))


def mismatch(file: RemoteFile, path: Path) -> str:
    """What is wrong with the bytes at ``path``; empty when size and checksum are the published ones."""
    size = path.stat().st_size
    if file.size is not None and size != file.size:
        return f"it has {size:,} bytes, the published one {file.size:,}"
    for method, wanted in (("sha256", file.sha256), ("md5", file.md5)):
        if wanted is not None:
            found = _digest(path, method)
            return "" if found == wanted.lower() else f"its {method} is {found}, the published one {wanted.lower()}"
    return ""


def _digest(path: Path, method: str) -> str:
    digest = hashlib.new(method, usedforsecurity=False)
    with path.open("rb") as stream:
        blocks = iter(lambda: stream.read(_MIB), b"")
        size = path.stat().st_size
        for block in track(blocks, f"Checking {path.name}, MiB", -(-size // _MIB)) if size > 500 * _MIB else blocks:
            digest.update(block)
    return digest.hexdigest()


def fetch(file: RemoteFile, folder: Path, allow: bool) -> Path:
    """The verified file in ``folder``; downloaded when it is not there yet and ``allow`` says so.

    A file put there by hand is checked too, and never changed; one of its other name is renamed, because an archive's
    volumes are told by their names. Two processes at once download it once.

    Raises:
        DatasetNotFoundError: not there and not allowed, or no mirror could give it.
        DataError: a file of this name is there but is not the published one.
        UserError: the folder cannot be written, or the disk is full.
    """
    path = folder / file.name
    other = file.find(folder)
    if other is not None and other != path:
        with locked(path):
            if other.exists():  # else another process has renamed it
                log.info("Renaming %s to %s", other, path.name)
                other.rename(path)
    if not path.exists():
        if not allow or not file.urls:
            how = "downloading was not asked for (data.download=true)" if file.urls else "it must be fetched by hand"
            raise DatasetNotFoundError(f"{path} ({file.size_text}) is missing, and {how}.")
        with locked(path):
            if not path.exists():
                # Here, because the HTTP client costs start-up time that only downloads should pay.
                from datamodules.download import download

                download(file, path)
                return path
    if problem := mismatch(file, path):
        raise DataError(f"{path} is not the published file: {problem}. Delete it and fetch it again.")
    return path


@dataclass(frozen=True)
class Part:
    """One folder of a dataset and the archive (or its volumes, in order) that it is unpacked from.

    A file that is published as it is stands in both places under the same name.
    """

    folder: str
    archives: tuple[RemoteFile, ...]
    max_bytes: int


@dataclass(frozen=True)
class Publication:
    """What a publisher says of a dataset; ``key`` is its name in commands, ``url`` the page for people.

    ``mirror`` are the parquet files of a copy on the Hugging Face Hub, at a fixed revision.
    """

    key: str
    title: str
    licence: str
    url: str
    parts: tuple[Part, ...]
    mirror: tuple[RemoteFile, ...] = ()

    def _absent(self, root: Path, download: bool) -> list[Part]:
        def here(part: Part) -> bool:
            return (root / part.folder).exists() or all(
                file.find(root) is not None or (download and file.urls) for file in part.archives
            )

        return [part for part in self.parts if not here(part)]

    def is_here(self, root: Path) -> bool:
        """Whether all of it lies in ``root``, unpacked or not."""
        return not self._absent(root, download=False)

    def check_mirror(self, root: Path, download: bool) -> None:
        """As ``check``, for the parquet files of the mirror. Files of other names are the user's own and pass.

        Raises:
            DatasetNotFoundError: there are none and they may not be fetched; the text says what to do.
            DataError: only some of them are there, as an interrupted download leaves them.
        """
        if download and self.mirror:
            return
        prepare = f"python prepare.py data={self.key} data.format=parquet"
        missing = [file.name for file in self.mirror if not (root / file.name).exists()]
        if 0 < len(missing) < len(self.mirror):
            raise DataError(
                f"{root} has {len(self.mirror) - len(missing)} of the {len(self.mirror)} parquet files of "
                f"{self.title}; missing: {', '.join(missing)}. Fetch these too:\n  {prepare} data.root={root}"
            )
        if any(root.rglob("*.parquet")):
            return
        commands = [f"{prepare} data.root={root}", f"{prepare} data.root=DIR    (DIR: a folder that has the files)"]
        url = self.mirror[0].urls[0].split("/resolve/")[0] if self.mirror else self.url
        raise not_found(self.title, root, self.mirror, self.licence, url, commands, "no parquet files")

    def check(self, root: Path, download: bool) -> None:
        """The cheap ladder: folder there? archive there? may it be downloaded?

        Raises:
            DatasetNotFoundError: none of these; the text says what to do.
        """
        absent = self._absent(root, download)
        if not absent:
            return
        files = [file for part in absent for file in part.archives]
        folders = [part.folder for part in absent]
        direct = all(file.urls for file in files)
        does = "downloads, checks and unpacks" if direct else "once the archives are there: unpacks"
        prepare = f"python prepare.py data={self.key}"
        commands = [
            f"{prepare} data.root={root}    ({does})",
            f"{prepare} data.root=DIR    (DIR: a folder that has {' and '.join(folders)}, or the archives)",
        ]
        missing = f"no {' and no '.join(folders)}, and no archive to unpack"
        raise not_found(self.title, root, files, self.licence, self.url, commands, missing)

    def prepare(self, root: Path, download: bool) -> None:
        """Fetches, verifies and unpacks what is missing; each folder appears whole or not at all.

        Raises:
            UserError: as ``check``, ``fetch`` and ``archives.unpack``.
        """
        self.check(root, download)
        for part in self.parts:
            if not (root / part.folder).exists():
                # Here, for the same reason: most runs find the folder and unpack nothing.
                from datamodules.archives import unpack

                paths = [fetch(file, root, download) for file in part.archives]
                unpack(paths[0], root / part.folder, part.max_bytes)


class PublishedSource(Source):
    """A dataset that is found, fetched and unpacked as its ``publication`` says.

    Attributes:
        publication: set by each dataset's class.
        root: folder that holds the publication's folders, the archives, or a mirror's parquet files.
        name: of the data in results; begins with ``drawn_`` wherever ``root`` holds drawn stand-ins.
        download: may missing archives be fetched? Nothing is ever sent anywhere without.
        format: "files", "parquet", or "auto": parquet when such files lie in ``root`` and nothing of the publication's.
    """

    publication: Publication

    def __init__(
        self, *, root: str | Path, name: str, download: bool, format: Literal["auto", "files", "parquet"] = "files"
    ) -> None:
        drawn = (Path(root).expanduser() / DRAWN).is_file() and not name.startswith("drawn_")
        super().__init__(root=root, name=f"drawn_{name}" if drawn else name)
        if format not in ("auto", "files", "parquet"):
            raise DataError(f"data.format={format} must be auto, files or parquet.")
        self.download, self.format = download, format

    @functools.cached_property
    def parquet(self) -> "ParquetPictures | None":
        """The mirror's files that lie in ``root``; None where the publication's own are read."""
        if self.format == "files" or (self.format == "auto" and self.publication.is_here(self.root)):
            return None
        from datamodules.parquet import ParquetPictures, find_parquet  # pyarrow costs start-up time

        return ParquetPictures(self.root) if self.format == "parquet" or find_parquet(self.root) else None

    def check(self) -> None:
        """As ``Publication.check``, or the same for the mirror."""
        if self.format == "parquet":
            self.publication.check_mirror(self.root, self.download)
        elif self.parquet is None:
            self.publication.check(self.root, self.download)
        else:
            self.publication.check_mirror(self.root, download=False)  # "auto" fetches no parquet files

    def prepare(self) -> None:
        """As ``Publication.prepare``; with format "parquet" it is the mirror that is fetched."""
        self.check()
        if self.format == "parquet":
            for file in self.publication.mirror:
                if self.download and not (self.root / file.name).exists():
                    fetch(file, self.root, allow=True)
        elif self.parquet is None:
            self.publication.prepare(self.root, self.download)

    def read(self, row: dict[str, Any], max_pixels: int = MAX_PIXELS, side: int | None = None) -> np.ndarray:
        if "file" in row or self.parquet is None:
            return super().read(row, max_pixels, side)
        return self.parquet.read(row["key"], max_pixels, side)

    def digest(self, row: dict[str, Any]) -> str:
        if "file" in row or self.parquet is None:
            return super().digest(row)
        return self.parquet.digest(row["key"])

    def stamp(self, row: dict[str, Any]) -> tuple[int, int]:
        if "file" in row or self.parquet is None:
            return super().stamp(row)
        return self.parquet.stamp(row["key"])


def hub_files(revision: str, files: Mapping[str, str]) -> tuple[RemoteFile, ...]:
    """Files of a dataset on the Hugging Face Hub, whose checksums it tells when they are downloaded.

    Args:
        revision: ``owner/name/resolve/<commit>``.
        files: name below the revision -> size in words.
    """
    base = f"https://huggingface.co/datasets/{revision}"
    return tuple(RemoteFile(name, (f"{base}/{name}",), about=about) for name, about in files.items())


def require_room(folder: Path, needed: int, what: str) -> None:
    """Refuses to begin what cannot end.

    Raises:
        UserError: ``folder``'s disk has less than ``needed`` bytes free.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"No room for {what} in {folder}: {human_bytes(needed)} needed, {human_bytes(free)} free. "
            "Free space there, or name another folder with data.root=DIR."
        )
