"""Drifting gratings, with which tuning to direction, orientation and frequency is measured."""

from functools import partial
from itertools import product
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import xarray as xr
from pydantic import Field

from retinakit.contracts import Dataset, UserError
from retinakit.simulation import Screen, Trial, TrialConfig, grating, trial_recording

NotNegative = Annotated[float, Field(ge=0)]


class GratingsConfig(TrialConfig):
    """Options of the gratings. There is a trial for each combination of the listed values."""

    directions: list[float] = Field(
        [0.0, 45.0, 90.0, 135.0, 180.0, 225.0, 270.0, 315.0],
        min_length=1,
        description="Directions of motion in degrees: 0 rightward, 90 upward.",
    )
    spatial_frequencies: list[NotNegative] = Field(
        [0.125], min_length=1, description="Spatial frequencies, in cycles per check."
    )
    temporal_frequencies: list[NotNegative] = Field(
        [2.0], min_length=1, description="Temporal frequencies, in Hz."
    )
    contrasts: list[float] = Field(
        [1.0], min_length=1, description="Contrasts, the amplitudes of the gratings."
    )
    phases: list[float] = Field(
        [0.0],
        min_length=1,
        description="Phases at the onset in the middle of the field, in degrees.",
    )
    waveform: Literal["sine", "square"] = Field("sine", description="Profile of the stripes.")
    duration: float = Field(1.0, gt=0, description="Duration of a grating, in seconds.")
    radius: float | None = Field(
        None,
        gt=0,
        description="Radius of a circular window in the middle, in checks; by default the grating "
        "fills the field.",
    )


class Gratings(Dataset):
    """Drifting gratings, shown to the cells of another recording or alone.

    See `retinakit.simulation.grating` for the frames and `retinakit.simulation.trial_recording`
    for the recording. Coordinates along `frame`: `direction` of motion, `orientation` of the
    stripes (direction + 90, from 0 to 180), `spatial_frequency`, `temporal_frequency`, `speed`,
    `contrast`, `phase`, `trial`, `duration` and `from_onset`.

    Raises:
        UserError: if a frequency is too high for the checks or for the frames, or the blank is
            shorter than the filters of simulated cells.

    Example:
        >>> from retinakit.testing import small_recording
        >>> gratings = Gratings.with_options(directions=[0, 90], duration=0.5)
        >>> test = gratings.load(small_recording())["test"]
        >>> [float(test["direction"][frame]) for frame in (0, -1)], "rate" in test
        ([0.0, 90.0], True)
    """

    Config = GratingsConfig
    quick: ClassVar[dict[str, Any]] = {"directions": [0, 90], "duration": 0.2, "blank": 0.2}
    volatile = True

    def load(self, data: xr.DataTree | None = None) -> xr.DataTree:
        c = self.config
        screen = Screen.of(c, data)
        highest, fastest = max(c.spatial_frequencies), max(c.temporal_frequencies)
        if highest > 0.5:
            raise UserError(
                f"a grating of {highest:g} cycles per check cannot be shown on the checks; give "
                "spatial_frequencies up to 0.5"
            )
        if fastest > 0.5 / screen.frame_interval:
            raise UserError(
                f"a grating of {fastest:g} Hz cannot be shown at {1 / screen.frame_interval:g} "
                "frames per second; give temporal_frequencies up to half of that"
            )
        trials = []
        values = (c.directions, c.spatial_frequencies, c.temporal_frequencies, c.contrasts)
        for direction, spatial, temporal, contrast, phase in product(*values, c.phases):
            parameters = {
                "direction": direction,
                "spatial_frequency": spatial,
                "temporal_frequency": temporal,
                "contrast": contrast,
                "phase": phase,
            }
            draw = partial(
                grating,
                height=screen.height,
                width=screen.width,
                square=c.waveform == "square",
                radius=c.radius,
                **parameters,
            )
            parameters["orientation"] = (direction + 90) % 180
            parameters["speed"] = temporal / spatial if spatial else np.nan
            trials.append(Trial(draw, c.duration, parameters))
        return trial_recording(trials, screen, c, self.seed, "gratings")
