"""A local file server that can be told to misbehave, and the file that it has."""

import contextlib
import hashlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.sources import RemoteFile

BODY = np.random.Generator(np.random.PCG64(0)).bytes(600_000)
SHA256 = hashlib.sha256(BODY).hexdigest()


@dataclass
class Mirror:
    """How the server behaves.

    Attributes:
        cuts: bytes after which the next answers break off (None: not at all).
        linked: headers of answers that redirect.
        stored: further headers of answers with the file.
    """

    url: str = ""
    body: bytes = BODY
    ranges: bool = True
    etag: str | None = None
    status: int = 200
    content_type: str = "application/octet-stream"
    cuts: list[int | None] = field(default_factory=list)
    says_length: bool = True
    stall: bool = False
    delay: float = 0.0
    linked: dict[str, str] = field(default_factory=dict)
    stored: dict[str, str] = field(default_factory=dict)
    asked: list[dict[str, str]] = field(default_factory=list)
    released: threading.Event = field(default_factory=threading.Event)


class Handler(BaseHTTPRequestHandler):
    mirror: Mirror

    def do_GET(self) -> None:
        mirror = self.mirror
        mirror.asked.append({"path": self.path, **{key.lower(): value for key, value in self.headers.items()}})
        if self.path.startswith("/redirect"):
            self.send_response(302)
            self.send_header("Location", "/redirect/circle" if "circle" in self.path else "/file")
            self.send_header("Content-Length", "0")
            self._send_headers(mirror.linked)
            self.end_headers()
            return
        if mirror.status != 200:
            self.send_error(mirror.status)
            return
        wanted = self.headers.get("Range")
        same = self.headers.get("If-Range") in (None, mirror.etag)
        start = int(wanted[6:-1]) if wanted and mirror.ranges and same else 0
        if start >= len(mirror.body):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(mirror.body)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if wanted and mirror.ranges and same else 200)
        self.send_header("Content-Type", mirror.content_type)
        if mirror.says_length:
            self.send_header("Content-Length", str(len(mirror.body) - start))
        if wanted and mirror.ranges and same:
            self.send_header("Content-Range", f"bytes {start}-{len(mirror.body) - 1}/{len(mirror.body)}")
        if mirror.etag:
            self.send_header("ETag", mirror.etag)
        self._send_headers(mirror.stored)
        self.end_headers()
        time.sleep(mirror.delay)
        cut = mirror.cuts.pop(0) if mirror.cuts else None
        self.wfile.write(mirror.body[start:] if cut is None else mirror.body[start : start + cut])
        self.wfile.flush()
        if mirror.stall:
            mirror.released.wait(20)
        self.close_connection = True

    def _send_headers(self, headers: dict[str, str]) -> None:
        for name, value in headers.items():
            self.send_header(name, value)

    def log_message(self, format: str, *args: Any) -> None:
        pass


class Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up are part of the tests."""


@contextlib.contextmanager
def serve() -> Iterator[Mirror]:
    state = Mirror()
    server = Server(("127.0.0.1", 0), type("Bound", (Handler,), {"mirror": state}))
    state.url = f"http://127.0.0.1:{server.server_port}/file"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield state
    state.released.set()
    server.shutdown()
    server.server_close()
    thread.join()


def remote(*urls: str, **facts: Any) -> RemoteFile:
    return RemoteFile("set.bin", urls, **({"size": len(BODY), "sha256": SHA256} | facts))


def visible(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
