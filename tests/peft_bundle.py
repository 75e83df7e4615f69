"""A bundle as peft itself applies it: what our own way, folding, is held against."""

from peft import inject_adapter_in_model, set_peft_model_state_dict
from timm.models.vision_transformer import VisionTransformer

from lightning_modules.adapter import PEFT_PREFIX, AdapterBundle
from lightning_modules.model import MLPHead


def apply_bundle(backbone: VisionTransformer, bundle: AdapterBundle) -> tuple[VisionTransformer, MLPHead]:
    """The split backbone with the bundle's adapter on it, in place, and its head; both frozen, in evaluation mode."""
    if bundle.config is not None:
        inject_adapter_in_model(bundle.config, backbone)
        tensors = {name.removeprefix(PEFT_PREFIX): value for name, value in bundle.tensors.items()}
        left = set_peft_model_state_dict(backbone, tensors)
        assert not left.unexpected_keys
    return backbone.eval().requires_grad_(False), MLPHead.from_state_dict(bundle.head)
