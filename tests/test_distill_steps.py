"""Distillation step by step: its start, what it draws and learns from, its rate, its looks, its end."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from merging import distill as module
from merging.features import read_features
from merging.gram import gram
from merging.methods import Outcome, merge_function, merge_members, shipped
from merging.predict import expected_retention, output_drift
from merging.workbench import Workbench
from merging.workbench import outputs as answers_of
from tests.merge_cases import dense
from tests.merge_runs import command, open_here

pytestmark = pytest.mark.usefixtures("few_pictures")
PAIR = ["leaves", "dots"]
IMAGES = 20  # a fifth of which is held out


def opened(outputs: Path, *more: str) -> tuple[dict[str, Any], Workbench]:
    given = ["merge=distill", "merge.widen=[]", f"merge.images={IMAGES}", "merge.batch=2", *more]
    config, bench = open_here(command(outputs, "tasks=[leaves,dots]", *given))
    return config.merge, bench


def pool(bench: Workbench, task: str, *, mirror: bool = False) -> Any:
    return module._Pool(bench, task, IMAGES, mirror=mirror)


def looks_that_tell(monkeypatch: pytest.MonkeyPatch, *drifts: float) -> list[dict[str, torch.Tensor]]:
    """Looks tell these drifts, whatever they see; the factors that each saw."""
    coming, seen = iter(drifts), []

    def look(student: Any, *_: Any) -> tuple[float, float, None, None]:
        seen.append(module._factors(student))
        return next(coming), 9.0, None, None

    monkeypatch.setattr(module, "_look", look)
    return seen


def is_of(outcome: Outcome, factors: dict[str, torch.Tensor]) -> bool:
    wanted = module._as_delta(factors)
    assert outcome.delta is not None
    assert outcome.delta.keys() == wanted.keys()
    return all(torch.equal(x, y) for name in wanted for x, y in zip(outcome.delta[name], wanted[name], strict=True))


@pytest.mark.parametrize("start", ["gram", "regress"])
def test_it_starts_at_the_closed_form_and_gives_it_back_where_nothing_is_learned(outputs: Path, start: str) -> None:
    given = [f"merge.start={start}", "merge.steps=1", "merge.lr=1e-12"]
    settings, bench = opened(outputs, *given, "merge.cat_share=0.6", "merge.weights={leaves:0.5,dots:2.0}")
    outcome = merge_function(settings)(bench, PAIR)
    members = {task: bench.members[task] for task in PAIR}
    weights = {"leaves": 0.5, "dots": 2.0}
    if start == "gram":
        deltas, grams = ({task: getattr(own, key) for task, own in members.items()} for key in ("delta", "grams"))
        closed = gram(deltas, weights, grams=grams, normalise="trace", ridge=1e-3, cat_share=0.6)
    else:
        closed = merge_members(shipped("regress") | {"weights": weights, "images": 16}, members, bench).delta
    torch.testing.assert_close(dense(outcome.delta), dense(closed), rtol=1e-4, atol=1e-6)
    drifts, kept = [], []
    for task, own in members.items():
        wanted = answers_of(own.head, bench.single(task, "train", IMAGES)[16:])
        moved = answers_of(own.head, bench.features(closed, task, "train", IMAGES, deep=False)[16:])
        drifts.append(output_drift(own.task, wanted, moved))
        kept.append(expected_retention(own.task, wanted, moved, own.validation))
    first = outcome.curve[0]
    assert first["mean_drift"] == pytest.approx(math.prod(drifts) ** 0.5, rel=0.02)  # pixels are held in float16
    assert first["worst_drift"] == pytest.approx(max(drifts), rel=0.02)
    assert first["mean_retention"] == pytest.approx(sum(kept) / 2, rel=0.01)
    assert max(drifts) > 1.1 * min(drifts)


def test_it_ends_after_looks_without_gain_and_keeps_the_best(outputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = looks_that_tell(monkeypatch, 0.5, 0.4, 0.45, 0.41)
    settings, bench = opened(outputs, "merge.steps=100", "merge.patience=2")
    outcome = merge_function(settings)(bench, PAIR)
    assert [look["step"] for look in outcome.curve] == [0, 5, 10, 15]
    assert is_of(outcome, seen[1])


@pytest.mark.parametrize(("drift", "share"), [(0.1, 0.25), (4.0, 1.0)])
def test_the_rate_warms_up_and_falls_below_a_peak_that_a_near_start_lowers_and_a_far_one_does_not_raise(
    outputs: Path, monkeypatch: pytest.MonkeyPatch, drift: float, share: float
) -> None:
    looks_that_tell(monkeypatch, *[drift] * 9)
    rates, step = [], torch.optim.Adam.step

    def watched(self: torch.optim.Adam, *given: Any) -> Any:
        rates.append(self.param_groups[0]["lr"])
        return step(self, *given)

    monkeypatch.setattr(torch.optim.Adam, "step", watched)
    settings, bench = opened(outputs, "merge.steps=40", "merge.patience=9", "merge.lr=1e-3")
    merge_function(settings)(bench, PAIR)
    assert len(rates) == 40
    assert max(rates) == pytest.approx(1e-3 * share)
    assert rates[0] < max(rates)
    assert rates[-1] < 0.05 * max(rates)


def test_what_is_drawn_is_not_held_out_and_has_its_own_models_answers(outputs: Path) -> None:
    _, bench = opened(outputs)
    images = pool(bench, "leaves", mirror=True)
    pixels, wanted, *_ = images.draw(200, torch.Generator().manual_seed(0))
    both = torch.cat([images.pixels, images.pixels.flip(-1)]).float().flatten(1)
    same = (pixels.flatten(1)[:, None] == both).all(-1)
    assert same.any(1).all()
    place = same.int().argmax(1)
    assert set((place % IMAGES).tolist()) == set(range(16))
    assert 60 < int((place >= IMAGES).sum()) < 140  # mirrored: about half of them
    with bench.weights.folded(bench.members["leaves"].delta) as model:
        own, turned = (read_features(model, [some], deep=False) for some in (pixels, pixels.flip(-1)))
        assert (own - wanted).norm(dim=1).max() < 0.1 * (turned - wanted).norm(dim=1).min()


def test_the_loss_is_the_sum_over_tasks(outputs: Path) -> None:
    _, bench = opened(outputs)
    generator = torch.Generator().manual_seed(0)
    heads = {task: bench.members[task].head for task in PAIR}
    drawn = {task: pool(bench, task).draw(4, generator) for task in PAIR}
    with torch.no_grad():
        alone = [float(module._loss(bench.backbone, bench, heads, {task: drawn[task]})) for task in PAIR]
        together = float(module._loss(bench.backbone, bench, heads, drawn))
    assert together == pytest.approx(sum(alone), rel=1e-4)
    assert min(alone) > 0


def test_no_group_of_images_is_both_learned_from_and_held_out(outputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, bench = opened(outputs)
    monkeypatch.setattr(bench, "groups", lambda *_: torch.arange(IMAGES) // 3)
    assert pool(bench, "leaves").count == 15


def test_a_killed_run_still_gives_the_best_that_it_had_seen(
    outputs: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings, bench = opened(outputs, "merge.steps=15")
    monkeypatch.setattr(bench, "scratch", tmp_path)
    seen, save = looks_that_tell(monkeypatch, 0.5, 0.2, 0.4, 0.3), module._save

    def stop(*given: Any) -> None:
        save(*given)
        if given[4] == 10:
            raise KeyboardInterrupt

    monkeypatch.setattr(module, "_save", stop)
    with pytest.raises(KeyboardInterrupt):
        merge_function(settings)(bench, PAIR)
    assert is_of(merge_function(settings)(bench, PAIR), seen[1])


def test_a_look_tells_geometric_mean_and_worst_of_drifts_and_mean_and_worst_of_retention(
    outputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, bench = opened(outputs)
    drifts, kept = iter([0.1, 0.4]), iter([0.9, 0.5])
    monkeypatch.setattr(module, "output_drift", lambda *_: next(drifts))
    monkeypatch.setattr(module, "expected_retention", lambda *_: next(kept))
    told = module._look(bench.backbone, bench, {task: pool(bench, task) for task in PAIR})
    assert told == pytest.approx((0.2, 0.4, 0.7, 0.5))
