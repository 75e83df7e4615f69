"""Readouts in closed form: what a head would have seen alone, from what the merged backbone gives.

After a merge the features of task i have moved and its head no longer fits them (SIMO merging, arXiv 2504.11268). A
ridge regression on unlabeled training images maps merged features X to the single-adapter model's class token Z:

    z = x_cls + standardise(x) M + b,   M = argmin |Z - X_cls - standardise(X) M - b|^2 + ridge * n * |M|^2,

so that nothing is changed where the merge changed nothing. It is a linear map before the head's first Linear and is
folded into it; ``deep`` heads then read class and mean patch token of the last blocks (``merging.features``).

``head`` goes on to the head's last layer: a readout that is not exact pulls all answers together, and what of that
the hidden units tell is put right by a second ridge regression, of the answers that are missing (``refit_head``).
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_modules.model import MLPHead
from merging.features import class_token
from merging.held_out import fold_masks, held_out_start

RIDGES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
OUTPUT_RIDGES = (0.01, 0.1, 1.0, 10.0)
VIEWS = 2  # augmented views of each image that a whole head is fitted to, besides the image itself
FOLDS = 5


@dataclass(frozen=True)
class Readout:
    """z = x P + c, float64: P (p, d), c (d,)."""

    weight: Tensor
    bias: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        return features.double() @ self.weight + self.bias


def identity(width: int) -> Readout:
    """The readout that changes nothing: class token in, class token out."""
    return Readout(torch.eye(width, dtype=torch.float64), torch.zeros(width, dtype=torch.float64))


def fit_readouts(features: Tensor, wanted: Tensor, ridges: Sequence[float]) -> list[Readout]:
    """One readout for each ridge, from one factorisation.

    Args:
        features: (n, p) of the merged model, class token or deep.
        wanted: (n, d) class tokens of the single-adapter model on the same images.
        ridges: above 0, per image and standardised feature.
    """
    x, z = features.double(), wanted.double()
    width = z.shape[1]
    mean, scale = x.mean(0), x.std(0, correction=0)
    scale = torch.where(scale > 1e-8, scale, 1.0)
    own = class_token(x, width)
    standard, residual = (x - mean) / scale, z - own
    centre = residual.mean(0)
    maps = _ridge(standard, residual - centre, ridges)
    skip = x.new_zeros(x.shape[1], width)
    start = 0 if x.shape[1] == width else x.shape[1] - 2 * width
    skip[start : start + width] = torch.eye(width, dtype=torch.float64)
    found = []
    for m in maps:
        slope = m / scale[:, None]
        found.append(Readout(skip + slope, centre - mean @ slope))
    return found


def choose_readout(
    features: Tensor, wanted: Tensor, groups: Tensor | None = None, held_out: float = 0.2
) -> tuple[Readout, float]:
    """The readout whose ridge serves held-out images best, fitted again on all of them.

    Args:
        features, wanted: see ``fit_readouts``.
        groups: (n,) of the images, see ``merging.held_out``; None: each is its own.
        held_out: fraction of the images, the last of them, that the ridge is chosen on; no label is used.

    Returns:
        The readout and its ridge.
    """
    groups = torch.arange(len(features)) if groups is None else groups
    cut = held_out_start(groups, max(1, round(held_out * len(features))))
    candidates = fit_readouts(features[:cut], wanted[:cut], RIDGES)
    errors = [float((readout(features[cut:]) - wanted[cut:].double()).square().mean()) for readout in candidates]
    ridge = RIDGES[min(range(len(errors)), key=errors.__getitem__)]
    return fit_readouts(features, wanted, [ridge])[0], ridge


def fold_readout(head: MLPHead, readout: Readout) -> MLPHead:
    """The head that reads merged features directly: W <- W P^T, b <- b + W c, summed in float64.

    The result's first Linear takes p numbers, (B, p) -> (B, out).
    """
    weight = head.hidden.weight.detach().cpu().double()
    folded = MLPHead(readout.weight.shape[0], head.output.out_features)
    folded.load_state_dict(
        {
            "hidden.weight": (weight @ readout.weight.t()).float(),
            "hidden.bias": (head.hidden.bias.detach().cpu().double() + weight @ readout.bias).float(),
            "output.weight": head.output.weight.detach().float().cpu(),
            "output.bias": head.output.bias.detach().float().cpu(),
        }
    )
    return folded.eval().requires_grad_(False)


def refit_head(
    head: MLPHead, features: Sequence[Tensor], wanted: Sequence[Tensor], groups: Tensor | None = None
) -> MLPHead:
    """Both layers of the head for merged features: a readout folded into the first, the last one fitted to answers.

    The last layer changes by  U = argmin |h(z_i) - h(z) - a U - u|^2 + ridge * n * |U|^2,  with z the readout's class
    tokens of images that it was not fitted to, h the head, a its standardised hidden units of z, and z_i what was
    wanted. Both ridges are the best over ``FOLDS`` parts of the images, each judged by a fit to the others and on plain
    images alone; where no U serves better than none, the last layer stays. No label is read.

    Args:
        features: (n, p) of the merged model for each view of the images, in the same order: the plain ones, then
            augmented ones.
        wanted: (n, d) class tokens of the single-adapter model on the same pictures.
        groups: (n,) of the images, see ``merging.held_out``; None: each is its own.

    Returns:
        A head that reads (B, p).
    """
    x, z = torch.stack([one.double() for one in features]), torch.stack([one.double() for one in wanted])
    folds = list(fold_masks(torch.arange(x.shape[1]) if groups is None else groups, FOLDS))
    guesses = {ridge: torch.empty_like(z) for ridge in RIDGES}
    for held in folds:
        readouts = fit_readouts(x[:, ~held].flatten(0, 1), z[:, ~held].flatten(0, 1), RIDGES)
        for ridge, readout in zip(RIDGES, readouts, strict=True):
            guesses[ridge][:, held] = readout(x[:, held].flatten(0, 1)).unflatten(0, (len(x), -1))
    ridge = min(RIDGES, key=lambda own: float((guesses[own][0] - z[0]).square().sum()))
    own = copy.deepcopy(head).cpu().double()
    with torch.no_grad():
        hidden = torch.relu(own.hidden(guesses[ridge]))
        missing = own(z) - own.output(hidden)
    folded = fold_readout(head, fit_readouts(x.flatten(0, 1), z.flatten(0, 1), [ridge])[0])
    change = _output_change(hidden, missing, folds)
    if change is not None:
        slope, offset = change
        with torch.no_grad():
            folded.output.weight.copy_(own.output.weight + slope.t())
            folded.output.bias.copy_(own.output.bias + offset)
    return folded


def _output_change(hidden: Tensor, missing: Tensor, folds: Sequence[Tensor]) -> tuple[Tensor, Tensor] | None:
    """Slope (h, out) and offset (out,) that give of hidden units (v, n, h) what is missing (v, n, out).

    None where held-out images are answered no better with them than without.
    """
    flat = hidden.flatten(0, 1)  # all of it: a unit that fires in one part alone would be blown up there
    mean, scale = flat.mean(0), flat.std(0, correction=0)
    scale = torch.where(scale > 1e-8, scale, 1.0)
    standard = (hidden - mean) / scale

    def fit(rows: Tensor, ridges: Sequence[float]) -> tuple[list[Tensor], Tensor]:
        some, lacks = standard[:, rows].flatten(0, 1), missing[:, rows].flatten(0, 1)
        centre = lacks.mean(0)
        return _ridge(some, lacks - centre, ridges), centre

    errors = dict.fromkeys(OUTPUT_RIDGES, 0.0)
    for held in folds:
        maps, centre = fit(~held, OUTPUT_RIDGES)
        for ridge, slope in zip(OUTPUT_RIDGES, maps, strict=True):
            errors[ridge] += float((standard[0, held] @ slope + centre - missing[0, held]).square().sum())
    ridge = min(errors, key=lambda own: errors[own])
    if errors[ridge] >= float(missing[0].square().sum()):
        return None
    (slope,), centre = fit(torch.ones(hidden.shape[1], dtype=torch.bool), [ridge])
    slope = slope / scale[:, None]
    return slope, centre - mean @ slope


def _ridge(x: Tensor, y: Tensor, ridges: Sequence[float]) -> list[Tensor]:
    """(p, d) for each ridge; through the smaller of x^T x and x x^T."""
    n, p = x.shape
    if n >= p:
        values, vectors = torch.linalg.eigh(x.t() @ x)
        target = vectors.t() @ (x.t() @ y)
        return [vectors @ (target / (values.clamp(min=0) + ridge * n)[:, None]) for ridge in ridges]
    values, vectors = torch.linalg.eigh(x @ x.t())
    target = vectors.t() @ y
    return [x.t() @ (vectors @ (target / (values.clamp(min=0) + ridge * n)[:, None])) for ridge in ridges]
