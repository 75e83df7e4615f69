"""Training speed as ratios within one run:  python benchmarks/training_speed.py --model vit_tiny_patch16_224 --size 112

Prints images per second of each way to do the same training step, and what they are to each other:

- forward: timm's own model in inference mode, the limit that a step is compared with (the arithmetic needs about two);
- naive: timm model, peft on separate k and v, the loop that everybody writes, in float32 and under bf16 autocast;
- bare: our step in a bare loop on batches in memory;
- trainer: our step through Lightning's Trainer on the same batches, as ``train.py`` builds it;
- data: the same through the real data path, from the pixel cache with the galaxies' augmentation.

All ways are measured in turn, round by round, and the median of the rounds' ratios counts, since the machine's speed
drifts. Weights are random: speed does not depend on them. ``--profile`` says where a bare step's time goes.
"""

import argparse
import itertools
import json
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import timm
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from datamodules.datamodule import ImageDataModule
from datamodules.galaxy10 import Galaxy10
from datamodules.sample.galaxies import write_galaxy10
from lightning_modules.backbone import SplitQKV, create_backbone, hold_frozen_weights, split_qkv
from lightning_modules.building import resolve_precision
from lightning_modules.lora import add_lora, lora_config
from lightning_modules.model import MLPHead, MultiTaskModel
from lightning_modules.module import MultiTaskModule
from lightning_modules.tasks import Task

CLASSES = 10
AUGMENT = {
    "hflip": True, "vflip": True, "rotate": 180.0, "scale": 0.1, "translate": 0.05,
    "brightness": 0.1, "contrast": 0.1, "saturation": 0.1, "hue": 0.0,
}  # fmt: skip


class PlainSplit(nn.Module):
    """What a user without our code writes to reach k and v: three Linears and a concatenation."""

    def __init__(self, split: SplitQKV) -> None:
        super().__init__()
        self.q, self.k, self.v = split.q, split.k, split.v

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.q(x), self.k(x), self.v(x)], dim=-1)


def naive_step(name: str, size: int, rank: int, autocast: bool) -> Callable[[Tensor, Tensor], Tensor]:
    model = timm.create_model(name, num_classes=0, img_size=size)
    for block in split_qkv(model).blocks:
        block.attn.qkv = PlainSplit(block.attn.qkv)
    targets = ["attn.qkv.k", "attn.qkv.v"]
    model = get_peft_model(model, LoraConfig(r=rank, lora_alpha=rank, target_modules=targets))
    head = MLPHead(model.num_features, CLASSES)
    parameters = [p for p in (*model.parameters(), *head.parameters()) if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=1e-4)
    model.train()

    def step(images: Tensor, target: Tensor) -> Tensor:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = F.cross_entropy(head(model(images)), target)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def our_module(name: str, size: int, rank: int) -> MultiTaskModule:
    backbone = add_lora(split_qkv(create_backbone(name, size)), lora_config(rank, None, ["k", "v"]), init_seed=0)
    task = Task("galaxy", "classification", "macro_f1", CLASSES)
    model = MultiTaskModel(backbone, {task.name: MLPHead(backbone.num_features, CLASSES)})
    return MultiTaskModule(model, {task.name: task}, lr=1e-4, head_lr=1e-4)


def bare_step(module: MultiTaskModule, precision: str) -> Callable[[Tensor, Tensor], Tensor]:
    autocast = precision == "bf16-mixed"
    if autocast:
        hold_frozen_weights(module.model.backbone, torch.bfloat16)
    module.model.train()
    module._choose_attention(training=True)
    module.log = lambda *_, **__: None  # type: ignore[method-assign]
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=1e-4, weight_decay=0.0)

    def step(images: Tensor, target: Tensor) -> Tensor:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = module.training_step({"image": images, "target": target}, 0)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


class Clock(L.Callback):
    """Seconds from the end of the first step of an epoch to the end of its last."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *rest: Any) -> None:
        now = time.perf_counter()
        if trainer.fit_loop.epoch_loop.batch_idx == 0:
            self.start = now
        self.end = now

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.seconds.append(self.end - self.start)


def trainer_seconds(module: MultiTaskModule, data: Any, steps: int, precision: Any, folder: Path) -> float:
    """Seconds a step through Lightning takes, set up as ``train.py`` does."""
    clock = Clock()
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=1, limit_train_batches=steps + 1, limit_val_batches=0, precision=precision,
        logger=False, callbacks=[clock], enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, use_distributed_sampler=False, default_root_dir=folder, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(module, data)
    return clock.seconds[0] / steps


def loop_seconds(step: Callable[[Tensor, Tensor], Any], images: Tensor, target: Tensor, steps: int) -> float:
    start = time.perf_counter()
    for _ in range(steps):
        step(images, target)
    return (time.perf_counter() - start) / steps


def measure(arguments: argparse.Namespace, folder: Path) -> tuple[dict[str, list[float]], str]:
    name, size, batch, rank = arguments.model, arguments.size, arguments.batch, arguments.rank
    precision = resolve_precision("auto", "cpu")
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch, 3, size, size, generator=generator)
    target = torch.randint(0, CLASSES, (batch,), generator=generator)
    plain = timm.create_model(name, num_classes=0, img_size=size).eval()
    memory = [{"image": images, "target": target}] * (arguments.steps + 1)
    loader = torch.utils.data.DataLoader(memory, batch_size=None)
    source = Galaxy10(root=write_galaxy10(folder, max(200, 2 * batch * (arguments.steps + 1)), seed=0).parent)
    pixels = ImageDataModule(
        source, "classification", image_size=size, augment=AUGMENT, batch_size=batch,
        cache_root=folder / "cache", val_fraction=0.05, test_fraction=0.05,
    )  # fmt: skip
    through_trainer, through_data = our_module(name, size, rank), our_module(name, size, rank)
    steps = {
        "naive_float32": naive_step(name, size, rank, autocast=False),
        "naive_autocast_bf16": naive_step(name, size, rank, autocast=True),
        "bare": bare_step(our_module(name, size, rank), precision),
    }
    seconds: dict[str, list[float]] = {way: [] for way in ("forward", *steps, "trainer", "data")}

    def forward(batch: Tensor, _: Tensor) -> None:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
            plain(batch)

    for way in itertools.chain([("forward", forward)], steps.items()):
        loop_seconds(way[1], images, target, 1)  # warm-up
    for _ in range(arguments.rounds):
        seconds["forward"].append(loop_seconds(forward, images, target, arguments.steps))
        for way, step in steps.items():
            count = 1 if way == "naive_autocast_bf16" and precision == "32-true" else arguments.steps
            seconds[way].append(loop_seconds(step, images, target, count))
        for way, module, data in (("trainer", through_trainer, loader), ("data", through_data, pixels)):
            seconds[way].append(trainer_seconds(module, data, arguments.steps, precision, folder))
    return seconds, precision


def ratios(seconds: dict[str, list[float]]) -> Iterator[tuple[str, float]]:
    """Named ratios of images per second, each the median over the rounds."""
    pairs = {
        "trainer / bare (target 0.95)": ("trainer", "bare"),
        "data / bare (target 0.90)": ("data", "bare"),
        "bare / naive_autocast_bf16 (target 2 on ViT-Tiny, 1.4 on ViT-B)": ("bare", "naive_autocast_bf16"),
        "bare / naive_float32": ("bare", "naive_float32"),
        "bare / forward (goal 0.4)": ("bare", "forward"),
    }
    for text, (way, other) in pairs.items():
        yield text, statistics.median(b / a for a, b in zip(seconds[way], seconds[other], strict=True))


def profile(arguments: argparse.Namespace) -> str:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(arguments.batch, 3, arguments.size, arguments.size, generator=generator)
    target = torch.randint(0, CLASSES, (arguments.batch,), generator=generator)
    module = our_module(arguments.model, arguments.size, arguments.rank)
    step = bare_step(module, resolve_precision("auto", "cpu"))
    step(images, target)
    with torch.profiler.profile() as profiler:
        step(images, target)
    return str(profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=18, max_name_column_width=44))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit_tiny_patch16_224")
    parser.add_argument("--size", type=int, default=112)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--steps", type=int, default=8, help="per way and round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--profile", action="store_true")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    if arguments.profile:
        print(profile(arguments))
        return
    with tempfile.TemporaryDirectory() as folder:
        seconds, precision = measure(arguments, Path(folder))
    speeds = {way: arguments.batch / statistics.median(values) for way, values in seconds.items()}
    for way, speed in speeds.items():
        print(f"{way:24} {speed:8.1f} images/s")
    named = dict(ratios(seconds))
    for text, value in named.items():
        print(f"{text:68} {value:.3f}")
    setting = {"model": arguments.model, "size": arguments.size, "batch": arguments.batch, "rank": arguments.rank}
    machine = {"threads": torch.get_num_threads(), "precision": precision, "torch": torch.__version__}
    print(json.dumps(setting | machine | {"images_per_second": speeds, "ratios": named}))


if __name__ == "__main__":
    main()
