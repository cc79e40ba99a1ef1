"""Spike-triggered sums over blocks of frames, computed one after another or with dask."""

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
"""Blocks per dask worker between two reports of progress."""

Used = dict[str, str]
"""The algorithms that were used, each with the reason."""


def stimulus_sums(
    stimulus: xr.DataArray,
    response: Response,
    lags: int,
    first_lag: int,
    algorithm: str,
    threads: int,
    progress: Callable[[int], None],
) -> tuple[NDArray[Any], Used]:
    """Computes Σ_t r[t, c] · s[t - l, p].

    Args:
        stimulus: (frame, [channel,] y, x).
        response: to the stimulus.
        lags, first_lag, algorithm, threads: as for `retinakit.spikes.sta`.
        progress: is called with the number of processed frames.

    Returns:
        The sums (cell, lag, [channel,] y, x), and the algorithms with the reasons for their choice.

    Raises:
        UserError: if the algorithm does not support the stimulus or the response.
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
        # The first frames are the history; their responses belong to the block before.
        (part, response.between(part.start + job.history, part.stop, part.start))
        for part in blocks(stimulus, job.history, 1 if exact else 4)
    )
    run = _here if stimulus.chunks is None else _on_dask
    total, used = run(job, stimulus, parts, progress)
    return total.reshape(response.cells, lags, *shape), used


@dataclass(frozen=True)
class _Job:
    """The computation for one block; it can be pickled for a dask worker."""

    task: Task
    first_lag: int
    counts: bool
    exact: bool
    algorithm: str
    threads: int

    @property
    def history(self) -> int:
        """The number of frames of a window before that of the response."""
        return self.first_lag + self.task.lags - 1

    def nothing(self) -> NDArray[Any]:
        """Sums (cell, lag, pixel) that are 0."""
        shape = (self.task.cells, self.task.lags, self.task.pixels)
        return np.zeros(shape, np.int64 if self.exact else np.float64)

    def add(self, stimulus: NDArray[Any], block: Block, total: NDArray[Any]) -> Used:
        """Adds the sums of a block; `stimulus` includes the history of the block."""
        values = as_numbers(stimulus.reshape(len(stimulus), self.task.pixels))
        if self.algorithm == "auto":
            names, why = order(self.task, possible(values, self.counts))
            names.append("float")  # supports every stimulus, if the others fail
        else:
            names, why = [self.algorithm], "requested by the caller"
            self._check(values)
        for name in names:
            if ALGORITHMS[name](values, block, self.first_lag, total, self.threads):
                return {name: why}
        raise UserError(
            f"algorithm '{self.algorithm}' does not support a stimulus with "
            + ("more than two values" if self.algorithm == "bits" else "NaN")
            + "; use 'float' or 'auto'"
        )

    def sums(
        self, before: NDArray[Any], frames: NDArray[Any], block: Block
    ) -> tuple[NDArray[Any], Used]:
        """The sums of one block; `before` is its history."""
        total = self.nothing()
        return total, self.add(np.concatenate([before, frames]), block, total)

    def _check(self, values: NDArray[Any]) -> None:
        if self.algorithm in ("bits", "int8") and not self.counts:
            raise UserError(
                f"algorithm '{self.algorithm}' requires spike counts, and the response has other "
                "values (a mean over repeats, or a rate); use 'float' or 'auto'"
            )
        if self.algorithm == "int8" and values.dtype.itemsize != 1:
            raise UserError(
                f"algorithm 'int8' requires an 8-bit stimulus, and this one is {values.dtype}; "
                "use 'float' or 'auto'"
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
    """Dask workers read the blocks and add their sums pairwise; each round returns one sum."""
    import dask

    total, used = job.nothing(), Used()
    end, before = 0, stimulus[:0].values
    size = ROUND * _workers()
    while some := list(islice(parts, size)):
        sums = []
        for part, block in some:
            # Each frame is read by one task, which passes its last frames to the next task.
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
    """The last frames, including earlier ones if the block is shorter than the history.

    The result is a copy, so that the memory of the block can be released.
    """
    joined = np.concatenate([before, frames[max(0, len(frames) - history) :]])
    return joined[max(0, len(joined) - history) :].copy()


def _plus(
    one: tuple[NDArray[Any], Used], other: tuple[NDArray[Any], Used]
) -> tuple[NDArray[Any], Used]:
    return one[0] + other[0], other[1] | one[1]


def _workers() -> int:
    """The number of blocks that the current dask scheduler processes at the same time."""
    import dask
    from dask.system import CPU_COUNT

    try:
        from distributed import get_client

        return sum(get_client().nthreads().values())
    except (ImportError, ValueError):  # no client: the local threads or processes
        return dask.config.get("num_workers", None) or CPU_COUNT
