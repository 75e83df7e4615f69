"""Faults that a user can mend. Entry scripts print their text without a traceback."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A fault outside the code; its text names the thing, the place, the cause and the way out."""


class CommandError(UserError):
    """The command itself was wrong (exit code 2)."""


class DatasetNotFoundError(UserError):
    """No usable copy of a dataset at the place looked in."""


class DataError(UserError):
    """A dataset is there but its content cannot be used."""


class WeightsError(UserError):
    """Backbone weights are missing, damaged or of another model."""


class AdapterError(UserError):
    """An adapter bundle is missing, damaged or made for another backbone."""


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of an error text: ``" Did you mean 'x'?"``, or nothing when no name is near."""
    match = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" Did you mean '{match[0]}'?" if match else ""
