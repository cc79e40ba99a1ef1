"""Which algorithm is the fastest here: costs by the size of the task, with measured rates."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retinakit.contracts.recording import make_split
from retinakit.spikes.algorithms.bit_sums import add_bits, two_levels
from retinakit.spikes.algorithms.event_sums import add_float, add_int8
from retinakit.spikes.algorithms.matrix_sums import add_fft, add_toeplitz
from retinakit.spikes.algorithms.response import Block, Response

Add = Callable[[NDArray[Any], Block, int, Any, int], bool]
ALGORITHMS: dict[str, Add] = {
    "bits": add_bits,
    "int8": add_int8,
    "float": add_float,
    "toeplitz": add_toeplitz,
    "fft": add_fft,
}


@dataclass(frozen=True)
class Task:
    """The sizes that costs depend on; `terms` are the responses that are not zero."""

    frames: int
    pixels: int
    cells: int
    lags: int
    terms: int

    def work(self) -> dict[str, tuple[float, float]]:
        """How much each algorithm does with every frame, and with every response."""
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
    """The algorithms that can serve; where exact sums are possible, the exact ones alone."""
    exact = counts and values.dtype.itemsize == 1
    names = ["bits"] if counts and two_levels(values) is not None else []
    if exact:
        return [*names, "int8"]
    if counts and values.dtype == np.float64:  # integers of more than 8 bits
        return [*names, "float"]
    return [*names, "float", "toeplitz", "fft"]


def order(task: Task, names: list[str]) -> tuple[list[str], str]:
    """The algorithms by their expected time, and a phrase that says it."""
    if len(names) == 1:
        return names, "the only one for this stimulus and response"
    seconds = {name: sum(np.multiply(rates(name), task.work()[name])) for name in names}
    names = sorted(names, key=seconds.__getitem__)
    return names, "expected " + ", ".join(f"{name} {seconds[name]:.2g} s" for name in names)


@cache
def rates(name: str) -> tuple[float, float]:
    """Seconds per unit of an algorithm's work, measured once in a process (some 20 ms)."""
    work, seconds = [], []
    for task, values, block in _trials():
        sums: NDArray[Any] = np.zeros((task.cells, task.lags, task.pixels), _precision(name))
        values = values if name in ("bits", "int8") else values.astype(np.float32)
        times = []
        for _ in range(3):
            begin = perf_counter()
            ALGORITHMS[name](values, block, 0, sums, 1)
            times.append(perf_counter() - begin)
        work.append(task.work()[name])
        seconds.append(min(times))
    per_frame, per_response = np.linalg.lstsq(np.array(work), seconds, rcond=None)[0]
    return max(per_frame, 1e-13), max(per_response, 1e-13)


def _precision(name: str) -> type:
    return np.int64 if name in ("bits", "int8") else np.float64


@cache
def _trials() -> list[tuple[Task, NDArray[np.int8], Block]]:
    """Two small tasks, of few and of many cells: one response in 8 of 4096 frames."""
    random = np.random.default_rng(0)
    frames, pixels, lags = 4096, 512, 10
    values = 2 * random.integers(0, 2, (frames, pixels), np.int8) - 1
    trials = []
    for cells in (1, 16):
        counts = (random.random((frames, cells)) < 1 / 8).astype(np.int64)
        response = Response(make_split(values[..., None], counts, frame_interval=1), lags)
        task = Task(frames, pixels, cells, lags, response.terms)
        trials.append((task, values, response.between(lags - 1, frames, 0)))
    return trials
