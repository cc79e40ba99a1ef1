"""Recordings of simulated populations with images as stimuli."""

from collections.abc import Callable
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from pydantic import Field

from retinakit.contracts.config import Config
from retinakit.contracts.errors import UserError
from retinakit.contracts.recording import SPIKES_PER_BIN, make_recording, make_split

FRAME_INTERVAL = 0.1
"""Duration of an image and of a response bin, in seconds (Klindt et al. 2017, section 4.4)."""

NOISY_RATE = "spikes per bin, with noise that may be negative"


class PopulationConfig(Config):
    """Options of simulated populations: the numbers of images.

    Example:
        >>> PopulationConfig(samples=100).validation
        0.2
    """

    samples: int = Field(
        4096, ge=4, description="Number of images for training and validation together."
    )
    validation: float = Field(
        0.2, gt=0, lt=1, description="Fraction of the samples used for validation."
    )
    validation_most: int = Field(
        10_000, ge=1, description="Maximum number of samples used for validation."
    )
    test: int = Field(10_000, ge=1, description="Number of additional images for testing.")


def poisson_like(rate: NDArray[Any], random: np.random.Generator) -> NDArray[np.float32]:
    """Normally distributed responses with Poisson-like variance (Klindt et al. 2017, eq 1).

    y ~ N(r, |r|), with the rates r as means and |r| as variances.

    Args:
        rate: (...), expected spikes per bin.
        random: generator of the noise.

    Returns:
        (...) float32, spikes per bin, which may be negative.

    Example:
        >>> import numpy as np
        >>> noisy = poisson_like(np.full((10_000, 1), 4.0), np.random.default_rng(0))
        >>> round(float(noisy.mean()), 1), round(float(noisy.var()), 1)
        (4.0, 4.0)
    """
    noise = random.standard_normal(rate.shape, np.float32)
    noisy: NDArray[np.float32] = (rate + np.sqrt(np.abs(rate)) * noise).astype(np.float32)
    return noisy


def show(
    config: PopulationConfig,
    seed: int,
    stimulus: Callable[[str, int, np.random.Generator], NDArray[np.float32]],
    rate: Callable[[NDArray[np.float32]], NDArray[np.float32]],
    truth: xr.Dataset,
    title: str,
    spikes: bool = False,
    repeats: int = 1,
) -> xr.DataTree:
    """Simulates the recording of a population, with noise as in `poisson_like`.

    With the same seed, the samples of a shorter recording are the first samples of a longer one,
    and the test split is the same. The last samples are the validation split.

    Args:
        config: the numbers of images.
        seed: of images and noise.
        stimulus: a function from the name of a split ("train" or "test"), a number of images and a
            random generator to the images (frame, [channel,] y, x).
        rate: a function from images to the rates (frame, cell), in expected spikes per bin.
        truth: the true parameters, with the coordinate `cell`; stored as the group `truth`.
        title: of the recording.
        spikes: whether the responses are Poisson counts instead.
        repeats: the number of presentations of each test image.

    Returns:
        A recording (see `retinakit.contracts.recording`).

    Raises:
        UserError: if no sample remains for training or for validation.

    Example:
        >>> import numpy as np
        >>> import xarray as xr
        >>> recording = show(
        ...     PopulationConfig(samples=40, test=10),
        ...     seed=0,
        ...     stimulus=lambda name, frames, random: random.random((frames, 6, 6), np.float32),
        ...     rate=lambda images: images.mean((1, 2))[:, None],
        ...     truth=xr.Dataset(coords={"cell": [0]}),
        ...     title="mean luminance",
        ... )
        >>> {name: recording[name].sizes["frame"] for name in ("train", "validation", "test")}
        {'train': 32, 'validation': 8, 'test': 10}
    """
    held_out = min(round(config.validation * config.samples), config.validation_most)
    if not 0 < held_out < config.samples:
        raise UserError(
            f"{held_out} of {config.samples} samples would be used for validation; choose samples "
            "and validation so that both training and validation have samples"
        )

    def shown(stream: int, name: str, frames: int) -> xr.Dataset:
        images = stimulus(name, frames, np.random.default_rng([seed, 1, stream]))
        rates = rate(images)
        noise = np.random.default_rng([seed, 2, stream])
        times = repeats if name == "test" else 1
        repeated = np.broadcast_to(rates, (times, *rates.shape))
        response = noise.poisson(repeated) if spikes else poisson_like(repeated, noise)
        return make_split(
            images,
            response if times > 1 else response[0],
            frame_interval=FRAME_INTERVAL,
            rate=rates,
            cell=truth["cell"].values,
            units=SPIKES_PER_BIN if spikes else NOISY_RATE,
        )

    samples = shown(0, "train", config.samples)
    splits = {
        "train": samples.isel(frame=slice(None, -held_out)),
        "validation": samples.isel(frame=slice(-held_out, None)),
        "test": shown(1, "test", config.test),
        "truth": truth,
    }
    return make_recording(splits, {"title": title})
