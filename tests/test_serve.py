"""The page and the JSON endpoint: right answers, and hostile requests that end in a clear refusal."""

import base64
import io
import json
import re
import socket
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from PIL import Image

from launch.errors import UserError
from merging.answers import answer, look, sights
from merging.model import load
from merging.serving import address, build_app, known_hosts, listen
from tests.conftest import SIZE
from tests.drawn_face import scene
from tests.model_cases import merged
from tests.picture_files import noise

FACE = {"_target_": "datamodules.utkface.UtkFace", "crop": "face", "face_scale": 1.3}


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return merged(tmp_path_factory.mktemp("served"), ["age", "leaves", "points"], source=FACE)


@pytest.fixture(scope="module")
def client(model_path: Path) -> Iterator[TestClient]:
    app = build_app(load(model_path), title="<b>model</b>", faces=False, max_bytes=300_000, max_pixels=1_000_000)
    with TestClient(app) as client:
        yield client


def png(seed: int = 0, height: int = 30, width: int = 40) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(noise(seed, height, width)).save(buffer, "PNG")
    return buffer.getvalue()


def test_answers_are_those_of_the_model(client: TestClient, model_path: Path) -> None:
    reply = client.post("/answer", files={"picture": ("a.png", png())})
    assert reply.status_code == 200
    model = load(model_path)
    wanted = sights(model.tasks, faces=False)
    (told,) = answer(model, look(png(), "a.png", list(wanted), SIZE), wanted)
    assert reply.json() == {"results": [json.loads(json.dumps(told.as_json()))]}
    assert set(told.answers) == {"age", "leaves", "points"}


def test_faces_and_drawing_on_request(client: TestClient) -> None:
    buffer = io.BytesIO()
    Image.fromarray(scene(600, 300, (0, 50, 200), (250, 40, 200))).save(buffer, "PNG")
    options = {"faces": "detect", "draw": "true"}
    told = client.post("/answer", files={"picture": buffer.getvalue()}, data=options).json()
    assert [result["face"] for result in told["results"]] == [0, 1]
    kind, _, data = told["drawn"].partition(",")
    assert kind == "data:image/jpeg;base64"
    assert Image.open(io.BytesIO(base64.b64decode(data))).width == 600
    told = client.post("/answer", files={"picture": png()}, data=options).json()
    assert told["results"] == [{"file": "upload", "error": "no face found", "answers": {}}]


def test_the_page_names_the_tasks_and_escapes_names(client: TestClient) -> None:
    reply = client.get("/")
    assert "age, leaves, points" in reply.text
    assert "<b>model</b>" not in reply.text
    assert "default-src 'none'" in reply.headers["content-security-policy"]
    assert client.get("/model").json()["tasks"]["leaves"]["classes"] == ["oak", "elm", "ash"]
    assert [client.head(path).status_code for path in ("/", "/model")] == [200, 200]


def bomb() -> bytes:
    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(b"\0" * 100_000)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


@pytest.mark.parametrize(
    ("content", "status", "text"),
    [
        (b"", 422, "not a picture of a known format"),
        (b"%PDF-1.4 nothing", 422, "not a picture of a known format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", 422, "not a picture of a known format"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 422, "not a picture of a known format"),
        (png()[:-300], 422, "cannot be decoded"),
        (bomb(), 422, "60000 x 60000 pixels are more than the 1,000,000 allowed"),
        (b"\0" * 300_001, 413, "larger than 0.3 MB"),
        (b"\0" * 3_000_000, 413, "larger than 0.3 MB"),
    ],
    ids=["empty", "pdf", "eps", "svg", "cut", "bomb", "large", "very large"],
)
def test_hostile_files_are_refused_and_the_next_is_served(
    client: TestClient, content: bytes, status: int, text: str
) -> None:
    reply = client.post("/answer", files={"picture": ("a.png", content)})
    assert (reply.status_code, list(reply.json())) == (status, ["error"])
    assert text in reply.json()["error"]
    assert client.post("/answer", files={"picture": png()}).status_code == 200


def test_hostile_requests_are_refused(client: TestClient) -> None:
    deep = b"[" * 100_000
    assert client.post("/answer", content=deep, headers={"content-type": "application/json"}).status_code == 400
    assert client.post("/answer", data={"picture": "/etc/passwd"}, files={"x": b"1"}).status_code == 400
    assert client.post("/answer", files={"picture": png()}, data={"faces": "x" * 5000}).status_code == 400
    reply = client.post("/answer", files={"picture": png()}, data={"faces": "bogus"})
    assert (reply.status_code, reply.json()) == (400, {"error": "The form's field 'faces' is detect or none."})
    assert client.post("/answer", files=[("picture", png()), ("picture", png())]).status_code == 400
    broken = client.post("/answer", content=b"--x\r\n", headers={"content-type": "multipart/form-data"})
    assert (broken.status_code, list(broken.json())) == (400, ["error"])
    endless = client.post("/answer", content=iter([b"x"]), headers={"content-type": "multipart/form-data; boundary=x"})
    assert endless.status_code == 411
    form = {"content-type": "multipart/form-data; boundary=x", "content-length": "10"}
    chunks = client.post("/answer", content=b"--x--\r\n   ", headers={**form, "transfer-encoding": "chunked"})
    assert chunks.status_code == 411
    assert client.get("/answer").status_code == 405
    for path in ("/../card.json", "/static/%2e%2e/%2e%2e/etc/passwd", "/docs", "/openapi.json"):
        assert client.get(path).status_code == 404

    endless = client.post("/answer", content=b"--x--", headers={**form, "content-length": "9" * 5000})
    assert endless.status_code == 413


def test_a_page_on_this_machine_answers_to_its_own_names_alone(model_path: Path) -> None:
    given = {"title": "model", "faces": False, "max_bytes": 300_000, "max_pixels": 1_000_000}
    with TestClient(build_app(load(model_path), hosts=known_hosts("127.0.0.1"), **given)) as client:
        replies = {
            host: client.get("/model", headers={"host": host}).status_code
            for host in ("127.0.0.1:8000", "localhost:8000", "[::1]:8000", "rebound.example", "127.0.0.1.example", "")
        }
    assert replies == {
        "127.0.0.1:8000": 200, "localhost:8000": 200, "[::1]:8000": 200,
        "rebound.example": 400, "127.0.0.1.example": 400, "": 400,
    }  # fmt: skip
    assert {"localhost", "127.0.0.1", "[::1]", "127.0.1.1"} == set(known_hosts("127.0.1.1"))
    assert known_hosts("0.0.0.0") == known_hosts("192.168.1.7") == known_hosts("studio.lan") == ["*"]


def test_it_listens_on_addresses_of_both_kinds() -> None:
    for host in ("127.0.0.1", "::1"):
        with listen(host, 0) as listener, socket.create_connection(listener.getsockname()[:2], 5):
            port = listener.getsockname()[1]
            with pytest.raises(UserError, match=rf"on {re.escape(address(host, port))}: another program has the port"):
                listen(host, port)
    assert [address(host, 80) for host in ("127.0.0.1", "::1", "studio.lan")] == [
        "127.0.0.1:80", "[::1]:80", "studio.lan:80",
    ]  # fmt: skip
    assert {"localhost", "127.0.0.1", "[::1]"} == set(known_hosts("::1"))


@pytest.mark.parametrize("host", ["192.0.2.1", "2001:db8::1", "nowhere.invalid"])
def test_another_port_is_no_way_out_where_the_address_is_wrong(host: str) -> None:
    with pytest.raises(UserError, match="give an address of this machine") as refused:
        listen(host, 0)
    assert "port=" not in str(refused.value)


def test_a_file_name_is_only_a_name(client: TestClient) -> None:
    reply = client.post("/answer", files={"picture": ("../../etc/passwd", png())})
    assert reply.status_code == 200
    assert reply.json()["results"][0]["file"].endswith("passwd")
    assert "root:" not in reply.text
