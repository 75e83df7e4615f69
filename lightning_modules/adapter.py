"""Adapter bundles: a folder with a LoRA adapter in peft's format, its head, and a card that says where they come from.

``adapter_config.json`` + ``adapter_model.safetensors`` and ``grams.safetensors`` (absent at rank 0),
``head.safetensors``, ``card.json``, ``README.md``. Nothing is pickled.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import safetensors.torch
import torch
from peft import LoraConfig, get_peft_model_state_dict
from safetensors import SafetensorError
from torch import Tensor, nn

from launch.bundles import CARD, bundle_content
from launch.errors import AdapterError
from launch.files import atomic_folder, write_json
from lightning_modules.model import MLPHead, MultiTaskModel
from merging.grams import FILE as GRAMS
from merging.grams import save_grams

CONFIG, ADAPTER, HEAD, README = "adapter_config.json", "adapter_model.safetensors", "head.safetensors", "README.md"
# peft saves the names as they are inside its PeftModel wrapper.
PEFT_PREFIX = "base_model.model."


@dataclass(frozen=True)
class AdapterBundle:
    """A bundle that was read and checked.

    Attributes:
        config: peft's configuration, None at rank 0.
        tensors: peft's state dict with its ``base_model.model.`` prefix.
        head: state dict of an ``MLPHead``.
        card: what ``save_bundle`` was given.
        content: see ``launch.bundles.bundle_content``.
    """

    path: Path
    config: LoraConfig | None
    tensors: dict[str, Tensor]
    head: dict[str, Tensor]
    card: dict[str, Any]
    content: str


def save_bundle(
    path: Path,
    model: MultiTaskModel,
    task: str,
    config: LoraConfig | None,
    card: dict[str, Any],
    grams: dict[str, Tensor] | None = None,
) -> None:
    """Writes the bundle of one task whole, or leaves what was at ``path``.

    Args:
        grams: from ``merging.grams.collect_grams``.
        card: needs ``task``, ``backbone`` with ``name``, ``image_size`` and ``fingerprint``, and ``metrics``.
    """
    with atomic_folder(path) as folder:
        if config is not None:
            state = _lora_state_dict(model.backbone)
            tensors = {f"{PEFT_PREFIX}{name}": value.float().cpu().contiguous() for name, value in state.items()}
            safetensors.torch.save_file(tensors, folder / ADAPTER, metadata={"format": "pt"})
            write_json(folder / CONFIG, _config_content(config, card["backbone"]["name"]))
        head = cast(MLPHead, model.heads[task])
        safetensors.torch.save_file(head.plain_state_dict(), folder / HEAD, metadata={"format": "pt"})
        if grams is not None:
            save_grams(folder / GRAMS, grams)
        write_json(folder / CARD, card)
        (folder / README).write_text(_readme(card, config), encoding="utf-8")


def load_bundle(path: Path, fingerprint: str | None = None) -> AdapterBundle:
    """Reads a bundle and refuses what could only fail later or, worse, not at all.

    Args:
        fingerprint: that of the backbone it is meant for; unchecked when None.

    Raises:
        AdapterError: naming the file: missing, truncated, foreign, not finite, B all zeros, another backbone.
    """
    if not path.is_dir():
        known = sorted(str(card.parent) for card in path.parent.parent.glob(f"*/*/{CARD}"))
        there = f" There are: {', '.join(known)}." if known else ""
        raise AdapterError(f"No adapter bundle at {path}. Train it first with `python train.py`.{there}")
    content = bundle_content(path)
    try:
        card = json.loads((path / CARD).read_text(encoding="utf-8"))
        made_for = card["backbone"]["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AdapterError(
            f"{path / CARD} is missing or not a card of ours ({error!r}); train the adapter again."
        ) from error
    if fingerprint is not None and made_for != fingerprint:
        raise AdapterError(
            f"{path} was trained on backbone {card['backbone'].get('name')} at {card['backbone'].get('image_size')} px "
            f"(fingerprint {made_for[:12]}), not on this one ({fingerprint[:12]}). "
            "Give the same backbone, weights and image size."
        )
    head = _read(path / HEAD)
    expected = {"hidden.weight", "hidden.bias", "output.weight", "output.bias"}
    if set(head) != expected:
        raise AdapterError(
            f"{path / HEAD} holds {sorted(head)[:4]}, not the head's {sorted(expected)}; it is another model's file."
        )
    if not (path / CONFIG).exists() and not (path / ADAPTER).exists():
        if rank := (card.get("lora") or {}).get("rank"):
            raise AdapterError(
                f"{path / ADAPTER} and {CONFIG} are missing from an adapter of rank {rank}; copy all files."
            )
        return AdapterBundle(path, None, {}, head, card, content)
    try:
        config = LoraConfig.from_pretrained(str(path))
    except (OSError, ValueError, TypeError) as error:
        raise AdapterError(f"{path / CONFIG} is missing or not a peft LoRA configuration ({error}).") from error
    tensors = _read(path / ADAPTER)
    ups = {name: value for name, value in tensors.items() if ".lora_B." in name}
    if not ups or any(not name.startswith(PEFT_PREFIX) for name in tensors):
        raise AdapterError(f"{path / ADAPTER} holds no LoRA adapter in peft's format (tensors: {sorted(tensors)[:2]}).")
    if not any(value.any() for value in ups.values()):
        raise AdapterError(
            f"{path / ADAPTER}: every B is zero, so the adapter does nothing; "
            "it was never trained or was loaded onto a wrong wrapper."
        )
    return AdapterBundle(path, config, tensors, head, card, content)


def _read(path: Path) -> dict[str, Tensor]:
    try:
        tensors = safetensors.torch.load_file(path)
    except (OSError, SafetensorError) as error:
        raise AdapterError(
            f"{path} is missing, truncated or no safetensors file ({error}); copy or train it again."
        ) from error
    for name, value in tensors.items():
        if not torch.isfinite(value).all():
            raise AdapterError(f"{path}: tensor {name} has values that are not finite; the training diverged.")
    return tensors


def _lora_state_dict(backbone: nn.Module) -> dict[str, Tensor]:
    # peft's default asks the hub whether the base model's vocabulary was resized; a ViT has none.
    return get_peft_model_state_dict(backbone, save_embedding_layers=False)


def _config_content(config: LoraConfig, base_model: str) -> dict[str, Any]:
    """As ``LoraConfig.save_pretrained`` writes it, but the same bytes each time: peft keeps targets in a set."""
    content = config.to_dict() | {"base_model_name_or_path": base_model, "inference_mode": True}
    return {key: sorted(value) if isinstance(value, set) else value for key, value in content.items()}


def _readme(card: dict[str, Any], config: LoraConfig | None) -> str:
    backbone = card["backbone"]
    what = (
        "a head alone (rank 0)"
        if config is None
        else f"LoRA of rank {config.r} on {', '.join(sorted(config.target_modules or []))}"
    )
    metrics = "\n".join(f"| {name} | {value:.4f} |" for name, value in sorted(card["metrics"].items()))
    data = card["data"]
    return (
        f"# {card['task']['name']}: {what}\n\n"
        f"Trained on `{data['name']}` (fingerprint `{data['fingerprint'][:16]}`) with seed {card['seed']}, for "
        f"`{backbone['name']}` at {backbone['image_size']} px (fingerprint `{backbone['fingerprint'][:16]}`).\n\n"
        f"| test metric | value |\n|---|---|\n{metrics}\n\n"
        "Load it with peft onto the same backbone after `lightning_modules.backbone.split_qkv`; "
        "`card.json` has the rest.\n"
    )
