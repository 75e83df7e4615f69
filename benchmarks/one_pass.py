"""One pass against its alternatives:  python benchmarks/one_pass.py --model vit_tiny_patch16_224 --size 112

Prints images per second of each way to get the answers of N tasks on the same images, and what they are to each other:

- plain: timm's own model alone, no head: the limit;
- merged: the folded model with N heads, as ``merging.model.load`` gives it (also with deep heads);
- switches: one peft model with N adapters, ``set_adapter`` and a pass for each, as peft's users do it;
- onnx and onnx plain: the merged model and timm's own in onnxruntime, float32, and the model's int8.

Under PyTorch all run in the same precision (auto: bf16 autocast where the processor multiplies it, frozen weights held
in it). All ways are measured in turn, round by round, and the median of the rounds' ratios counts, since the machine's
speed drifts. Weights are random: speed does not depend on them.
"""

import argparse
import contextlib
import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from lightning_modules.backbone import create_backbone, hold_frozen_weights, split_qkv
from lightning_modules.building import resolve_precision
from lightning_modules.model import MLPHead
from lightning_modules.module import AUTOCAST
from lightning_modules.tasks import Task
from merging.exporting import onnx_runner, write_onnx
from merging.features import deep_width
from merging.model import AnsweringModel
from merging.views import View

CLASSES = 10
Way = Callable[[], object]


def merged_model(name: str, size: int, tasks: int, deep: bool = False) -> AnsweringModel:
    """A model with random weights and as many heads as there are tasks."""
    backbone = create_backbone(name, size)
    width = deep_width(backbone.num_features) if deep else int(backbone.num_features)
    names = [f"task_{index}" for index in range(tasks)]
    heads = {task: MLPHead(width, CLASSES) for task in names}
    views = {task: View(Task(task, "classification", "accuracy", CLASSES), "crop") for task in names}
    card = {"backbone": {"name": name, "image_size": size, "mean": [0.5] * 3, "std": [0.5] * 3}}
    return AnsweringModel(backbone, heads, views, card, {}, {})


def switching(name: str, size: int, tasks: int, rank: int, dtype: torch.dtype | None) -> Callable[[Tensor], object]:
    """One pass for each adapter."""
    names = [f"task_{index}" for index in range(tasks)]
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=["attn.qkv.k", "attn.qkv.v"], init_lora_weights=False)
    model = get_peft_model(split_qkv(create_backbone(name, size)), config, adapter_name=names[0])
    for other in names[1:]:
        model.add_adapter(other, config)
    model.eval().requires_grad_(False)
    heads = nn.ModuleDict({task: MLPHead(model.base_model.model.num_features, CLASSES) for task in names}).eval()
    if dtype is not None:
        hold_frozen_weights(model, dtype)
        hold_frozen_weights(heads.requires_grad_(False), dtype)

    def call(images: Tensor) -> object:
        answers = {}
        for task in names:
            model.set_adapter(task)
            answers[task] = heads[task](model(images))
        return answers

    return call


def ways(arguments: argparse.Namespace, folder: Path, dtype: torch.dtype | None) -> dict[str, Way]:
    """Each way to answer one batch."""
    name, size, tasks = arguments.model, arguments.size, arguments.tasks
    images = torch.randn(arguments.batch, 3, size, size)
    plain = timm.create_model(name, num_classes=0, img_size=size).eval().requires_grad_(False)
    models: dict[str, Any] = {
        "plain": plain,
        "merged": merged_model(name, size, tasks),
        "merged deep": merged_model(name, size, tasks, deep=True),
    }
    files: dict[str, Way] = {}
    if arguments.onnx:
        array = images.numpy()
        for way, count, int8 in (("onnx plain", 1, False), ("onnx", tasks, False), ("onnx int8", tasks, True)):
            path = folder / f"{way.replace(' ', '_')}.onnx"
            write_onnx(merged_model(name, size, count), path, int8=int8)
            run = onnx_runner(path)
            files[way] = lambda run=run: run(array)  # type: ignore[misc]
    if dtype is not None:
        for model in models.values():
            hold_frozen_weights(model, dtype)
    models["switches"] = switching(name, size, tasks, arguments.rank, dtype)

    def in_torch(model: Callable[[Tensor], object]) -> Way:
        def call() -> object:
            cast = contextlib.nullcontext() if dtype is None else torch.autocast("cpu", dtype)
            with torch.inference_mode(), cast:
                return model(images)

        return call

    return {way: in_torch(model) for way, model in models.items()} | files


def measure(found: dict[str, Way], rounds: int) -> dict[str, list[float]]:
    """Seconds for a batch, by way, one for each round."""
    for call in found.values():
        call()
    seconds: dict[str, list[float]] = {way: [] for way in found}
    for _ in range(rounds):
        for way, call in found.items():
            begun = time.perf_counter()
            call()
            seconds[way].append(time.perf_counter() - begun)
    return seconds


def ratio(seconds: dict[str, list[float]], way: str, other: str) -> float:
    """How many times as fast ``way`` is as ``other``: the median over rounds."""
    return statistics.median(b / a for a, b in zip(seconds[way], seconds[other], strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit_tiny_patch16_224")
    parser.add_argument("--size", type=int, default=112)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--tasks", type=int, default=6)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--precision", default="auto", choices=("auto", "32-true", "bf16-mixed"))
    parser.add_argument("--no-onnx", dest="onnx", action="store_false")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.manual_seed(0)
    precision = resolve_precision(arguments.precision, "cpu")
    with tempfile.TemporaryDirectory() as folder:
        seconds = measure(ways(arguments, Path(folder), AUTOCAST.get(precision)), arguments.rounds)
    speeds = {way: arguments.batch / statistics.median(values) for way, values in seconds.items()}
    pairs = [("merged", "plain"), ("merged deep", "plain"), ("merged", "switches"), ("merged deep", "switches")]
    pairs += [("onnx", "onnx plain"), ("onnx int8", "onnx"), ("onnx", "merged")] if arguments.onnx else []
    ratios = {f"{way} / {other}": ratio(seconds, way, other) for way, other in pairs}
    for way, speed in speeds.items():
        print(f"{way:16} {speed:9.1f} images/s")
    for text, value in ratios.items():
        print(f"{text:26} {value:.3f}")
    setting = {key: getattr(arguments, key) for key in ("model", "size", "batch", "tasks", "rank")}
    machine = {"threads": torch.get_num_threads(), "precision": precision, "torch": torch.__version__}
    print(json.dumps(setting | machine | {"images_per_second": speeds, "ratios": ratios}))


if __name__ == "__main__":
    main()
