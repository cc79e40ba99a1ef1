"""Populations of ganglion cells with subunits, adaptation and amacrine inhibition."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Self

import numba
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.special import erf

from retinakit.simulation.temporal_filter import biphasic

BLOCK = 512
"""Frames that are processed together."""

TYPES = ("fast OFF", "slow OFF", "ON")
SHARES = (0.5, 0.3, 0.2)
"""Cell types of a population, and the fraction of the cells of each type."""

SIGN = (-1.0, -1.0, 1.0)
TIME_CONSTANT = (0.03, 0.045, 0.035)
"""Polarity and time constant in s of the temporal filter of each type."""

SPACING, CENTRE, SURROUND, SURROUND_WEIGHT = 135.0, 75.0, 250.0, 0.7
"""Bipolar cells: distance, standard deviations of centre and surround in µm, and weight of the
surround relative to the centre."""

FIELD, FIELD_SPREAD, ELONGATION = 110.0, 0.15, 1.5
"""Pooling of a ganglion cell over bipolar cells: standard deviation in µm, spread of its logarithm
between cells, and the largest ratio of the two axes."""

REACH = 2.5
"""Pooling ends at this many standard deviations."""

MARGIN = 135.0
"""Smallest distance of a ganglion cell from the border of the field, in µm."""

AMACRINE = 250.0
"""Standard deviation of amacrine inhibition in µm."""

Draw = Callable[[NDArray[np.int64]], NDArray[Any]]


@dataclass(frozen=True, eq=False)
class GanglionCells:
    """Ganglion cells that pool rectified bipolar cells, with a slow gain and amacrine feedback.

    With the stimulus s, the bipolar cells b of type k, and the ganglion cells c of type k(c):

        u_kb(t) = Σ_l temporal_kl Σ_yx field_b,yx s_yx(t - l)
        e_c(t) = Σ_b pooling_cb max(u_k(c)b(t), 0)
        v_c(t) = e_c(t) / (1 + adaptation · g_c(t)) - feedback · Σ_j amacrine_cj a_j(t - 1)
        rate_c(t) = highest · (1 - exp(-gain_c · max(v_c(t) - threshold_c, 0) / highest)).

    The gain g is e, and the amacrine activity a is max(v, 0), each averaged with an exponential
    window over the past: g_c(t) = g_c(t-1) + (e_c(t-1) - g_c(t-1)) / gain_frames. The field of a
    bipolar cell is a difference of two Gaussians, row_by · column_bx - surround.

    Attributes:
        size: side of the stimulus, in pixels.
        field: side of the stimulus, in µm.
        bipolar: (bipolar, 2), row and column of the bipolar cells, in pixels.
        cell_type: (cell,) index into `TYPES`.
        location: (cell, 2), row and column of the middle of the pooling, in pixels.
        axes: (cell, 3), the two standard deviations of the pooling in pixels and the angle of the
            first from x towards y, in radians.
        pooling: (cell, bipolar).
        temporal: (type, lag).
        amacrine: (cell, cell), whose rows sum to 1.
        threshold, gain: (cell,).
        adaptation, gain_frames: strength and time constant of the slow gain, in frames.
        feedback, amacrine_frames: strength and time constant of the feedback.
        highest: rate at which a cell saturates, in spikes per bin.

    Example:
        >>> random = np.random.default_rng(0)
        >>> cells = GanglionCells.drawn(5, 20, 1 / 30, random)
        >>> def movie(frames):
        ...     return np.sin(frames[:, None, None] / 3 + np.arange(20) / 2 + np.zeros((20, 1)))
        >>> cells = cells.calibrated(movie, 300, mean_rate=np.full(5, 0.1), silent=0.8)
        >>> rate = cells.rate(cells.drive(movie, 300))
        >>> rate.shape, [round(float(mean), 2) for mean in rate.mean(0)]
        ((300, 5), [0.1, 0.1, 0.1, 0.1, 0.1])
    """

    size: int
    field: float
    bipolar: NDArray[np.float64]
    cell_type: NDArray[np.int64]
    location: NDArray[np.float64]
    axes: NDArray[np.float64]
    pooling: NDArray[np.float32]
    temporal: NDArray[np.float32]
    amacrine: csr_array
    threshold: NDArray[np.float64]
    gain: NDArray[np.float64]
    adaptation: float = 2.0
    gain_frames: float = 30.0
    feedback: float = 0.3
    amacrine_frames: float = 3.0
    highest: float = 2.2

    @classmethod
    def drawn(
        cls,
        cells: int,
        size: int,
        frame_interval: float,
        random: np.random.Generator,
        field: float = 2700.0,
        **options: Any,
    ) -> Self:
        """A population at random locations that keep a distance, one mosaic for each type.

        The thresholds are 0 and the gains 1; see `calibrated`.

        Args:
            cells: the number of cells.
            size: side of the stimulus, in pixels.
            frame_interval: in seconds.
            random: generator of the population.
            field: side of the stimulus, in µm; more than 270.
            options: `adaptation`, `gain_frames`, `feedback`, `amacrine_frames` and
                `highest`.
        """
        pixel = field / size
        cell_type = np.repeat(np.arange(len(TYPES)), _shares(cells))
        location = np.concatenate(
            [_mosaic(int((cell_type == kind).sum()), random) for kind in range(len(TYPES))]
        )
        location = MARGIN + (field - 2 * MARGIN) * location
        spread = FIELD * np.exp(FIELD_SPREAD * random.standard_normal(cells))
        ratio = np.sqrt(random.uniform(1, ELONGATION, cells))
        axes = np.stack([spread * ratio, spread / ratio, random.uniform(0, np.pi, cells)], 1)
        row = np.arange(SPACING / 2, field, SPACING)
        bipolar = np.stack(np.meshgrid(row, row, indexing="ij"), -1).reshape(-1, 2)
        pooling = np.empty((cells, len(bipolar)), np.float32)
        for cell in range(cells):
            down, right = (bipolar - location[cell]).T
            cos, sin = np.cos(axes[cell, 2]), np.sin(axes[cell, 2])
            along, across = right * cos + down * sin, down * cos - right * sin
            squared = (along / axes[cell, 0]) ** 2 + (across / axes[cell, 1]) ** 2
            weight = np.exp(-squared / 2) * np.exp(0.4 * random.standard_normal(len(bipolar)))
            weight[(squared > REACH**2) & (squared > squared.min())] = 0
            pooling[cell] = weight / weight.sum()
        lags = int(np.ceil(14 * max(TIME_CONSTANT) / frame_interval))
        temporal = [
            sign * biphasic(lags, frame_interval, tau, delay=frame_interval)
            for sign, tau in zip(SIGN, TIME_CONSTANT, strict=True)
        ]
        return cls(
            size,
            field,
            bipolar / pixel - 0.5,
            cell_type,
            location / pixel - 0.5,
            axes / [pixel, pixel, 1],
            pooling,
            np.array(temporal, np.float32),
            _neighbours(location),
            np.zeros(cells),
            np.ones(cells),
            **options,
        )

    @property
    def pixel(self) -> float:
        """Side of a pixel in µm."""
        return self.field / self.size

    def _profiles(self, spread: float) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Profiles of Gaussians of `spread` µm along y (row, y) and along x (column, x).

        Beyond the border of the field, the outermost pixels are continued.
        """
        rows = np.unique(self.bipolar[:, 0])
        edge = np.r_[-np.inf, np.arange(self.size - 1) + 0.5, np.inf]
        below = erf((edge - rows[:, None]) * self.pixel / (np.sqrt(2) * spread)) / 2
        profile = np.diff(below, axis=1).astype(np.float32)
        return profile, profile

    def ellipse_axes(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Standard deviations (cell,) of the centre of the receptive field, in pixels."""
        squared = self.axes[:, :2] ** 2 + (CENTRE / self.pixel) ** 2
        return np.sqrt(squared[:, 0]), np.sqrt(squared[:, 1])

    def bipolar_fields(self) -> NDArray[np.float32]:
        """The fields (bipolar, y, x) of the bipolar cells, with the surround."""
        centre, surround = (np.kron(*self._profiles(s)) for s in (CENTRE, SURROUND))
        fields: NDArray[Any] = centre - np.float32(SURROUND_WEIGHT) * surround
        return fields.reshape(-1, self.size, self.size)

    def receptive_fields(self) -> NDArray[np.float32]:
        """The linear fields (cell, y, x) that a cell pools; negative in the middle of OFF cells."""
        fields = self.bipolar_fields().reshape(len(self.bipolar), -1)
        signed = self.pooling * np.array(SIGN, np.float32)[self.cell_type, None]
        maps: NDArray[Any] = signed @ fields
        return maps.reshape(-1, self.size, self.size)

    def drive(self, draw: Draw, frames: int) -> NDArray[np.float32]:
        """The drive v before the threshold, for a movie that is read in blocks.

        Args:
            draw: a function from the numbers of frames (n,) to these frames (n, y, x).
            frames: the number of frames of the movie; the frames before the first are grey.

        Returns:
            (frame, cell).
        """
        drive = np.empty((frames, len(self.cell_type)), np.float32)
        state = np.zeros((2, len(self.cell_type)), np.float32)
        for start, excitation in self._excitation(draw, frames):
            self._adapted(excitation, state, drive[start : start + len(excitation)])
        return drive

    def _adapted(
        self,
        excitation: NDArray[np.float32],
        state: NDArray[np.float32],
        out: NDArray[np.float32],
    ) -> None:
        """Writes the drive for e (frame, cell) to `out`, and advances the state."""
        inward = self.amacrine
        _adapt(
            excitation,
            state,
            inward.indptr,
            inward.indices,
            inward.data,
            np.float32(self.adaptation),
            np.float32(1 / self.gain_frames),
            np.float32(self.feedback),
            np.float32(1 / self.amacrine_frames),
            out,
        )

    def _excitation(self, draw: Draw, frames: int) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """The start of each block of frames, and e (frame, cell) in it."""
        weights = [
            np.ascontiguousarray(self.pooling[self.cell_type == kind].T)
            for kind in range(len(TYPES))
        ]
        centre, surround = (self._profiles(s) for s in (CENTRE, SURROUND))
        history = self.temporal.shape[1] - 1
        seen = np.zeros((history + BLOCK, len(self.bipolar)), np.float32)
        for start in range(0, frames, BLOCK):
            now = min(BLOCK, frames - start)
            shown = draw(np.arange(start, start + now)).astype(np.float32)
            inner = centre[0] @ shown @ centre[1].T
            inner -= np.float32(SURROUND_WEIGHT) * (surround[0] @ shown @ surround[1].T)
            seen[history : history + now] = inner.reshape(now, -1)
            parts = []
            for kernel, pool in zip(self.temporal, weights, strict=True):
                active = np.zeros((now, seen.shape[1]), np.float32)
                _filtered(seen, kernel, active)
                parts.append(active @ pool)
            seen[:history] = seen[now : now + history].copy()
            yield start, np.concatenate(parts, 1)

    def calibrated(self, draw: Draw, frames: int, mean_rate: NDArray[Any], silent: float) -> Self:
        """The same cells, scaled to a movie: e has the mean 1, and the rates have the wanted means.

        Args:
            draw, frames: the movie, as in `drive`.
            mean_rate: (cell,), in spikes per bin.
            silent: the fraction of the frames in which the rate is 0.
        """
        excitation = np.concatenate([part for _, part in self._excitation(draw, frames)])
        scale = 1 / np.maximum(excitation.mean(0), 1e-12)
        excitation *= scale
        drive = np.empty_like(excitation)
        self._adapted(excitation, np.zeros((2, len(scale)), np.float32), drive)
        threshold = np.quantile(drive, silent, axis=0)
        above = np.maximum(drive - threshold, 0).astype(np.float32)
        wanted = np.minimum(mean_rate, 0.5 * self.highest * (1 - silent))
        gain = wanted / np.maximum(above.mean(0), 1e-12)
        for _ in range(12):  # a larger gain makes up for the saturation
            reached = self.highest * -np.expm1(-gain * above / self.highest)
            gain *= (wanted / np.maximum(reached.mean(0), 1e-12)) ** 1.2
        pooling = self.pooling * scale[:, None]
        return replace(self, pooling=pooling, threshold=threshold, gain=gain)

    def rate(self, drive: NDArray[np.float32]) -> NDArray[np.float32]:
        """The rates (frame, cell) in spikes per bin for a drive (frame, cell)."""
        rate = np.maximum(drive - self.threshold.astype(np.float32), 0)
        rate *= (-self.gain / self.highest).astype(np.float32)
        np.expm1(rate, out=rate)
        rate *= np.float32(-self.highest)
        return rate


def _shares(cells: int) -> NDArray[np.int64]:
    """The number of cells of each type, of which the first has the rest."""
    counts = np.floor(np.array(SHARES) * cells).astype(np.int64)
    counts[0] += cells - counts.sum()
    return counts


def _mosaic(count: int, random: np.random.Generator) -> NDArray[np.float64]:
    """Places (n, 2) in the unit square that keep a distance: each the farthest of 20 candidates.

    Opposite sides count as neighbours, so that places are not drawn to the border.
    """
    places = np.empty((count, 2))
    for n in range(count):
        candidates = random.random((20, 2))
        apart = np.abs(candidates[:, None] - places[:n])
        apart = np.minimum(apart, 1 - apart)
        distance = (apart**2).sum(-1).min(1, initial=np.inf)
        places[n] = candidates[distance.argmax()]
    return places


def _neighbours(location: NDArray[np.float64]) -> csr_array:
    """Weights (cell, cell) of amacrine inhibition between cells; a cell does not inhibit itself."""
    squared = ((location[:, None] - location) ** 2).sum(-1)
    weight = np.exp(-squared / (2 * AMACRINE**2))
    weight[(squared > (2 * AMACRINE) ** 2) | (squared == 0)] = 0
    total = weight.sum(1, keepdims=True)
    return csr_array((weight / np.where(total, total, 1)).astype(np.float32))


@numba.njit(cache=True, nogil=True, fastmath=True)
def _filtered(
    seen: NDArray[np.float32], kernel: NDArray[np.float32], out: NDArray[np.float32]
) -> None:
    """Filters in time, with the frames before the first of `out` in `seen`, and rectifies."""
    history = len(kernel) - 1
    for t in range(len(out)):
        for lag in range(len(kernel)):
            weight, frame = kernel[lag], seen[history + t - lag]
            for b in range(len(frame)):
                out[t, b] += weight * frame[b]
        for b in range(out.shape[1]):
            out[t, b] = max(out[t, b], np.float32(0))


@numba.njit(cache=True, nogil=True, fastmath=True)
def _adapt(
    excitation: NDArray[np.float32],
    state: NDArray[np.float32],
    start: NDArray[Any],
    index: NDArray[Any],
    weight: NDArray[np.float32],
    adaptation: np.float32,
    gain_rate: np.float32,
    feedback: np.float32,
    amacrine_rate: np.float32,
    out: NDArray[np.float32],
) -> None:
    """The drive v from e. `state` has the gain and the amacrine activity of each cell."""
    zero, one = np.float32(0), np.float32(1)
    for t in range(len(out)):
        for c in range(out.shape[1]):
            inhibition = zero
            for k in range(start[c], start[c + 1]):
                inhibition += weight[k] * state[1, index[k]]
            value = excitation[t, c] / (one + adaptation * state[0, c])
            out[t, c] = value - feedback * inhibition
        for c in range(out.shape[1]):
            state[0, c] += gain_rate * (excitation[t, c] - state[0, c])
            state[1, c] += amacrine_rate * (max(out[t, c], zero) - state[1, c])


def binomial_spikes(
    rate: NDArray[np.float32], slots: int, repeats: int, random: np.random.Generator
) -> NDArray[np.uint8]:
    """Spike counts that vary less than Poisson counts, as with a refractory period.

    A count is binomial: the number of `slots` in a bin that have a spike, each with the probability
    rate / slots. Its variance is rate · (1 - rate / slots).

    Args:
        rate: (frame, cell), expected spikes per bin; above `slots` it is `slots`.
        slots: largest count of a bin.
        repeats: the number of counts drawn for each rate.
        random: generator of the counts.

    Returns:
        (repeat, frame, cell).

    Example:
        >>> rate = np.full((5000, 1), 3.0, np.float32)
        >>> spikes = binomial_spikes(rate, 4, 2, np.random.default_rng(0))
        >>> spikes.shape, round(float(spikes.mean()), 1), round(float(spikes.var()), 1)
        ((2, 5000, 1), 3.0, 0.8)
    """
    spikes = np.zeros((repeats, *rate.shape), np.uint8)
    _draw(rate, slots, random, spikes)
    return spikes


@numba.njit(cache=True, nogil=True)
def _draw(
    rate: NDArray[np.float32], slots: int, random: np.random.Generator, spikes: NDArray[np.uint8]
) -> None:
    for repeat in range(len(spikes)):
        for t in range(rate.shape[0]):
            for c in range(rate.shape[1]):
                chance = min(rate[t, c] / slots, 1.0)
                if chance <= 0:
                    continue
                if chance == 1:
                    spikes[repeat, t, c] = slots
                    continue
                uniform = random.random()
                odds = chance / (1 - chance)
                probability = (1 - chance) ** slots
                below, count = probability, 0
                while uniform >= below and count < slots:
                    probability *= odds * (slots - count) / (count + 1)
                    count += 1
                    below += probability
                spikes[repeat, t, c] = count
