"""A dataset with noise in its training stimulus (Yan et al. 2020, Fig 6b)."""

from typing import Any, Literal

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from pydantic import Field

from retinakit.contracts import Config, Dataset, blocks, make_recording

HELD = 2**31
"""Bytes up to which a stimulus is read into memory at once. A larger one stays lazy."""


class NoisyStimulusConfig(Config):
    """Options of the noise."""

    fraction: float = Field(
        0.5,
        ge=0,
        le=1,
        description="Fraction of the images (or pixels) replaced by noise; usually swept.",
    )
    noise: Literal["images", "pixels"] = Field(
        "images",
        description="'images': a fraction of the training images is replaced by other training "
        "images, as in the text of Yan et al.; 'pixels': a fraction of the pixels of every image "
        "is shuffled, as in their code.",
    )


class NoisyStimulus(Dataset):
    """A dataset with noise in its training stimulus; responses and other splits are unchanged.

    With `noise: images`, each replaced image is that of another training frame, drawn at random, so
    that the noise has the distribution of the stimulus. With `noise: pixels`, randomly chosen
    pixels of each image exchange their values, the same way in all channels; the stimulus is then
    held in memory. For a given seed, the images or pixels that are noise at one fraction are also
    noise at all larger fractions.

    Single frames are replaced, not whole histories: for a model of `lags` frames, the fraction of
    histories without noise is (1 - fraction) ** lags. In the paper an image is one input of Version
    I, so apply the noise after `temporal_collapse` to reproduce Fig 6b.

    Example:
        >>> from retinakit.testing import small_recording
        >>> clean = small_recording()
        >>> noisy = NoisyStimulus.with_options(fraction=0.3).load(clean)
        >>> changed = (noisy["train"]["stimulus"] != clean["train"]["stimulus"]).any(("y", "x"))
        >>> float(changed.mean())
        0.3
    """

    Config = NoisyStimulusConfig
    volatile = True

    def load(self, data: xr.DataTree) -> xr.DataTree:
        train = data["train"].to_dataset()
        noisy = {"images": self._images, "pixels": self._pixels}[self.config.noise](
            train["stimulus"]
        )
        splits = {str(name): data[name].to_dataset() for name in data.children}
        splits["train"] = train.assign(stimulus=noisy)
        return make_recording(splits, {str(name): value for name, value in data.attrs.items()})

    def _images(self, stimulus: xr.DataArray) -> xr.Variable:
        if stimulus.nbytes <= HELD:
            stimulus = stimulus.load()
        frames = stimulus.sizes["frame"]
        random = np.random.default_rng(self.seed)
        order = random.permutation(frames)
        further = random.integers(1, frames, frames)
        chosen = order[: round(self.config.fraction * frames)]
        shown = np.arange(frames)
        shown[chosen] = (chosen + further[: len(chosen)]) % frames
        return stimulus.variable.isel(frame=shown)

    def _pixels(self, stimulus: xr.DataArray) -> xr.Variable:
        values = stimulus.values.copy()
        # (frame, channel, pixel), with one channel if the stimulus has no channels.
        flat = values.reshape(len(values), -1, int(np.prod(values.shape[-2:])))
        random = np.random.default_rng(self.seed)
        for part in blocks(stimulus, itemsize=np.dtype(np.int64).itemsize):
            block = flat[part]
            source = self._shuffled(random, len(block), block.shape[-1])
            block[:] = np.take_along_axis(block, source[:, None], -1)
        return xr.Variable(stimulus.dims, values, stimulus.attrs)

    def _shuffled(self, random: Any, images: int, pixels: int) -> NDArray[np.int64]:
        """The index (image, pixel) of the pixel from which each pixel's value is taken."""
        source = np.tile(np.arange(pixels), (images, 1))
        count = round(self.config.fraction * pixels)
        chosen = random.permuted(source, axis=1)[:, :count]
        np.put_along_axis(source, np.sort(chosen, axis=1), chosen, axis=1)
        return source
