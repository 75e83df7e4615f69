"""The product of a frozen fused projection and several LoRA branches, with a backward made for it."""

from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn


def plain_lora(module: nn.Module) -> tuple[float, Tensor, Tensor] | tuple[()] | None:
    """Scale, A (r, d_in) and B (d_out, r) of a module's one active LoRA adapter.

    Returns:
        The factors; ``()`` for a plain Linear; ``None`` where only the module's own forward is right: several or
        merged adapters, dropout, DoRA and other variants, bias in B, or hooks (peft's ``adapter_names``).
    """
    if module._forward_pre_hooks or module._forward_hooks or module._backward_hooks or module._backward_pre_hooks:
        return None
    if not isinstance(module, LoraLinear):
        return () if type(module) is nn.Linear else None
    if module.disable_adapters or module.merged or len(module.active_adapters) != 1:
        return None
    (name,) = module.active_adapters
    if name not in module.lora_A or name in module.lora_variant or module.lora_B[name].bias is not None:
        return None
    if not isinstance(module.lora_dropout[name], nn.Identity):
        return None
    down, up = module.lora_A[name].weight, module.lora_B[name].weight
    assert isinstance(down, Tensor)
    assert isinstance(up, Tensor)
    return module.scaling[name], down, up


class LowRankLinear(torch.autograd.Function):
    """y = x W^T + b, plus s_i (x A_i^T) B_i^T in the columns of each slot i; W and b are frozen.

    Against one branch per projection this reads x once for all A_i, writes into the output in place of adding and
    concatenating, and needs one product with W for the gradient of x.

    Shapes: x (..., d), W (D, d), A_i (r_i, d), B_i (d_i, r_i) at columns ``offsets[i] : offsets[i] + d_i`` of (..., D).
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        offsets: tuple[int, ...],
        scales: tuple[float, ...],
        *factors: Tensor,
    ) -> Tensor:
        device = x.device.type
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
            x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
        count = len(offsets)
        kinds = tuple(factor.dtype for factor in factors)
        factors = tuple(factor.to(x.dtype) for factor in factors)
        downs, ups = factors[:count], factors[count:]
        rows = x.reshape(-1, x.shape[-1])
        reads = rows @ torch.cat(downs).t()
        out = F.linear(rows, weight, bias)
        for offset, scale, up, read in zip(offsets, scales, ups, _columns(reads, downs), strict=True):
            out[:, offset : offset + up.shape[0]].addmm_(read, up.t(), alpha=scale)
        ctx.save_for_backward(x, reads, weight, *factors)
        ctx.offsets, ctx.scales, ctx.kinds = offsets, scales, kinds
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, reads, weight, *factors = ctx.saved_tensors
        count = len(ctx.offsets)
        downs, ups = factors[:count], factors[count:]
        rows = x.reshape(-1, x.shape[-1])
        gradient = gradients[0].reshape(rows.shape[0], -1).to(x.dtype)
        up_gradients, read_gradients = [], []
        for offset, scale, up, read in zip(ctx.offsets, ctx.scales, ups, _columns(reads, downs), strict=True):
            part = gradient[:, offset : offset + up.shape[0]]
            up_gradients.append((part.t() @ read).mul_(scale))
            read_gradients.append((part @ up).mul_(scale))
        read_gradient = torch.cat(read_gradients, dim=1)
        down_gradients = (read_gradient.t() @ rows).split([down.shape[0] for down in downs])
        x_gradient = None
        if ctx.needs_input_grad[0]:
            x_gradient = torch.addmm(gradient @ weight, read_gradient, torch.cat(downs)).view_as(x)
        factor_gradients = [g.to(kind) for g, kind in zip([*down_gradients, *up_gradients], ctx.kinds, strict=True)]
        return x_gradient, None, None, None, None, *factor_gradients


def _columns(reads: Tensor, downs: list[Tensor] | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return reads.split([down.shape[0] for down in downs], dim=1)
