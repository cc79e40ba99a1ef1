"""Receptive fields of the cells of a model, from its responses to white noise."""

from collections.abc import Iterator

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from retinakit.contracts.errors import UserError
from retinakit.contracts.model import Model
from retinakit.contracts.progress import Progress, silent
from retinakit.spikes.location import CELLS_AT_ONCE
from retinakit.spikes.receptive_fields import FALSE_POSITIVE, receptive_field
from retinakit.spikes.smoothing import widths

BLOCK_VALUES = 2**23
"""Pixels of noise that are shown together."""


def white_noise_field(
    model: Model,
    clips: int = 20_000,
    *,
    contrast: float = 0.5,
    false_positive: float = FALSE_POSITIVE,
    seed: int = 0,
    progress: Progress = silent,
) -> xr.Dataset:
    """The receptive fields of a model's cells: white noise weighted by the predicted rates.

    A = Σ_t (r_t - r̄) s_t / Σ_t |r_t|, where s_t is the history of `lags` frames of binary noise and
    r_t the predicted rate of a cell (Zheng et al. 2021, Fig 4). For rates of 0 or more, this is the
    average of the noise weighted by the rate, minus its plain average, whose expectation is 0: the
    error is that of the variations of the rate only. Each field is located, separated and fitted by
    `receptive_field`, with the noise that follows from the rates, contrast · √(Σ (r - r̄)²) / Σ |r|.

    The noise is shown in blocks and the fields of 256 cells are computed together, which limits the
    memory. It is drawn again for the next cells.

    Args:
        model: a fitted model.
        clips: the number of frames with a full history.
        contrast: the noise is ±contrast.
        false_positive: as for `receptive_field`.
        seed: of the noise.
        progress: is called with the number of processed frames.

    Returns:
        The variables of `receptive_field`, with the dimension `cell`.

    Raises:
        UserError: if the stimulus has channels.

    Example:
        >>> from retinakit.testing import SmallModel, small_recording
        >>> model = SmallModel()
        >>> _ = model.fit(small_recording())
        >>> fields = white_noise_field(model, clips=2000)
        >>> dict(fields["spatial"].sizes), bool(fields["found"].all())
        ({'cell': 2, 'y': 8, 'x': 8}, True)
    """
    if "channel" in model.field.dims:
        raise UserError(
            "the stimulus of the model has channels; its receptive fields are those of one without"
        )
    cells, height, width = (model.field.sizes[dim] for dim in ("cell", "y", "x"))
    lags = model.lags
    batches = -(-cells // CELLS_AT_ONCE)
    shown = 0

    def tell() -> None:
        progress(shown, (1 + batches) * clips, "receptive fields from white noise")

    rates = []
    for movie in _noise(model, clips, seed):
        predicted = model.predict(contrast * movie).transpose("frame", "cell")
        rates.append(predicted.values[lags - 1 :].astype(np.float32))
        shown += len(rates[-1])
        tell()
    rate = np.concatenate(rates)
    total = np.abs(rate).sum(0, dtype=float)
    total = np.where(total > 0, total, np.nan)
    rate -= rate.mean(0, dtype=float).astype(np.float32)
    deviation = contrast * np.sqrt((rate.astype(float) ** 2).sum(0)) / total
    coords = model.field.drop_vars("cell").coords
    found = []
    for first in range(0, cells, CELLS_AT_ONCE):
        some = slice(first, first + CELLS_AT_ONCE)
        number = len(rate[0, some])
        sums = np.zeros((number, lags, height * width), np.float32)
        start = 0
        for movie in _noise(model, clips, seed):
            frames = len(movie) - lags + 1
            weight = np.ascontiguousarray(rate[start : start + frames, some].T)
            flat = movie.reshape(len(movie), -1)
            for lag in range(lags):
                sums[:, lag] += weight @ flat[lags - 1 - lag :][:frames]
            start += frames
            shown += frames
            tell()
        sums *= (contrast / total[some]).astype(np.float32)[:, None, None]
        values = sums.reshape(number, lags, height, width)
        field = xr.DataArray(values, coords, ("cell", "lag", "y", "x"))
        noise = _noise_of(deviation[some], field)
        found.append(receptive_field(field, noise, false_positive))
    result: xr.Dataset = xr.concat(found, "cell") if len(found) > 1 else found[0]
    return result.assign_coords(cell=model.field["cell"].variable)


def _noise(model: Model, clips: int, seed: int) -> Iterator[NDArray[np.float32]]:
    """Blocks (frame, y, x) of noise of ±1, each with the history of its first frame."""
    size = (model.field.sizes["y"], model.field.sizes["x"])
    block = max(model.lags, BLOCK_VALUES // (size[0] * size[1]))
    for index, first in enumerate(range(0, clips, block)):
        random = np.random.default_rng([seed, index])
        frames = min(block, clips - first) + model.lags - 1
        yield 2 * random.integers(0, 2, (frames, *size), np.int8).astype(np.float32) - 1


def _noise_of(deviation: NDArray[np.float64], field: xr.DataArray) -> xr.Dataset:
    """The noise of fields (cell, lag, y, x), for `receptive_field`."""
    ones = np.ones(len(widths(field.sizes["y"], field.sizes["x"])))
    each = np.multiply.outer(deviation, ones)
    return xr.Dataset(
        {
            "mean": ("cell", np.zeros(len(deviation))),
            "deviation": (("cell", "width"), each),
            "kurtosis": (("cell", "width"), 0 * each),
        }
    )
