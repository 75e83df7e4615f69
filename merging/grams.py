"""The Gram matrices of a task: what the adapted projections read, so that merging needs no images.

For each module path that carries LoRA (``blocks.0.attn.qkv`` for its q, k and v together, ``blocks.0.mlp.fc1``, ...)
the mean of x x^T over all tokens x that reach it in the task's own adapted model (RegMean, arXiv 2212.09849). Stored is
the upper half in float16, each matrix divided by its largest entry, which is kept in float32.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError
from torch import Tensor, nn

from launch.errors import AdapterError
from lightning_modules.backbone import PARTS, SplitQKV

FILE = "grams.safetensors"
_HALF, _PEAK = ".half", ".peak"


def read_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Module path to module for everything whose input an adapter reads; parts of a split qkv share one entry."""
    modules = dict(model.named_modules())
    paths = [name for name, module in modules.items() if isinstance(module, LoraLayer)]
    shared = set()
    for path in paths:
        parent, _, last = path.rpartition(".")
        shared.add(parent if last in PARTS and isinstance(modules[parent], SplitQKV) else path)
    return {path: modules[path] for path in sorted(shared)}


@torch.no_grad()
def collect_grams(model: nn.Module, batches: Iterable[Tensor]) -> dict[str, Tensor]:
    """Mean x x^T (d_in, d_in), float64, for each of ``read_modules``.

    Args:
        model: adapted backbone in evaluation mode.
        batches: normalised images (B, 3, S, S) on the model's device.
    """

    def run() -> None:
        for images in batches:
            model(images)

    return input_grams(read_modules(model), run)


def input_grams(modules: Mapping[str, nn.Module], run: Callable[[], Any]) -> dict[str, Tensor]:
    """Mean x x^T (d_in, d_in), float64, over all rows x that reach each module while ``run`` runs."""
    sums: dict[str, Tensor] = {}
    tokens: dict[str, int] = {}

    def watch(path: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def add(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            rows = inputs[0].detach().float().flatten(0, -2)
            product = exact_gram(rows)
            sums[path] = sums[path] + product if path in sums else product
            tokens[path] = tokens.get(path, 0) + len(rows)

        return add

    handles = [module.register_forward_pre_hook(watch(path)) for path, module in modules.items()]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return {path: total / tokens[path] for path, total in sums.items()}


def exact_gram(rows: Tensor) -> Tensor:
    """x^T x (d, d) of rows x (n, d) in float32 even under autocast, float64 on the CPU.

    Rounded to bfloat16 it would have negative eigenvalues larger than a merge's ridge.
    """
    with torch.autocast(rows.device.type, enabled=False):
        return (rows.t() @ rows).cpu().double()  # in this order: Apple GPUs have no float64


def save_grams(path: Path, grams: dict[str, Tensor]) -> None:
    """Writes the upper halves; see the module's text for the format."""
    tensors = {}
    for name, gram in sorted(grams.items()):
        peak = gram.abs().max().clamp(min=torch.finfo(torch.float32).tiny)
        rows, columns = torch.triu_indices(*gram.shape)
        tensors[name + _HALF] = (gram / peak)[rows, columns].to(torch.float16)
        tensors[name + _PEAK] = peak.to(torch.float32)
    safetensors.torch.save_file(tensors, path, metadata={"format": "pt"})


def load_grams(path: Path) -> dict[str, Tensor]:
    """Full symmetric matrices (d, d), float64, by module path; what rounding made negative is taken off.

    Raises:
        AdapterError: the file is missing, truncated, not ours or not finite.
    """
    try:
        tensors = safetensors.torch.load_file(path)
    except (OSError, SafetensorError) as error:
        raise AdapterError(f"{path} is missing, truncated or no safetensors file ({error}); train again.") from error
    grams = {}
    for name in sorted(key.removesuffix(_HALF) for key in tensors if key.endswith(_HALF)):
        half, peak = tensors[name + _HALF], tensors.get(name + _PEAK)
        width = int(((8 * len(half) + 1) ** 0.5 - 1) / 2)
        if peak is None or width * (width + 1) // 2 != len(half) or not half.isfinite().all():
            raise AdapterError(f"{path}: {name} is not the half of a Gram matrix; train again.")
        gram = torch.zeros(width, width, dtype=torch.float64)
        rows, columns = torch.triu_indices(width, width)
        gram[rows, columns] = half.double() * peak.double()
        values, vectors = torch.linalg.eigh(gram + gram.triu(1).t())
        gram = (vectors * values.clamp(min=0)) @ vectors.t()
        grams[name] = (gram + gram.t()) / 2
    if not grams:
        raise AdapterError(f"{path} holds no Gram matrices; train again.")
    return grams
