"""Gram merging block by block, on the tokens that each block really gets in the merged model."""

import functools
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from merging.delta import Delta, Weights, collect, require, weighted
from merging.fold import locate
from merging.gram import Normalise, gram
from merging.grams import input_grams
from merging.workbench import Workbench

CHUNK = 64  # images passed through a block at once


def gram_seq(
    deltas: Mapping[str, Delta],
    weights: Weights | None = None,
    *,
    bench: Workbench,
    images: int,
    normalise: Normalise,
    ridge: float,
    cat_share: float,
) -> Delta:
    """RegMean++ (Nguyen et al., arXiv 2508.03121) for LoRA: ``gram`` with Grams from the merged model itself.

    Blocks are merged in order. The Grams of a block are those of each task's own adapted block, fed with the task's
    tokens after all blocks before it were merged, where ``gram`` feeds it with those of the task's own adapted model.
    Each image passes each block twice.

    Args:
        images: unlabeled training images per task.
        normalise, ridge, cat_share: see ``gram``.
    """
    require(images >= 1, "images", images, "a whole number from 1")
    model = cast(Any, bench.backbone)
    tasks = sorted(deltas)
    groups = weighted(deltas, weights)  # of all modules at once: a block does not know the others' names
    deltas = {
        task: collect(groups, [(one.b[place], one.a[place]) for one in groups]) for place, task in enumerate(tasks)
    }
    merged: Delta = {}
    try:
        bench.weights.restore()
        tokens = {task: embed(bench, task, images) for task in tasks}
        for index, block in enumerate(model.blocks):
            prefix = f"blocks.{index}."
            own = {
                task: {module: pair for module, pair in deltas[task].items() if module.startswith(prefix)}
                for task in tasks
            }
            if any(own.values()):
                read = sorted({locate(model, module)[0].removesuffix(".weight") for module in own[tasks[0]]})
                watched = {path: model.get_submodule(path) for path in read}
                grams = {}
                for task, rows in tokens.items():
                    bench.weights.fold(own[task])
                    grams[task] = input_grams(watched, functools.partial(_advance, bench, block, rows))
                merged |= gram(own, grams=grams, normalise=normalise, ridge=ridge, cat_share=cat_share)
                bench.weights.fold(merged)
            if index + 1 < len(model.blocks):
                tokens = {task: _advance(bench, block, rows) for task, rows in tokens.items()}
    finally:
        bench.weights.restore()
    return merged


@torch.no_grad()
def embed(bench: Workbench, task: str, images: int) -> Tensor:
    """(n, tokens, d) what the first block reads."""
    model = cast(Any, bench.backbone)
    rows = []
    with torch.autocast(bench.device.type, bench.dtype, enabled=bench.dtype is not None):
        for batch in bench.batches(task, "train", images):
            x = model._pos_embed(model.patch_embed(batch))
            rows.append(model.norm_pre(model.patch_drop(x)).float())
    return torch.cat(rows)


@torch.no_grad()
def _advance(bench: Workbench, block: nn.Module, tokens: Tensor) -> Tensor:
    with torch.autocast(bench.device.type, bench.dtype, enabled=bench.dtype is not None):
        return torch.cat([block(chunk).float() for chunk in tokens.split(CHUNK)])
