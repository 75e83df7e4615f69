"""Predicted retention against labels that are drawn, and what the adapters alone tell."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lightning_modules.tasks import Task
from merging import predict
from merging.advisor import Disturbance, disturbances, recommended, show
from merging.conflict import conflict
from merging.paired import retention
from merging.predict import output_drift, predict_retention, temperature, tolerance

CLASSES = Task("emotion", "classification", "accuracy", 5)
SHAPE = Task("galaxy", "classification", "macro_f1", 5)
NUMBER = Task("age", "regression", "rmse", 1)
POINTS = Task("points", "keypoints", "nme", 8, eye_corners=(0, 1))


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_same_answers_keep_everything() -> None:
    for task, outputs in ((CLASSES, drawn(40, 5)), (NUMBER, drawn(40, 1)), (POINTS, drawn(40, 8))):
        target = outputs.argmax(1).roll(3) if task is CLASSES else task.shape(outputs.roll(3, 0))
        for targets in (None, target):
            told = predict_retention(task, outputs, outputs, {task.metric: 0.5}, targets)
            assert told == pytest.approx((1, 1, 1), abs=1e-9)
    assert output_drift(CLASSES, drawn(40, 5), drawn(40, 5)) == 0


def score(task: Task, outputs: torch.Tensor, targets: torch.Tensor) -> float:
    metric = task.metrics()[task.metric]
    metric.update(task.predict(outputs), targets)
    return float(metric.compute())


def class_case(count: int, seed: int, sureness: float = 1.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Outputs of single and merged, and labels drawn from the single's probabilities before it grows too sure."""
    single = 2 * drawn(count, 5, seed=seed)
    merged = single + 2 * drawn(count, 5, seed=seed + 1)
    labels = torch.multinomial(single.softmax(1), 1, generator=torch.Generator().manual_seed(seed + 2))[:, 0]
    return sureness * single, sureness * merged, labels


def number_case(count: int, seed: int, shared: float = 0.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The merge undoes a share of the single model's error, beside adding its own."""
    truth = drawn(count, 1, seed=seed)
    error = 0.8 * drawn(count, 1, seed=seed + 1)
    return truth + error, truth + (1 - shared) * error + 0.5 * drawn(count, 1, seed=seed + 2), truth


def point_case(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    truth = torch.rand(1, 4, 2, generator=torch.Generator().manual_seed(9)) + 0.05 * drawn(count, 4, 2, seed=seed)
    single = truth + 0.05 * drawn(count, 1, 1, seed=seed + 3).abs() * drawn(count, 4, 2, seed=seed + 1)
    return single.flatten(1), (single + 0.03 * drawn(count, 4, 2, seed=seed + 2)).flatten(1), truth


def test_classes_follow_labels_that_the_probabilities_describe() -> None:
    for task in (CLASSES, SHAPE):
        single, merged, labels = class_case(4000, 0)
        scores = [score(task, outputs, labels) for outputs in (single, merged)]
        for targets in (None, labels):
            value, low, high = predict_retention(task, single, merged, {}, targets)
            assert abs(value - scores[1] / scores[0]) < 0.03
            assert low < value < high
            assert high - low < 0.1


def test_overconfidence_is_taken_back_by_the_validation_accuracy() -> None:
    single, merged, labels = class_case(4000, 0, sureness=4.0)
    scores = [score(CLASSES, outputs, labels) for outputs in (single, merged)]
    raw, _, _ = predict_retention(CLASSES, single, merged, {})
    calm, _, _ = predict_retention(CLASSES, single, merged, {"accuracy": scores[0]})
    truth = scores[1] / scores[0]
    assert abs(calm - truth) < 0.02 < abs(raw - truth)


def test_the_temperature_undoes_a_factor() -> None:
    logits = 2 * drawn(500, 5)
    sure = float(logits.softmax(1).amax(1).mean())
    assert temperature(4 * logits, sure) == pytest.approx(4, rel=1e-4)
    assert 0 < temperature(logits, 1.0) < temperature(logits, 0.0) < 21
    assert temperature(logits, 1.0) == temperature(logits, 0.999)  # of 500 images none missed: no more than half a one


def test_classes_that_no_image_has_do_not_count() -> None:
    """As torchmetrics' macro F1 leaves them out."""
    single, merged, labels = class_case(400, 0)
    few = labels < 2
    scores = [score(CLASSES, outputs[few], labels[few]) for outputs in (single, merged)]
    assert int(few.sum()) > 50
    stand = predict._stand(CLASSES, single[few], merged[few], {}, labels[few])
    assert stand.measured is not None
    assert stand.measured(torch.arange(int(few.sum()))) == pytest.approx(scores[1] / scores[0], abs=1e-6)


def test_numbers_follow_independent_errors() -> None:
    single, merged, truth = number_case(4000, 0)
    errors = [score(NUMBER, outputs, truth) for outputs in (single, merged)]
    for targets in (None, truth):
        value, low, high = predict_retention(NUMBER, single, merged, {"rmse": errors[0]}, targets)
        assert abs(value - errors[0] / errors[1]) < 0.02
        assert low < value < high


def test_known_labels_tell_that_a_merge_helps() -> None:
    single, merged, truth = number_case(4000, 0, shared=0.7)
    errors = [score(NUMBER, outputs, truth) for outputs in (single, merged)]
    assert errors[1] < errors[0]
    assert predict_retention(NUMBER, single, merged, {"rmse": errors[0]})[0] < 1
    assert predict_retention(NUMBER, single, merged, {}, truth)[0] > 1


@pytest.mark.parametrize("off", [0.0, 1e3])  # nothing is left to the labels, or nearly all
def test_a_bias_that_a_merge_shares_with_the_single_model_adds_up(off: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both are wrong in the same direction: errors do not only grow like a square root."""
    monkeypatch.setattr(predict, "OFF", off)
    truth = drawn(400, 1)
    single = truth + 1.0 + 0.1 * drawn(400, 1, seed=1)
    value, _, _ = predict_retention(NUMBER, single, single + 0.5, {}, truth)
    assert value == pytest.approx(1.0 / 1.5, rel=0.02)


def test_points_fall_with_their_shift() -> None:
    single = torch.rand(50, 8, generator=torch.Generator().manual_seed(0))
    values = [
        predict_retention(POINTS, single, single + size * drawn(50, 8, seed=1), {"nme": 8.0})[0]
        for size in (0.01, 0.05, 0.2)
    ]
    assert 1 > values[0] > values[1] > values[2] > 0


def test_without_the_error_of_numbers_and_points_nothing_is_told() -> None:
    for task, outputs in ((NUMBER, drawn(9, 1)), (POINTS, drawn(9, 8))):
        with pytest.raises(ValueError, match=task.metric):
            predict_retention(task, outputs, outputs, {"accuracy": 0.5})


@pytest.mark.parametrize(("task", "case"), [(CLASSES, class_case), (NUMBER, number_case), (POINTS, point_case)])
def test_the_interval_holds_what_a_test_set_shows(task: Task, case: Callable[..., tuple[torch.Tensor, ...]]) -> None:
    """Nine of ten, within what 40 repeats can tell (binomial 1 %: 31 or more), and no wider than need be."""
    held, widths, measured = 0, [], []
    for repeat in range(40):
        single, merged, labels = case(200, 1000 + 10 * repeat)
        _, low, high = predict_retention(task, single, merged, {}, labels, test_count=100)
        single, merged, labels = case(100, 5000 + 10 * repeat)
        before, after = (score(task, outputs, labels) for outputs in (single, merged))
        measured.append(retention(task.metric, after, before))
        held += low <= measured[-1] <= high
        widths.append(high - low)
    assert held >= 31
    spread = torch.tensor(measured).quantile(torch.tensor([0.05, 0.95])).diff()
    assert sum(widths) / len(widths) < 2.5 * spread


def test_a_small_test_set_widens_the_interval() -> None:
    single, merged, labels = class_case(400, 0)
    widths = []
    for count in (50, 400, 5000):
        _, low, high = predict_retention(CLASSES, single, merged, {}, labels, test_count=count)
        widths.append(high - low)
    assert widths[0] > 1.5 * widths[1] > 1.5 * widths[2] > 0


def test_a_constant_added_to_all_logits_is_no_drift() -> None:
    outputs = drawn(30, 5)
    assert output_drift(CLASSES, outputs, outputs + 3) < 1e-6
    assert output_drift(NUMBER, outputs[:, :1], outputs[:, :1] + 3) > 1


def test_drift_counts_what_tells_images_apart_not_where_outputs_lie() -> None:
    """Points lie far from each other in every face; that is no spread over images."""
    single = torch.arange(8.0) + 0.1 * drawn(500, 8)
    assert output_drift(POINTS, single, single + 0.1 * drawn(500, 8, seed=1)) == pytest.approx(1.0, rel=0.05)


def test_the_best_worst_member_wins_and_simplicity_breaks_ties() -> None:
    def row(method: str, realign: str, predicted: float, passes: float = 1.0) -> dict[str, object]:
        return {"method": method, "realign": realign, "predicted": predicted, "passes": passes}

    rows = [row("cat", "none", 0.99), row("cat", "none", 0.5), row("gram", "none", 0.8), row("gram", "none", 0.9)]
    assert recommended(rows) == ("gram", "none")
    assert recommended([row("cat", "none", 0.98), row("gram", "none", 0.98)]) == ("cat", "none")
    branched = row("cat", "none", 1.0, passes=1.5)
    assert recommended([row("cat", "none", 0.8), branched, row("gram", "none", 0.9)]) == ("gram", "none")


def test_a_member_is_disturbed_by_the_others_and_not_by_whom_it_disturbs() -> None:
    """c is loud, and a and b hear it; c itself hears b most. Two modules, one of which conflicts more."""
    eye = torch.eye(6).double()
    rows = {"a": eye[:1], "b": eye[1:2], "c": eye[:1] + eye[1:2]}
    columns = {"a": eye[:, :1], "b": 2.0 * eye[:, 1:2], "c": 10.0 * eye[:, 2:3]}
    members: dict[str, Any] = {
        name: SimpleNamespace(
            delta={f"blocks.{block}.k": (columns[name], rows[name]) for block in range(2)},
            grams={"blocks.0": eye, "blocks.1": 2 * eye},
        )
        for name in "abc"
    }
    members["c"].grams["blocks.1"] = 2 * eye + 50 * eye[5:].T @ eye[5:]  # of no use to any: c counts for less there
    found = disturbances(members)
    assert {name: one.by for name, one in found.items()} == {"a": "c", "b": "c", "c": "b"}
    root = 2**0.5
    for name, interference in (("a", 10 * root), ("b", 5 * root), ("c", 2 / (10 * root))):
        assert found[name].interference == pytest.approx(interference)
    for name, pair in (("a", "ac"), ("c", "bc")):  # of the two alone
        shares = conflict({one: members[one].delta for one in pair}, {one: members[one].grams for one in pair})
        assert found[name].conflict == pytest.approx(sum(shares.values()) / 2)
        assert max(shares.values()) > 1.1 * min(shares.values())


def test_reasons_name_what_is_the_matter() -> None:
    assert Disturbance(None, 0, 0).reason == "it is alone"
    assert "hardly acts" in Disturbance("galaxy", 0.1, 0.5).reason
    assert "gram helps" in Disturbance("galaxy", 2, 0.05).reason
    assert "realign or distil" in Disturbance("landmarks", 2, 0.3).reason


@pytest.mark.parametrize(("kept", "told"), [(0.979, True), (0.981, False)])
def test_distillation_is_named_where_closed_forms_lose(
    kept: float, told: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"set": "a+b", "task": task, "method": method, "realign": "deep", "passes": 1.0, "predicted": value,
         "low": 0.9, "high": 1.0, "reason": "quiet"}
        for method, values in (("cat", (0.6, 0.99)), ("gram", (0.99, kept)))
        for task, value in zip("ab", values, strict=True)
    ]  # fmt: skip
    show(rows, recommended(rows))
    out = capsys.readouterr().out
    assert "take merge=gram realign=deep" in out
    assert ("merge=distill realign=deep takes minutes" in out) == told


def test_a_change_of_the_tolerance_is_as_large_as_the_models_own_error() -> None:
    """Answers that are wrong by their validation error and then moved by as much: sqrt(2) times the error."""
    points, moves = drawn(4000, 8), drawn(4000, 8, seed=1)
    size = tolerance(POINTS, points, {"nme": 12.0}) ** 0.5
    shape = POINTS.shape(points)
    unit = (shape[:, 0] - shape[:, 1]).norm(dim=-1)
    moved = POINTS.shape(size * moves).norm(dim=-1).square().mean().sqrt() / unit.mean()
    assert float(100 * moved) == pytest.approx(12.0, rel=0.02)
    assert tolerance(NUMBER, drawn(40, 1), {"rmse": 3.0}) == pytest.approx(9.0)
    single = drawn(40, 5)
    assert tolerance(CLASSES, single, {}) == pytest.approx(float(single.var(0).mean()))
    assert tolerance(NUMBER, single[:, :1], {}) == pytest.approx(float(single[:, :1].var(0).mean()))


@pytest.mark.parametrize("accuracy", [0.3, 0.6, 0.9])
def test_a_change_of_the_tolerance_costs_half_a_nat(accuracy: float) -> None:
    """Measured at a hundredth of it: KL divergence of the sure-as-right probabilities, times a hundred."""
    logits = 3 * drawn(20000, 5).double()
    size = tolerance(CLASSES, logits, {"accuracy": accuracy}) ** 0.5 / 10
    heat = temperature(logits, accuracy)
    own, moved = ((x / heat).log_softmax(1) for x in (logits, logits + size * drawn(20000, 5, seed=1)))
    assert float(100 * (own.exp() * (own - moved)).sum(1).mean()) == pytest.approx(0.5, rel=0.05)
