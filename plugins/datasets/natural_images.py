"""Flashed natural images as the test of simulated cells (Yan et al. 2020, III-E and Fig 10)."""

from typing import Any, ClassVar

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from pydantic import Field

from retinakit.contracts import Config, Dataset, UserError, make_recording, make_split
from retinakit.simulation import cells_of, photographs, simulate


class NaturalImagesConfig(Config):
    """Options of the images and of their presentation."""

    images: int = Field(
        300, ge=1, description="Number of images, cut from photographs at random positions."
    )
    pixels: int = Field(
        8, ge=1, description="Side, in pixels, of the square of a photograph averaged to one check."
    )
    contrast: float = Field(
        0.5,
        gt=0,
        description="Standard deviation of a photograph's pixels, where black is -1 and white 1 "
        "as in a ±1 checkerboard; values beyond are clipped.",
    )
    flash: float = Field(0.2, gt=0, description="Duration of an image, in seconds.")
    blank: float = Field(
        0.8, gt=0, description="Duration of the grey screen before and after an image, in seconds."
    )
    repeats: int = Field(20, ge=1, description="Number of presentations of each image.")


class NaturalImages(Dataset):
    """A dataset of simulated cells, with flashed natural images as its test.

    The training and validation splits are unchanged, so that models fitted to white noise are
    scored on natural images (Yan et al. 2020, section III-E), and `temporal_collapse` can filter
    both in time with the same filter. The test responses are simulated with the cells in the group
    `truth`, and come with the true `rate`, both in spikes per bin.

    Each image is one segment: grey, the image, grey. The test has the coordinates `image` and
    `from_onset` (seconds from the image's onset, negative before it) along `frame`. The group
    `images` has each `picture (image, y, x)` in contrast, with grey 0, and the name of its
    `photograph (image)`. The photographs come with scikit-image and are averaged to checks.

    For recorded cells, give the flashed images and their responses as `test_stimulus` and
    `test_response` of the dataset `hdf5` instead.

    Raises:
        UserError: if the recording has no simulated cells, was filtered in time or has a stimulus
            of one row or column, the blank is shorter than the cells' filters, or an image is
            larger than a photograph.

    Example:
        >>> from retinakit.testing import small_recording
        >>> dataset = NaturalImages.with_options(images=3, pixels=4, repeats=2)
        >>> recording = dataset.load(small_recording())
        >>> dict(recording["test"]["response"].sizes)
        {'repeat': 2, 'frame': 162, 'cell': 2}
    """

    Config = NaturalImagesConfig
    quick: ClassVar[dict[str, Any]] = {"images": 6, "pixels": 4, "repeats": 2}
    volatile = True

    def load(self, data: xr.DataTree) -> xr.DataTree:
        c = self.config
        if "collapse" in data.children:
            raise UserError(
                "the recording is already filtered in time, and the images are not; apply "
                "natural_images first, and temporal_collapse to its result"
            )
        if "truth" not in data.children:
            raise UserError(
                "natural_images simulates responses, and the recording has no group 'truth' with "
                "simulated cells; use a dataset of subunit_rgc, or give recorded flashes to hdf5 "
                "as test_stimulus"
            )
        train, truth = data["train"].to_dataset(), data["truth"].to_dataset()
        if min(train.sizes["y"], train.sizes["x"]) == 1:
            raise UserError(
                f"photographs have two dimensions, and the stimulus has {train.sizes['y']} x "
                f"{train.sizes['x']} checks; use a stimulus of several rows and columns"
            )
        interval = float(train.attrs["frame_interval"])
        flash, blank = (max(1, round(seconds / interval)) for seconds in (c.flash, c.blank))
        needed = truth.sizes["lag"] - 1
        if blank < needed:
            raise UserError(
                f"the blank has {blank} frames and the cells' filters need {needed} frames of "
                f"history; make blank {needed * interval:.2g} s or longer"
            )
        random = np.random.default_rng([self.seed, 0])
        pictures, names = self._pictures(random, train.sizes["y"], train.sizes["x"])
        trial = np.arange(-blank, flash + blank)
        stimulus = np.zeros((c.images, len(trial), *pictures.shape[1:]), np.float32)
        stimulus[:, (trial >= 0) & (trial < flash)] = pictures[:, None]
        simulated = simulate(
            cells_of(truth),
            stimulus.reshape(-1, *pictures.shape[1:]),
            spikes=truth.attrs.get("spikes", "poisson"),
            seed=int(random.integers(2**63)),
            repeats=c.repeats,
        )
        image = np.repeat(np.arange(c.images), len(trial))
        test = make_split(
            stimulus.reshape(-1, *pictures.shape[1:]),
            simulated.spikes if c.repeats > 1 else simulated.spikes[0],
            frame_interval=interval,
            rate=simulated.rate,
            segment=image,
        ).assign_coords(
            {dim: train[dim].variable for dim in ("cell", "y", "x")}
            | {
                "image": ("frame", image),
                "from_onset": ("frame", np.tile(trial * interval, c.images), {"units": "s"}),
            }
        )
        splits = {str(name): data[name].to_dataset() for name in data.children}
        splits["test"] = test
        splits["images"] = xr.Dataset(
            {
                "picture": (("image", "y", "x"), pictures, {"units": "contrast"}),
                "photograph": ("image", names),
            },
            coords={"image": np.arange(c.images)} | {d: train[d].variable for d in ("y", "x")},
        )
        return make_recording(splits, {str(name): value for name, value in data.attrs.items()})

    def _pictures(
        self, random: np.random.Generator, height: int, width: int
    ) -> tuple[NDArray[np.float32], list[str]]:
        """Patches (image, y, x) of the photographs in contrast, and the name of each one's."""
        side = self.config.pixels
        known = photographs()
        for name, scene in known.items():
            if min(scene.shape[0] // height, scene.shape[1] // width) < side:
                raise UserError(
                    f"an image of {height} x {width} checks of {side} pixels is larger than the "
                    f"photograph '{name}' of {scene.shape[0]} x {scene.shape[1]}; make pixels "
                    "smaller"
                )
        scenes = [scene * self.config.contrast for scene in known.values()]
        pictures = np.empty((self.config.images, height, width), np.float32)
        names = []
        for picture in pictures:
            index = random.integers(len(scenes))
            scene = scenes[index]
            top, left = (
                random.integers(have - checks * side + 1)
                for have, checks in zip(scene.shape, picture.shape, strict=True)
            )
            patch = scene[top : top + height * side, left : left + width * side].clip(-1, 1)
            picture[:] = patch.reshape(height, side, width, side).mean((1, 3))
            names.append(list(known)[index])
        return pictures, names
