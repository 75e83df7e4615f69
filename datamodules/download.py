"""Resumable download over HTTP(S) from the first mirror that gives the right bytes."""

import errno
import json
import logging
import os
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import requests
import urllib3

from datamodules.sources import RemoteFile, mismatch, require_room
from launch.errors import DatasetNotFoundError, UserError
from launch.files import atomic_write
from launch.progress import track

log = logging.getLogger(__name__)

TIMEOUT = (10.0, 60.0)  # seconds to connect, seconds without a byte
ATTEMPTS = 3  # in a row that bring not one byte more, for each mirror
PAUSE = 2.0  # seconds before the second attempt, doubled for each further one
BLOCK = 1 << 16
MIB = 1 << 20


class _MirrorError(Exception):
    """This mirror cannot give the file; trying it again would not help."""


class _ChangedError(Exception):
    """What is here of the file cannot be continued; it must be fetched from its first byte."""


def download(file: RemoteFile, path: Path) -> None:
    """Puts the verified file at ``path``, by way of ``<name>.part``, which a later call continues.

    The caller holds the lock. Without a published checksum the file must be what the Hub tells of it, where it comes
    from there; a part is then only continued from the address it came from, and only when the server confirms
    (If-Range) that its file is still the same.

    Raises:
        DatasetNotFoundError: no mirror could give it; the text has every mirror's reason.
        UserError: the folder cannot be written or the disk is full; what was fetched stays for the next call.
    """
    part = path.with_name(path.name + ".part")
    reasons = []
    with requests.Session() as session:
        for url in file.urls:
            log.info("Downloading %s (%s) from %s", file.name, file.size_text, url)
            try:
                _from_mirror(session, url, file, part)
                part.replace(path)
                _origin(part).unlink(missing_ok=True)
                return
            except _MirrorError as error:
                log.warning("%s: %s", url, error)
                reasons.append(f"  {url}: {error}")
            except OSError as error:
                raise _cannot_write(part, error) from error
    kept = f" ({part.stat().st_size:,} bytes are kept in {part.name} and will be continued)" if part.exists() else ""
    raise DatasetNotFoundError(
        f"Could not download {file.name} ({file.size_text}):\n"
        + "\n".join(reasons)
        + f"\nRun the same command again{kept}, or fetch the file by hand and put it at {path}."
    )


def _from_mirror(session: requests.Session, url: str, file: RemoteFile, part: Path) -> None:
    continued = _usable(part, url, file) > 0
    most, failures = _usable(part, url, file), 0
    while True:
        try:
            told = _attempt(session, url, file, part)
            if not (problem := mismatch(told, part)):
                if not (told.sha256 or told.md5):
                    text = "%s: no checksum is published and %s tells none; nothing but its length could be checked"
                    log.warning(text, file.name, url)
                return
            _forget(part)
            if not continued:
                raise _MirrorError(f"gave another file: {problem}")
            # The bytes of an earlier run or of another mirror may be the wrong ones: once more, all from here.
            log.warning("%s: %s; starting afresh", file.name, problem)
            continued, most = False, 0
            continue
        except _ChangedError as error:
            reason = str(error)
            _forget(part)
        except requests.TooManyRedirects as error:
            raise _MirrorError("redirects in a circle") from error
        except (requests.exceptions.InvalidSchema, requests.exceptions.InvalidURL) as error:
            raise _MirrorError(str(error)) from error
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            reason = _plain(error)
        have = _usable(part, url, file)
        if have > most:
            most, failures = have, 0
        failures += 1
        if failures >= ATTEMPTS:
            raise _MirrorError(f"{reason}, {have:,} bytes in; gave up after {ATTEMPTS} attempts")
        log.info("%s: %s, %d bytes in; trying again", file.name, reason, have)
        time.sleep(PAUSE * 2 ** (failures - 1))


def _attempt(session: requests.Session, url: str, file: RemoteFile, part: Path) -> RemoteFile:
    """One request; returns when the body came whole, with what there is to compare it with."""
    have = _usable(part, url, file)
    if have == file.size and (file.sha256 or file.md5):  # else the server is asked for its checksum
        return file
    # identity: a server that compresses on the way would give other bytes and other offsets.
    headers = {"Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if (validator := _validator_of(part, url)) is not None:
            headers["If-Range"] = validator
    with session.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
        file = _as_told(file, response)
        if response.status_code == 416 and response.headers.get("Content-Range") == f"bytes */{have}":
            return file  # an earlier run had it whole, and ended before it was renamed
        start, total = _offsets(response, have)
        if file.size is not None and total is not None and total != file.size:
            raise _MirrorError(f"offers {total:,} bytes, the published file has {file.size:,}")
        if total is not None:
            require_room(part.parent, total - start, file.name)
        if not start:
            note = {"url": url, "validator": _strong_validator(response)}
            part.unlink(missing_ok=True)
            atomic_write(_origin(part), json.dumps(note))
        left = None if total is None else -(-(total - start) // MIB)
        for _ in track(_write_body(response, part, start), f"Downloading {file.name}, MiB", left):
            pass
    size = part.stat().st_size
    if total is not None and size < total:
        raise requests.ConnectionError("the connection broke")
    if total is not None and size > total:
        raise _ChangedError(f"{size:,} bytes came, {total:,} were announced")
    return file


def _as_told(file: RemoteFile, response: requests.Response) -> RemoteFile:
    """A file without a published checksum with the sha256 and size that the Hugging Face Hub tells of it.

    They stand in the answer that redirects to the storage; what the storage says of its own bytes proves nothing.
    """
    if file.sha256 or file.md5:
        return file
    for answer in response.history:
        digest = answer.headers.get("X-Linked-ETag", "").removeprefix("W/").strip('"')
        if re.fullmatch(r"[0-9a-fA-F]{64}", digest):  # that of a file outside LFS is git's SHA-1 of something else
            size = answer.headers.get("X-Linked-Size", "")
            return replace(file, sha256=digest, size=int(size) if file.size is None and size.isdigit() else file.size)
    return file


def _offsets(response: requests.Response, have: int) -> tuple[int, int | None]:
    """Where the body starts and how long the whole file is (None: not said)."""
    status = response.status_code
    if status == 416:
        raise _ChangedError("the file is now shorter than what is here of it")
    if status in (408, 425, 429) or status >= 500:
        raise requests.ConnectionError(f"{status} {response.reason}")
    if status not in (200, 206):
        raise _MirrorError(f"{status} {response.reason}")
    if response.headers.get("Content-Type", "").startswith("text/html"):
        raise _MirrorError("gives a web page instead of the file")
    if status == 206:
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", "").strip())
        if match is None or int(match[1]) != have:
            raise _ChangedError("the server continued at another place than asked")
        return have, None if match[2] == "*" else int(match[2])
    length = response.headers.get("Content-Length", "")
    return 0, int(length) if length.isdigit() else None


def _write_body(response: requests.Response, part: Path, start: int) -> Iterator[None]:
    """Appends the body to ``part``; yields once for every MiB begun."""
    done = 0
    with part.open("ab" if start else "wb") as out:
        while block := response.raw.read(BLOCK, decode_content=False):
            out.write(block)
            for _ in range(done // MIB, (done + len(block)) // MIB):
                yield
            done += len(block)
        if done % MIB:
            yield
        out.flush()
        os.fsync(out.fileno())


def _origin(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _forget(part: Path) -> None:
    part.unlink(missing_ok=True)
    _origin(part).unlink(missing_ok=True)


def _validator_of(part: Path, url: str) -> str | None:
    """The validator of the part here when it came from this address and the server gave one."""
    try:
        note = json.loads(_origin(part).read_text())
    except (FileNotFoundError, ValueError):
        return None
    return note.get("validator") if isinstance(note, dict) and note.get("url") == url else None


def _usable(part: Path, url: str, file: RemoteFile) -> int:
    """How many bytes of the part can be continued from this address."""
    if not part.exists():
        return 0
    provable = file.sha256 or file.md5 or _validator_of(part, url) is not None
    return part.stat().st_size if provable else 0


def _strong_validator(response: requests.Response) -> str | None:
    etag = response.headers.get("ETag", "")
    return etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified")


def _plain(error: Exception) -> str:
    """The cause in words: libraries wrap it several times over."""
    text = str(error)
    if isinstance(error, requests.Timeout | urllib3.exceptions.TimeoutError) or "timed out" in text:
        return f"no answer for {TIMEOUT[1]:g} s"
    if isinstance(error, requests.exceptions.SSLError):
        return f"the certificate was not accepted ({text})"
    if "NameResolutionError" in text or "getaddrinfo" in text:
        return "the address is not known here (no network?)"
    if "refused" in text:
        return "connection refused"
    return "the connection broke" if isinstance(error, urllib3.exceptions.ProtocolError) else text


def _cannot_write(path: Path, error: OSError) -> UserError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    kept = " What was fetched is kept and will be continued." if full else ""
    return UserError(
        f"Cannot write {path}: {error.strerror or error}.{kept} "
        "Free space or allow writing there, or name another folder with data.root=DIR."
    )
