"""Contests: the same work done by retinakit and by a peer, timed alternately in one process."""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

SECONDS = 15
"Seconds of a contest after which no further repetition begins."

Side = Callable[[], np.ndarray]

_RESET = Path("/proc/self/clear_refs")

NO_MEMORY = "" if _RESET.exists() else "this system does not report the memory of a process"
"The reason why memory cannot be measured on this system, or an empty string."


@dataclass(frozen=True)
class Contest:
    """Two ways to compute one result: ours and a peer's.

    Attributes:
        id: suite, case and peer.
        group: a description of the case.
        target: the target of the ratio of the peer's time to ours, or None.
        sides: makes the data and returns our function and the peer's, without arguments.
        tolerance: largest absolute difference of the results.
        share: the fraction of the work that the peer does, if its time is proportional to the work.
            Its result then has the first rows only.
        overhead: pairs of a function that makes additional work of ours, and the number of
            repetitions after which this work is done once.
        missing: the reason why the contest cannot run here, or "".
        compare: checks the results, ours first, instead of the comparison within the tolerance,
            and returns a remark for the verdict.
    """

    id: str
    group: str
    target: float | None
    sides: Callable[[], tuple[Side, Side]]
    tolerance: float
    share: float = 1.0
    overhead: tuple[tuple[Callable[[], Side], int], ...] = ()
    missing: str = ""
    compare: Callable[[np.ndarray, np.ndarray], str] | None = None

    def run(self) -> str:
        """Compares the results, times both sides alternately, and returns the verdict.

        Raises:
            AssertionError: if the results differ.
        """
        ours, theirs = self.sides()
        expected, seconds = timed(theirs)
        remark = self.checked(ours(), expected)
        besides = self.besides()
        mine, others = [], [seconds]
        while True:
            for _ in range(3):  # once, if ours takes about as long as the peer
                mine.append(timed(ours)[1])
                if sum(mine) > sum(others) / 2:
                    break
            if sum(mine) + sum(others) > SECONDS or len(others) == 7:
                return self.verdict(median(mine) + besides, median(others), remark)
            others.append(timed(theirs)[1])

    def benchmark(self, benchmark: Any) -> str:
        """The same as `run`, with the peer's times in the report of pytest-benchmark."""
        ours, theirs = self.sides()
        expected, seconds = timed(theirs)
        remark = self.checked(ours(), expected)
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
        return self.verdict(median(mine) + besides, theirs_took, remark)

    def besides(self) -> float:
        """Seconds of the overhead per repetition."""
        return sum(
            median(timed(work)[1] for _ in range(3)) / times
            for work, times in ((make(), times) for make, times in self.overhead)
        )

    def checked(self, ours: np.ndarray, theirs: np.ndarray) -> str:
        """Compares the results, and returns a remark for the verdict or ""."""
        if self.compare is not None:
            return self.compare(ours, theirs)
        agree(ours, theirs, self.tolerance)
        return ""

    def verdict(self, ours: float, theirs: float, remark: str = "") -> str:
        """A line of text from the seconds of both sides."""
        theirs /= self.share
        part = f", the peer's from {self.share:.1%} of the work" if self.share < 1 else ""
        times = f"{ours:.4g} s against {theirs:.4g} s{part}"
        return line(self.id, theirs / ours, self.target, f"{times}; {remark}" if remark else times)


@dataclass(frozen=True)
class MemoryContest:
    """The memory that the same work takes in retinakit and in a peer.

    Attributes:
        id: suite, case and peer.
        target: the target of the ratio of the peer's memory to ours, or None.
        sides: returns our megabytes and the peer's.
        missing: the reason why the contest cannot run here, or "".
    """

    id: str
    target: float | None
    sides: Callable[[], tuple[float, float]]
    missing: str = NO_MEMORY

    def run(self) -> str:
        """Measures both sides and returns the verdict."""
        return self.verdict(*self.sides())

    def verdict(self, ours: float, theirs: float) -> str:
        """A line of text from the megabytes of both sides."""
        sizes = f"{ours:.0f} MB against {theirs:.0f} MB"
        return line(self.id, theirs / ours, self.target, sizes)


def line(name: str, ratio: float, target: float | None, numbers: str) -> str:
    """A line of text with id, ratio, target, and whether the target is met."""
    goal = ""
    if target is not None:
        goal = f"target {target:3g}x  {'met' if ratio >= target else 'short'}"
    return f"{name:32} {ratio:6.1f}x  {goal:20} ({numbers})"


def peak_megabytes(work: Callable[[], Any]) -> float:
    """The peak growth of the process's memory during the second run of `work`, in megabytes."""
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
    """Compares the results, of which the peer's may have the first rows only."""
    np.testing.assert_allclose(ours[: len(theirs)], theirs, atol=tolerance)
