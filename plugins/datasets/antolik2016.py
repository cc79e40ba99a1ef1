"""Mouse V1 under natural images (Antolík et al. 2016), from its published files."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from pydantic import Field

from retinakit.contracts import Config, Dataset, InputPath, UserError, make_recording, make_split

FILES = {
    "images": "training_inputs.npy",
    "responses": "training_set.npy",
    "test images": "validation_inputs.npy",
    "test responses": "raw_validation_set.npy",
}
"""The publication's validation images are the split `test` here."""

FRAME_INTERVAL = 1.0
"""Seconds per frame. The files have one response per image and no time course."""


class Antolik2016Config(Config):
    """Where the files are, and how the images are split."""

    root: InputPath | None = Field(
        None,
        description="Folder that contains region1, region2 and region3; by default "
        "$RETINAKIT_DATA/antolik2016.",
    )
    scan: int = Field(1, ge=1, le=3, description="Number of the scan, from 1 to 3 (the region).")
    validation: float = Field(
        0.2, gt=0, lt=1, description="Fraction of the training images used for validation."
    )
    z_score: bool = Field(
        True,
        description="Normalise each pixel by its mean and standard deviation over the training "
        "images.",
    )


class Antolik2016(Dataset):
    """Two-photon responses of mouse V1 cells to static natural images.

    The files are those of the supplement of Antolík et al. (PLOS Computational Biology 12(6):
    e1004927). Each scan is a folder with `training_inputs.npy (image, pixel)`, `training_set.npy
    (image, cell)`, `validation_inputs.npy (image, pixel)` and `raw_validation_set.npy (repeat,
    image, cell)`; the images are square. Each image is one frame, and the coordinate `image` along
    `frame` is its index in the file. Responses are in the units of the files. As in Klindt et al.
    (2017), the validation images are drawn at random, with the step's seed, from the published
    training images, and the published validation images are the test.

    Raises:
        UserError: if the files are not found, cannot be read, or do not fit together.

    Example:
        >>> dataset = Antolik2016.with_options(root="antolik2016", scan=2)
        >>> dataset.files()[0].as_posix()
        'antolik2016/region2/training_inputs.npy'
    """

    Config = Antolik2016Config

    def files(self) -> list[Path]:
        root: Path | None = self.config.root
        if root is None:
            data = os.environ.get("RETINAKIT_DATA")
            if not data:
                raise UserError(
                    "the folder of the recording is not set; set the option root to the folder "
                    "that contains region1, or RETINAKIT_DATA to the folder that contains "
                    "antolik2016"
                )
            root = Path(data) / "antolik2016"
        folder = root / f"region{self.config.scan}"
        return [folder / name for name in FILES.values()]

    def load(self) -> xr.DataTree:
        arrays = {what: _read(path) for what, path in zip(FILES, self.files(), strict=True)}
        folder = self.files()[0].parent
        images, shown = _square(arrays["images"], folder), _square(arrays["test images"], folder)
        responses, repeated = arrays["responses"], arrays["test responses"]
        if (
            images.shape[1:] != shown.shape[1:]
            or responses.shape[:1] != images.shape[:1]
            or responses.ndim != 2
            or repeated.ndim != 3
            or repeated.shape[1:] != (len(shown), responses.shape[1])
        ):
            raise UserError(
                f"the files in {folder} do not fit together: images {images.shape}, responses "
                f"{responses.shape} (image, cell), test images {shown.shape}, test responses "
                f"{repeated.shape} (repeat, image, cell)"
            )
        order = np.random.default_rng(self.seed).permutation(len(images))
        held_out = round(self.config.validation * len(images))
        if not 0 < held_out < len(images):
            raise UserError(
                f"validation: {self.config.validation:g} of {len(images)} images are {held_out}; "
                "choose a fraction that leaves images for training and for validation"
            )
        parts = {"train": np.sort(order[held_out:]), "validation": np.sort(order[:held_out])}
        if self.config.z_score:
            mean, deviation = images[parts["train"]].mean(0), images[parts["train"]].std(0)
            deviation = np.where(deviation > 0, deviation, 1)
            images, shown = (images - mean) / deviation, (shown - mean) / deviation
        splits = {
            name: self._split(images[part], responses[part], part) for name, part in parts.items()
        }
        splits["test"] = self._split(shown, repeated, np.arange(len(shown)))
        title = f"V1 of the mouse, scan {self.config.scan} (Antolík et al. 2016)"
        return make_recording(splits, {"title": title})

    def _split(
        self, images: NDArray[Any], responses: NDArray[Any], image: NDArray[Any]
    ) -> xr.Dataset:
        return make_split(
            images.astype(np.float32),
            responses.astype(np.float32),
            frame_interval=FRAME_INTERVAL,
            units="calcium response",
        ).assign_coords(image=("frame", image))


def _read(path: Path) -> NDArray[np.float64]:
    try:
        return np.load(path, allow_pickle=False).astype(np.float64)
    except FileNotFoundError:
        raise UserError(
            f"there is no file {path}; download the supplement of Antolík et al. (2016), and set "
            "root to the folder that contains region1"
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as an array ({error})") from None


def _square(images: NDArray[Any], folder: Path) -> NDArray[Any]:
    """Reshapes images from (image, pixel) to (image, y, x)."""
    flat = images.reshape(len(images), -1)
    side = round(flat.shape[1] ** 0.5)
    if side**2 != flat.shape[1]:
        raise UserError(f"the images in {folder} have {flat.shape[1]} pixels and are not square")
    return flat.reshape(len(flat), side, side)
