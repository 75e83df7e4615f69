"""How much disturbance each task bears, measured once when its adapter is trained, and what a merge keeps by that.

A merge without images (``cat``, ``gram``, ``ties``, ...) is made of known matrices, and with the Grams the error that
it makes on each member's inputs is known, too: |(X - dW_i) x| / |dW_i x|. What that costs differs from task to task:
points of a face lose at 0.4 what kinds of land use bear at 0.7. So training adds the adapter's own outputs, turned
about at random and times a level, and keeps what is left of the validation score at each of ``LEVELS``.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise

import torch
from torch import Tensor, nn

from launch.errors import AdapterError
from launch.progress import track
from lightning_modules.tasks import Task
from merging.delta import Delta
from merging.gram import Grams, gram_of
from merging.paired import retention

LEVELS = (0.5, 1.0, 2.0, 4.0)
IMAGES = 512  # validation images, at most, that robustness is measured on: a pass of them per level
STRUCTURE = 2.0  # adapters do as much harm as random turns of so many times their size; see docs/measured.md
LOWER, UPPER = 4.0, 0.5  # times the error: the ends of the 90 % interval of measured retention,
NOISE = 0.05  # and how far beyond them the noise of a test set of some hundred pictures reaches


def measure_robustness(answers: Callable[[float], Tensor], task: Task, targets: Tensor) -> list[float]:
    """Retention at each of ``LEVELS``, 2 at most.

    Args:
        answers: level to the outputs (n, out) of the model whose adapter is disturbed so much; 0 is undisturbed.
        targets: the images' labels, as ``Task.metrics`` takes them.
    """

    scores = []
    for level in track((0.0, *LEVELS), "Measuring robustness", 1 + len(LEVELS)):
        metrics = task.metrics()
        metrics.update(task.predict(answers(level)), targets)
        scores.append(float(metrics.compute()[task.metric]))
    return [min(2.0, retention(task.metric, score, scores[0])) for score in scores[1:]]


def turned(b: Tensor, level: float, seed: int) -> Tensor:
    """(d_out, r): B + level Q B, Q a random rotation, so that the change is level times as large on every input.

    With B = U R, orthonormal U of k columns, Q U is k random orthonormal columns: no Q of (d_out, d_out) is needed.
    """
    generator = torch.Generator().manual_seed(seed)
    exact = b.cpu().double()  # in this order, and back in the other: Apple GPUs have no float64
    _, r = torch.linalg.qr(exact)
    columns, signs = torch.linalg.qr(torch.randn(len(b), len(r), generator=generator, dtype=torch.float64))
    columns = columns * signs.diagonal().sign()  # else Householder's choice of signs favours some directions
    return (exact + level * (columns @ r)).to(b.dtype).to(b.device)


@contextmanager
def disturbed(model: nn.Module, level: float) -> Iterator[None]:
    """A peft model whose every lora_B is ``turned`` for a while, each by a rotation of its own."""
    factors = {name: value for name, value in model.named_parameters() if "lora_B" in name}
    kept = {name: value.detach().clone() for name, value in factors.items()}
    with torch.no_grad():
        for seed, (name, value) in enumerate(sorted(factors.items())):
            value.copy_(turned(kept[name], level, seed))
        try:
            yield
        finally:
            for name, value in factors.items():
                value.copy_(kept[name])


def relative_errors(merged: Delta, deltas: Mapping[str, Delta], grams: Grams) -> dict[str, float]:
    """|(X - dW_i) x| / |dW_i x| on each adapter's own inputs, root mean square over the modules that it adapts.

    Raises:
        AdapterError: a Gram is missing.
    """
    found = {}
    for name, delta in deltas.items():
        shares = []
        for module, (b, a) in delta.items():
            inputs = gram_of(grams, name, module).double()
            own = b.double() @ a.double()
            off = -own if module not in merged else merged[module][0].double() @ merged[module][1].double() - own
            wanted = ((own @ inputs) * own).sum()
            if wanted > 0:
                shares.append(((off @ inputs) * off).sum().clamp(min=0) / wanted)
        found[name] = float(torch.stack(shares).mean().sqrt()) if shares else 0.0
    return found


def predict_by_error(robustness: Sequence[float], error: float) -> tuple[float, float, float]:
    """Retention of a member with untouched head, and its 90 % interval, by what its task bears.

    Args:
        robustness: of ``measure_robustness``.
        error: of ``relative_errors``.
    """
    value, *ends = (_at(robustness, factor * error) for factor in (STRUCTURE, LOWER, UPPER))
    return value, max(0.0, min(value, *ends) - NOISE), max(value, *ends) + NOISE


def _at(robustness: Sequence[float], level: float) -> float:
    """On the line through the measured points; beyond the last one as far as 0 in the manner of 1 / level."""
    points = [(0.0, 1.0), *zip(LEVELS, robustness, strict=True)]
    for (left, before), (right, after) in pairwise(points):
        if level <= right:
            return before + (after - before) * (level - left) / (right - left)
    return points[-1][1] * LEVELS[-1] / level


def require_robustness(name: str, card: Mapping[str, object]) -> list[float]:
    """What the card of an adapter tells.

    Raises:
        AdapterError: it was trained without Grams, or before robustness was measured.
    """
    found = card.get("robustness")
    if not isinstance(found, list) or len(found) != len(LEVELS):
        raise AdapterError(
            f"The adapter of {name} does not tell its robustness, so nothing can be predicted without images. Train it "
            "again with gram_images, or give advice_images."
        )
    return [float(value) for value in found]
