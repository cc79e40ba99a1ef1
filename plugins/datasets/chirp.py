"""The full-field chirp of Baden et al. 2016: a step, a frequency sweep and a contrast sweep."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from pydantic import Field

from retinakit.contracts import Dataset, UserError
from retinakit.simulation import (
    Screen,
    Trial,
    TrialConfig,
    chirp_contrast,
    chirp_duration,
    trial_recording,
)


class ChirpConfig(TrialConfig):
    """Options of the chirp. The defaults are those of Baden et al., 32 s long."""

    step: float = Field(3.0, gt=0, description="Duration of the bright and of the dark step, in s.")
    steady: float = Field(
        2.0, gt=0, description="Duration of the steady parts between others, in seconds."
    )
    sweep: float = Field(8.0, gt=0, description="Duration of each sweep, in seconds.")
    frequencies: tuple[float, float] = Field(
        (0.0, 8.0),
        description="Frequencies at the beginning and at the end of the frequency sweep, in Hz.",
    )
    contrast_frequency: float = Field(
        2.0, gt=0, description="Frequency of the contrast sweep, in Hz."
    )


class Chirp(Dataset):
    """The full-field chirp, shown to the cells of another recording or alone.

    See `retinakit.simulation.chirp_contrast` for its course and
    `retinakit.simulation.trial_recording` for the recording. The chirp is one trial. The coordinate
    `part` along `frame` is "dark", "bright", "grey", "frequency" or "contrast".

    Raises:
        UserError: if a frequency is too high for the frames, or the blank is shorter than the
            filters of simulated cells.

    Example:
        >>> recording = Chirp.with_options(height=1, width=1).load()
        >>> recording["test"].sizes["frame"] / 60, str(recording["test"]["part"][1300].values)
        (34.0, 'contrast')
    """

    Config = ChirpConfig
    quick: ClassVar[dict[str, Any]] = {
        "step": 0.2,
        "steady": 0.1,
        "sweep": 0.5,
        "blank": 0.2,
    }
    volatile = True

    def load(self, data: xr.DataTree | None = None) -> xr.DataTree:
        c = self.config
        screen = Screen.of(c, data)
        highest = max(*c.frequencies, c.contrast_frequency)
        if highest > 0.5 / screen.frame_interval:
            raise UserError(
                f"a sinusoid of {highest:g} Hz cannot be shown at {1 / screen.frame_interval:g} "
                "frames per second; lower frequencies or contrast_frequency to at most half of that"
            )
        durations = {"step": c.step, "steady": c.steady, "sweep": c.sweep}
        course = durations | {
            "frequencies": c.frequencies,
            "contrast_frequency": c.contrast_frequency,
        }
        draw = FullField(screen.height, screen.width, course)
        trial = Trial(draw, chirp_duration(**durations))
        recording = trial_recording([trial], screen, c, self.seed, "chirp")
        for name in ("train", "validation", "test") if data is None else ("test",):
            split = recording[name].to_dataset()
            _, part = chirp_contrast(split["from_onset"].values, **course)
            recording[name] = xr.DataTree(split.assign_coords(part=("frame", part)))
        return recording


@dataclass(frozen=True)
class FullField:
    """Draws the full-field chirp.

    Attributes:
        height, width: of the field, in checks.
        course: options of `retinakit.simulation.chirp_contrast`.

    Example:
        >>> FullField(1, 2, {})(np.array([3.0])).tolist()
        [[[1.0, 1.0]]]
    """

    height: int
    width: int
    course: dict[str, Any]

    def __call__(self, time: NDArray[np.float64]) -> NDArray[Any]:
        """The frames (n, y, x) at times (n,)."""
        contrast, _ = chirp_contrast(time, **self.course)
        return np.broadcast_to(contrast[:, None, None], (len(time), self.height, self.width))
