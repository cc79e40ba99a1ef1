"""The first part of another dataset's training frames (Yan et al. 2020, Fig 6a)."""

import xarray as xr
from pydantic import Field

from retinakit.contracts import Config, Dataset, UserError, make_recording


class FractionConfig(Config):
    """How much is kept."""

    fraction: float = Field(
        1.0, gt=0, le=1, description="Part of the training frames, from the first on; sweep it."
    )


class Fraction(Dataset):
    """The first int(fraction · frames) training frames, as in the authors' code.

    They are contiguous, so that histories stay whole: segments are kept, and the last may be cut.
    Validation, test and truth are those of the other dataset, so the frames that choose among a
    fit's steps and starts are not among those that are counted. The group `kept` has the
    training `frames` and `spikes (cell)` that are left.
    """

    Config = FractionConfig
    volatile = True

    def load(self, data: xr.DataTree) -> xr.DataTree:
        whole = data["train"].to_dataset()
        frames = int(self.config.fraction * whole.sizes["frame"])
        what = f"fraction {self.config.fraction:g} leaves {frames} training frames"
        if frames == 0:
            raise UserError(f"{what} of {whole.sizes['frame']}; use a larger one")
        train = whole.isel(frame=slice(0, frames))
        spikes = train["response"].sum([d for d in train["response"].dims if d != "cell"])
        for cell, count in zip(spikes["cell"].values, spikes.values, strict=True):
            if count == 0:
                raise UserError(
                    f"{what}, in which cell {cell} has no spike; use a larger one or another cell"
                )
        splits = {str(name): data[name].to_dataset() for name in data.children}
        splits["train"] = train
        splits["kept"] = xr.Dataset({"frames": frames, "spikes": spikes})
        return make_recording(splits, {str(name): value for name, value in data.attrs.items()})
