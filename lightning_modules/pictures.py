"""Pictures of a tested run: arrays in, PNG and CSV files out. Colours that all eyes tell apart (Okabe, Ito)."""

import io
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from launch.files import atomic_write
from lightning_modules.tasks import Task

BLUE, ORANGE, GREY = "#0072B2", "#E69F00", "#666666"
COLUMNS, ROWS = 6, 4
MOST_LABELS = 40  # classes that still have their name at the axis
Images = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Answers:
    """What a model said of N test examples.

    Attributes:
        output: (N, classes) logits, (N, 1) numbers or (N, K, 2) points, float.
        target: (N,) class indices, (N, 1) or (N, K, 2).
        index: (N,) rows of the datamodule's table.
    """

    output: np.ndarray
    target: np.ndarray
    index: np.ndarray


def draw_pictures(folder: Path, task: Task, answers: Answers, images: Images, title: str) -> list[Path]:
    """Draws what suits the task's kind and the worst errors of all kinds.

    Args:
        folder: where the files go: ``confusion``, ``classes``, ``scatter``, ``landmarks``, ``worst``.
        answers: of the whole test set.
        images: rows of the table -> uint8 (n, S, S, 3).
        title: what all pictures say above.

    Returns:
        The PNG files.

    Raises:
        UserError: a file cannot be written.
    """
    drawn: dict[str, Figure] = {}
    title = _plain(title)
    errors = example_errors(task, answers)
    if task.kind == "classification":
        names = task.classes or tuple(map(str, range(task.outputs)))
        counts = confusion(answers.output.argmax(1), answers.target, len(names))
        scores = class_scores(counts, names)
        atomic_write(folder / "classes.csv", scores.to_csv(index=False))
        atomic_write(folder / "confusion.csv", pd.DataFrame(counts, names, names).to_csv(index_label="is \\ said"))
        drawn["confusion"] = draw_confusion(counts, names, title)
        drawn["classes"] = draw_class_scores(scores, title)
    elif task.kind == "regression":
        drawn["scatter"] = draw_scatter(answers.target[:, 0], answers.output[:, 0], title)
    else:
        chosen = np.argsort(errors, kind="stable")[_spread(len(errors), COLUMNS * ROWS)]
        drawn["landmarks"] = draw_examples(task, answers, errors, images, chosen, f"{title}: from best to worst")
    worst, what = np.argsort(-errors, kind="stable"), "the worst errors"
    if task.kind == "classification":
        wrong = worst[answers.output.argmax(1)[worst] != answers.target[worst]]
        worst, what = (wrong, what) if len(wrong) else (worst, "no error; the least sure")
    chosen = worst[: COLUMNS * ROWS]
    drawn["worst"] = draw_examples(task, answers, errors, images, chosen, f"{title}: {what}")
    paths = []
    for name, figure in drawn.items():
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=100)
        atomic_write(folder / f"{name}.png", buffer.getvalue())
        paths.append(folder / f"{name}.png")
    return paths


def example_errors(task: Task, answers: Answers) -> np.ndarray:
    """(N,) cross-entropy of the true class, absolute error, or normalised mean point error in percent."""
    output, target = answers.output.astype(np.float64), answers.target
    if task.kind == "classification":
        shifted = output - output.max(1, keepdims=True)
        return np.log(np.exp(shifted).sum(1)) - shifted[np.arange(len(target)), target]
    if task.kind == "regression":
        return np.abs(output - target)[:, 0]
    mean = np.linalg.norm(output - target, axis=-1).mean(-1)
    if task.eye_corners is None:
        return 100 * mean
    left, right = task.eye_corners
    return 100 * mean / np.linalg.norm(target[:, left] - target[:, right], axis=-1)


def confusion(said: np.ndarray, target: np.ndarray, classes: int) -> np.ndarray:
    """(classes, classes) counts: row what it is, column what was said."""
    return np.bincount(target * classes + said, minlength=classes**2).reshape(classes, classes)


def class_scores(counts: np.ndarray, names: Sequence[str]) -> pd.DataFrame:
    """class, examples, recall, precision, f1; a class that never was (recall) or was never said (precision) has 0."""
    hits, are, said = counts.diagonal(), counts.sum(1), counts.sum(0)
    return pd.DataFrame(
        {
            "class": list(names),
            "examples": are,
            "recall": hits / np.maximum(are, 1),
            "precision": hits / np.maximum(said, 1),
            "f1": 2 * hits / np.maximum(are + said, 1),
        }
    )


def draw_confusion(counts: np.ndarray, names: Sequence[str], title: str) -> Figure:
    """Shares of each true class in shades, counts as numbers."""
    number = len(names)
    side = min(2.5 + 0.55 * number, 14)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    shown = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="said", ylabel="is", xticks=range(number), yticks=range(number))
    if number <= MOST_LABELS:
        axes.set_xticklabels(map(_short, names), rotation=90 if number > 4 else 0)
        axes.set_yticklabels(map(_short, names))
    if number <= 25:
        for row, column in np.argwhere(counts):
            ink = "white" if shares[row, column] > 0.6 else "black"
            axes.text(column, row, f"{counts[row, column]:,}", ha="center", va="center", color=ink, fontsize=9)
    accuracy = counts.trace() / max(counts.sum(), 1)
    axes.set_title(f"{title}\naccuracy {accuracy:.3f} of {counts.sum():,}", fontsize=11)
    figure.colorbar(shown, ax=axes, label="share of the class", shrink=0.8)
    return figure


def draw_class_scores(scores: pd.DataFrame, title: str) -> Figure:
    """Recall, precision and F1 of each class, the best above; of very many classes the worst ones."""
    chosen = scores.sort_values("f1", kind="stable").head(MOST_LABELS)
    figure = Figure(figsize=(8, 1.6 + 0.36 * len(chosen)), layout="constrained")
    axes, places = figure.subplots(), np.arange(len(chosen))
    axes.hlines(places, chosen[["recall", "precision"]].min(axis=1), chosen[["recall", "precision"]].max(axis=1), GREY)
    marks = (("recall", "o", BLUE), ("precision", "s", ORANGE), ("f1", "|", "black"))
    for name, marker, colour in marks:
        axes.plot(chosen[name], places, marker, color=colour, label=name, markersize=9 if name == "f1" else 7)
    labels = [f"{_short(name)} ({count:,})" for name, count in zip(chosen["class"], chosen["examples"], strict=True)]
    axes.set(yticks=places, xlim=(-0.02, 1.02), ylim=(-0.6, len(chosen) - 0.4), xlabel="score on the test set")
    axes.set_yticklabels(labels)
    axes.grid(axis="x", alpha=0.3)
    rest = f", the {len(chosen)} worst of {len(scores)} classes" if len(chosen) < len(scores) else ""
    axes.set_title(title + rest, fontsize=11)
    figure.legend(loc="outside lower right", ncols=3, frameon=False)
    return figure


def draw_scatter(target: np.ndarray, said: np.ndarray, title: str) -> Figure:
    """Prediction over target with the line where both are the same; densities where there are too many points."""
    figure = Figure(figsize=(6.4, 6), layout="constrained")
    axes = figure.subplots()
    low, high = float(min(target.min(), said.min())), float(max(target.max(), said.max()))
    margin = 0.03 * (high - low) or 1.0
    limits = (low - margin, high + margin)
    if len(target) > 3000:
        shown = axes.hexbin(target, said, gridsize=50, cmap="Blues", bins="log", mincnt=1, extent=(*limits, *limits))
        figure.colorbar(shown, ax=axes, label="examples", shrink=0.8)
    else:
        axes.plot(target, said, "o", color=BLUE, markersize=4, alpha=0.5, markeredgewidth=0)
    axes.plot(limits, limits, color=ORANGE, linewidth=1.5)
    axes.set(xlabel="target", ylabel="prediction", xlim=limits, ylim=limits, aspect="equal")
    axes.grid(alpha=0.3)
    rmse, bias = np.sqrt(np.mean((said - target) ** 2)), np.mean(said - target)
    axes.set_title(f"{title}\nRMSE {rmse:.3f}, mean error {bias:+.3f}, {len(target):,} examples", fontsize=11)
    return figure


def draw_examples(
    task: Task, answers: Answers, errors: np.ndarray, images: Images, chosen: np.ndarray, title: str
) -> Figure:
    """A grid of the ``chosen`` examples (positions in ``answers``) with what they are and what was said of them."""
    columns = min(COLUMNS, len(chosen))
    rows = -(-len(chosen) // columns)
    lines = 2 if task.kind == "classification" else 1
    figure = Figure(figsize=(max(2 * columns, 5), (2 + 0.2 * lines) * rows + 0.7), layout="constrained")
    pictures = images(answers.index[chosen])
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid:
        axes.set_axis_off()
    for axes, position, picture in zip(grid, chosen, pictures, strict=False):
        axes.imshow(picture)
        axes.set_title(_caption(task, answers, errors, position), fontsize=8)
        if task.kind == "keypoints":
            _draw_points(axes, answers.target[position], answers.output[position], len(picture))
    legend = ": true, orange: predicted" if task.kind == "keypoints" else ""
    figure.suptitle(f"{title} (blue{legend})" if legend else title, fontsize=11)
    return figure


def _draw_points(axes: Axes, target: np.ndarray, said: np.ndarray, side: int) -> None:
    # imshow counts from the middle of the first pixel, crop coordinates from its corner
    true, found = (points * side - 0.5 for points in (target, said))
    axes.plot(*np.stack([true, found]).transpose(2, 0, 1), color="white", linewidth=0.6, alpha=0.7)
    axes.plot(*true.T, "o", color=BLUE, markersize=2.5, markeredgewidth=0.3, markeredgecolor="white")
    axes.plot(*found.T, "o", color=ORANGE, markersize=2.0, markeredgewidth=0.3, markeredgecolor="black")
    axes.set(xlim=(-0.5, side - 0.5), ylim=(side - 0.5, -0.5))


def _caption(task: Task, answers: Answers, errors: np.ndarray, position: int) -> str:
    if task.kind == "keypoints":
        return f"{errors[position]:.1f} %"
    if task.kind == "regression":
        return f"{answers.target[position, 0]:.2f}, said {answers.output[position, 0]:.2f}"
    names = task.classes or tuple(map(str, range(task.outputs)))
    said = answers.output[position].argmax()
    logits = answers.output[position].astype(np.float64)
    share = 1 / np.exp(logits - logits[said]).sum()
    return f"{_short(names[answers.target[position]])}\nsaid {_short(names[said], 20)} {share:.0%}"


def _spread(count: int, wanted: int) -> np.ndarray:
    """``wanted`` positions, evenly over 0 ... count - 1, each once."""
    return np.unique(np.linspace(0, count - 1, min(count, wanted)).round().astype(int))


def _short(name: str, width: int = 24) -> str:
    return _plain(textwrap.shorten(name, width, placeholder="…") if " " in name else name[:width])


def _plain(text: str) -> str:
    """Text between two dollar signs would be set as mathematics."""
    return text.replace("$", r"\$")
