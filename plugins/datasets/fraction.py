"""A dataset reduced to the first fraction of its training frames (Yan et al. 2020, Fig 6a)."""

import xarray as xr
from pydantic import Field

from retinakit.contracts import Config, Dataset, UserError, make_recording


class FractionConfig(Config):
    """The fraction that is kept."""

    fraction: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Fraction of the training frames to keep, from the first frame on; usually "
        "swept.",
    )


class Fraction(Dataset):
    """A dataset with the first int(fraction · frames) training frames, as in the authors' code.

    The frames are contiguous, so that histories stay complete; the last segment may be cut. The
    groups `validation`, `test` and `truth` are unchanged, so the validation frames that choose
    among training steps and starts are not part of the fraction. The group `kept` has the number
    of training `frames` and `spikes (cell)` that are left.

    Raises:
        UserError: if no training frame is left, or a cell has no spike in those that are.

    Example:
        >>> from retinakit.testing import small_recording
        >>> recording = Fraction.with_options(fraction=0.1).load(small_recording())
        >>> recording["train"].sizes["frame"], int(recording["kept"]["frames"])
        (200, 200)
    """

    Config = FractionConfig
    volatile = True

    def load(self, data: xr.DataTree) -> xr.DataTree:
        whole = data["train"].to_dataset()
        frames = int(self.config.fraction * whole.sizes["frame"])
        what = f"fraction {self.config.fraction:g} leaves {frames} training frames"
        if frames == 0:
            raise UserError(f"{what} of {whole.sizes['frame']}; use a larger fraction")
        train = whole.isel(frame=slice(0, frames))
        spikes = train["response"].sum([d for d in train["response"].dims if d != "cell"])
        for cell, count in zip(spikes["cell"].values, spikes.values, strict=True):
            if count == 0:
                raise UserError(
                    f"{what}, in which cell {cell} has no spike; use a larger fraction or leave "
                    "out the cell"
                )
        splits = {str(name): data[name].to_dataset() for name in data.children}
        splits["train"] = train
        splits["kept"] = xr.Dataset({"frames": frames, "spikes": spikes})
        return make_recording(splits, {str(name): value for name, value in data.attrs.items()})
