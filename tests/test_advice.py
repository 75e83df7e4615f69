"""Predicted retention against labels that are drawn, and what the adapters alone tell."""

import torch

from lightning_modules.tasks import Task
from merging.advisor import Disturbance, recommended
from merging.predict import output_drift, predict_retention

CLASSES = Task("emotion", "classification", "accuracy", 5)
SHAPE = Task("galaxy", "classification", "macro_f1", 5)
NUMBER = Task("age", "regression", "rmse", 1)
POINTS = Task("points", "keypoints", "nme", 8, eye_corners=(0, 1))


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_same_answers_keep_everything() -> None:
    for task, outputs in ((CLASSES, drawn(40, 5)), (NUMBER, drawn(40, 1)), (POINTS, drawn(40, 8))):
        value, low, high = predict_retention(task, outputs, outputs, error=5.0)
        assert (value, low, high) == (1.0, 1.0, 1.0)
        assert output_drift(task, outputs, outputs) == 0


def test_classes_follow_labels_that_the_probabilities_describe() -> None:
    """Labels drawn from the single model's own probabilities: a calibrated model."""
    single = 2 * drawn(4000, 5)
    merged = single + 2 * drawn(4000, 5, seed=1)
    labels = torch.multinomial(single.softmax(1), 1, generator=torch.Generator().manual_seed(2))[:, 0]
    for task in (CLASSES, SHAPE):
        scores = []
        for outputs in (single, merged):
            metrics = task.metrics()
            metrics.update(task.predict(outputs), labels)
            scores.append(float(metrics.compute()[task.metric]))
        value, low, high = predict_retention(task, single, merged, None)
        assert abs(value - scores[1] / scores[0]) < 0.03
        assert low < value < high
        assert high - low < 0.1


def test_numbers_follow_independent_errors() -> None:
    truth = drawn(4000, 1)
    single = truth + 0.8 * drawn(4000, 1, seed=1)
    merged = single + 0.5 * drawn(4000, 1, seed=2)
    errors = [float((outputs - truth).square().mean().sqrt()) for outputs in (single, merged)]
    value, low, high = predict_retention(NUMBER, single, merged, errors[0])
    assert abs(value - errors[0] / errors[1]) < 0.02
    assert low < value < high


def test_points_fall_with_their_shift() -> None:
    single = torch.rand(50, 8, generator=torch.Generator().manual_seed(0))
    values = [
        predict_retention(POINTS, single, single + size * drawn(50, 8, seed=1), 8.0)[0] for size in (0.01, 0.05, 0.2)
    ]
    assert 1 > values[0] > values[1] > values[2] > 0


def test_a_constant_added_to_all_logits_is_no_drift() -> None:
    outputs = drawn(30, 5)
    assert output_drift(CLASSES, outputs, outputs + 3) < 1e-6
    assert output_drift(NUMBER, outputs[:, :1], outputs[:, :1] + 3) > 1


def test_the_best_worst_member_wins_and_simplicity_breaks_ties() -> None:
    def row(method: str, realign: str, predicted: float) -> dict[str, object]:
        return {"method": method, "realign": realign, "predicted": predicted}

    rows = [row("cat", "none", 0.99), row("cat", "none", 0.5), row("gram", "none", 0.8), row("gram", "none", 0.9)]
    assert recommended(rows) == ("gram", "none")
    assert recommended([row("cat", "none", 0.98), row("gram", "none", 0.98)]) == ("cat", "none")


def test_reasons_name_what_is_the_matter() -> None:
    assert Disturbance(None, 0, 0).reason == "it is alone"
    assert "hardly acts" in Disturbance("galaxy", 0.1, 0.5).reason
    assert "gram helps" in Disturbance("galaxy", 2, 0.05).reason
    assert "realign or distil" in Disturbance("landmarks", 2, 0.3).reason
