"""Flashed discs and rings, with which tuning to size and the surround are measured."""

from dataclasses import dataclass
from itertools import product
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from pydantic import Field

from retinakit.contracts import Dataset, UserError
from retinakit.simulation import Screen, Trial, TrialConfig, spot, trial_recording
from retinakit.spikes import analytic_noise, receptive_field, sta

Positive = Annotated[float, Field(gt=0)]
Shape = Literal["disc", "ring", "centre_surround"]


class SpotsConfig(TrialConfig):
    """Options of the spots. There is a trial for each combination of the listed values."""

    radii: list[Positive] = Field(
        [0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0],
        min_length=1,
        description="Radii of discs, inner radii of rings, and radii of centres, in checks.",
    )
    shapes: list[Shape] = Field(
        ["disc"],
        min_length=1,
        description="'disc'; 'ring': from the radius to `outer_radius`; 'centre_surround': a disc "
        "with a ring of the opposite contrast around it.",
    )
    outer_radius: float | None = Field(
        None,
        gt=0,
        description="Outer radius of rings and surrounds, in checks; by default they fill the "
        "field.",
    )
    contrasts: list[float] = Field(
        [1.0, -1.0], min_length=1, description="Contrasts: 1 bright, -1 dark."
    )
    centre: Literal["middle", "cells"] | tuple[float, float] = Field(
        "middle",
        description="'middle' of the field; 'cells': a set of trials for each cell of the "
        "recording, at the centre of its receptive field; or [y, x] in checks from the first one.",
    )
    lags: int = Field(
        20,
        ge=1,
        description="Frames of the spike-triggered average that finds the receptive fields, for "
        "`centre: cells`.",
    )
    duration: float = Field(0.5, gt=0, description="Duration of a flash, in seconds.")


class Spots(Dataset):
    """Flashed discs and rings, shown to the cells of another recording or alone.

    See `retinakit.simulation.spot` for the shapes and `retinakit.simulation.trial_recording` for
    the recording. Coordinates along `frame`: `radius`, `contrast`, `shape`, `centre_y` and
    `centre_x` (checks from the first one), `trial`, `duration` and `from_onset`; with
    `centre: cells` also `centred_on`, the cell. The centre of a cell is that of the Gaussian fitted
    to its spike-triggered average in the training frames; cells without a significant one are left
    out.

    Raises:
        UserError: if cells are to be the centres and there is no recording, or no receptive field
            is found in it, or `outer_radius` is not above all radii.

    Example:
        >>> from retinakit.testing import small_recording
        >>> spots = Spots.with_options(radii=[1, 2], contrasts=[-1], centre="cells", lags=5)
        >>> test = spots.load(small_recording())["test"]
        >>> sorted(set(test["centred_on"].values.tolist())), len(set(test["trial"].values))
        ([0, 1], 4)
    """

    Config = SpotsConfig
    quick: ClassVar[dict[str, Any]] = {"radii": [0.8, 2.0], "duration": 0.1, "blank": 0.2}
    volatile = True

    def load(self, data: xr.DataTree | None = None) -> xr.DataTree:
        c = self.config
        screen = Screen.of(c, data)
        outer = np.inf if c.outer_radius is None else c.outer_radius
        if set(c.shapes) != {"disc"} and outer <= max(c.radii):
            raise UserError(
                f"outer_radius is {outer:g} and the largest of the radii {max(c.radii):g}; rings "
                "and surrounds need a larger outer_radius"
            )
        trials = []
        for centre, shape, radius, contrast in product(
            self._centres(screen), c.shapes, c.radii, c.contrasts
        ):
            at = (centre["centre_y"], centre["centre_x"])
            disc = spot(screen.height, screen.width, radius=radius, centre=at)
            ring = spot(screen.height, screen.width, radius=outer, centre=at, inner_radius=radius)
            image = {"disc": disc, "ring": ring, "centre_surround": disc - ring}[shape]
            parameters = {"radius": radius, "contrast": contrast, "shape": shape, **centre}
            trials.append(Trial(Flash(contrast * image), c.duration, parameters))
        return trial_recording(trials, screen, c, self.seed, "spots")

    def _centres(self, screen: Screen) -> list[dict[str, Any]]:
        """The centres of the trials as their parameters."""
        c = self.config
        if c.centre == "middle":
            return [{"centre_y": (screen.height - 1) / 2, "centre_x": (screen.width - 1) / 2}]
        if not isinstance(c.centre, str):
            y, x = c.centre
            if not (0 <= y < screen.height and 0 <= x < screen.width):
                raise UserError(
                    f"the centre [{y:g}, {x:g}] is outside the field of {screen.height} x "
                    f"{screen.width} checks; give [y, x] in checks from the first one"
                )
            return [{"centre_y": y, "centre_x": x}]
        if screen.data is None:
            raise UserError(
                "centre: cells needs the recording of cells; add data: and the name of a dataset, "
                "or give another centre"
            )
        train = screen.data["train"].to_dataset()
        average = sta(train, c.lags)["sta"]
        if "channel" in average.dims:
            average = average.isel(channel=0)
        found = receptive_field(average, analytic_noise([train], c.lags))
        centres = []
        for cell in train["cell"].values:
            one = found.sel(cell=cell)
            y, x = (_index(train[dim], float(one[f"centre_{dim}"])) for dim in ("y", "x"))
            if np.isfinite(y) and np.isfinite(x):
                centres.append({"centre_y": y, "centre_x": x, "centred_on": cell.item()})
        if not centres:
            raise UserError(
                "no cell of the recording has a significant receptive field in the training "
                "frames; give another centre or other lags"
            )
        return centres


def _index(coordinate: xr.DataArray, place: float) -> float:
    """The position, in checks from the first one, of a place in the units of a coordinate."""
    values = coordinate.values.astype(float)
    if len(values) == 1:
        return 0.0
    return float((place - values[0]) / (values[1] - values[0]))


@dataclass(frozen=True)
class Flash:
    """Draws a constant image.

    Attributes:
        image: (y, x) in contrast.

    Example:
        >>> Flash(np.ones((4, 6)))(np.arange(3.0)).shape
        (3, 4, 6)
    """

    image: NDArray[Any]

    def __call__(self, time: NDArray[np.float64]) -> NDArray[Any]:
        """The frames (n, y, x) at times (n,)."""
        return np.broadcast_to(self.image, (len(time), *self.image.shape))
