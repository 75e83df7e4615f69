"""Which images are kept back: groups of them (one person's, one picture's) are never divided, or copies would judge."""

from collections.abc import Iterator

import torch
from torch import Tensor


def held_out_start(groups: Tensor, count: int) -> int:
    """Where the last groups begin that have ``count`` images together, or a little more.

    Where that would leave less than half of the others before them, a group is divided: a few may hold nearly all.

    Args:
        groups: (n,) the group of each image, those of one group side by side.
        count: from 1 to n - 1.
    """
    cut = len(groups) - count
    first = int((groups == groups[cut]).nonzero()[0])
    return first if 2 * first >= cut else cut


def fold_masks(groups: Tensor, folds: int) -> Iterator[Tensor]:
    """Masks (n,) of the parts that are held out in turn; where there is one group alone, it is divided.

    Args:
        groups: (n,) the group of each image, those of one group side by side.
        folds: at most so many.
    """
    _, place, sizes = torch.unique_consecutive(groups, return_inverse=True, return_counts=True)
    if len(sizes) == 1:
        place = torch.arange(len(groups))
    parts = min(folds, int(place.max()) + 1)
    for fold in range(parts):
        yield place % parts == fold
