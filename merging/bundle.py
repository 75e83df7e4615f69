"""Merged models on disk: a plain timm state dict, a head per task, and all that is needed to merge them anew.

``backbone.safetensors`` + ``heads.safetensors`` are the model; ``members/<task>/`` the adapter bundles it was merged
from and ``base.safetensors`` the frozen weights that they change, so that tasks can be added and removed;
``adapter_config.json`` + ``adapter_model.safetensors`` the merged adapter in peft's format where its rank is lower than
its width; ``card.json`` the recipe. Nothing is pickled, and the same merge gives the same bytes.
"""

import json
import shutil
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from launch.bundles import CARD, MEMBERS, bundle_content
from launch.errors import AdapterError
from launch.files import atomic_folder, sha256_file, write_json
from launch.provenance import provenance
from lightning_modules.adapter import ADAPTER, CONFIG, PEFT_PREFIX, README
from lightning_modules.lora import lora_config
from lightning_modules.model import MLPHead
from merging.delta import Delta
from merging.evaluate import Merged
from merging.features import DEPTH
from merging.fold import folded_state
from merging.members import Member
from merging.paired import retention_text
from merging.views import read_view

BACKBONE, HEADS, BASE = "backbone.safetensors", "heads.safetensors", "base.safetensors"
SCHEMA_VERSION = 3


def save_merged(
    path: Path,
    frozen: VisionTransformer,
    members: Mapping[str, Member],
    merged: Merged,
    recipe: Mapping[str, Any],
    backbone: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    made: Mapping[str, Any] | None = None,
    scored: Mapping[str, str] | None = None,
) -> None:
    """Writes the model of one merge whole, or leaves what was at ``path``.

    Args:
        frozen: plain backbone, float32, nothing folded.
        recipe: ``method``, ``merge`` (its config), ``realign``, ``images``.
        backbone: ``name``, ``image_size``, ``fingerprint``, ``mean`` and ``std``.
        rows: the merge's scores, or those of the set that this one was made from by adding and removing tasks.
        made: provenance of that set, None for now: a model that is rebuilt has the same bytes on every day.
        scored: ``bundle_content`` by task of that set; None: of this one.

    Raises:
        AdapterError: a member's bundle is no longer the one that was merged.
    """
    state, base = folded_state(frozen, merged.delta)
    heads = {
        f"{task}.{name}": value.detach().float().cpu().contiguous()
        for task, head in sorted(merged.heads.items())
        for name, value in head.state_dict().items()
    }
    contents = {name: member.bundle.content for name, member in sorted(members.items())}
    card = {
        "schema_version": SCHEMA_VERSION,
        "recipe": dict(recipe),
        "backbone": dict(backbone),
        "tasks": {name: _task_card(member) for name, member in sorted(members.items())},
        "scored": contents if rows and scored is None else dict(scored or {}),
        "deep_blocks": DEPTH if merged.deep else 0,
        "rows": list(rows),
        "provenance": provenance() if made is None else dict(made),
    }
    with atomic_folder(path) as folder:
        safetensors.torch.save_file(dict(sorted(state.items())), folder / BACKBONE, metadata={"format": "pt"})
        safetensors.torch.save_file(heads, folder / HEADS, metadata={"format": "pt"})
        safetensors.torch.save_file(dict(sorted(base.items())), folder / BASE, metadata={"format": "pt"})
        for name, member in sorted(members.items()):
            shutil.copytree(member.bundle.path, folder / MEMBERS / name)
            if bundle_content(folder / MEMBERS / name) != member.bundle.content:
                raise AdapterError(
                    f"{member.bundle.path} was written anew while it was being merged, so {path} was not written: its "
                    "members would not be what was merged. Merge again."
                )
        if merged.delta is not None:
            save_peft(folder, merged.delta, str(backbone["name"]))
        card["files"] = {file.name: sha256_file(file) for file in sorted(folder.glob("*.safetensors"))}
        write_json(folder / CARD, card)
        (folder / README).write_text(_readme(card), encoding="utf-8")


def save_peft(folder: Path, delta: Delta, base_model: str) -> bool:
    """Writes a delta as a peft adapter (alpha = r, the scale in A) where each module's rank is below its width.

    Returns:
        Whether it was written; a delta of full rank is in the backbone alone.
    """
    ranks = {module: a.shape[0] for module, (_, a) in delta.items()}
    if any(rank >= min(delta[module][0].shape[0], delta[module][1].shape[1]) for module, rank in ranks.items()):
        return False
    rank = statistics.mode(ranks.values())
    others = {module: own for module, own in sorted(ranks.items()) if own != rank}
    targets = sorted({_target(module) for module in delta})
    content = lora_config(rank, None, ["k"]).to_dict() | {
        "target_modules": targets, "base_model_name_or_path": base_model, "inference_mode": True,
        "rank_pattern": others, "alpha_pattern": others,
    }  # fmt: skip
    content = {key: sorted(value) if isinstance(value, set) else value for key, value in content.items()}
    tensors = {}
    for module, (b, a) in sorted(delta.items()):
        tensors[f"{PEFT_PREFIX}{module}.lora_A.weight"] = a.detach().float().cpu().contiguous()
        tensors[f"{PEFT_PREFIX}{module}.lora_B.weight"] = b.detach().float().cpu().contiguous()
    safetensors.torch.save_file(tensors, folder / ADAPTER, metadata={"format": "pt"})
    write_json(folder / CONFIG, content)
    return True


def changed_files(path: Path, told: Mapping[str, str]) -> list[str]:
    """Which of a merged model's tensor files are missing, or not those of its card (sha256 by name)."""
    names = sorted({BACKBONE, HEADS, BASE, *told})
    return [name for name in names if not (path / name).is_file() or sha256_file(path / name) != told.get(name)]


def read_parts(path: Path) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, MLPHead]]:
    """Card, plain timm state dict and heads of a merged model.

    Raises:
        AdapterError: naming the file: missing, truncated, foreign or not finite.
    """
    if not path.is_dir():
        known = sorted(card.parent.name for card in path.parent.glob(f"*/{CARD}"))
        there = f" There are: {', '.join(known)}." if known else ""
        raise AdapterError(f"No merged model at {path}. Make it: python merge.py tasks=[a,b] merge=gram.{there}")
    try:
        card = json.loads((path / CARD).read_text(encoding="utf-8"))
        names = list(card["tasks"])
        if card["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"schema version {card['schema_version']}, not {SCHEMA_VERSION}")
        changed = changed_files(path, card["files"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise AdapterError(f"{path / CARD} is missing or not the card of a merged model ({error!r}).") from error
    if changed:
        raise AdapterError(
            f"{path / changed[0]} is missing, or not the file that {CARD} tells of: it was cut short or changed, or "
            "comes from another model. Copy the whole folder again, or merge anew."
        )
    state, flat = read_tensors(path / BACKBONE), read_tensors(path / HEADS)
    heads = {}
    for name in names:
        own = {key.removeprefix(f"{name}."): value for key, value in flat.items() if key.startswith(f"{name}.")}
        try:
            heads[name] = MLPHead.from_state_dict(own)
        except (KeyError, IndexError, RuntimeError) as error:
            raise AdapterError(f"{path / HEADS} has no head of task {name} ({error}).") from error
    return card, state, heads


def read_tensors(path: Path) -> dict[str, Tensor]:
    """A safetensors file.

    Raises:
        AdapterError: missing, truncated or not finite.
    """
    try:
        tensors = safetensors.torch.load_file(path)
    except (OSError, SafetensorError) as error:
        raise AdapterError(f"{path} is missing, truncated or no safetensors file ({error}); make it again.") from error
    for name, value in tensors.items():
        if not torch.isfinite(value).all():
            raise AdapterError(f"{path}: tensor {name} has values that are not finite.")
    return tensors


def _target(module: str) -> str:
    """``blocks.0.attn.qkv.k`` -> ``attn.qkv.k``: what peft matches by the end of a path."""
    return ".".join(part for part in module.split(".") if part != "blocks" and not part.isdigit())


def _task_card(member: Member) -> dict[str, Any]:
    """All that answering needs; the members' own cards may be left behind."""
    task, card = member.task, member.bundle.card
    view = read_view(task, card["data"].get("fit"), card)
    return {
        "kind": task.kind,
        "metric": task.metric,
        "outputs": task.outputs,
        "classes": None if task.classes is None else list(task.classes),
        "eye_corners": None if task.eye_corners is None else list(task.eye_corners),
        "fit": view.fit,
        "face_scale": view.face_scale,
        "factor": view.factor,
        "unit": view.unit,
        "data": {"name": card["data"]["name"], "fingerprint": card["data"]["fingerprint"]},
        "run": card.get("run"),
        "seed": card.get("seed"),
        "content": member.bundle.content,
    }


def is_scored(card: Mapping[str, Any]) -> bool:
    """Whether the rows of a merged model's card are of the very adapters that it holds."""
    return bool(card["rows"]) and bool(
        card["scored"] == {name: told["content"] for name, told in card["tasks"].items()}
    )


def _readme(card: Mapping[str, Any]) -> str:
    backbone, recipe = card["backbone"], card["recipe"]
    lines = [
        f"# {' + '.join(card['tasks'])} in one model",
        "",
        f"Merged by `{recipe['method']}`, realign `{recipe['realign']}`, into `{backbone['name']}` at "
        f"{backbone['image_size']} px: one backbone pass answers all tasks that see a picture alike.",
        "",
    ]
    if is_scored(card):
        lines += ["| task | metric | merged | alone | retention |", "|---|---|---|---|---|"]
        lines += [
            f"| {row['task']} | {row['metric']} | {row['score']:.4f} | {row['single']:.4f} | "
            f"{retention_text(row['retention'])} |"
            for row in card["rows"]
        ]
    else:
        lines.append(f"This set was not scored yet: `python merge.py tasks=[{','.join(card['tasks'])}]`.")
    lines += [
        "",
        "`backbone.safetensors` is a plain timm state dict; `card.json` has the recipe. Data: "
        + ", ".join(sorted({f"`{task['data']['name']}`" for task in card["tasks"].values()}))
        + "; each has a licence of its own.",
        "",
    ]
    return "\n".join(lines)
