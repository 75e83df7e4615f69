"""LoRA adapters on a split backbone: insertion, the fold into fused weights, and what may be adapted."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import cast

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from launch.errors import CommandError
from lightning_modules.backbone import PARTS, fused_state_dict

TARGET_MODULES = {
    "q": ("attn.qkv.q",),
    "k": ("attn.qkv.k",),
    "v": ("attn.qkv.v",),
    "proj": ("attn.proj",),
    "mlp": ("mlp.fc1", "mlp.fc2"),
}


def adaptable(depth: int, targets: Sequence[str]) -> list[str]:
    """Module paths of these projections in all blocks of a split model.

    Args:
        targets: any of q, k, v, proj, mlp.
    """
    return [f"blocks.{index}.{module}" for index in range(depth) for t in targets for module in TARGET_MODULES[t]]


def lora_config(
    rank: int, alpha: float | None, targets: Sequence[str], dropout: float = 0.0, use_rslora: bool = False
) -> LoraConfig:
    """peft's configuration of one adapter; ``alpha`` defaults to the rank, so that the scale is one.

    Args:
        targets: any of q, k, v, proj, mlp.
        use_rslora: the scale is alpha / sqrt(rank) (Kalajdzievski, arXiv 2312.03732).
    """
    modules = [module for target in sorted(set(targets)) for module in TARGET_MODULES[target]]
    return LoraConfig(
        r=rank,
        lora_alpha=cast(int, rank if alpha is None else alpha),
        lora_dropout=dropout,
        use_rslora=use_rslora,
        target_modules=modules,
        bias="none",
    )


def add_lora(model: VisionTransformer, config: LoraConfig, init_seed: int, train_a: bool = True) -> VisionTransformer:
    """Adds an adapter in place: A drawn from ``init_seed`` alone (Kaiming uniform, peft's default), B zero.

    Every layer's A depends on the seed, never on the state of torch's generator, so that adapters which share a seed
    start from the same A (it decides what a merge of A and B apart gives).

    Args:
        train_a: False leaves A as it was drawn.

    Raises:
        CommandError: the rank is above the model's width, where a low-rank factor pair is larger than what it adapts.
    """
    if config.r > model.num_features:
        raise CommandError(
            f"lora.rank={config.r} is above the backbone's width of {model.num_features}; "
            f"take at most {model.num_features} (usual: 4 to 64)."
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(init_seed)
        inject_adapter_in_model(config, model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".lora_B" in name or (train_a and ".lora_" in name))
    return model


@torch.no_grad()
def start_in_unused_directions(model: nn.Module, grams: Sequence[Mapping[str, Tensor]]) -> None:
    """Turns each A into the r input directions that other tasks use least; its norm stays.

    They are the eigenvectors of the least eigenvalues of sum_j G_j / tr G_j (OSRM, Zhang and Zhou, arXiv 2505.22934,
    with the Grams of all tokens in place of pooled features), so that W's change hardly acts on those tasks' inputs.

    Args:
        grams: of each task to avoid, by module path: (d_in, d_in) mean x x^T; q, k and v share that of their ``qkv``.

    Raises:
        CommandError: a task's Grams do not cover a module.
    """
    known: dict[str, Tensor] = {}
    for path, module in model.named_modules():
        if not isinstance(module, LoraLayer):
            continue
        parent, _, last = path.rpartition(".")
        source = parent if last in PARTS else path
        if source not in known:
            missing = [number for number, own in enumerate(grams) if source not in own]
            if missing:
                raise CommandError(f"lora.avoid: adapter number {missing[0] + 1} of the list has no Grams of {source}.")
            total = torch.stack([own[source] / own[source].trace() for own in grams]).sum(0)
            known[source] = torch.linalg.eigh(total).eigenvectors  # ascending
        for layer in module.lora_A.values():
            weight = cast(Tensor, layer.weight)
            rows = known[source][:, : len(weight)].t()
            weight.copy_(rows / rows.norm() * weight.double().norm())


class NormCap:
    """Scales B down wherever |s B A| exceeds a share of |W| (Frobenius norms); called after each step.

    Args:
        share: of |W|, above 0.
    """

    def __init__(self, model: nn.Module, share: float) -> None:
        self.layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
        bases = [cast(Tensor, layer.get_base_layer().weight) for layer in self.layers]
        self.limits = [share * float(base.detach().float().norm()) for base in bases]

    @torch.no_grad()
    def __call__(self) -> None:
        for layer, limit in zip(self.layers, self.limits, strict=True):
            for name, scale in layer.scaling.items():
                up, down = (cast(Tensor, side[name].weight).float() for side in (layer.lora_B, layer.lora_A))
                # |B A|^2 = tr(B^T B A A^T): two small products, never the whole matrix
                size = scale * ((up.t() @ up) * (down @ down.t())).sum().clamp(min=0).sqrt()
                cast(Tensor, layer.lora_B[name].weight).mul_((limit / size.clamp(min=1e-12)).clamp(max=1.0))


def init_seed(seed: int, task: str, sharing: str) -> int:
    """The seed of A: the run's seed when ``shared``, one of the task's own when ``per_task``."""
    if sharing == "shared":
        return seed
    return int.from_bytes(hashlib.sha256(f"{task}:{seed}".encode()).digest()[:4], "big")


def folded_state_dict(model: VisionTransformer) -> dict[str, Tensor]:
    """A plain timm state dict of a split model with W + s B A in place of each adapted W.

    The sum is taken in float64 and rounded once; the model is left as it is.
    """
    deltas: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            for adapter in module.active_adapters:
                up, down = module.lora_B[adapter].weight, module.lora_A[adapter].weight
                assert isinstance(up, Tensor)
                assert isinstance(down, Tensor)
                delta = module.scaling[adapter] * (up.double() @ down.double())
                deltas[name] = deltas[name] + delta if name in deltas else delta
    state = {}
    for key, value in model.state_dict().items():
        if ".lora_" in key:
            continue
        layer, base, kind = key.rpartition(".base_layer.")
        if base and kind == "weight" and layer in deltas:
            value = (value.double() + deltas[layer]).to(value.dtype)
        state[f"{layer}.{kind}" if base else key] = value.detach().clone()
    return fused_state_dict(state)
