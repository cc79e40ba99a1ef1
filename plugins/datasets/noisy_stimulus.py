"""A dataset with noise in its training images (Yan et al. 2020, Fig 6b)."""

from typing import Any, Literal

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from pydantic import Field

from retinakit.contracts import Config, Dataset, blocks, make_recording

HELD = 2**31
"""Bytes of a stimulus up to which it is read at once; a larger one is read where it is wanted."""


class NoisyStimulusConfig(Config):
    """How much noise, and of which kind."""

    fraction: float = Field(
        0.5, ge=0, le=1, description="Part of the images (or pixels) that become noise; sweep it."
    )
    noise: Literal["images", "pixels"] = Field(
        "images",
        description="'images': a fraction of the images is replaced by unrelated ones, as in the "
        "paper's text; 'pixels': a fraction of the pixels is shuffled in every image, as in its "
        "code.",
    )


class NoisyStimulus(Dataset):
    """The training stimulus with noise; responses, validation and test are as they were.

    With `images`, a replaced image is that of another training frame, drawn at random, so that
    noise has the distribution of the stimulus whatever that is. With `pixels`, chosen pixels of an
    image exchange their values at random (all channels alike); the stimulus is then held in
    memory. With one seed, what is noise at one fraction is noise at all larger ones.

    A frame is replaced, not what a model sees at once: a model that looks back over `lags` frames
    sees a window free of noise with the probability (1 - fraction) ** lags. The images of the paper
    are those of Version I, so put the noise after `temporal_collapse` for its figure.
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
        # One row of places for each channel of a frame.
        flat = values.reshape(len(values), -1, int(np.prod(values.shape[-2:])))
        random = np.random.default_rng(self.seed)
        for part in blocks(stimulus, itemsize=np.dtype(np.int64).itemsize):
            block = flat[part]
            source = self._shuffled(random, len(block), block.shape[-1])
            block[:] = np.take_along_axis(block, source[:, None], -1)
        return xr.Variable(stimulus.dims, values, stimulus.attrs)

    def _shuffled(self, random: Any, images: int, pixels: int) -> NDArray[np.int64]:
        """(image, pixel): the place that each pixel's value comes from."""
        source = np.tile(np.arange(pixels), (images, 1))
        count = round(self.config.fraction * pixels)
        chosen = random.permuted(source, axis=1)[:, :count]
        np.put_along_axis(source, np.sort(chosen, axis=1), chosen, axis=1)
        return source
