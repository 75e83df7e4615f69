"""A merge by least squares, Linear after Linear, that undoes what the Linears before it have spoilt."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from launch.errors import CommandError
from launch.progress import track
from lightning_modules.backbone import PARTS
from lightning_modules.lora import TARGET_MODULES
from merging.delta import Delta, Weights, collect, require, weighted
from merging.predict import tolerance
from merging.sequential import CHUNK, embed
from merging.workbench import Workbench, outputs

HELD = 23  # float32 numbers per token and channel of each image, measured with two and four tasks


def regress(
    deltas: Mapping[str, Delta],
    weights: Weights | None = None,
    *,
    bench: Workbench,
    images: int,
    targets: Sequence[str],
    ridge: float,
    class_weight: float,
    stride: int,
    by_error: bool,
) -> Delta:
    """Refits the block's Linears in order, so that each task's tokens follow those of its single-adapter model.

    For each Linear W, with x the tokens of task i in the model merged so far and y what is wanted of them,

        W' = argmin_V sum_i l_i E |V x + b - y|^2 + ridge * tr(S) / d * |V - W|^2,   S = sum_i l_i E x x^T.

    For q, k, v and the first Linear of the MLP, y is that Linear's output in the single-adapter model (IterIS, Chen et
    al., arXiv 2411.15231, for K and V alone); for the two that write into the residual stream it is what brings the
    stream itself back to the single-adapter model's, so that errors do not add up. l_i = 1 / tr E x x^T. The result
    is a dense change of all ``targets``; no gradient step is taken and no label is read.

    Of each image about ``HELD`` numbers per token and channel are held at a time.

    Args:
        weights: of the adapters whose answers are wanted; None for 1.
        images: unlabeled training images per task.
        targets: what may change: any of q, k, v, proj, mlp.
        ridge: share of the mean eigenvalue, above 0.
        class_weight: how many of the fitted patch tokens a class token counts for; each stands for ``stride`` tokens.
        stride: only every how-manieth patch token is fitted; more images teach more than all tokens of few.
        by_error: of numbers and points l_i is multiplied by the variance of the head outputs over
            ``predict.tolerance``, so that they, which tell finer differences than classes, get more say.

    Raises:
        CommandError: an impossible setting, or more than the machine's memory would be held.
    """
    require(images >= 2, "images", images, "a whole number from 2")
    require(ridge > 0, "ridge", ridge, "a number above 0")
    require(class_weight > 0, "class_weight", class_weight, "a number above 0")
    require(stride >= 1, "stride", stride, "a whole number from 1")
    require(
        bool(targets) and set(targets) <= set(TARGET_MODULES), "targets", list(targets),
        f"a list of {', '.join(TARGET_MODULES)}",
    )  # fmt: skip
    groups = weighted(deltas, weights)
    tasks = sorted(deltas)
    own = {task: collect(groups, [(one.b[i], one.a[i]) for one in groups]) for i, task in enumerate(tasks)}
    says = {task: _say(bench, task, images) if by_error else 1.0 for task in tasks}
    settings = _Settings(says, frozenset(targets), ridge, class_weight, stride)
    found: Delta = {}
    try:
        bench.weights.restore()
        merged = {task: embed(bench, task, images) for task in tasks}
        _require_memory(merged, bench.device)
        single = dict(merged)
        blocks = list(cast(nn.Sequential, bench.backbone.blocks))
        for index, block in enumerate(track(blocks, "Refitting blocks", len(blocks))):
            fit = _Block(bench, block, f"blocks.{index}", settings)
            wanted = {}
            for task in tasks:
                bench.weights.fold({m: pair for m, pair in own[task].items() if m.startswith(f"{fit.path}.")})
                wanted[task] = fit.follow(single[task])
                single[task] = wanted[task].end
            merged = fit.refit(merged, wanted)
            found |= fit.found
    finally:
        bench.weights.restore()
    return found


def _require_memory(tokens: Mapping[str, Tensor], device: torch.device) -> None:
    """Refuses what would end in the system killing the process, with the number of images that fit."""
    if device.type == "cuda":
        there = torch.cuda.mem_get_info(device)[1]
    elif hasattr(os, "sysconf"):
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    else:  # Windows does not tell without another package
        return
    needed = HELD * sum(one.numel() * one.element_size() for one in tokens.values())
    if needed > there:
        fewer = int(max(len(one) for one in tokens.values()) * there / needed)
        raise CommandError(
            f"merge=regress would hold about {needed / 1e9:.0f} GB at a time for {len(tokens)} tasks, more than the "
            f"{there / 1e9:.0f} GB of {device}. Give merge.images={fewer} or less, another merge, or other "
            "candidates of advice."
        )


def _say(bench: Workbench, task: str, images: int) -> float:
    """By how much more than a classifier's the outputs of a task must stay where they were."""
    member = bench.members[task]
    if member.task.kind == "classification":
        return 1.0  # the tolerance of classes takes more from the unsure task than it gives to the others (docs/log.md)
    own = outputs(member.head, bench.single(task, "train", images))
    return float(own.var(0).mean()) / max(tolerance(member.task, own, member.validation), 1e-12)


@dataclass(frozen=True)
class _Settings:
    """What ``regress`` takes, with each task's share of the say."""

    says: Mapping[str, float]
    targets: frozenset[str]
    ridge: float
    class_weight: float
    stride: int


@dataclass(frozen=True)
class _Wanted:
    """What a block does to one task's tokens (n, N, d) in its single-adapter model; the streams in float32."""

    qkv: Tensor  # (n, N, 3 d)
    middle: Tensor  # the stream after attention
    hidden: Tensor  # (n, N, h) before the activation
    end: Tensor


class _Block:
    def __init__(self, bench: Workbench, block: nn.Module, path: str, settings: _Settings) -> None:
        self.bench, self.block, self.path, self.settings = bench, cast(Any, block), path, settings
        self.prefix = int(bench.backbone.num_prefix_tokens)
        self.found: Delta = {}

    def follow(self, tokens: Tensor) -> _Wanted:
        """The block with whatever is folded into it now."""
        seen: dict[str, list[Tensor]] = {"attn.qkv": [], "mlp.fc1": []}

        def watch(name: str) -> Callable[..., None]:
            return lambda _module, _given, out: seen[name].append(out)

        handles = [self.block.get_submodule(name).register_forward_hook(watch(name)) for name in seen]
        try:
            middle = self._run(lambda x: x + self.block.ls1(self.block.attn(self.block.norm1(x))), tokens)
            end = self._run(lambda x: x + self.block.ls2(self.block.mlp(self.block.norm2(x))), middle)
        finally:
            for handle in handles:
                handle.remove()
        return _Wanted(torch.cat(seen["attn.qkv"]), middle, torch.cat(seen["mlp.fc1"]), end)

    def refit(self, tokens: Mapping[str, Tensor], wanted: Mapping[str, _Wanted]) -> dict[str, Tensor]:
        """Refits the four Linears in the order in which tokens pass them; returns each task's tokens behind them."""
        block = self.block
        self.bench.weights.restore()
        kind = self.bench.dtype or torch.float32  # what Linears read: rounded once, held in half the memory
        normed = {task: self._run(block.norm1, x, kind) for task, x in tokens.items()}
        self._fit("attn.qkv", normed, {task: w.qkv for task, w in wanted.items()})
        mixed = {task: self._inputs(block.attn, block.attn.proj, x) for task, x in normed.items()}
        self._fit("attn.proj", mixed, {t: (w.middle - tokens[t]) / _scale(block.ls1) for t, w in wanted.items()})
        middle = {
            task: x + self._run(lambda y: block.ls1(block.attn.proj(y)), mixed[task]) for task, x in tokens.items()
        }
        normed = {task: self._run(block.norm2, x, kind) for task, x in middle.items()}
        self._fit("mlp.fc1", normed, {task: w.hidden for task, w in wanted.items()})
        hidden = {task: self._inputs(block.mlp, block.mlp.fc2, x) for task, x in normed.items()}
        self._fit("mlp.fc2", hidden, {t: (w.end - middle[t]) / _scale(block.ls2) for t, w in wanted.items()})
        return {task: x + self._run(lambda y: block.ls2(block.mlp.fc2(y)), hidden[task]) for task, x in middle.items()}

    @torch.no_grad()
    def _run(self, function: Callable[[Tensor], Tensor], tokens: Tensor, kind: torch.dtype = torch.float32) -> Tensor:
        device, dtype = self.bench.device, self.bench.dtype
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            return torch.cat([function(chunk).to(kind) for chunk in tokens.split(CHUNK)])

    def _inputs(self, function: Callable[[Tensor], Tensor], module: nn.Module, tokens: Tensor) -> Tensor:
        """What a Linear inside of ``function`` gets to read."""
        seen: list[Tensor] = []
        handle = module.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
        try:
            self._run(function, tokens)
        finally:
            handle.remove()
        return torch.cat(seen)

    @torch.no_grad()
    def _fit(self, name: str, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> None:
        """Refits one Linear, folds it and keeps its change."""
        rows = self._rows(name)
        if not rows:
            return
        linear = self.block.get_submodule(name)
        base = self.bench.weights.kept[f"{self.path}.{name}.weight"].float()
        bias = 0.0 if linear.bias is None else linear.bias.float()
        summed_on = "cpu" if base.device.type == "mps" else base.device  # Apple GPUs have no float64
        total = torch.zeros(base.shape[1], base.shape[1], dtype=torch.float64, device=summed_on)
        cross = torch.zeros(base.shape, dtype=torch.float64, device=summed_on)
        for task in sorted(inputs):
            squares, products = torch.zeros_like(total), torch.zeros_like(cross)
            chunks = zip(inputs[task].split(CHUNK), outputs[task].split(CHUNK), strict=True)
            for place, (x, y) in enumerate(chunks):
                x, y = (self._some(tokens, place).float() for tokens in (x, y))
                weight = x.new_ones(x.shape[1])
                weight[: self.prefix] = self.settings.class_weight
                heavy = (x * weight[:, None]).flatten(0, 1)
                left = (y - bias - nn.functional.linear(x, base)).flatten(0, 1)
                squares += (heavy.t() @ x.flatten(0, 1)).to(summed_on)
                products += (left.t() @ heavy).to(summed_on)
            share = self.settings.says[task] / squares.trace().clamp(min=1e-12)
            total += share * squares
            cross += share * products
        total.diagonal().add_(self.settings.ridge * total.trace() / len(total))
        factor, failed = torch.linalg.cholesky_ex(total)
        if failed:
            raise CommandError(
                f"merge=regress: the inputs of {self.path}.{name} are too much alike for merge.ridge="
                f"{self.settings.ridge}; give a larger one, e.g. 0.01."
            )
        change = torch.cholesky_solve(cross.t(), factor).t().float()
        for module, own in rows.items():
            self.found[module] = _factors(change[own].cpu())
        self.bench.weights.fold(self.found)

    def _some(self, tokens: Tensor, place: int) -> Tensor:
        """Class tokens and every ``stride``-th patch token, others in each chunk."""
        if self.settings.stride == 1:
            return tokens
        patches = tokens[:, self.prefix + place % self.settings.stride :: self.settings.stride]
        return torch.cat([tokens[:, : self.prefix], patches], 1)

    def _rows(self, name: str) -> dict[str, slice]:
        """Rows of a fused Linear that may change, by module path of the split model."""
        if name != "attn.qkv":
            kind = "proj" if name == "attn.proj" else "mlp"
            return {f"{self.path}.{name}": slice(None)} if kind in self.settings.targets else {}
        width = self.block.get_submodule(name).out_features // len(PARTS)
        return {
            f"{self.path}.{name}.{part}": slice(place * width, (place + 1) * width)
            for place, part in enumerate(PARTS)
            if part in self.settings.targets
        }


def _scale(layer: nn.Module) -> Tensor | float:
    """The gain of a LayerScale; 1 where a model has none."""
    gain = getattr(layer, "gamma", None)
    return 1.0 if gain is None else gain.detach().float()


def _factors(change: Tensor) -> tuple[Tensor, Tensor]:
    """A dense change as (B, A), the identity on its shorter side."""
    out, wide = change.shape
    if out < wide:
        return torch.eye(out), change
    return change, torch.eye(wide)
