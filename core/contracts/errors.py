"""Errors that a user can correct. The message says what is wrong, where, and what to do."""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """Invalid input of the user. The message is shown without a traceback."""


class RecordingError(UserError):
    """A recording violates the contract. The message names the variable, dimension and remedy."""


def describe(error: BaseException) -> str:
    """An exception as `Type: message`, or its type alone where it has no message.

    Example:
        >>> describe(ValueError("no such cell"))
        'ValueError: no such cell'
    """
    name = type(error).__name__
    try:
        message = str(error)
    except Exception:  # of a class whose __str__ raises
        message = "its message cannot be read"
    return f"{name}: {message}" if message else name


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint with the known names that are closest to `name`, or all names if none is close.

    Args:
        name: the unknown name.
        known: the valid names.

    Returns:
        A clause for the end of an error message.

    Example:
        >>> nearest("lgas", ["lags", "steps"])
        "did you mean 'lags'?"
        >>> nearest("dropout", ["lags", "steps"])
        'known: lags, steps'
    """
    known = sorted(known)
    close = get_close_matches(name, known, n=3, cutoff=0.5)
    if close:
        return "did you mean " + " or ".join(repr(match) for match in close) + "?"
    if known:
        return "known: " + ", ".join(known)
    return "none is known"
