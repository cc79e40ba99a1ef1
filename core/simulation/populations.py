"""What the simulated populations that are shown images have in common."""

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
"""Seconds that an image is shown and spikes are counted (Klindt et al. 2017, 4.4)."""

NOISY_RATE = "spikes per bin, with noise that may be negative"


class PopulationConfig(Config):
    """How much is shown to a population."""

    samples: int = Field(
        4096, ge=4, description="Images shown for training and validation together; sweep it."
    )
    validation: float = Field(
        0.2, gt=0, lt=1, description="Part of the samples that is for validation."
    )
    validation_most: int = Field(
        10_000,
        ge=1,
        description="The most samples that are for validation; the others are for training.",
    )
    test: int = Field(10_000, ge=1, description="More images, for the test.")


def poisson_like(rate: NDArray[Any], random: np.random.Generator) -> NDArray[np.float32]:
    """Responses y ~ N(r, SD √|r|) to rates r (Klindt et al. 2017, eq 1).

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
    """The recording of a population that is shown images, with noise as in `poisson_like`.

    A shorter recording has the first samples of a longer one, of which the last ones are its
    validation. The test is always the same.

    Args:
        config: how much.
        seed: of images and noise.
        stimulus: makes a number of images (frame, [channel,] y, x) for training or for the test.
        rate: responds to them, (frame, cell).
        truth: what is known, with the coordinate `cell`.
        title: of the recording.
        spikes: whether responses are Poisson counts instead.
        repeats: how often each test image is shown.

    Raises:
        UserError: if no sample is left for training or for validation.

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
            f"of {config.samples} samples {held_out} are for validation; leave some for both"
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
