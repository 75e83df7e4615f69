"""A model behind a web page and a JSON endpoint. Pictures come in the request and are not kept."""

import base64
import errno
import importlib.util
import io
import ipaddress
import logging
import socket
import threading
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from launch.errors import UserError
from launch.serve_schema import ServeConfig
from merging.answer_pictures import draw_answers
from merging.answers import Sight, answer, look, sights
from merging.model import AnsweringModel
from merging.predicting import open_model
from merging.serving_page import page

log = logging.getLogger(__name__)
_FRAME = 64 * 1024  # bytes of a form around its file
_SAFE = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self' data: blob:; style-src 'self' 'unsafe-inline'; "
    "script-src 'self' 'unsafe-inline'; connect-src 'self'; form-action 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


def serve(config: ServeConfig) -> dict[str, Any]:
    """Serves until it is stopped.

    Raises:
        UserError: the web framework is not installed, or the address is taken.
    """
    absent = [name for name in ("fastapi", "uvicorn", "python_multipart") if importlib.util.find_spec(name) is None]
    if absent:
        raise UserError(f"serve.py needs {', '.join(absent)}: pip install -e '.[serve]'")
    import uvicorn

    model = open_model(
        config.model, config.backbone.weights, config.tasks, config.device, Path(config.paths.outputs) / "cache"
    )
    app = build_app(
        model,
        title=Path(config.model).expanduser().absolute().name,
        faces=config.faces == "detect",
        max_bytes=int(config.max_megabytes * 1e6),
        max_pixels=config.max_pixels,
        hosts=known_hosts(config.host),
    )
    with listen(config.host, config.port) as listener:
        log.info("Open http://%s in a browser; Ctrl-C ends", address(config.host, listener.getsockname()[1]))
        settings = uvicorn.Config(app, log_level="warning", timeout_keep_alive=5, limit_concurrency=64)
        uvicorn.Server(settings).run(sockets=[listener])
    return {"model": config.model}


def listen(host: str, port: int) -> socket.socket:
    """A listening socket, IPv6 where the host is an address of it.

    Raises:
        UserError: the port is taken, or this machine has no such address.
    """
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            way = "another program has the port; take another, e.g. port=8001, or any free one: port=0"
        elif error.errno == errno.EACCES:
            way = "ports below 1024 are the system's; take a higher one, e.g. port=8000"
        else:
            way = f"{error.strerror}; give an address of this machine, e.g. host=127.0.0.1 for it alone"
        raise UserError(f"Cannot listen on {address(host, port)}: {way}.") from error


def address(host: str, port: int) -> str:
    """``127.0.0.1:8000``; an IPv6 host stands in brackets."""
    return f"{_bracketed(host)}:{port}"


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def known_hosts(host: str) -> list[str]:
    """Names under which the page may be asked for.

    On this machine alone they are few: else a web page whose own name is rebound to 127.0.0.1 could read answers.
    """
    try:
        local = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = False
    return ["localhost", "127.0.0.1", "[::1]", _bracketed(host)] if local else ["*"]


def build_app(
    model: AnsweringModel, *, title: str, faces: bool, max_bytes: int, max_pixels: int, hosts: Sequence[str] = ("*",)
) -> Any:
    """The web application: ``GET /``, ``GET /model`` and ``POST /answer`` with a form field ``picture``.

    ``/answer`` gives ``{"results": [...]}`` with an entry for each face (or one), ``drawn`` (a JPEG as a data address)
    where ``draw=true`` is asked for; a fault is ``{"error": text}`` with status 400 (no picture in the request), 413
    (too large) or 422 (cannot be used).

    Args:
        faces: whether faces are looked for where the request does not say.
        max_bytes: of a picture's file.
        hosts: names that a request's Host may have; others are refused with status 400.
    """
    from fastapi import FastAPI, Request
    from fastapi.responses import HTMLResponse, JSONResponse, Response
    from starlette.datastructures import UploadFile
    from starlette.exceptions import HTTPException
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    app = FastAPI(title=title, docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False)
    lock = threading.Lock()  # the backbone's hooks serve one pass at a time
    html = page(title, list(model.tasks), faces)

    def fault(status: int, text: str) -> Response:
        return JSONResponse({"error": text}, status)

    @app.middleware("http")
    async def guard(request: Request, following: Callable[[Request], Awaitable[Response]]) -> Response:
        response = await following(request)
        for key, value in _SAFE.items():
            response.headers[key] = value
        return response

    @app.exception_handler(HTTPException)
    async def refused(_: Request, error: HTTPException) -> Response:
        return fault(error.status_code, str(error.detail))

    @app.api_route("/", methods=["GET", "HEAD"])  # HEAD: watchers of services ask so
    async def index() -> Response:
        return HTMLResponse(html)

    @app.api_route("/model", methods=["GET", "HEAD"])
    async def describe() -> Response:
        tasks = {
            name: {"kind": view.task.kind, "classes": view.task.classes, "unit": view.unit}
            for name, view in model.tasks.items()
        }
        return JSONResponse({"name": title, "tasks": tasks, "image_size": model.image_size})

    @app.post("/answer")
    async def ask(request: Request) -> Response:
        too_large = f"The picture's file is larger than {max_bytes / 1e6:g} MB."
        length = request.headers.get("content-length", "")
        if not length.isdecimal() or "transfer-encoding" in request.headers:  # chunks may be more than was said
            return fault(411, "Say how long the request is (Content-Length), and send it in one piece.")
        if len(length) > 18 or int(length) > max_bytes + _FRAME:  # int() refuses thousands of digits
            return fault(413, too_large)
        if not request.headers.get("content-type", "").startswith("multipart/form-data"):
            return fault(400, "Send a form (multipart/form-data) with the file in the field 'picture'.")
        async with request.form(max_files=1, max_fields=4, max_part_size=1024) as form:
            picture = form.get("picture")
            if not isinstance(picture, UploadFile):
                return fault(400, "There is no file in the form's field 'picture'.")
            content = await picture.read(max_bytes + 1)
            looks = form.get("faces", "detect" if faces else "none")
            if looks not in ("detect", "none"):
                return fault(400, "The form's field 'faces' is detect or none.")
            draw = str(form.get("draw", "")) == "true"
            name = (picture.filename or "picture")[-200:]
        if len(content) > max_bytes:
            return fault(413, too_large)

        from starlette.concurrency import run_in_threadpool

        told = await run_in_threadpool(_answer, model, content, name, looks == "detect", draw, max_pixels, lock)
        return fault(422, told) if isinstance(told, str) else JSONResponse(told)

    return app


def _answer(
    model: AnsweringModel, content: bytes, name: str, faces: bool, draw: bool, max_pixels: int, lock: threading.Lock
) -> dict[str, Any] | str:
    """The reply to one picture, or why there is none."""
    wanted: dict[Sight, list[str]] = sights(model.tasks, faces)
    with lock:  # also about decoding, so that many large pictures at once cannot fill the memory
        seen = look(content, name, list(wanted), model.image_size, faces=faces, draw=draw, max_pixels=max_pixels)
        if seen[0].fault and not seen[0].crops and seen[0].fault != "no face found":
            return f"The picture cannot be used: {seen[0].fault}."
        found = answer(model, seen, wanted)
    reply: dict[str, Any] = {"results": [answered.as_json() for answered in found]}
    if draw and seen[0].picture is not None:
        reply["drawn"] = _data_address(draw_answers(found))
    return reply


def _data_address(pixels: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
