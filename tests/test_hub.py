"""Bundles to the Hub and back, against a local server that speaks as much of its API as the client needs."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import HfApi

from launch.errors import UserError
from merging.hub import HubError, model_card, push, resolve, without_folders
from merging.model import load
from tests.model_cases import adapter, files, merged

COMMIT = "a" * 40


class Stand(BaseHTTPRequestHandler):
    """One repository in memory."""

    stored: dict[str, bytes]
    created: list[dict[str, Any]]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Authorization") != "Bearer hf_stand":
            self.reply(401, {"error": "Invalid username or password."})
        elif self.path == "/api/repos/create":
            self.created.append(json.loads(body))
            self.reply(200, {"url": f"{self.address}/user/name"})
        elif self.path == "/api/validate-yaml":
            self.reply(200, {"warnings": [], "errors": []})
        elif "/preupload/" in self.path:
            names = [file["path"] for file in json.loads(body)["files"]]
            told = [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]
            self.reply(200, {"files": told})
        elif "/commit/" in self.path:
            for line in body.splitlines():
                told = json.loads(line)
                if told["key"] == "file":
                    self.stored[told["value"]["path"]] = base64.b64decode(told["value"]["content"])
            self.reply(200, {"commitUrl": f"{self.address}/user/name/commit/{COMMIT}", "commitOid": COMMIT})
        else:
            self.reply(404, {"error": self.path})

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path.startswith("/api/models/user/name/tree/"):
            self.reply(
                200,
                [
                    {"type": "file", "path": name, "size": len(content), "oid": "b" * 40}
                    for name, content in self.stored.items()
                ],
            )
        elif path.startswith("/api/models/user/name"):
            self.reply(
                200, {"id": "user/name", "sha": COMMIT, "siblings": [{"rfilename": name} for name in self.stored]}
            )
        elif path.startswith("/user/name/resolve/") and path.split("/", 5)[5] in self.stored:
            content = self.stored[path.split("/", 5)[5]]
            self.reply(200, content)
        else:
            self.reply(404, {"error": "Repository not found"})

    do_HEAD = do_GET

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def reply(self, status: int, content: Any) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
        if status == 404:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def stand() -> Iterator[tuple[str, type[Stand]]]:
    handler = type("Handler", (Stand,), {"stored": {}, "created": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", handler
    server.shutdown()
    server.server_close()


class CachedApi(HfApi):
    """Keeps downloads in a folder of the test's."""

    cache: Path

    def snapshot_download(self, *arguments: Any, **options: Any) -> Any:
        return super().snapshot_download(*arguments, cache_dir=self.cache, **options)


def api(endpoint: str, cache: Path, token: str = "hf_stand") -> CachedApi:
    made = CachedApi(endpoint=endpoint, token=token)
    made.cache = cache
    return made


def test_there_and_back_is_the_same_model(tmp_path: Path, stand: tuple[str, type[Stand]]) -> None:
    endpoint, handler = stand
    path = merged(tmp_path, ["age", "leaves"], source={"root": str(tmp_path / "age"), "csv": "labels.csv"})
    (path / "notes.pkl").write_bytes(b"not part of a bundle")
    address = push(path, "user/name", private=True, api=api(endpoint, tmp_path / "cache"))
    assert address.endswith(f"/user/name/commit/{COMMIT}")
    assert handler.created[0]["name"] == "name"
    assert "private" in json.dumps(handler.created[0])
    sent, own = handler.stored, files(path)
    assert set(sent) == set(own) - {"notes.pkl"}
    rewritten = {name for name in sent if name.endswith("card.json")} | {"README.md"}
    assert len(rewritten) == 4
    assert {name: sent[name] for name in sent if name not in rewritten} == {
        name: own[name] for name in sent if name not in rewritten
    }
    assert str(tmp_path) in own["members/age/card.json"].decode()
    assert not [name for name, content in sent.items() if str(tmp_path).encode() in content]
    card = json.loads(sent["members/age/card.json"])
    assert card["config"]["backbone"] == {"weights": "tiny.safetensors"}
    assert card["config"]["data"] == {"root": "age", "csv": "labels.csv"}
    handler.stored["evil.py"] = b"import os"
    fetched = resolve("hub:user/name", api(endpoint, tmp_path / "cache"))
    assert not (fetched / "evil.py").exists()
    model = load(fetched)
    model.add(adapter(tmp_path, "points"))
    assert list(model.tasks) == ["age", "leaves", "points"]


def test_only_folders_are_taken_out_of_a_card() -> None:
    told = {
        "paths": ["/home/me/data", "~/data", "C:\\Users\\me\\data", "\\\\server\\share\\me\\data"],
        "kept": ["outputs/adapters", "hub:user/name", "a/b", "", "~", "1/2", 3, None, True],
    }
    clean = without_folders(told)
    assert clean == {"paths": ["data"] * 4, "kept": told["kept"]}


def test_what_the_hub_refuses_is_told(tmp_path: Path, stand: tuple[str, type[Stand]]) -> None:
    endpoint, _ = stand
    with pytest.raises(HubError, match="Cannot write user/name"):
        push(merged(tmp_path, ["age"]), "user/name", private=True, api=api(endpoint, tmp_path, "hf_other"))
    with pytest.raises(HubError, match="Cannot fetch user/none"):
        resolve("hub:user/none", api(endpoint, tmp_path / "cache"))
    with pytest.raises(HubError, match="Cannot fetch"):
        resolve("hub:../../etc", api(endpoint, tmp_path / "cache"))
    with pytest.raises(UserError, match=r"card\.json"):
        push(tmp_path, "user/name", private=True, api=api(endpoint, tmp_path))


def test_paths_stay_paths(tmp_path: Path) -> None:
    assert resolve(str(tmp_path)) == tmp_path


def test_the_card_shows_recipe_retention_data_and_use(tmp_path: Path) -> None:
    card = json.loads((merged(tmp_path, ["age", "leaves"]) / "card.json").read_text())
    row = {"metric": "rmse", "score": 0.5, "single": 0.4, "retention": 0.8}
    card["rows"] = [{"task": "age", **row}, {"task": "leaves", **row}]
    card["scored"] = {name: told["content"] for name, told in card["tasks"].items()}
    single = json.loads((adapter(tmp_path, "leaves") / "card.json").read_text())
    text = model_card(card)
    front = yaml.safe_load(text.split("---")[1])
    assert "model-merging" in front["tags"]
    assert "| age | rmse | 0.5000 | 0.4000 | 0.800 |" in text
    assert "Method `cat`" in text
    assert "`drawn_age`, `drawn_leaves`" in text
    assert "| accuracy | 0.5000 |" in model_card(single)
    card["rows"] = [{"task": "age", **row, "retention": None}, {"task": "leaves", **row}]
    assert "| 0.5000 | 0.4000 | ? |" in model_card(card)
    card["scored"]["leaves"] = "of another seed"
    assert "was not scored" in model_card(card)


def test_uploads_are_asked_for_in_full() -> None:
    from launch.app import CONF
    from launch.compose import Composer
    from launch.config import find_faults
    from launch.export_schema import ExportConfig

    composer = Composer("export", CONF)

    def faults(*given: str) -> list[str]:
        return find_faults(composer, ExportConfig, composer.parse(["model=m", *given], multirun=False), multirun=False)

    assert faults("format=hub") == ["hub is missing: where to? Give hub=user/name."]
    assert faults("format=hub", "hub=user/name") == []
    assert faults("hub=user/name")[0].startswith("hub=user/name: only with format=hub")
    assert faults("format=hub", "hub=../x/y")[0].startswith("hub=../x/y: must be user/name")
