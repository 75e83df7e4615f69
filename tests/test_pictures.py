"""Pictures of a run: right numbers in them, readable files, the worst ones in front."""

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from lightning_modules.examples import COUNT, save_examples
from lightning_modules.metrics import Collected
from lightning_modules.pictures import (
    Answers,
    class_scores,
    confusion,
    draw_confusion,
    draw_examples,
    draw_pictures,
    draw_scatter,
    example_errors,
)
from lightning_modules.tasks import Task

GALAXIES = Task("galaxy", "classification", "macro_f1", 3, ("Barred Spiral", "Edge-on", "Round"))
AGE = Task("age", "regression", "rmse", 1)
FACE = Task("face", "keypoints", "nme", 10, eye_corners=(0, 4))


def answers(task, count=60):
    rng = np.random.default_rng(0)
    if task.kind == "classification":
        target = rng.integers(0, task.outputs, count)
        output = 2 * np.eye(task.outputs)[target] + rng.normal(0, 1.5, (count, task.outputs))
    elif task.kind == "regression":
        target = rng.uniform(0, 9, (count, 1))
        output = target + rng.normal(0, 1, target.shape)
    else:
        target = rng.uniform(0.2, 0.8, (count, task.outputs // 2, 2))
        output = target + rng.normal(0, 0.02, target.shape)
    return Answers(
        output.astype(np.float32), target if target.ndim == 1 else target.astype(np.float32), np.arange(count) + 5
    )


def images(rows):
    return np.stack([np.full((16, 16, 3), row, np.uint8) for row in rows])


@pytest.mark.parametrize("task", [GALAXIES, AGE, FACE], ids=lambda task: task.kind)
def test_every_kind_has_its_pictures(tmp_path, task):
    paths = draw_pictures(tmp_path, task, answers(task), images, "drawn")
    own = {"classification": {"confusion", "classes"}, "regression": {"scatter"}, "keypoints": {"landmarks"}}
    assert {path.stem for path in paths} == own[task.kind] | {"worst"}
    for path in paths:
        with Image.open(path) as picture:
            assert min(picture.size) > 200
            assert len(picture.convert("RGB").getcolors(2**24) or []) > 50


def test_dollar_signs_of_names_are_no_mathematics(tmp_path):
    prices = Task("price", "classification", "accuracy", 2, classes=("under_$100_$200", "$1-$5"))
    for path in draw_pictures(tmp_path, prices, answers(prices), images, "prices on shop_$a_$b"):
        assert path.stat().st_size > 0


def test_errors_are_those_of_the_loss_and_of_the_metric():
    found = answers(GALAXIES)
    loss = torch.nn.functional.cross_entropy(
        torch.from_numpy(found.output), torch.from_numpy(found.target), reduction="none"
    )
    np.testing.assert_allclose(example_errors(GALAXIES, found), loss, rtol=1e-4)
    found = answers(FACE)
    metrics = FACE.metrics()
    metrics.update(torch.from_numpy(found.output), torch.from_numpy(found.target))
    assert example_errors(FACE, found).mean() == pytest.approx(float(metrics.compute()["nme"]), rel=1e-5)
    found = answers(AGE)
    np.testing.assert_allclose(example_errors(AGE, found), np.abs(found.output - found.target)[:, 0], rtol=1e-6)


def test_class_scores_by_hand(tmp_path):
    said, target = np.array([0, 0, 1, 1, 1]), np.array([0, 1, 1, 1, 2])
    counts = confusion(said, target, 3)
    assert counts.tolist() == [[1, 0, 0], [1, 2, 0], [0, 1, 0]]
    scores = class_scores(counts, ["a", "b", "c"])
    assert scores["recall"].tolist() == pytest.approx([1, 2 / 3, 0])
    assert scores["precision"].tolist() == pytest.approx([1 / 2, 2 / 3, 0])
    assert scores["f1"].tolist() == pytest.approx([2 / 3, 2 / 3, 0])


def test_tables_beside_the_pictures_agree_with_the_metrics(tmp_path):
    found = answers(GALAXIES)
    draw_pictures(tmp_path, GALAXIES, found, images, "drawn")
    metrics = GALAXIES.metrics()
    metrics.update(torch.from_numpy(found.output).argmax(1), torch.from_numpy(found.target))
    expected = {name: float(value) for name, value in metrics.compute().items()}
    assert pd.read_csv(tmp_path / "classes.csv")["f1"].mean() == pytest.approx(expected["macro_f1"])
    counts = pd.read_csv(tmp_path / "confusion.csv", index_col=0).to_numpy()
    assert counts.trace() / counts.sum() == pytest.approx(expected["accuracy"])


@pytest.mark.parametrize("task", [GALAXIES, AGE, FACE], ids=lambda task: task.kind)
def test_the_worst_are_shown_with_their_own_picture(tmp_path, task, monkeypatch):
    found, asked = answers(task), []
    errors = example_errors(task, found)
    draw_pictures(tmp_path, task, found, lambda rows: asked.append(rows) or images(rows), "drawn")
    worst = np.argsort(-errors)
    if task.kind == "classification":
        worst = worst[found.output.argmax(1)[worst] != found.target[worst]]
    assert asked[-1].tolist() == (worst[:24] + 5).tolist()
    if task.kind == "keypoints":
        shown = errors[asked[0] - 5]
        assert shown.tolist() == sorted(shown), "from best to worst"
        assert (shown[0], shown[-1]) == (errors.min(), errors.max())
    with Image.open(tmp_path / "worst.png") as picture:
        colours = {colour for count, colour in picture.convert("RGB").getcolors(2**24) if count > 1000}
    assert {(row, row, row) for row in asked[-1].tolist()} <= colours


def test_without_an_error_the_least_sure_are_shown(tmp_path):
    target = np.array([0, 1, 2, 0])
    sure = np.array([[3.0], [1.0], [2.0], [4.0]])
    found, asked = Answers((sure * np.eye(3)[target]).astype(np.float32), target, np.arange(4)), []
    draw_pictures(tmp_path, GALAXIES, found, lambda rows: asked.append(rows) or images(rows), "drawn")
    assert asked[0].tolist() == [1, 2, 0, 3]


def test_dots_lie_on_their_points():
    """A point in the middle of a pixel is drawn in the middle of that pixel."""
    found = Answers(np.full((1, 5, 2), 0.5, np.float32), np.full((1, 5, 2), 2.5 / 16, np.float32), np.array([0]))
    figure = draw_examples(FACE, found, np.array([1.0]), images, np.array([0]), "x")
    lines = {str(line.get_color()): line.get_xydata() for line in figure.axes[0].lines if line.get_marker() == "o"}
    assert np.allclose(lines["#0072B2"], 2.0)
    assert np.allclose(lines["#E69F00"], 7.5)


def test_many_points_become_a_density():
    rng = np.random.default_rng(0)
    target = rng.uniform(0, 9, 4000)
    figure = draw_scatter(target, target + 0.1, "x")
    assert figure.axes[0].collections
    assert "RMSE 0.100, mean error +0.100, 4,000 examples" in figure.axes[0].get_title()


def test_rows_of_a_confusion_are_what_it_is_and_columns_what_was_said():
    axes = draw_confusion(np.array([[3, 1], [0, 2]]), ["a", "b"], "x").axes[0]
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("is", "said")
    told = {text.get_position(): text.get_text() for text in axes.texts}  # of column and row
    assert told == {(0, 0): "3", (1, 0): "1", (1, 1): "2"}
    assert axes.images[0].get_array().tolist() == [[0.75, 0.25], [0.0, 1.0]]
    assert axes.get_title() == "x\naccuracy 0.833 of 6"


def test_captions_tell_what_it_is_what_was_said_and_how_surely():
    logits = np.log(np.array([[0.1, 0.7, 0.2]], np.float32))
    cases = [
        (GALAXIES, Answers(logits, np.array([2]), np.array([0])), "Round\nsaid Edge-on 70%"),
        (AGE, Answers(np.array([[2.5]]), np.array([[4.0]]), np.array([0])), "4.00, said 2.50"),
        (FACE, Answers(np.zeros((1, 5, 2)), np.ones((1, 5, 2)), np.array([0])), "7.0 %"),
    ]
    for task, found, caption in cases:
        figure = draw_examples(task, found, np.array([7.0]), images, np.array([0]), "x")
        assert figure.axes[0].get_title() == caption


@pytest.mark.parametrize("task", [GALAXIES, AGE, FACE], ids=lambda task: task.kind)
def test_examples_stand_beside_their_own_pictures(tmp_path, task):
    found = answers(task)
    order = np.random.default_rng(1).permutation(len(found.index))
    found = Answers(found.output[order], found.target[order], found.index[order])
    place = {int(index): number for number, index in enumerate(found.index)}
    told = save_examples(tmp_path / "new", {task.name: (task, found, images)}, {task.name: found.output + 1})
    seen = []
    for item in told:
        with Image.open(tmp_path / "new" / item["image"]) as picture:
            seen.append(int(picture.getpixel((0, 0))[0]))
        position = place[seen[-1]]
        output, target = found.output[position], found.target[position]
        if task.kind == "classification":
            names = [task.classes[number] for number in (target, output.argmax(), output.argmax())]
            assert [item[key] for key in ("target", "single", "merged")] == names
        else:
            for key, value in (("target", target), ("single", output), ("merged", output + 1)):
                np.testing.assert_allclose(np.ravel(item[key]), value.ravel(), atol=1e-4)
    assert len(set(seen)) == COUNT
    assert (min(seen), max(seen)) == (found.index.min(), found.index.max())


def test_few_points_stand_at_their_target_and_their_prediction():
    axes = draw_scatter(np.array([1.0, 2.0]), np.array([3.0, 5.0]), "x").axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("target", "prediction")
    assert [list(values) for values in axes.lines[0].get_data()] == [[1.0, 2.0], [3.0, 5.0]]
    assert "mean error +2.500, 2 examples" in axes.get_title()


def test_collected_answers_are_in_order_and_once():
    collected = Collected()
    collected.update(torch.tensor([[3.0], [1.0]]), torch.tensor([30, 10]), torch.tensor([3, 1]))
    collected.update(torch.tensor([[2.0], [1.0]]), torch.tensor([20, 10]), torch.tensor([2, 1]))
    output, target, index = collected.compute()
    assert (output[:, 0].tolist(), target.tolist(), index.tolist()) == ([1, 2, 3], [10, 20, 30], [1, 2, 3])
