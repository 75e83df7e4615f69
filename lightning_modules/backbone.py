"""Frozen timm Vision Transformers whose query, key and value projections can be adapted one by one.

timm fuses the three projections into one ``attn.qkv`` Linear. LoRA on keys and values alone therefore needs the
projections apart: ``split_qkv`` replaces each fused Linear by ``SplitQKV`` and leaves the rest of timm's attention as
it is; ``fused_state_dict`` goes back to a plain timm state dict.
"""

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import safetensors.torch
import timm
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn

from launch.errors import WeightsError, nearest
from lightning_modules.low_rank import LowRankLinear, plain_lora

log = logging.getLogger(__name__)
PARTS = ("q", "k", "v")
ADVICE = "Use one of timm's VisionTransformer models, such as vit_base_patch16_224."


class SplitQKV(nn.Module):
    """A fused qkv Linear as three Linears ``q``, ``k``, ``v`` of the same weights, (..., d) -> (..., 3 d).

    Where parts carry plain LoRA the whole is computed as one product with the frozen weights plus one thin product
    with all low-rank factors, forward and backward; otherwise each part is called as it is.
    """

    def __init__(self, fused: nn.Linear) -> None:
        super().__init__()
        width = fused.out_features // 3
        for index, part in enumerate(PARTS):
            linear = nn.Linear(fused.in_features, width, bias=fused.bias is not None, device="meta")
            rows = slice(index * width, (index + 1) * width)
            linear.weight = nn.Parameter(fused.weight.detach()[rows].clone())
            if fused.bias is not None:
                linear.bias = nn.Parameter(fused.bias.detach()[rows].clone())
            self.add_module(part, linear)

    def forward(self, x: Tensor) -> Tensor:
        parts = [getattr(self, part) for part in PARTS]
        low_rank = [plain_lora(part) for part in parts]
        if any(factors is None for factors in low_rank):
            return torch.cat([part(x) for part in parts], dim=-1)
        bases = [getattr(part, "base_layer", part) for part in parts]
        weight = torch.cat([base.weight for base in bases])
        bias = None if bases[0].bias is None else torch.cat([base.bias for base in bases])
        width = bases[0].out_features
        slots = [(index * width, *factors) for index, factors in enumerate(low_rank) if factors]
        if not slots:
            return F.linear(x, weight, bias)
        offsets, scales, downs, ups = zip(*slots, strict=True)
        return LowRankLinear.apply(x, weight, bias, offsets, scales, *downs, *ups)


def create_backbone(
    name: str,
    image_size: int,
    weights: Path | None = None,
    *,
    pretrained: bool = False,
    antialias: bool = True,
) -> VisionTransformer:
    """A timm Vision Transformer without classifier, in evaluation mode, frozen.

    Its output is the class token after the final norm, (B, 3, S, S) -> (B, d).

    Args:
        image_size: side of the square input in pixels; position embeddings are resampled to it.
        weights: safetensors file with a timm state dict of this model (a classifier in it is ignored).
        pretrained: takes timm's own weights from its hub instead; needs the network once.
        antialias: how position embeddings are resampled; DINOv2's were meant to be resampled without.

    Raises:
        WeightsError: the model is unknown, is no Vision Transformer with fused qkv and class token, the size is not a
            multiple of the patch, or the file does not fit the model.
    """
    if ":" in name:  # hf-hub:, local-dir:
        raise WeightsError(
            f"backbone.name={name}: give the model by timm's own name (vit_base_patch16_224.augreg_in21k), and weights "
            "of elsewhere as backbone.weights=FILE.safetensors."
        )
    architecture = name.split(".")[0]
    if not timm.is_model(architecture):
        near = nearest(architecture, timm.list_models("*vit*"))
        raise WeightsError(f"backbone.name: timm {timm.__version__} knows no model '{name}'.{near}")
    try:
        if pretrained:
            log.info("Backbone %s: timm's own weights, fetched from its hub unless cached", name)
        # The pool keeps timm's own choice, so that a model without class token is seen and refused below.
        model = timm.create_model(name, pretrained=pretrained, num_classes=0, img_size=image_size)
    except TypeError as error:  # only Vision Transformers know img_size
        raise WeightsError(f"backbone {name} is no Vision Transformer: {error}. {ADVICE}") from error
    except OSError as error:
        raise WeightsError(
            f"backbone {name}: its weights are not in the local cache and cannot be fetched from timm's hub ({error}) "
            "Connect this machine once, or give backbone.weights=FILE.safetensors, or take backbone=dinov2_small, "
            "whose weights come from a package index."
        ) from error
    except (AssertionError, RuntimeError) as error:
        raise WeightsError(
            f"backbone {name} at {image_size} px cannot be built: {error}. "
            "Choose a size that is a multiple of the model's patch, another model, "
            "or local weights (backbone.weights=FILE)."
        ) from error
    vit = require_fused_qkv(model, name)
    if weights is not None:
        load_weights(vit, name, weights, antialias=antialias)
    return vit.eval().requires_grad_(False)


def require_fused_qkv(model: nn.Module, name: str) -> VisionTransformer:
    """The model itself, if it has one fused qkv Linear per block, a class token and patches that fit the image.

    Raises:
        WeightsError: with the model's name and what it lacks.
    """
    if not isinstance(model, VisionTransformer):
        raise WeightsError(f"backbone {name} is a {type(model).__name__}, not a timm VisionTransformer. {ADVICE}")
    for index, block in enumerate(model.blocks):
        fused = getattr(getattr(block, "attn", None), "qkv", None)
        if not isinstance(fused, nn.Linear) or fused.out_features % 3:
            raise WeightsError(
                f"backbone {name} has no fused Linear 'qkv' in blocks.{index}.attn, "
                f"so keys and values cannot be split off. {ADVICE}"
            )
    if type(model).forward_head is not VisionTransformer.forward_head:
        raise WeightsError(
            f"backbone {name} is a {type(model).__name__}, whose output is not its class token after the norm. {ADVICE}"
        )
    if model.cls_token is None or model.global_pool != "token":
        raise WeightsError(f"backbone {name} pools by '{model.global_pool}', not by a class token. {ADVICE}")
    patch, size = model.patch_embed.patch_size[0], model.patch_embed.img_size[0]
    if size % patch:
        down, up = size // patch * patch, (size // patch + 1) * patch
        sizes = f"{down} or {up}" if down else str(up)
        raise WeightsError(f"backbone.image_size={size} is no multiple of {name}'s patch of {patch} px; take {sizes}.")
    return model


def load_weights(model: VisionTransformer, name: str, path: Path, *, antialias: bool = True) -> None:
    """Loads a timm state dict from safetensors into the model, resampling position embeddings to its image size.

    Raises:
        WeightsError: the file is missing, is no safetensors, or lacks, adds or misshapes tensors.
    """
    if not path.is_file():
        raise WeightsError(f"backbone.weights: no file {path}. Give a safetensors file, 'hub' or 'package'.")
    try:
        state = safetensors.torch.load_file(path)
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"backbone.weights: {path} is not a readable safetensors file ({error}).") from error
    state = {key: value for key, value in state.items() if not key.startswith(("head.", "head_dist."))}
    try:
        state = checkpoint_filter_fn(state, model, antialias=antialias)
        result = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise WeightsError(f"backbone.weights: {path} does not fit {name}: {error}") from error
    if result.missing_keys or result.unexpected_keys:
        raise WeightsError(
            f"backbone.weights: {path} is not a state dict of {name}: "
            f"missing {result.missing_keys[:3]}, unexpected {result.unexpected_keys[:3]} (first three of each)."
        )


def split_qkv(model: VisionTransformer) -> VisionTransformer:
    """Replaces every fused ``attn.qkv`` in place; outputs stay equal to float32 rounding."""
    for block in cast(Any, model.blocks):
        block.attn.qkv = SplitQKV(block.attn.qkv).requires_grad_(False)
    return model


def fused_state_dict(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A plain timm state dict from that of a split model without adapters."""
    fused = {key: value for key, value in state.items() if ".attn.qkv." not in key}
    for key in state:
        stem, dot, kind = key.partition(".attn.qkv.q.")
        if dot:
            parts = [state[f"{stem}.attn.qkv.{part}.{kind}"] for part in PARTS]
            fused[f"{stem}.attn.qkv.{kind}"] = torch.cat(parts)
    return fused


def fingerprint(model: VisionTransformer) -> str:
    """sha256 over names, shapes and float32 values of a plain (unsplit) backbone.

    Of position embeddings the shape alone, which tells the image size: resampled to it they differ in the last bit
    from one processor to another, and adapters must be known again elsewhere.
    """
    digest = hashlib.sha256()
    for key, value in sorted(model.state_dict().items()):
        digest.update(f"{key}{tuple(value.shape)}".encode())
        if key != "pos_embed":
            digest.update(value.detach().cpu().float().contiguous().numpy().data)
    return digest.hexdigest()


def set_fused_attention(model: nn.Module, fused: bool) -> None:
    """Chooses between torch's fused attention and matmul + softmax in every block."""
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            cast(Any, module).fused_attn = fused


def hold_frozen_weights(model: nn.Module, dtype: torch.dtype) -> None:
    """Casts frozen matrix weights once, so that autocast need not cast them anew in every step.

    Norms and position embeddings, which autocast leaves in float32, stay as they are. So does an A that is not
    trained: it is saved with the adapter, as it was drawn.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d) and not module.weight.requires_grad and ".lora_" not in name:
            module.to(dtype)
