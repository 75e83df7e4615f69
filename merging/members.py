"""The adapters of a merge: checked, read as deltas."""

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig
from torch import Tensor

from launch.bundles import CARD
from launch.errors import AdapterError
from lightning_modules.adapter import ADAPTER, CONFIG, HEAD, PEFT_PREFIX, AdapterBundle, load_bundle
from lightning_modules.backbone import PARTS
from lightning_modules.model import MLPHead
from lightning_modules.tasks import Task
from merging.delta import Delta
from merging.grams import FILE, load_grams
from merging.views import View, read_view

PLAIN_STARTS = ("gaussian", "eva", "orthogonal", "mica")  # others of peft's change the frozen weights with A and B
_FACTOR = re.compile(r"^(?P<module>.+)\.lora_(?P<side>[AB])\.(?:default\.)?weight$")


@dataclass(frozen=True)
class Member:
    """One adapter of a merge.

    Attributes:
        task: its task, as heads and metrics need it.
        delta: scale folded in, in the type it was stored in; None at rank 0.
        grams: by module path; None where the bundle has none.
        head: in evaluation mode, frozen.
    """

    task: Task
    bundle: AdapterBundle
    delta: Delta | None
    grams: dict[str, Tensor] | None
    head: MLPHead

    @property
    def name(self) -> str:
        return self.task.name

    @property
    def view(self) -> View:
        """How its task sees pictures and what its answers mean."""
        return read_view(self.task, (self.bundle.card.get("data") or {}).get("fit"), self.bundle.card)

    @property
    def validation(self) -> dict[str, float]:
        """Its metrics on the validation images when it was trained; empty where the bundle does not tell."""
        return self.bundle.card.get("validation") or {}


def read_member(path: Path, fingerprint: str | None = None, with_grams: bool = True) -> Member:
    """Reads a bundle of ours.

    Args:
        fingerprint: see ``load_bundle``.
        with_grams: False where nothing is merged: unpacking them takes seconds to minutes.

    Raises:
        AdapterError: see ``load_bundle`` and ``read_delta``; or the card says nothing of the task, or the head has
            other shapes.
    """
    bundle = load_bundle(path, fingerprint)
    delta = None if bundle.config is None else read_delta(bundle.tensors, bundle.config, path)
    grams = load_grams(path / FILE) if with_grams and (path / FILE).exists() else None
    try:
        head = MLPHead.from_state_dict(bundle.head)
    except RuntimeError as error:
        raise AdapterError(f"{path / HEAD} does not fit our head ({error}); copy or train it again.") from error
    return Member(task_of(bundle), bundle, delta, grams, head)


def task_of(bundle: AdapterBundle) -> Task:
    """The task that a bundle's card tells of."""
    try:
        card = bundle.card["task"]
        kind = card["kind"]
        corners = (bundle.card.get("config") or {}).get("task", {}).get("eye_corners")
        return Task(
            name=card["name"],
            kind=kind,
            metric=card["metric"],
            outputs=len(bundle.head["output.bias"]),
            classes=None if card.get("classes") is None else tuple(card["classes"]),
            eye_corners=None if corners is None else (corners[0], corners[1]),
            units=tuple(((bundle.card.get("config") or {}).get("task", {}).get("units") or {}).items()),
        )
    except (KeyError, TypeError) as error:
        place = bundle.path / CARD
        raise AdapterError(f"{place} does not tell the task ({error!r}); train the adapter again.") from error


def read_delta(tensors: dict[str, Tensor], config: LoraConfig, path: Path) -> Delta:
    """A plain LoRA adapter of peft's as deltas by module of a split backbone, LoRA's scale folded into A.

    One made elsewhere for timm's fused ``attn.qkv`` is taken apart: q, k and v share A, each has its rows of B.

    Args:
        tensors: peft's state dict, with or without the ``base_model.model.`` prefix.
        path: for messages.

    Raises:
        AdapterError: DoRA, a start that changes the frozen weights (PiSSA, ...), a bias, patterns of ranks or alphas,
            modules saved whole, or tensors that are no pair or not of the configuration's rank.
    """
    start = config.init_lora_weights
    if isinstance(start, str) and start.lower() not in PLAIN_STARTS:
        raise AdapterError(
            f"{path / CONFIG}: init_lora_weights={start} may change the frozen weights at the start, so that BA is not "
            "what was learned. Convert it with peft's save_pretrained(path_initial_model_for_weight_conversion=...)."
        )
    refused = {
        "use_dora": "DoRA rescales whole columns of the weight, which is no sum W + BA",
        "lora_bias": "the adapter has a bias in B, which is no part of a delta",
        "rank_pattern": "ranks differ by pattern",
        "alpha_pattern": "scales differ by pattern",
        "modules_to_save": "it replaces whole modules",
    }
    for key, reason in refused.items():
        if getattr(config, key, None):
            raise AdapterError(f"{path / CONFIG}: {key} is set: {reason}. It cannot be merged; train plain LoRA.")
    if config.bias != "none":
        raise AdapterError(f"{path / CONFIG}: bias={config.bias}: biases cannot be merged; train with bias=none.")
    factors: dict[str, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        found = _FACTOR.match(name.removeprefix(PEFT_PREFIX))
        if found is None:
            raise AdapterError(f"{path / ADAPTER}: {name} is no factor of plain LoRA; it cannot be merged.")
        factors.setdefault(found["module"], {})[found["side"]] = value
    delta: Delta = {}
    for module, pair in sorted(factors.items()):
        if set(pair) != {"A", "B"} or pair["A"].shape[0] != pair["B"].shape[1]:
            shapes = {side: tuple(value.shape) for side, value in pair.items()}
            raise AdapterError(f"{path / ADAPTER}: {module} has no pair of factors of one rank (found {shapes}).")
        rank = pair["A"].shape[0]
        if rank != config.r:
            raise AdapterError(f"{path / ADAPTER}: {module} has rank {rank}, but {CONFIG} says r={config.r}.")
        scale = float(config.lora_alpha) / (rank**0.5 if config.use_rslora else rank)
        # Half precisions would make of one A, which adapters may share, another for each scale.
        delta |= _split(module, pair["B"], scale * pair["A"].float())
    return delta


def _split(module: str, b: Tensor, a: Tensor) -> Delta:
    if not module.endswith(".qkv"):
        return {module: (b, a)}
    parts = zip(PARTS, b.chunk(3), strict=True)
    return {f"{module}.{part}": (rows.contiguous(), a) for part, rows in parts if torch.any(rows)}
