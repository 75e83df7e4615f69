"""Speed of merging as ratios within one run:  python benchmarks/merge_speed.py

- merge: our methods against peft's ``add_weighted_adapter`` of the same kind, on the shapes of a backbone's keys and
  values, for ranks and numbers of adapters. peft's ``ties`` trims A and B, ours the products of both; like ours is its
  ``ties_svd``, which is compared with ``ties`` cut to the same rank;
- forward: a folded merged model against plain timm, images per second;
- sweep (with ``--outputs DIR``, where six adapters lie): all pairs in one process, against one process per pair, and
  against the bare cost of the sweep's forward passes.

All ways are measured in turn, round by round, and the median of the rounds' ratios counts, since the machine's speed
drifts. Weights are random where nothing else is said: speed does not depend on them.
"""

import argparse
import itertools
import json
import logging
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from lightning_modules.backbone import create_backbone, split_qkv
from lightning_modules.building import autocast_type
from merging.delta import Delta
from merging.fold import FoldableWeights
from merging.linear import cat
from merging.sparse import ties
from merging.svd import svd

ROOT = Path(__file__).resolve().parents[1]
OURS: dict[str, Callable[[dict[str, Delta], int], Delta]] = {
    "cat": lambda deltas, rank: cat(deltas),
    "svd": lambda deltas, rank: svd(deltas, rank=None),
    "ties": lambda deltas, rank: ties(deltas, density=0.2, scale=1.0, rank=None),
    "ties_svd": lambda deltas, rank: ties(deltas, density=0.2, scale=1.0, rank=rank),
}
PEFTS = {"cat": {}, "svd": {}, "ties": {"density": 0.2}, "ties_svd": {"density": 0.2}}


def adapted(name: str, size: int, rank: int, count: int) -> tuple[PeftModel, dict[str, Delta]]:
    """A split backbone with ``count`` random adapters on keys and values, and the same as deltas."""
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=["attn.qkv.k", "attn.qkv.v"])
    model = get_peft_model(split_qkv(create_backbone(name, size)), config, adapter_name="task0")
    for number in range(1, count):
        model.add_adapter(f"task{number}", config)
    deltas: dict[str, Delta] = {f"task{number}": {} for number in range(count)}
    for path, module in model.named_modules():
        if not hasattr(module, "lora_A"):
            continue
        for task, delta in deltas.items():
            a, b = module.lora_A[task].weight, module.lora_B[task].weight
            nn.init.normal_(b, std=0.02)
            delta[path.removeprefix("base_model.model.")] = (b.detach(), a.detach())
    return model, deltas


def by_peft(model: PeftModel, tasks: list[str], kind: str) -> None:
    """peft's merge under a new name, taken away again."""
    model.add_weighted_adapter(tasks, [1.0] * len(tasks), "merged", combination_type=kind, **PEFTS[kind])
    model.delete_adapter("merged")


def seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def compare(rounds: int, ways: dict[str, Callable[[], Any]]) -> dict[str, list[float]]:
    """Seconds of each way, in turn, after one round to warm up."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, work in ways.items():
            spent = seconds(work)
            if number:
                taken[name].append(spent)
    return taken


def ratio(taken: dict[str, list[float]], over: str, under: str) -> float:
    return statistics.median(one / two for one, two in zip(taken[over], taken[under], strict=True))


def merges(name: str, size: int, rounds: int) -> dict[str, Any]:
    told = {}
    for rank, count in itertools.product((16, 64), (2, 3)):
        model, deltas = adapted(name, size, rank, count)
        for kind, ours in OURS.items():
            taken = compare(
                rounds,
                {
                    "peft": lambda kind=kind, model=model, deltas=deltas: by_peft(model, list(deltas), kind),
                    "ours": lambda ours=ours, deltas=deltas, rank=rank: ours(deltas, rank),
                },
            )
            told[f"{kind}, rank {rank}, {count} adapters"] = {
                "ours, s": statistics.median(taken["ours"]),
                "peft, s": statistics.median(taken["peft"]),
                "peft / ours": ratio(taken, "peft", "ours"),
            }
    return told


@torch.no_grad()
def forward(name: str, size: int, batch: int, rounds: int) -> dict[str, Any]:
    plain, merged = create_backbone(name, size), create_backbone(name, size)
    _, deltas = adapted(name, size, 16, 2)
    total = cat(deltas)
    FoldableWeights(merged, total).fold(total)
    images = torch.randn(batch, 3, size, size)
    dtype = autocast_type("auto", "cpu")
    with torch.autocast("cpu", dtype, enabled=dtype is not None):
        taken = compare(rounds, {"plain": lambda: plain(images), "merged": lambda: merged(images)})
    return {
        "plain, images/s": batch / statistics.median(taken["plain"]),
        "merged / plain, images per second": ratio(taken, "plain", "merged"),
    }


def sweep(outputs: Path, tasks: list[str], rank: int, seed: int) -> dict[str, Any]:
    """One process for all pairs, one process for each of three pairs, and the passes alone."""
    from launch.app import CONF
    from launch.bundles import find_bundles
    from launch.compose import Composer
    from launch.config import first_config
    from launch.merge_schema import MergeConfig
    from merging.run import open_bench

    shared = [f"paths.outputs={outputs}", f"lora.rank={rank}", f"seed={seed}", "merge=cat", "save=false"]
    shared += ["resume=restart", "logger=csv", "advice_images=null"]
    pairs = list(itertools.combinations(sorted(tasks), 2))
    listed = f"[{','.join(tasks)}]"

    def run(*more: str) -> float:
        command = [sys.executable, str(ROOT / "merge.py"), *shared, *more]
        return seconds(lambda: subprocess.run(command, check=True, capture_output=True, cwd=ROOT))

    run(f"tasks=[{','.join(pairs[0])}]")  # the first process of all reads the libraries from the disk
    together = run("sweep=pairs", f"sweep.of={listed}")
    apart = statistics.mean(run(f"tasks=[{one},{two}]") for one, two in pairs[:: max(1, len(pairs) // 3)])
    composer = Composer("merge", CONF)
    command = composer.parse([*shared, "sweep=pairs", f"sweep.of={listed}"], multirun=False)
    config = MergeConfig.model_validate(first_config(composer, command))
    start = time.perf_counter()
    opened = open_bench(config, find_bundles(config))
    opening = time.perf_counter() - start
    passes = sum(seconds(lambda task=task: opened.bench.features(None, task, "test", deep=False)) for task in tasks)
    # each task is a member of as many pairs as there are other tasks, passes once more alone, and bare for head only
    limit = passes * (len(tasks) + bool(opened.head_only)) + opening
    return {
        "pairs": len(pairs), "one process, s": together, "a process per pair, s": apart * len(pairs),
        "processes / one": apart * len(pairs) / together, "its passes alone, s": limit,
        "passes / one": limit / together,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="vit_base_patch16_224")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--outputs", type=Path, help="where six adapters lie, for the sweep")
    parser.add_argument("--tasks", default="firerisk,age_class,age_regression,emotion,landmarks,galaxy")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    logging.disable(logging.INFO)
    warnings.simplefilter("ignore")
    told: dict[str, Any] = {"load": os.getloadavg()[0], "model": options.model, "size": options.size}
    told["merge"] = merges(options.model, options.size, options.rounds)
    told["forward"] = forward(options.model, options.size, options.batch, options.rounds)
    if options.outputs is not None:
        told["sweep"] = sweep(options.outputs, options.tasks.split(","), options.rank, options.seed)
    print(json.dumps(told, indent=2))


if __name__ == "__main__":
    main()
