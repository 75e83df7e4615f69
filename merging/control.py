"""What every table of merges needs beside it: nothing merged at all."""

from collections.abc import Mapping

from merging.delta import Delta, Weights
from merging.workbench import Workbench


def frozen(deltas: Mapping[str, Delta], weights: Weights | None = None, *, bench: Workbench) -> None:
    """The control: the bare backbone, so that what a readout alone gives is seen.

    Deep features are richer than the class token, and part of what realignment gains after a merge it gains without
    one (``realign=deep`` on the frozen backbone).
    """
