"""Short texts of what a config was set otherwise than its shipped yaml, for result rows and names of folders."""

import functools
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import yaml  # type: ignore[import-untyped]

from launch.checks import ROOT

LONGEST = 24  # characters of a setting that a label spells out
_COUNTED = ("rank", "parameters")  # of an adapter: columns of their own


def training_slug(rank: int, seed: int, features: str = "class_token") -> str:
    """``r16-s0``: what tells trainings of one task apart by name; heads that read deep features stand apart."""
    return f"r{rank}{'_deep' if features == 'deep' else ''}-s{seed}"


@functools.cache
def shipped_merges() -> dict[str, dict[str, Any]]:
    """The ``merge`` section of each shipped yaml, by its name; not to be changed."""
    files = sorted((ROOT / "conf" / "merge").glob("*.yaml"))
    return {file.stem: yaml.safe_load(file.read_text(encoding="utf-8")) for file in files}


@functools.cache
def _plain_lora() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "conf" / "lora" / "default.yaml").read_text(encoding="utf-8"))
    return found


def merge_settings(merge: Mapping[str, Any]) -> str:
    """What differs in a ``merge`` section from the yaml of its name: ``density=0.5,scale=2.0``; "" where nothing does.

    Long values (a list of rungs, weights by block) are told by their hash.
    """
    return _settings(merge, shipped_merges().get(str(merge["_target_"]).rpartition(".")[2], {}))


def lora_settings(lora: Mapping[str, Any] | None) -> str:
    """What differs in an adapter's ``lora`` section from the default one, its rank aside; "" for rank 0, too."""
    if not lora or not lora.get("rank"):
        return ""
    return _settings({key: value for key, value in lora.items() if key not in _COUNTED}, _plain_lora())


def digest(text: str) -> str:
    """Six hexadecimal digits that tell texts apart."""
    return hashlib.sha256(text.encode()).hexdigest()[:6]


def _settings(given: Mapping[str, Any], shipped: Mapping[str, Any]) -> str:
    parts = []
    for key, value in sorted(given.items()):
        if key.startswith("_") or (key in shipped and shipped[key] == value):
            continue
        text = json.dumps(value, separators=(",", ":"), sort_keys=True).replace('"', "")
        parts.append(f"{key}={text if len(text) <= LONGEST else f'#{digest(text)}'}")
    return ",".join(parts)
