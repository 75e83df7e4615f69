"""The paired bootstrap against the metrics themselves, sample by sample."""

import pytest
import torch
from torch import Tensor

from lightning_modules.tasks import Task
from merging.paired import _draws, _scores, retention, retention_interval

N = 60


def _case(kind: str, metric: str) -> tuple[Task, Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(3)
    if kind == "classification":
        task = Task("t", kind, metric, 4)
        target = torch.randint(3, (N,), generator=g)  # class 3 never occurs, though it may be named
        truth = torch.nn.functional.one_hot(target, 4).float()
    elif kind == "regression":
        task = Task("t", kind, metric, 1)
        target = torch.rand(N, 1, generator=g)
        truth = target
    else:
        task = Task("t", kind, metric, 6, eye_corners=(0, 2))
        target = torch.rand(N, 3, 2, generator=g)
        truth = target.flatten(1)
    near, far = (truth + size * torch.randn(truth.shape, generator=g) for size in (0.3, 0.9))
    return task, near, far, target


CASES = [
    ("classification", "accuracy"), ("classification", "macro_f1"), ("regression", "rmse"), ("keypoints", "nme"),
    ("keypoints", "failure_rate"), ("keypoints", "auc"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "metric"), CASES)
def test_each_drawn_sample_has_the_score_that_the_metric_gives_it(kind: str, metric: str) -> None:
    task, near, _, target = _case(kind, metric)
    (counts,) = _draws(N, 20, seed=1)
    found = _scores(task, near.double(), target, counts)
    for row, score in zip(counts, found.tolist(), strict=True):
        rows = torch.repeat_interleave(torch.arange(N), row.long())
        wanted = task.metrics()[metric]
        wanted.update(task.predict(near[rows]), target[rows])
        assert score == pytest.approx(float(wanted.compute()), rel=1e-5)


@pytest.mark.parametrize(("kind", "metric"), CASES[:4])
def test_a_clear_loss_is_shown_and_no_loss_is_not(kind: str, metric: str) -> None:
    task, near, far, target = _case(kind, metric)
    low, high = retention_interval(task, near, far, target)
    assert low < high < 1
    assert retention_interval(task, near, near, target) == (1.0, 1.0)
    low, high = retention_interval(task, far, near, target)
    assert 1 < low < high


def test_a_model_that_scores_nothing_leaves_the_upper_end_open() -> None:
    task, near, _, target = _case("classification", "accuracy")
    wrong = torch.nn.functional.one_hot((target + 1) % 4, 4).float()
    assert retention_interval(task, wrong, near, target) == (float("inf"), float("inf"))
    wrong[0] = torch.nn.functional.one_hot(target[0], 4)  # one right answer, which a third of the samples miss
    low, high = retention_interval(task, wrong, near, target)
    assert 1 < low < high == float("inf")
    assert retention_interval(task, wrong, wrong, target) == (1.0, 1.0)
    wrong[:5] = torch.nn.functional.one_hot(target[:5], 4)  # which one sample in two hundred misses
    low, high = retention_interval(task, wrong, near, target)
    assert 1 < low < high < float("inf")


def test_the_interval_holds_what_it_is_drawn_around() -> None:
    task, near, far, target = _case("classification", "accuracy")
    correct = [(x.argmax(1) == target).double().mean().item() for x in (far, near)]
    low, high = retention_interval(task, near, far, target)
    assert low < retention("accuracy", *correct) < high


def test_pairing_takes_out_what_is_hard_for_both() -> None:
    task, near, _, target = _case("regression", "rmse")
    hard = torch.where(torch.arange(N)[:, None] % 10 == 0, 5.0, 0.0)  # a few images that both get wrong alike
    low, high = retention_interval(task, near + hard, near + hard + 0.01, target)
    assert high - low < 0.02
