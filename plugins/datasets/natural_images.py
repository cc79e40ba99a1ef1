"""Flashed natural images as the test of simulated cells (Yan et al. 2020, III-E and Fig 10)."""

from typing import Any, ClassVar

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from pydantic import Field

from retinakit.contracts import Config, Dataset, UserError, make_recording, make_split
from retinakit.simulation import cells_of, photographs, simulate


class NaturalImagesConfig(Config):
    """Which images, and how they are shown."""

    images: int = Field(300, ge=1, description="Images, cut from photographs at random places.")
    pixels: int = Field(8, ge=1, description="Side of the square of pixels averaged to a check.")
    contrast: float = Field(
        0.5,
        gt=0,
        description="Standard deviation of a photograph's pixels; black is -1 and white 1, as in "
        "a checkerboard of ±1, and what is beyond is clipped.",
    )
    flash: float = Field(0.2, gt=0, description="Seconds that an image is shown.")
    blank: float = Field(0.8, gt=0, description="Seconds of grey before it, and after it.")
    repeats: int = Field(20, ge=1, description="How often every image is shown.")


class NaturalImages(Dataset):
    """A recording of simulated cells whose test is natural images, flashed to the same cells.

    Training and validation stay as they are, so that a model that was fitted to white noise is
    scored on images that it has not seen the like of, and `temporal_collapse` filters them as it
    filters the white noise. The responses are those of the cells in `truth`, with their rate.

    Each image is a segment of its own: grey, the image, grey. The test has the coordinates
    `image` and `from_onset` (s, negative before the image) along `frame`; the group `images` has
    each `picture (image, y, x)` and the `photograph` that it is from. The photographs come with
    scikit-image; they are averaged to checks and their mean is grey.

    A recorded cell needs no such step: its flashes are the `test_stimulus` of `hdf5`, with a trial
    for each image.
    """

    Config = NaturalImagesConfig
    quick: ClassVar[dict[str, Any]] = {"images": 6, "pixels": 4, "repeats": 2}
    volatile = True

    def load(self, data: xr.DataTree) -> xr.DataTree:
        c = self.config
        if "collapse" in data.children:
            raise UserError(
                "the recording was filtered in time already, and the images are not; show them "
                "first, and filter what natural_images makes"
            )
        if "truth" not in data.children:
            raise UserError(
                "natural images are shown to simulated cells and the recording has no 'truth'; "
                "use one of subunit_rgc, or give recorded flashes as test_stimulus to hdf5"
            )
        train, truth = data["train"].to_dataset(), data["truth"].to_dataset()
        interval = float(train.attrs["frame_interval"])
        flash, blank = (max(1, round(seconds / interval)) for seconds in (c.flash, c.blank))
        needed = truth.sizes["lag"] - 1
        if blank < needed:
            raise UserError(
                f"a blank of {blank} frames is shorter than the {needed} that the cells look back "
                f"over; make blank {needed * interval:.2g} s or longer"
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
        """Contrast (image, y, x) of patches of the photographs, and which each is from."""
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
