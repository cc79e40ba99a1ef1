"""Sums of the stimulus before responses, block by block: one after another, or on dask."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from retinakit.contracts.errors import UserError
from retinakit.contracts.frame_blocks import Reader, blocks
from retinakit.kernels import as_numbers
from retinakit.spikes.algorithms.choice import ALGORITHMS, Task, order, possible
from retinakit.spikes.algorithms.response import Block, Response

ROUND = 4
"""Blocks for each worker of dask between two reports of progress."""

Used = dict[str, str]
"""The algorithms that served, and why."""


def stimulus_sums(
    stimulus: xr.DataArray,
    response: Response,
    lags: int,
    first_lag: int,
    algorithm: str,
    threads: int,
    progress: Callable[[int], None],
) -> tuple[NDArray[Any], Used]:
    """Σ_t r[t, c] · s[t - l, p], (cell, lag, [channel,] y, x), and the algorithms with reasons.

    Args:
        stimulus, lags, first_lag, algorithm, threads: as in `retinakit.spikes.sta`.
        progress: is told the frames done.
    """
    shape = stimulus.shape[1:]
    exact = (
        response.counts
        and stimulus.dtype.kind in "biu"
        and stimulus.dtype.itemsize == 1
        and algorithm in ("auto", "bits", "int8")
    )
    task = Task(len(response.full), int(np.prod(shape)), response.cells, lags, response.terms)
    job = _Job(task, first_lag, response.counts, exact, algorithm, threads)
    parts = (
        # The first frames are the history; they were counted in the block before.
        (part, response.between(part.start + job.history, part.stop, part.start))
        for part in blocks(stimulus, job.history, 1 if exact else 4)
    )
    run = _here if stimulus.chunks is None else _on_dask
    total, used = run(job, stimulus, parts, progress)
    return total.reshape(response.cells, lags, *shape), used


@dataclass(frozen=True)
class _Job:
    """What is to be done with every block; may travel to a worker."""

    task: Task
    first_lag: int
    counts: bool
    exact: bool
    algorithm: str
    threads: int

    @property
    def history(self) -> int:
        """Frames of a window before the response's own."""
        return self.first_lag + self.task.lags - 1

    def nothing(self) -> NDArray[Any]:
        """Sums of 0, (cell, lag, pixel)."""
        shape = (self.task.cells, self.task.lags, self.task.pixels)
        return np.zeros(shape, np.int64 if self.exact else np.float64)

    def add(self, stimulus: NDArray[Any], block: Block, total: NDArray[Any]) -> Used:
        """Adds the sums of a block, of which `stimulus` has the history too."""
        values = as_numbers(stimulus.reshape(len(stimulus), self.task.pixels))
        if self.algorithm == "auto":
            names, why = order(self.task, possible(values, self.counts))
            names.append("float")  # whatever the stimulus turns out to hold
        else:
            names, why = [self.algorithm], "named by the caller"
            self._check(values)
        for name in names:
            if ALGORITHMS[name](values, block, self.first_lag, total, self.threads):
                return {name: why}
        raise UserError(
            f"algorithm '{self.algorithm}' cannot serve a stimulus of "
            + ("more than two values" if self.algorithm == "bits" else "values that are NaN")
            + "; name 'float' or 'auto'"
        )

    def sums(
        self, before: NDArray[Any], frames: NDArray[Any], block: Block
    ) -> tuple[NDArray[Any], Used]:
        """The sums of a block alone; `before` is its history."""
        total = self.nothing()
        return total, self.add(np.concatenate([before, frames]), block, total)

    def _check(self, values: NDArray[Any]) -> None:
        if self.algorithm in ("bits", "int8") and not self.counts:
            raise UserError(
                f"algorithm '{self.algorithm}' takes counts, and the response holds other numbers "
                "(a mean over repeats, or a rate); name 'float' or 'auto'"
            )
        if self.algorithm == "int8" and values.dtype.itemsize != 1:
            raise UserError(
                f"algorithm 'int8' takes stimuli of 8 bits, and this one is {values.dtype}; "
                "name 'float' or 'auto'"
            )


Parts = Iterator[tuple[slice, Block]]


def _here(
    job: _Job, stimulus: xr.DataArray, parts: Parts, progress: Callable[[int], None]
) -> tuple[NDArray[Any], Used]:
    total, used = job.nothing(), Used()
    read = Reader(stimulus, job.history)
    for part, block in parts:
        if not block.empty():
            used = job.add(read[part], block, total) | used
        progress(part.stop)
    return total, used


def _on_dask(
    job: _Job, stimulus: xr.DataArray, parts: Parts, progress: Callable[[int], None]
) -> tuple[NDArray[Any], Used]:
    """Workers read the blocks and add their sums in pairs; each round returns one sum."""
    import dask

    total, used = job.nothing(), Used()
    end, before = 0, stimulus[:0].values
    size = ROUND * _workers()
    while some := list(islice(parts, size)):
        sums = []
        for part, block in some:
            # A frame is read by one task, which hands its last frames on to the next.
            frames = dask.delayed(np.asarray)(stimulus[end : part.stop].data)
            if not block.empty():
                sums.append(dask.delayed(job.sums)(before, frames, block))
            before = dask.delayed(_last)(before, frames, job.history)
            end = part.stop
        while len(sums) > 1:
            odd = sums[len(sums) // 2 * 2 :]
            pairs = zip(sums[:-1:2], sums[1::2], strict=True)
            sums = [dask.delayed(_plus)(*pair) for pair in pairs] + odd
        sums, before = dask.compute(sums, before)
        for added, how in sums:
            total += added
            used = how | used
        progress(end)
    return total, used


def _last(before: NDArray[Any], frames: NDArray[Any], history: int) -> NDArray[Any]:
    """The last frames, with earlier ones if a block is too short. A copy, which frees the block."""
    joined = np.concatenate([before, frames[max(0, len(frames) - history) :]])
    return joined[max(0, len(joined) - history) :].copy()


def _plus(
    one: tuple[NDArray[Any], Used], other: tuple[NDArray[Any], Used]
) -> tuple[NDArray[Any], Used]:
    return one[0] + other[0], other[1] | one[1]


def _workers() -> int:
    """How many blocks the scheduler of dask that is in use works on at a time."""
    import dask
    from dask.system import CPU_COUNT

    try:
        from distributed import get_client

        return sum(get_client().nthreads().values())
    except (ImportError, ValueError):  # no client: threads or processes of this machine
        return dask.config.get("num_workers", None) or CPU_COUNT
