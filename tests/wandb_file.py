"""Reads an offline W&B run back: protobuf records in LevelDB's log format."""

import json
import struct
import time
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

BLOCK, BLOCK_HEAD, FILE_HEAD = 32768, 7, 7
WHOLE, LAST = 1, 4


def read_records(folder: Path) -> tuple[Path, list[Any]]:
    """The ``.wandb`` file of the one finished offline run below a folder, and everything in it.

    W&B's own process writes it, on a busy machine after ``finish`` has come back.
    """
    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    for _ in range(600):
        found = _parse(path.read_bytes())
        if any(record.HasField("exit") for record in found):
            return path, found
        time.sleep(0.1)
    raise AssertionError(f"{path} has no end")


def _parse(data: bytes) -> list[Any]:
    found, parts, place = [], b"", FILE_HEAD
    while place + BLOCK_HEAD <= len(data):
        if BLOCK - place % BLOCK < BLOCK_HEAD:  # too little is left of the block for another head
            place += BLOCK - place % BLOCK
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        if place + BLOCK_HEAD + length > len(data):
            break
        parts += data[place + BLOCK_HEAD : place + BLOCK_HEAD + length]
        place += BLOCK_HEAD + length
        if kind in (WHOLE, LAST):
            found.append(wandb_internal_pb2.Record.FromString(parts))
            parts = b""
    return found


def history(records: list[Any]) -> dict[str, list[Any]]:
    """Every value that was logged, by key, in order; pictures and tables as dicts."""
    values: dict[str, list[Any]] = {}
    for record in records:
        if record.HasField("history"):
            for key, value in _items(record.history.item).items():
                values.setdefault(key, []).append(value)
    return values


def summary(records: list[Any]) -> dict[str, Any]:
    """The summary as it stands at the end."""
    values: dict[str, Any] = {}
    for record in records:
        if record.HasField("summary"):
            values |= _items(record.summary.update)
    return values


def _items(items: Any) -> dict[str, Any]:
    """A record's items; those of a nested value come one by one, under one first key."""
    values: dict[str, Any] = {}
    for item in items:
        first, *rest = [item.key] if item.key else item.nested_key
        value = json.loads(item.value_json)
        if rest:
            values.setdefault(first, {})["/".join(rest)] = value
        else:
            values[first] = value
    return values


def config(records: list[Any]) -> dict[str, Any]:
    """The run's config by its first keys."""
    return {
        item.key: json.loads(item.value_json)
        for record in records
        for part in (record.run.config if record.HasField("run") else record.config,)
        for item in part.update
    }


def artifact(records: list[Any], kind: str) -> dict[str, Path]:
    """Files of the one artifact of a type: path in it -> where the file waits for ``wandb sync``."""
    (found,) = [r.artifact for r in records if r.HasField("artifact") and r.artifact.type == kind]
    return {content.path: Path(content.local_path) for content in found.manifest.contents}
