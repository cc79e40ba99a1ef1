"""Choice of the fastest algorithm, from the size of the task and measured costs.

The costs are constants, so that the choice, and with it the rounding errors of a result, is the
same in every run.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retinakit.spikes.algorithms.bit_sums import add_bits, two_levels
from retinakit.spikes.algorithms.event_sums import add_float, add_int8
from retinakit.spikes.algorithms.matrix_sums import add_fft, add_toeplitz
from retinakit.spikes.algorithms.response import Block

Add = Callable[[NDArray[Any], Block, int, Any, int], bool]
ALGORITHMS: dict[str, Add] = {
    "bits": add_bits,
    "int8": add_int8,
    "float": add_float,
    "toeplitz": add_toeplitz,
    "fft": add_fft,
}


RATES = {
    "bits": (5.7e-11, 4.9e-12),
    "int8": (9.6e-11, 5.0e-11),
    "float": (6.1e-10, 2.1e-11),
    "toeplitz": (1.0e-9, 2.6e-11),
    "fft": (8.0e-9, 8.2e-11),
}
"""Seconds per operation on frames and per operation on responses, in one thread with AVX2."""


@dataclass(frozen=True)
class Task:
    """The sizes that determine the costs; `terms` is the number of nonzero responses."""

    frames: int
    pixels: int
    cells: int
    lags: int
    terms: int

    def work(self) -> dict[str, tuple[float, float]]:
        """The numbers of operations of each algorithm on frames and on responses."""
        shown = self.frames * self.pixels
        sparse = self.terms * self.lags * self.pixels
        dense = shown * self.cells
        return {
            "bits": (shown + 8 * self.cells * self.lags * self.pixels, sparse),
            "int8": (shown, sparse),
            "float": (shown, sparse),
            "toeplitz": (shown, dense * self.lags),
            "fft": (shown + self.frames * self.cells, dense),
        }


def possible(values: NDArray[Any], counts: bool) -> list[str]:
    """The algorithms that support the stimulus; only the exact ones, if there are any."""
    exact = counts and values.dtype.itemsize == 1
    names = ["bits"] if counts and two_levels(values) is not None else []
    if exact:
        return [*names, "int8"]
    if counts and values.dtype == np.float64:  # integers of more than 8 bits
        return [*names, "float"]
    return [*names, "float", "toeplitz", "fft"]


def order(task: Task, names: list[str]) -> tuple[list[str], str]:
    """The algorithms sorted by their expected time, and a phrase that states the reason."""
    if len(names) == 1:
        return names, "the only one for this stimulus and response"
    seconds = {name: sum(np.multiply(RATES[name], task.work()[name])) for name in names}
    names = sorted(names, key=seconds.__getitem__)
    return names, "expected " + ", ".join(f"{name} {seconds[name]:.2g} s" for name in names)
