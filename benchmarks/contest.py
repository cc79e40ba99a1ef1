"""Contests: one piece of work, done by us and by a peer, timed in turn in one process."""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

SECONDS = 15
"After so long, neither side is run again."

Side = Callable[[], np.ndarray]

_RESET = Path("/proc/self/clear_refs")

NO_MEMORY = "" if _RESET.exists() else "this system does not tell the memory of a process"
"Why memory cannot be measured here, or nothing."


@dataclass(frozen=True)
class Contest:
    """Our way and a peer's way to one result.

    Attributes:
        id: suite, case and peer.
        group: the case, in words.
        target: how many times faster ours is to be, or None if nothing was promised.
        sides: makes the data; ours and the peer's way, as functions of nothing.
        tolerance: of the difference of the results.
        share: what part of the work the peer is given, where its time is proportional to it. It
            has the first rows of the result then.
        overhead: what makes work that ours has to do besides, and once in how many times.
        missing: why it cannot be run here, or "".
    """

    id: str
    group: str
    target: float | None
    sides: Callable[[], tuple[Side, Side]]
    tolerance: float
    share: float = 1.0
    overhead: tuple[tuple[Callable[[], Side], int], ...] = ()
    missing: str = ""

    def run(self) -> str:
        """Compares the results, times both sides in turn, and says how it ended.

        Raises:
            AssertionError: if the results differ.
        """
        ours, theirs = self.sides()
        expected, seconds = timed(theirs)
        agree(ours(), expected, self.tolerance)
        besides = self.besides()
        mine, others = [], [seconds]
        while True:
            for _ in range(3):  # or once, where ours takes about as long as the peer
                mine.append(timed(ours)[1])
                if sum(mine) > sum(others) / 2:
                    break
            if sum(mine) + sum(others) > SECONDS or len(others) == 7:
                return self.verdict(median(mine) + besides, median(others))
            others.append(timed(theirs)[1])

    def benchmark(self, benchmark: Any) -> str:
        """As `run`, with the peer's times in the report of pytest-benchmark."""
        ours, theirs = self.sides()
        expected, seconds = timed(theirs)
        agree(ours(), expected, self.tolerance)
        besides = self.besides()
        mine: list[float] = []
        benchmark.group = self.group
        benchmark.pedantic(
            theirs,
            setup=lambda: mine.append(timed(ours)[1]),
            rounds=3 if seconds < SECONDS else 1,
        )
        theirs_took = benchmark.stats.stats.median
        benchmark.extra_info |= {
            "contest": self.id,
            "ratio": theirs_took / self.share / (median(mine) + besides),
            "target": self.target,
            "share": self.share,
        }
        return self.verdict(median(mine) + besides, theirs_took)

    def besides(self) -> float:
        """Seconds of the overhead for each time."""
        return sum(
            median(timed(work)[1] for _ in range(3)) / times
            for work, times in ((make(), times) for make, times in self.overhead)
        )

    def verdict(self, ours: float, theirs: float) -> str:
        """A line from the seconds that both sides took."""
        theirs /= self.share
        part = f", the peer's from {self.share:.1%} of the work" if self.share < 1 else ""
        times = f"{ours:.4g} s against {theirs:.4g} s{part}"
        return line(self.id, theirs / ours, self.target, times)


@dataclass(frozen=True)
class MemoryContest:
    """What a piece of work takes of memory, done by us and by a peer.

    Attributes:
        id: suite, case and peer.
        target: how many times less ours is to be, or None if nothing was promised.
        sides: megabytes of ours and of the peer.
        missing: why it cannot be run here, or "".
    """

    id: str
    target: float | None
    sides: Callable[[], tuple[float, float]]
    missing: str = NO_MEMORY

    def run(self) -> str:
        """Measures both and says how it ended."""
        return self.verdict(*self.sides())

    def verdict(self, ours: float, theirs: float) -> str:
        """A line from the megabytes of both sides."""
        sizes = f"{ours:.0f} MB against {theirs:.0f} MB"
        return line(self.id, theirs / ours, self.target, sizes)


def line(name: str, ratio: float, target: float | None, numbers: str) -> str:
    """The end of a contest: id, ratio, target, met or short."""
    goal = ""
    if target is not None:
        goal = f"target {target:3g}x  {'met' if ratio >= target else 'short'}"
    return f"{name:32} {ratio:6.1f}x  {goal:20} ({numbers})"


def peak_megabytes(work: Callable[[], Any]) -> float:
    """How far the memory of the process grows during `work`, once that was done before."""
    work()
    ctypes.CDLL(None).malloc_trim(0)
    _RESET.write_text("5")

    def status(name: str) -> float:
        rows = Path("/proc/self/status").read_text().splitlines()
        return next(int(row.split()[1]) for row in rows if row.startswith(name)) / 1024

    at_first = status("VmRSS")
    work()
    return status("VmHWM") - at_first


def timed(side: Side) -> tuple[np.ndarray, float]:
    begin = perf_counter()
    result = side()
    return result, perf_counter() - begin


def agree(ours: np.ndarray, theirs: np.ndarray, tolerance: float) -> None:
    """The peer may have done the first rows alone."""
    np.testing.assert_allclose(ours[: len(theirs)], theirs, atol=tolerance)
