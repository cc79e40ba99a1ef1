"""Simulation of cells with nonlinear subunits: rates and spikes."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import block_diag
from scipy.sparse import csr_array

from retinakit.contracts.bits import Bits
from retinakit.contracts.errors import UserError
from retinakit.kernels import compiled
from retinakit.simulation import subunit_cells_numba

Nonlinearity = Literal["identity", "rectify", "softplus", "exponential"]
Spikes = Literal["none", "binary", "poisson"]

PIECE_BYTES = 32 * 2**20
"""Size of the pieces in which a stimulus is converted or read by a thread, in bytes."""

HIGHEST_RATE = 80.0
"""The highest rate, in spikes per bin, for which Poisson counts can be drawn."""


class Simulation(NamedTuple):
    """The responses of simulated cells.

    Attributes:
        rate: (frame, cell) float32, expected spikes per bin.
        spikes: (repeat, frame, cell) uint8, spikes per bin; (0, frame, cell) with `spikes="none"`.
    """

    rate: NDArray[np.float32]
    spikes: NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class SubunitCells:
    """Cells that sum nonlinear subunits.

    The rate of cell c in frame t, in spikes per bin, is

        gain_c · f(Σ_s output_cs · g(u_s) - threshold_c),
        u_s = Σ_l temporal_sl Σ_p spatial_sp · stimulus_p(t - l)

    with the nonlinearities g of the subunits and f of the cells. The stimulus before the first
    frame is 0. An LN cell has one subunit with the identity as g.

    Attributes:
        spatial: (subunit, pixel) or (subunit, y, x), a dense array, or a sparse (subunit, pixel).
        temporal: (lag,) or (subunit, lag); lag 0 is the current frame.
        output: (cell, subunit), dense or sparse.
        nonlinearity: g. `softplus` is log(1 + e^x); `exponential` saturates at e^88.
        output_nonlinearity: f.
        threshold: a number or (cell,), in the units of the summed subunits.
        gain: a number or (cell,), in spikes per bin.

    Raises:
        UserError: if the shapes do not agree.

    Example:
        >>> cells = SubunitCells(np.eye(4), temporal=[0.7, 0.3], output=np.ones((1, 4)))
        >>> cells.cells, cells.lags, cells.pixels
        (1, 2, 4)
    """

    spatial: Any
    temporal: ArrayLike
    output: Any
    nonlinearity: Nonlinearity = "rectify"
    output_nonlinearity: Literal["rectify", "softplus", "exponential"] = "rectify"
    threshold: ArrayLike = 0.0
    gain: ArrayLike = 1.0

    def __post_init__(self) -> None:
        spatial, output = _sparse(self.spatial), _sparse(self.output)
        temporal = np.asarray(self.temporal)
        subunits = spatial.shape[0]
        if output.shape[1] != subunits:
            raise UserError(
                f"'spatial' has {subunits} subunits and 'output' sums {output.shape[1]}; "
                "give 'output' as (cell, subunit)"
            )
        if temporal.ndim not in (1, 2) or (temporal.ndim == 2 and len(temporal) != subunits):
            raise UserError(
                f"'temporal' has the shape {temporal.shape}; give it as (lag,), or as "
                f"(subunit, lag) with {subunits} subunits"
            )
        if temporal.shape[-1] == 0:
            raise UserError(
                "'temporal' is empty; for a response without memory give one lag of weight 1"
            )
        for name in ("threshold", "gain"):
            if np.shape(getattr(self, name)) not in ((), (output.shape[0],)):
                raise UserError(
                    f"'{name}' has the shape {np.shape(getattr(self, name))}; give one number, "
                    f"or one for each of the {output.shape[0]} cells"
                )

    @property
    def lags(self) -> int:
        """The number of frames on which a rate depends."""
        return np.shape(self.temporal)[-1]

    @cached_property
    def pixels(self) -> int:
        """The number of pixels of a frame."""
        return int(_sparse(self.spatial).shape[1])

    @cached_property
    def cells(self) -> int:
        """The number of cells."""
        return int(_sparse(self.output).shape[0])

    @cached_property
    def _arrays(self) -> tuple[Any, ...]:
        """The arguments of the kernels, which read only groups of 8 pixels with nonzero weights."""
        spatial, output = _sparse(self.spatial), _sparse(self.output)
        groups, inverse = np.unique(spatial.indices // 8, return_inverse=True)
        subunits, cells = spatial.shape[0], output.shape[0]
        codes = get_args(Nonlinearity)
        return (
            groups.astype(np.int32),
            spatial.indptr.astype(np.int64),
            (8 * inverse + spatial.indices % 8).astype(np.int32),
            spatial.data.astype(np.float32),
            _floats(self.temporal, (subunits, self.lags)),
            output.indptr.astype(np.int64),
            output.indices.astype(np.int32),
            output.data.astype(np.float32),
            _floats(self.threshold, (cells,)),
            _floats(self.gain, (cells,)),
            codes.index(self.nonlinearity),
            codes.index(self.output_nonlinearity),
        )


def cells_of(truth: xr.Dataset) -> SubunitCells:
    """The simulated cells described by the group `truth` of a recording.

    Args:
        truth: `subunit_weight (cell, subunit, y, x)`, `output_weight (cell, subunit)`, `temporal
            ([cell,] lag)`, `threshold (cell)`, `gain (cell)` in spikes per bin, and the attributes
            `contrast` (a factor that multiplies the stimulus), `nonlinearity` and
            `output_nonlinearity`.

    Raises:
        UserError: if the truth lacks one of them.

    Example:
        >>> from retinakit.testing import small_recording
        >>> cells = cells_of(small_recording()["truth"].to_dataset())
        >>> cells.cells, cells.lags, cells.pixels
        (2, 5, 64)
    """
    wanted = ("subunit_weight", "output_weight", "temporal", "threshold", "gain")
    missing = [name for name in wanted if name not in truth]
    missing += [
        n for n in ("contrast", "nonlinearity", "output_nonlinearity") if n not in truth.attrs
    ]
    if missing:
        raise UserError(
            f"the group 'truth' does not describe the cells: it has no {', '.join(missing)}"
        )
    maps = truth["subunit_weight"].transpose("cell", "subunit", "y", "x").values
    weights = truth["output_weight"].transpose("cell", "subunit").values
    temporal = truth["temporal"].transpose(..., "lag").values
    if temporal.ndim == 2:  # one filter for each cell, used by all of its subunits
        temporal = temporal.repeat(maps.shape[1], axis=0)
    return SubunitCells(
        truth.attrs["contrast"] * maps.reshape(-1, *maps.shape[2:]),
        temporal,
        block_diag(*weights),
        truth.attrs["nonlinearity"],
        truth.attrs["output_nonlinearity"],
        truth["threshold"].values,
        truth["gain"].values,
    )


def simulate(
    cells: SubunitCells,
    stimulus: Any,
    *,
    spikes: Spikes = "none",
    seed: int = 0,
    repeats: int = 1,
    threads: int = 1,
    backend: Literal["compiled", "numba"] | None = None,
) -> Simulation:
    """Simulates the rates of cells and draws spikes from them.

    A spike count is a function of the seed, frame, cell, repeat and rate (by a Philox counter), and
    the arithmetic is in float32 in a fixed order. The result is therefore the same for any number
    of threads, for both backends, and for a stimulus as bits, int8 or float32.

    Args:
        cells: the cells.
        stimulus: `Bits`, or (frame, pixel) or (frame, y, x): an array, or an object with a shape
            that returns arrays for slices of frames, such as an HDF5 dataset. Bits, int8 and
            float32 are used without a copy; other dtypes are converted to float32 in pieces.
            Booleans are 0 and 1.
        spikes: "none"; "binary", one spike with the probability min(rate, 1); or "poisson" counts.
        seed: 0 to 2^64 - 1.
        repeats: the number of times that spikes are drawn.
        threads: the number of threads.
        backend: "compiled" or the equivalent "numba"; by default compiled, if it was built.

    Returns:
        The rates (frame, cell) and spikes (repeat, frame, cell), in spikes per bin.

    Raises:
        UserError: if the stimulus and the cells differ in the number of pixels, a rate is too high
            for Poisson counts, or the compiled backend was not built.

    Example:
        >>> import numpy as np
        >>> cell = SubunitCells(spatial=[[1.0]], temporal=[0.5, 0.5], output=[[1.0]])
        >>> movie = np.array([1, -1, 1, 1], np.int8)[:, None]
        >>> simulate(cell, movie).rate[:, 0].tolist()
        [0.5, 0.0, 0.0, 1.0]
    """
    kernel = _kernel(backend)
    bits = isinstance(stimulus, Bits)
    source = stimulus.packed if bits else stimulus
    frames, pixels = source.shape[0], stimulus.pixels if bits else int(np.prod(source.shape[1:]))
    if pixels != cells.pixels:
        raise UserError(
            f"the stimulus has {pixels} pixels and the cells have weights for {cells.pixels}; "
            "use the same field for both"
        )
    rate = np.empty((frames, cells.cells), np.float32)
    counts = np.empty((repeats if spikes != "none" else 0, *rate.shape), np.uint8)
    tail = (*cells._arrays, get_args(Spikes).index(spikes), np.uint64(seed), rate, counts)

    def run(start: int) -> None:
        first, stop = max(0, start - cells.lags + 1), min(start + piece, frames)
        numbers = _numbers(source[first:stop], bits)
        if bits and kernel is subunit_cells_numba.simulate:
            numbers = Bits(numbers, pixels).unpack()
        kernel(numbers, first, start, stop, *tail)

    # The kernels require multiples of 4; multiples of 1024 also keep the blocks of Numba whole.
    piece = max(1, PIECE_BYTES // (4 * max(pixels, 1)) // 1024) * 1024
    starts = range(0, frames, piece)
    if threads > 1:
        # Pieces are shorter if there would be fewer pieces than threads.
        piece = min(piece, max(1, -(-frames // (1024 * threads))) * 1024)
        starts = range(0, frames, piece)
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(run, starts))
    else:
        for start in starts:
            run(start)
    if spikes == "poisson" and frames and not rate.max() <= HIGHEST_RATE:
        raise UserError(
            f"the highest rate is {rate.max():g} spikes per bin, and Poisson counts can be drawn "
            f"up to {HIGHEST_RATE:g}; lower the gain or raise the threshold"
        )
    return Simulation(rate, counts)


def _kernel(backend: str | None) -> Callable[..., None]:
    if backend == "compiled" and compiled is None:
        raise UserError(
            "the compiled kernels were not built; see `retina-run doctor` for the reason, or use "
            "the backend 'numba'"
        )
    if compiled is None or backend == "numba":
        return subunit_cells_numba.simulate
    simulate: Callable[..., None] = compiled.simulate
    return simulate


def _numbers(frames: Any, bits: bool) -> NDArray[Any]:
    """The frames as a contiguous array (frame, pixel) of a dtype that the kernels support."""
    array = np.asarray(frames)
    if array.dtype == bool:
        array = array.view(np.int8)
    wanted = array.dtype if bits or array.dtype == np.int8 else np.float32
    return np.ascontiguousarray(array.reshape(len(array), -1), wanted)


def _sparse(matrix: Any) -> csr_array:
    if isinstance(matrix, np.ndarray):
        matrix = matrix.reshape(len(matrix), -1)
    rows = csr_array(matrix)
    rows.sum_duplicates()
    return rows


def _floats(values: ArrayLike, shape: tuple[int, ...]) -> NDArray[np.float32]:
    return np.ascontiguousarray(np.broadcast_to(np.asarray(values, np.float32), shape))
