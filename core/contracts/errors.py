"""Errors that a user can act on: one sentence saying what is wrong, where, and what to do."""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """Something the user wrote or supplied is wrong; the message is the whole explanation."""


class RecordingError(UserError):
    """A recording breaks the contract; names the variable, the dimension and the remedy."""


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint naming the known names closest to `name`, or all of them when none is close."""
    known = sorted(known)
    close = get_close_matches(name, known, n=3, cutoff=0.5)
    if close:
        return "did you mean " + " or ".join(repr(match) for match in close) + "?"
    if known:
        return "known: " + ", ".join(known)
    return "none is known"
