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
"""What the publication calls validation is the test."""

FRAME_INTERVAL = 1.0
"""Responses are one number for each image; their own time course is not in the files."""


class Antolik2016Config(Config):
    """Where the files are, and how they are divided."""

    root: InputPath | None = Field(
        None,
        description="Folder that holds region1, region2 and region3; by default "
        "$RETINAKIT_DATA/antolik2016.",
    )
    scan: int = Field(1, ge=1, le=3, description="Which scan, 1 to 3: the region's number.")
    validation: float = Field(
        0.2, gt=0, lt=1, description="Part of the training images that is for validation."
    )
    z_score: bool = Field(
        True,
        description="Whether each pixel is less its mean over its standard deviation, those of the "
        "training images.",
    )


class Antolik2016(Dataset):
    """Two-photon responses of V1 cells to static natural images.

    The files are those of the supplement of Antolík et al. (PLOS Computational Biology 12(6):
    e1004927): for each scan a folder with `training_inputs.npy (image, pixel)`, `training_set.npy
    (image, cell)`, `validation_inputs.npy` and `raw_validation_set.npy (repeat, image, cell)`;
    images are square. The validation images here are drawn from the training images by the seed,
    as Klindt et al. (2017) do. Each image is one frame.
    """

    Config = Antolik2016Config

    def files(self) -> list[Path]:
        root: Path | None = self.config.root
        if root is None:
            data = os.environ.get("RETINAKIT_DATA")
            if not data:
                raise UserError(
                    "where is region1? Set the option root to the folder that holds it, or "
                    "RETINAKIT_DATA to a folder with antolik2016"
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
                f"of {len(images)} images {held_out} are for validation; leave some for both"
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
            f"there is no file {path}; fetch the supplement of Antolík et al. (2016), and give the "
            "folder that holds region1 as root"
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as an array ({error})") from None


def _square(images: NDArray[Any], folder: Path) -> NDArray[Any]:
    """Images (image, pixel) as (image, y, x)."""
    flat = images.reshape(len(images), -1)
    side = round(flat.shape[1] ** 0.5)
    if side**2 != flat.shape[1]:
        raise UserError(f"the images in {folder} have {flat.shape[1]} pixels and are not square")
    return flat.reshape(len(flat), side, side)
