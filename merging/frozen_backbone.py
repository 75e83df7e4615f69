"""The backbone that adapters were trained on, found again and held against their card and their modules."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from peft.tuners.tuners_utils import check_target_module_exists
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from launch.errors import AdapterError, WeightsError
from launch.schema import Backbone
from lightning_modules.adapter import ADAPTER, CONFIG, PEFT_PREFIX, AdapterBundle
from lightning_modules.backbone import PARTS
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


def require_whole(bundle: AdapterBundle, backbone: VisionTransformer) -> None:
    """Refuses an adapter whose modules are not those that its configuration names in this backbone.

    Args:
        backbone: plain, its qkv not split.

    Raises:
        AdapterError: with the first modules that are missing, or too many.
    """
    if bundle.config is None:
        return
    names = [name for name, module in backbone.named_modules() if isinstance(module, nn.Linear)]
    names += [f"{name}.{part}" for name in names if name.endswith(".qkv") for part in PARTS]
    wanted = {name for name in names if check_target_module_exists(bundle.config, name)}
    held = {name.removeprefix(PEFT_PREFIX).partition(".lora_")[0] for name in bundle.tensors}
    for told, other in (("lacks", wanted - held), ("also has", held - wanted)):
        if other:
            raise AdapterError(
                f"{bundle.path / ADAPTER} {told} {len(other)} modules ({', '.join(sorted(other)[:3])}, ...), by what "
                f"{CONFIG} names. Copy it again, or train it again."
            )
