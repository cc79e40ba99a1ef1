"""Reporting the progress of long computations."""

from typing import Protocol


class Progress(Protocol):
    """A function that is called during a long computation.

    Args:
        done: the finished part of the work, in any unit.
        total: all of the work, in the same unit.
        message: a short description of the state, such as the validation loss.

    Example:
        >>> def show(done, total, message=""):
        ...     print(f"{done}/{total} {message}")
        >>> progress: Progress = show
        >>> progress(1, 2, "half")
        1/2 half
    """

    def __call__(self, done: float, total: float, message: str = "") -> None: ...


def silent(done: float, total: float, message: str = "") -> None:
    """A `Progress` that does nothing, the default wherever one is accepted.

    Example:
        >>> silent(1, 2, "half")
    """
