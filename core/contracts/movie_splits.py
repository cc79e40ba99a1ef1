"""Training, validation and test frames of one movie."""

from typing import Literal

import numpy as np
import xarray as xr

from retinakit.contracts.errors import UserError
from retinakit.contracts.recording import SPLITS

MovieSplit = Literal["in_order", "random_frames"]


def split_movie(
    movie: xr.Dataset, validation: float, test: float, split: MovieSplit, seed: int
) -> dict[str, xr.Dataset]:
    """Splits the responses to one movie that was shown as a whole.

    With random frames, every split has the whole stimulus, and responses and rates are NaN in the
    frames of the other splits. The histories of test frames then overlap with those of training
    frames, so that scores are too high.

    Args:
        movie: all frames, in the form of `make_split`.
        validation, test: the fractions of the frames that they have.
        split: "in_order", where the last frames are the test and the frames before them the
            validation; or "random_frames".
        seed: of the random frames.

    Returns:
        The splits by name.

    Raises:
        UserError: if no frame remains for training.

    Example:
        >>> from retinakit.contracts import make_split
        >>> movie = make_split(np.zeros((12, 4, 4)), np.ones((12, 1)), frame_interval=0.03)
        >>> splits = split_movie(movie, 1 / 6, 1 / 6, "in_order", seed=0)
        >>> [split.sizes["frame"] for split in splits.values()]
        [8, 2, 2]
        >>> splits = split_movie(movie, 1 / 6, 1 / 6, "random_frames", seed=0)
        >>> [int(split["response"].count()) for split in splits.values()]
        [8, 2, 2]
    """
    frames = movie.sizes["frame"]
    held_out = [max(1, round(part * frames)) for part in (validation, test)]
    if sum(held_out) >= frames:
        raise UserError(
            f"validation {validation:g} and test {test:g} of {frames} frames leave none for "
            "training; make them smaller"
        )
    ends = np.cumsum([frames - sum(held_out), *held_out])
    if split == "in_order":
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
