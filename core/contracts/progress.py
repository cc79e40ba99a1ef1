"""How long work tells how far it is."""

from typing import Protocol


class Progress(Protocol):
    """Called with the work done and the whole, in any unit, and a few words on the state."""

    def __call__(self, done: float, total: float, message: str = "") -> None: ...


def silent(done: float, total: float, message: str = "") -> None:
    """Progress that nobody watches."""
