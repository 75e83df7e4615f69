"""The backbone that adapters were trained on, found again and held against their card."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from timm.models.vision_transformer import VisionTransformer

from launch.errors import AdapterError, WeightsError
from launch.schema import Backbone
from lightning_modules.adapter import AdapterBundle
from lightning_modules.building import plain_backbone


def backbone_of(
    bundle: AdapterBundle, weights: str | None, cache: Path
) -> tuple[VisionTransformer, dict[str, Any], Callable[[], VisionTransformer]]:
    """The frozen backbone that an adapter was trained on, float32.

    Args:
        weights: ``hub``, ``package`` or a file; None: as it was trained.
        cache: folder for weights that come from a package.

    Returns:
        The backbone, its card, and what makes it anew.

    Raises:
        AdapterError: these are other weights.
        WeightsError: they cannot be had.
    """
    made, config = bundle.card["backbone"], bundle.card.get("config") or {}
    source = weights or (config.get("backbone") or {}).get("weights", "hub")
    described = Backbone(name=made["name"], weights=source, image_size=made["image_size"])
    try:
        backbone, card = plain_backbone(described, cache)
    except WeightsError as error:
        raise WeightsError(f"{bundle.path} needs its backbone {made['name']}: {error}") from error
    if card["fingerprint"] != made["fingerprint"]:
        raise AdapterError(
            f"The backbone {made['name']} with weights {source} (fingerprint {card['fingerprint'][:12]}) is not the "
            f"one that {bundle.path} was trained on ({made['fingerprint'][:12]}). Give backbone.weights=FILE."
        )
    return backbone, card, lambda: plain_backbone(described, cache)[0]
