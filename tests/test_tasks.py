import numpy as np
import pytest
import torch

from lightning_modules.metrics import NormalizedMeanError
from lightning_modules.tasks import HIGHER_IS_BETTER, Task, higher_is_better


def points(count, seed=0):
    rng = np.random.default_rng(seed)
    target = rng.uniform(0.2, 0.8, (count, 7, 2))
    return target + rng.normal(0, 0.02, target.shape), target


@pytest.mark.parametrize("eye_corners", [None, (1, 5)])
def test_landmark_errors_against_an_independent_computation(eye_corners):
    """numpy, one image at a time, with the cumulative curve integrated numerically."""
    output, target = points(200)
    errors = []
    for predicted, true in zip(output, target, strict=True):
        distance = 1.0
        if eye_corners is not None:
            distance = np.hypot(*(true[eye_corners[0]] - true[eye_corners[1]]))
        errors.append(np.mean([np.hypot(*(p - t)) for p, t in zip(predicted, true, strict=True)]) / distance)
    errors = np.array(errors)
    grid = np.linspace(0, 0.1, 20001)
    curve = np.array([(errors <= limit).mean() for limit in grid])
    expected = {
        "nme": 100 * errors.mean(),
        "failure_rate": 100 * (errors > 0.1).mean(),
        "auc": np.trapezoid(curve, grid) / 0.1,
    }
    task = Task("face", "keypoints", "nme", 14, eye_corners=eye_corners)
    metrics = task.metrics()
    for start in range(0, 200, 64):  # the last batch is smaller, so a mean of batches would be wrong
        rows = slice(start, start + 64)
        metrics.update(torch.tensor(output[rows]), torch.tensor(target[rows]))
    for name, value in metrics.compute().items():
        assert float(value) == pytest.approx(expected[name], rel=1e-3), name
    assert 0 < expected["auc"] < 1


def test_unknown_reduction_is_refused():
    with pytest.raises(ValueError, match="median"):
        NormalizedMeanError(reduce="median")


def test_classification_metrics_accumulate_over_the_set():
    task = Task("leaves", "classification", "macro_f1", 3, ("a", "b", "c"))
    metrics = task.metrics()
    target = torch.tensor([0, 0, 0, 0, 1, 1, 2])
    predicted = torch.tensor([0, 0, 0, 1, 1, 0, 2])
    metrics.update(predicted[:4], target[:4])
    metrics.update(predicted[4:], target[4:])
    values = metrics.compute()
    assert float(values["accuracy"]) == pytest.approx(5 / 7)
    assert float(values["macro_f1"]) == pytest.approx((0.75 + 0.5 + 1.0) / 3)


def test_rmse_accumulates_over_the_set():
    metrics = Task("age", "regression", "rmse", 1).metrics()
    metrics.update(torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([[1.0], [2.0], [0.0]]))
    metrics.update(torch.tensor([[5.0]]), torch.tensor([[1.0]]))
    assert float(metrics.compute()["rmse"]) == pytest.approx(2.5)


@pytest.mark.parametrize("metric", HIGHER_IS_BETTER)
def test_mode_is_the_better_direction(metric):
    assert Task("x", "classification", metric, 2).mode == (
        "max" if metric in ("accuracy", "macro_f1", "auc") else "min"
    )


def test_keypoints_are_shaped_and_scored_as_points():
    task = Task("face", "keypoints", "nme", 4)
    output = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    target = torch.tensor([[[1.0, 2.5], [3.0, 3.5]]])
    assert task.predict(output).tolist() == [[[1.0, 2.0], [3.0, 4.0]]]
    assert float(task.loss(output, target)) == pytest.approx(0.25)


def test_losses_are_float32_whatever_the_output():
    task = Task("leaves", "classification", "accuracy", 3)
    loss = task.loss(torch.randn(2, 3, dtype=torch.bfloat16), torch.tensor([0, 2]))
    assert loss.dtype == torch.float32


def test_rmse_in_further_units():
    values = Task("age", "regression", "rmse", 1, units=(("years", 10.0),)).metrics()
    values.update(torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0], [1.0]]))
    assert {name: float(value) for name, value in values.compute().items()} == pytest.approx(
        {"rmse": 0.5**0.5, "rmse_years": 10 * 0.5**0.5}
    )
    assert set(Task("days", "regression", "rmse", 1).metrics()) == {"rmse"}


@pytest.mark.parametrize(("metric", "higher"), [("rmse_years", False), ("nme_pose", False), ("accuracy_blur", True)])
def test_a_metric_of_a_subset_or_unit_has_the_direction_of_its_own(metric, higher):
    assert higher_is_better(metric) is higher
