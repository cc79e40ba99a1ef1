"""Bars that cross the field, with which tuning to direction and speed is measured."""

from functools import partial
from itertools import product
from typing import Annotated, Any, ClassVar

import xarray as xr
from pydantic import Field

from retinakit.contracts import Dataset
from retinakit.simulation import (
    Screen,
    Trial,
    TrialConfig,
    crossing_time,
    moving_bar,
    trial_recording,
)

Positive = Annotated[float, Field(gt=0)]


class MovingBarsConfig(TrialConfig):
    """Options of the bars. There is a trial for each combination of the listed values."""

    directions: list[float] = Field(
        [0.0, 45.0, 90.0, 135.0, 180.0, 225.0, 270.0, 315.0],
        min_length=1,
        description="Directions of motion in degrees: 0 rightward, 90 upward.",
    )
    speeds: list[Positive] = Field(
        [20.0], min_length=1, description="Speeds, in checks per second."
    )
    widths: list[Positive] = Field(
        [4.0], min_length=1, description="Widths along the motion, in checks."
    )
    contrasts: list[float] = Field(
        [1.0], min_length=1, description="Contrasts of the bars; negative ones are dark."
    )


class MovingBars(Dataset):
    """Long bars that cross the field, shown to the cells of another recording or alone.

    See `retinakit.simulation.moving_bar` for the frames and `retinakit.simulation.trial_recording`
    for the recording. Bars of all directions take the same time, in which they cross the diagonal
    of the field. Coordinates along `frame`: `direction` of motion, `orientation` of the bar
    (direction + 90, from 0 to 180), `speed`, `bar_width`, `contrast`, `trial`, `duration` and
    `from_onset`.

    Raises:
        UserError: if the blank is shorter than the filters of simulated cells.

    Example:
        >>> bars = MovingBars.with_options(directions=[0, 180], speeds=[10, 20], height=8, width=8)
        >>> test = bars.load()["test"]
        >>> len(set(test["segment"].values)), test["response"].dims
        (4, ('frame', 'cell'))
    """

    Config = MovingBarsConfig
    quick: ClassVar[dict[str, Any]] = {"directions": [0, 90], "speeds": [30], "blank": 0.2}
    volatile = True

    def load(self, data: xr.DataTree | None = None) -> xr.DataTree:
        c = self.config
        screen = Screen.of(c, data)
        trials = []
        for direction, speed, width, contrast in product(
            c.directions, c.speeds, c.widths, c.contrasts
        ):
            parameters = {
                "direction": direction,
                "speed": speed,
                "bar_width": width,
                "contrast": contrast,
            }
            draw = partial(moving_bar, height=screen.height, width=screen.width, **parameters)
            duration = crossing_time(screen.height, screen.width, speed=speed, bar_width=width)
            parameters["orientation"] = (direction + 90) % 180
            trials.append(Trial(draw, duration, parameters))
        return trial_recording(trials, screen, c, self.seed, "moving bars")
