"""Training, validation and test frames of one movie."""

from typing import Literal, Self

import numpy as np
import xarray as xr
from pydantic import Field, model_validator

from retinakit.contracts.config import Config
from retinakit.contracts.errors import UserError
from retinakit.contracts.recording import SPLITS


class MovieSplitConfig(Config):
    """Options of the splits of a movie that was shown as a whole.

    Example:
        >>> MovieSplitConfig(test=0.2).split
        'in_order'
    """

    split: Literal["in_order", "random_frames"] = Field(
        "in_order",
        description="'in_order': the last frames are the test and the ones before them the "
        "validation; 'random_frames': test and validation frames are drawn from the whole movie, "
        "so that their histories overlap with training frames.",
    )
    validation: float = Field(
        1 / 6, gt=0, lt=1, description="Fraction of the frames used for validation."
    )
    test: float = Field(1 / 6, gt=0, lt=1, description="Fraction of the frames used for the test.")

    @model_validator(mode="after")
    def _leaves_frames(self) -> Self:
        if self.validation + self.test >= 1:
            raise ValueError(
                f"validation {self.validation:g} and test {self.test:g} leave no frames for "
                "training; make them smaller"
            )
        return self


def split_movie(movie: xr.Dataset, config: MovieSplitConfig, seed: int) -> dict[str, xr.Dataset]:
    """Splits the responses to one movie that was shown as a whole.

    With random frames, every split has the whole stimulus, and responses and rates are NaN in the
    frames of the other splits. The histories of test frames then overlap with those of training
    frames, so that scores are too high.

    Args:
        movie: all frames, in the form of `make_split`.
        config: the fractions of the frames, and how they are chosen.
        seed: of the random frames.

    Returns:
        The splits by name.

    Raises:
        UserError: if no frame remains for training.

    Example:
        >>> from retinakit.contracts import make_split
        >>> movie = make_split(np.zeros((12, 4, 4)), np.ones((12, 1)), frame_interval=0.03)
        >>> splits = split_movie(movie, MovieSplitConfig(), seed=0)
        >>> [split.sizes["frame"] for split in splits.values()]
        [8, 2, 2]
        >>> splits = split_movie(movie, MovieSplitConfig(split="random_frames"), seed=0)
        >>> [int(split["response"].count()) for split in splits.values()]
        [8, 2, 2]
    """
    frames = movie.sizes["frame"]
    held_out = [max(1, round(part * frames)) for part in (config.validation, config.test)]
    if sum(held_out) >= frames:
        raise UserError(
            f"validation {config.validation:g} and test {config.test:g} of {frames} frames leave "
            "none for training; make them smaller"
        )
    ends = np.cumsum([frames - sum(held_out), *held_out])
    if config.split == "in_order":
        starts = [0, *ends[:-1]]
        return {
            name: movie.isel(frame=slice(start, end))
            for name, start, end in zip(SPLITS, starts, ends, strict=True)
        }
    order = np.random.default_rng(seed).permutation(frames)
    splits = {}
    for name, chosen in zip(SPLITS, np.split(order, ends[:-1]), strict=True):
        own = xr.DataArray(np.isin(np.arange(frames), chosen), dims="frame")
        hidden = {}
        for variable in ("response", "rate"):
            if variable in movie:
                values = movie[variable].astype(np.float32).where(own)
                hidden[variable] = values.assign_attrs(movie[variable].attrs)
        splits[name] = movie.assign(hidden)
    return splits
