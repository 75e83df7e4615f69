"""Label-free refinement of a merge: its low-rank factors are trained to give each single-adapter model's answers."""

import copy
import csv
import hashlib
import io
import logging
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import torch
from peft import set_peft_model_state_dict
from torch import Tensor, nn

from launch.errors import CommandError
from launch.files import atomic_write
from launch.progress import track
from lightning_modules.backbone import set_fused_attention, split_qkv
from lightning_modules.lora import TARGET_MODULES, adaptable, add_lora, lora_config
from lightning_modules.model import MLPHead
from lightning_modules.module import warmup_cosine
from merging.delta import Delta, Weights, require, require_held_out
from merging.gram import Grams, gram
from merging.held_out import held_out_start
from merging.methods import Outcome, merge_members, shipped
from merging.predict import expected_retention, output_drift, tolerance
from merging.svd import svd
from merging.workbench import Workbench, outputs

log = logging.getLogger(__name__)
HELD_OUT = 64  # images per task, a fifth of fewer, that are never trained on: they say when to stop
CHECK_EVERY = 50  # steps between looks at them
FAR = 0.4  # mean drift of a start from which on the rate is the full one
STARTS = ("gram", "regress")
CURVE = ("step", "seconds", "loss", "mean_drift", "worst_drift", "mean_retention", "worst_retention")


def distill(
    deltas: Mapping[str, Delta],
    weights: Weights | None = None,
    *,
    bench: Workbench,
    grams: Grams,
    start: Literal["gram", "regress"],
    cat_share: float,
    rank: int | None,
    widen: Sequence[str],
    widen_rank: int,
    images: int,
    mirror: bool,
    steps: int,
    seconds: float | None,
    batch: int,
    lr: float,
    patience: int,
    seed: int,
) -> Outcome:
    """Starts at a closed form and moves low-rank factors by Adam until held-out answers stop getting nearer.

    loss = sum over tasks of |z - z_i|^2 / var(z_i) + |h_i(z) - h_i(z_i)|^2 / t_i, means over images and numbers, with z
    the merged class token, z_i the single-adapter model's, h_i its frozen head and t_i the ``predict.tolerance`` of its
    answers, so that capacity goes to the tasks that can least do without. No label is read. One step passes ``batch``
    images of each task through the backbone at once; the teachers' answers are computed once. The kept factors are
    those with the lowest geometric mean of the members' drifts on ``HELD_OUT`` training images per task, looked at
    every ``CHECK_EVERY`` steps: a member whose answers move a lot whatever is done (emotion) must not decide alone.

    The curve goes to ``bench.scratch/distill-*.csv``, a checkpoint beside it, from which a run that was killed goes on;
    ``merging.run`` removes it once the set is scored.

    Args:
        weights: of the start alone; the members to be matched are the single adapters as they are.
        start: "gram": its factors are what is trained, and the result keeps their rank. "regress": factors of the same
            rank start at zero on top of its dense change, as its yaml ships it.
        cat_share: of the ``gram``.
        rank: of the trained factors, to which ``svd`` cuts the ``gram``; None: see ``trained_rank``.
        widen: projections (any of q, k, v, proj, mlp) that get factors of rank ``widen_rank`` where the adapters have
            none; they start at zero and are trained with the others, which gives tasks room to keep apart.
        images: training images per task, at most.
        mirror: also learn from each image with left and right exchanged; twice the images, no more of them to find.
        steps, seconds: the budget; whichever ends first (seconds None: no limit).
        lr: peak, after a warm-up of 5 % of the steps, then half a cosine. Where the start's mean drift is below
            ``FAR``, in proportion to it less: large first steps would lose more than they then find again.
        patience: looks without a lower mean drift after which it stops.

    Returns:
        The change and its curve, a dict of ``CURVE`` for each look: drift and retention expected without labels
        (``predict.expected_retention``, None where unknown), mean (of drifts: geometric) and worst over the members.

    Raises:
        CommandError: an impossible budget, a rank that is no low rank, or a loss that is not finite.
    """
    require(steps >= 1, "steps", steps, "a whole number from 1")
    require(batch >= 1, "batch", batch, "a whole number from 1")
    require(rank is None or rank >= 1, "rank", rank, "a whole number from 1, or null")
    require(start in STARTS, "start", start, " or ".join(STARTS))
    for target in widen:
        require(target in TARGET_MODULES, "widen", list(widen), f"a list of {', '.join(TARGET_MODULES)}")
    require(widen_rank >= 1, "widen_rank", widen_rank, "a whole number from 1")
    require_held_out(images)
    require(lr > 0 and math.isfinite(lr), "lr", lr, "a number above 0")
    require(patience >= 1, "patience", patience, "a whole number from 1")
    require(seconds is None or seconds > 0, "seconds", seconds, "a number above 0, or null")
    merged = gram(deltas, weights, grams=grams, normalise="trace", ridge=1e-3, cat_share=cat_share)
    cut = trained_rank(merged, rank)
    if cut is not None:
        merged = svd({"merged": merged}, None, rank=cut)
    more = {module: widen_rank for module in adaptable(bench.depth, sorted(set(widen))) if module not in merged}
    tasks = sorted(deltas)
    pool = {task: _Pool(bench, task, images, mirror) for task in tasks}
    base: Delta = {}
    if start == "regress":
        settings = shipped("regress")
        fitted = min(own.count for own in pool.values())  # what is held out is not for the start, either
        settings |= {"weights": weights, "images": min(fitted, settings["images"])}
        base = merge_members(settings, {task: bench.members[task] for task in deltas}, bench).delta or {}
        more |= {module: a.shape[0] for module, (_, a) in merged.items()}
        merged = {}
    student = _student(bench, base, merged, more)
    factors = [value for value in student.parameters() if value.requires_grad]
    optimizer = torch.optim.Adam(factors, lr=lr)
    rate = warmup_cosine(steps, 0.05)
    generator = torch.Generator().manual_seed(seed)
    log_file, state_file = _files(
        bench.scratch,
        tasks,
        (weights, start, cat_share, rank, *more, widen_rank, images, mirror, steps, batch, lr, seed),
    )
    first, spent, best, stale = 0, 0.0, (math.inf, _factors(student)), 0
    curve: list[dict[str, float | None]] = []
    if state_file is not None and state_file.exists():
        state = torch.load(state_file, weights_only=True, map_location="cpu")
        first, spent, stale = state["step"], state["seconds"], state["stale"]
        set_peft_model_state_dict(student, state["factors"])
        optimizer.load_state_dict(state["optimizer"])
        generator.set_state(state["generator"])
        best, curve = (state["drift"], state["best"]), state["curve"]
        log.info("Distillation goes on at step %d from %s", first, state_file)
    else:
        seen = _look(student, bench, pool)
        best = (seen[0], _factors(student))
        curve.append(dict(zip(CURVE, (0, 0.0, None, *seen), strict=True)))
        _write_curve(log_file, curve)
    peak = lr * min(1.0, cast(float, curve[0]["mean_drift"]) / FAR)
    begun = time.perf_counter()
    heads = {task: copy.deepcopy(bench.members[task].head).to(bench.device) for task in tasks}
    set_fused_attention(student, fused=bench.device.type != "cpu")
    if stale >= patience or (seconds is not None and spent >= seconds):
        first = steps  # it was killed after its last look
    for step in track(range(first, steps), "Distilling " + "+".join(tasks), steps - first):
        for group in optimizer.param_groups:
            group["lr"] = peak * rate(step)
        loss = _loss(student, bench, heads, {task: pool[task].draw(batch, generator) for task in tasks})
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        now = spent + time.perf_counter() - begun
        over = seconds is not None and now >= seconds
        if (step + 1) % CHECK_EVERY and step + 1 < steps and not over:
            continue
        if not loss.isfinite():
            raise CommandError(
                f"Distilling {'+'.join(tasks)} diverged: after {step + 1} steps the loss is {float(loss.detach())}. "
                f"Give a lower rate: merge.lr={lr / 3:.1g}."
            )
        set_fused_attention(student, fused=True)
        seen = _look(student, bench, pool)
        set_fused_attention(student, fused=bench.device.type != "cpu")
        curve.append(dict(zip(CURVE, (step + 1, round(now, 1), float(loss.detach()), *seen), strict=True)))
        _write_curve(log_file, curve)
        stale = 0 if seen[0] < best[0] else stale + 1
        if seen[0] < best[0]:
            best = (seen[0], _factors(student))
        if state_file is not None:
            _save(state_file, student, optimizer, generator, step + 1, now, stale, best, curve)
        if over or stale >= patience:
            break
    return Outcome(_sum(base, _as_delta(best[1])), curve=curve, images=images, earlier=spent)


def trained_rank(merged: Delta, rank: int | None) -> int | None:
    """The rank to cut a merge to before it is trained; None where it stays as it is.

    Unless a rank is given it is that of the merge, the sum of the adapters', up to half of the narrowest width: there
    two factors hold as many numbers as the matrix.
    """
    if rank is not None:
        return rank
    half = min(min(b.shape[0], a.shape[1]) for b, a in merged.values()) // 2
    return half if max(a.shape[0] for _, a in merged.values()) > half else None


class _Pool:
    """A task's training images with its teacher's class tokens; the last, up to ``HELD_OUT``, are not trained on."""

    def __init__(self, bench: Workbench, task: str, images: int, mirror: bool) -> None:
        self.pixels = torch.cat([batch.to(torch.float16) for batch in bench.batches(task, "train", images)])
        self.wanted = bench.single(task, "train", images)
        self.mirrored = bench.single(task, "train", images, mirrored=True) if mirror else None
        held_out = min(HELD_OUT, len(self.pixels) // 5)
        if held_out < 2:
            raise CommandError(
                f"Distilling needs ten images of {task} or more, and got {len(self.pixels)} "
                f"(merge.images={images}, or as many as its training split has)."
            )
        self.count = held_out_start(bench.groups(task, "train", images), held_out)
        member = bench.members[task]
        own = outputs(member.head, self.wanted)
        self.feature_scale = float(self.wanted.var(0).mean())
        self.output_scale = max(tolerance(member.task, own, member.validation), 1e-12)

    def draw(self, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor, float, float]:
        rows = torch.randint(self.count, (batch,), generator=generator)
        pixels, wanted = self.pixels[rows].float(), self.wanted[rows]
        if self.mirrored is not None:
            turned = torch.rand(batch, generator=generator) < 0.5
            pixels[turned], wanted[turned] = pixels[turned].flip(-1), self.mirrored[rows[turned]]
        return pixels, wanted, self.feature_scale, self.output_scale


def _student(bench: Workbench, base: Delta, start: Delta, more: Mapping[str, int]) -> nn.Module:
    """A split copy of the backbone with ``base`` folded in and the start as its one trainable adapter.

    Args:
        more: rank by module path of factors that start at zero.
    """
    ranks = {module: a.shape[0] for module, (_, a) in start.items()} | dict(more)
    for module, (b, a) in start.items():
        if a.shape[0] > min(b.shape[0], a.shape[1]):
            raise CommandError(f"merge=distill: rank {a.shape[0]} of {module} is no low rank; give merge.rank.")
    with bench.weights.folded(base) as model:
        student = split_qkv(copy.deepcopy(model))
    config = lora_config(max(ranks.values()), None, ["k"])
    config.target_modules = sorted(ranks)
    config.rank_pattern = dict(ranks)
    config.alpha_pattern = dict(ranks)  # so that the scale is one everywhere
    add_lora(student, config, init_seed=0)
    for value in student.parameters():
        if value.requires_grad:  # peft makes them of the frozen weights' type; bfloat16 would round small steps away
            value.data = value.data.float()
    tensors = {}
    for module, (b, a) in start.items():
        # Both factors of one size: Adam moves every number by the same amount.
        size = (b.double().norm() / a.double().norm().clamp(min=1e-12)).sqrt().clamp(min=1e-6)
        tensors[f"{module}.lora_A.weight"] = (a.double() * size).float()
        tensors[f"{module}.lora_B.weight"] = (b.double() / size).float()
    set_peft_model_state_dict(student, tensors)
    return student.to(bench.device)


def _loss(
    student: nn.Module,
    bench: Workbench,
    heads: Mapping[str, MLPHead],
    drawn: Mapping[str, tuple[Tensor, Tensor, float, float]],
) -> Tensor:
    pixels = torch.cat([part[0] for part in drawn.values()]).to(bench.device)
    with torch.autocast(bench.device.type, bench.dtype, enabled=bench.dtype is not None):
        features = student(pixels).float()
    total = features.new_zeros(())
    sizes = [len(part[0]) for part in drawn.values()]
    for (task, part), rows in zip(drawn.items(), features.split(sizes), strict=True):
        wanted = part[1].to(bench.device)
        total = total + (rows - wanted).square().mean() / part[2]
        total = total + (heads[task](rows) - heads[task](wanted)).square().mean() / part[3]
    return total


@torch.no_grad()
def _look(
    student: nn.Module, bench: Workbench, pool: Mapping[str, _Pool]
) -> tuple[float, float, float | None, float | None]:
    """Geometric mean and largest of the members' drifts on held-out images, mean and lowest of expected retention."""
    drifts, kept = [], []
    for task, own in pool.items():
        with torch.autocast(bench.device.type, bench.dtype, enabled=bench.dtype is not None):
            features = student(own.pixels[own.count :].float().to(bench.device)).float().cpu()
        member = bench.members[task]
        wanted = outputs(member.head, own.wanted[own.count :])
        answers = outputs(member.head, features)
        drifts.append(output_drift(member.task, wanted, answers))
        kept.append(expected_retention(member.task, wanted, answers, member.validation))
    told = [value for value in kept if value is not None]
    mean, worst = (sum(told) / len(told), min(told)) if len(told) == len(kept) else (None, None)
    return math.exp(sum(math.log(max(drift, 1e-9)) for drift in drifts) / len(drifts)), max(drifts), mean, worst


def _factors(student: nn.Module) -> dict[str, Tensor]:
    """peft's names without the adapter's, as ``set_peft_model_state_dict`` takes them."""
    return {
        name.replace(".default.", "."): value.detach().cpu().clone()
        for name, value in student.named_parameters()
        if ".lora_" in name
    }


def _as_delta(factors: Mapping[str, Tensor]) -> Delta:
    modules = sorted({name.partition(".lora_")[0] for name in factors})
    return {module: (factors[f"{module}.lora_B.weight"], factors[f"{module}.lora_A.weight"]) for module in modules}


def _sum(base: Delta, factors: Delta) -> Delta:
    """Both changes as one, (d_out, r + r') and (r + r', d_in)."""
    found = dict(base)
    for module, (b, a) in factors.items():
        if module in base:
            b, a = torch.cat([base[module][0], b], 1), torch.cat([base[module][1], a])
        found[module] = (b, a)
    return dict(sorted(found.items()))


def _files(scratch: Path | None, tasks: Sequence[str], settings: Any) -> tuple[Path | None, Path | None]:
    if scratch is None:
        return None, None
    scratch.mkdir(parents=True, exist_ok=True)
    mark = hashlib.sha256(repr(settings).encode()).hexdigest()[:8]
    stem = f"distill-{'+'.join(tasks)}-{mark}"
    return scratch / f"{stem}.csv", scratch / f"{stem}.pt"


def _write_curve(file: Path | None, curve: Sequence[Mapping[str, float | None]]) -> None:
    if file is not None:
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, CURVE, lineterminator="\n")
        writer.writeheader()
        writer.writerows(curve)
        atomic_write(file, buffer.getvalue())


def _save(
    file: Path,
    student: nn.Module,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
    step: int,
    seconds: float,
    stale: int,
    best: tuple[float, dict[str, Tensor]],
    curve: Sequence[Mapping[str, float | None]],
) -> None:
    state = {
        "step": step, "seconds": seconds, "stale": stale, "factors": _factors(student),
        "optimizer": optimizer.state_dict(), "generator": generator.get_state(), "drift": best[0], "best": best[1],
        "curve": list(curve),
    }  # fmt: skip
    temporary = file.with_suffix(".tmp")
    torch.save(cast(Any, state), temporary)
    temporary.replace(file)
