"""Recordings of trials: stimuli of a few seconds on a grey screen, with their parameters."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from pydantic import Field

from retinakit.contracts.config import Config
from retinakit.contracts.errors import UserError
from retinakit.contracts.frame_blocks import blocks
from retinakit.contracts.recording import SPIKES_PER_BIN, SPLITS, make_recording, make_split
from retinakit.simulation.drawn_frames import drawn_frames
from retinakit.simulation.subunit_cells import SubunitCells, cells_of, simulate

IN_MEMORY = 2**28
"""Bytes up to which the frames of trials are held in memory, and not drawn when they are used."""

SIDE, FRAME_RATE = 32, 60.0
"""The field, in checks, and the frames per second of trials that are shown to no cells."""

PHOTODIODE = "photodiode"
"""The cell of a recording that is not derived from another one."""

UNITS = {
    "direction": "degree",
    "orientation": "degree",
    "phase": "degree",
    "spatial_frequency": "cycle/check",
    "temporal_frequency": "Hz",
    "speed": "check/s",
    "bar_width": "check",
    "radius": "check",
    "inner_radius": "check",
    "centre_y": "check",
    "centre_x": "check",
    "contrast": "1",
    "duration": "s",
}
"""Units of the parameters of trials."""


class TrialConfig(Config):
    """Options that all datasets of trials have.

    Example:
        >>> TrialConfig().blank
        1.0
    """

    height: int | None = Field(
        None,
        ge=1,
        description="Height of the field in checks, by default 32; with `data:`, it is that of the "
        "recording.",
    )
    width: int | None = Field(
        None,
        ge=1,
        description="Width of the field in checks, by default 32; with `data:`, it is that of the "
        "recording.",
    )
    frame_rate: float | None = Field(
        None,
        gt=0,
        description="Frames per second, by default 60; with `data:`, it is that of the recording.",
    )
    blank: float = Field(
        1.0,
        ge=0,
        description="Duration of the grey screen before and after each stimulus, in seconds. "
        "Models predict only frames with a full history, so it should be at least as long as their "
        "lags.",
    )
    repeats: int = Field(
        1, ge=1, description="Number of presentations of the trials to simulated cells."
    )


@dataclass(frozen=True)
class Screen:
    """The field on which trials are shown.

    Attributes:
        height, width: in checks.
        frame_interval: in seconds.
        data: the recording to whose cells the trials are shown; None if there is none.

    Example:
        >>> Screen(8, 8, 1 / 60).frames(0.5)
        30
    """

    height: int
    width: int
    frame_interval: float
    data: xr.DataTree | None = None

    @classmethod
    def of(cls, config: TrialConfig, data: xr.DataTree | None) -> "Screen":
        """The screen of a recording, or of the options if there is no recording.

        Raises:
            UserError: if the recording was filtered in time, or the options give a field too.
        """
        if data is None:
            rate = config.frame_rate or FRAME_RATE
            return cls(config.height or SIDE, config.width or SIDE, 1 / rate)
        options = ("height", "width", "frame_rate")
        given = [name for name in options if getattr(config, name) is not None]
        if given:
            raise UserError(
                f"the field and the frame rate are those of the recording; leave out "
                f"{' and '.join(given)}, or data"
            )
        if "collapse" in data.children:
            raise UserError(
                "the recording is already filtered in time, and the trials are not; show them to "
                "the recording before it is filtered, and apply temporal_collapse to the result"
            )
        train = data["train"].to_dataset()
        height, width = train["stimulus"].shape[-2:]
        return cls(height, width, float(train.attrs["frame_interval"]), data)

    def frames(self, seconds: float) -> int:
        """The number of frames of a duration."""
        return round(seconds / self.frame_interval)


@dataclass(frozen=True)
class Trial:
    """A stimulus and its parameters.

    Attributes:
        draw: a function from times (n,) in seconds after the onset to frames (n, y, x) in contrast.
            For parallel runs it must be an object that can be pickled.
        duration: in seconds.
        parameters: numbers or text by name, such as {"direction": 90.0}.

    Example:
        >>> Trial(lambda time: np.ones((len(time), 8, 8)), 0.5, {"contrast": 1.0}).duration
        0.5
    """

    draw: Callable[[NDArray[np.float64]], NDArray[Any]]
    duration: float
    parameters: dict[str, Any] = field(default_factory=dict)


def trial_recording(
    trials: Sequence[Trial], screen: Screen, config: TrialConfig, seed: int, title: str
) -> xr.DataTree:
    """A recording whose test has one segment for each trial: grey, the stimulus, grey.

    With the recording of other cells (`screen.data`), these are the cells, train and validation are
    those of that recording, and the test is replaced. The responses of simulated subunit cells
    (see `cells_of`) are simulated, with their true `rate`; those of other cells are NaN. Covariates
    have their mean over the training frames. Without such a recording, all three splits have the
    same trials, and the only response is that of a photodiode: the mean contrast of each frame.

    Coordinates along `frame`, constant in a trial: the parameters, `trial` (number from 0) and
    `duration` of the stimulus in s. `from_onset` is the time in s from the stimulus's onset.

    Args:
        trials: at least one.
        screen: of the trials.
        config: blank and repeats.
        seed: of simulated spikes.
        title: of the recording, if it is not derived from another one.

    Raises:
        UserError: if the blank is shorter than the filters of simulated cells.

    Example:
        >>> bright = Trial(lambda time: np.ones((len(time), 8, 8)), 0.1, {"contrast": 1.0})
        >>> config = TrialConfig(height=8, width=8, blank=0.05)
        >>> recording = trial_recording([bright], Screen.of(config, None), config, 0, "flash")
        >>> recording["test"]["response"][:, 0].values.tolist()
        [0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0]
    """
    blank = screen.frames(config.blank)
    lengths = np.array([max(1, screen.frames(trial.duration)) for trial in trials])
    frames = _Frames(tuple(trials), lengths, blank, screen)
    data = screen.data
    channels: tuple[int, ...] = ()
    if data is not None and "channel" in data["train"]["stimulus"].dims:
        channels = (data["train"].sizes["channel"],)
        frames = _Frames(tuple(trials), lengths, blank, screen, channels[0])
    shape = (frames.total, *channels, screen.height, screen.width)
    stimulus = drawn_frames(frames, shape, np.float32)
    if stimulus.nbytes <= IN_MEMORY:
        stimulus = stimulus.load()
    whole = lengths + 2 * blank
    names = dict.fromkeys(name for trial in trials for name in trial.parameters)
    along = {name: [trial.parameters[name] for trial in trials] for name in names}
    along |= {"duration": list(lengths * screen.frame_interval), "trial": list(range(len(trials)))}

    def split(response: Any, **more: Any) -> xr.Dataset:
        made = make_split(
            stimulus,
            response,
            frame_interval=screen.frame_interval,
            segment=np.repeat(np.arange(len(trials)), whole),
            trial={name: np.repeat(values, whole) for name, values in along.items()},
            **more,
        )
        for name in names | {"duration": None}:
            if name in UNITS:
                made[name].attrs["units"] = UNITS[name]
        onset = np.concatenate([np.arange(count) - blank for count in whole])
        time = ("frame", onset * screen.frame_interval, {"units": "s"})
        return made.assign_coords(from_onset=time)

    if data is None:
        shown = xr.DataArray(stimulus)
        mean = np.concatenate(
            [shown[part].values.mean((-2, -1), dtype=float) for part in blocks(shown)]
        )
        alone = split(mean[:, None], cell=[PHOTODIODE], units="contrast")
        return make_recording(dict.fromkeys(SPLITS, alone), {"title": title})
    train = data["train"].to_dataset()
    response, more = _responses(stimulus, data, config, blank, seed)
    if "covariates" in train:
        means = train["covariates"].mean("frame").values
        more |= {
            "covariates": np.broadcast_to(means, (frames.total, len(means))),
            "covariate_names": train["covariate"].values.tolist(),
            "covariate_units": train["units"].values.tolist(),
        }
    test = split(response, units=train["response"].attrs["units"], **more)
    test = test.assign_coords({dim: train[dim].variable for dim in ("cell", "y", "x")})
    splits = {str(name): data[name].to_dataset() for name in data.children}
    attributes = {str(name): value for name, value in data.attrs.items()}
    return make_recording(splits | {"test": test}, attributes)


def simulated_cells(data: xr.DataTree) -> SubunitCells | None:
    """The simulated subunit cells of a recording, or None if its cells cannot be simulated.

    Args:
        data: the recording.

    Example:
        >>> from retinakit.testing import small_recording
        >>> cells = simulated_cells(small_recording())
        >>> None if cells is None else cells.cells
        2
    """
    if "truth" not in data.children:
        return None
    if data["train"]["response"].attrs["units"] != SPIKES_PER_BIN:
        return None
    try:
        return cells_of(data["truth"].to_dataset())
    except UserError:  # a truth of another kind
        return None


def _responses(
    stimulus: xr.Variable, data: xr.DataTree, config: TrialConfig, blank: int, seed: int
) -> tuple[NDArray[Any], dict[str, Any]]:
    """The responses ([repeat,] frame, cell) to the trials and, if they are known, the rates."""
    cells = simulated_cells(data)
    if cells is None:
        return np.full((len(stimulus), data["train"].sizes["cell"]), np.nan, np.float32), {}
    if blank < cells.lags - 1:
        interval = float(data["train"].attrs["frame_interval"])
        raise UserError(
            f"the blank has {blank} frames and the cells' filters need {cells.lags - 1} frames of "
            f"history; make blank {(cells.lags - 1) * interval:.2g} s or longer"
        )
    simulated = simulate(
        cells,
        stimulus,
        spikes=data["truth"].attrs.get("spikes", "poisson"),
        seed=int(np.random.default_rng([seed, 0]).integers(2**63)),
        repeats=config.repeats,
    )
    spikes = simulated.spikes
    return spikes if config.repeats > 1 else spikes[0], {"rate": simulated.rate}


class _Frames:
    """Draws frames of trials, each of which is grey, the stimulus, grey."""

    def __init__(
        self,
        trials: tuple[Trial, ...],
        lengths: NDArray[np.int64],
        blank: int,
        screen: Screen,
        channels: int = 0,
    ):
        self.trials, self.lengths, self.blank, self.channels = trials, lengths, blank, channels
        self.height, self.width = screen.height, screen.width
        self.frame_interval = screen.frame_interval
        ends = np.cumsum(lengths + 2 * blank)
        self.starts, self.total = np.r_[0, ends[:-1]], int(ends[-1])

    def __call__(self, frames: NDArray[np.int64]) -> NDArray[np.float32]:
        out = np.zeros((len(frames), self.height, self.width), np.float32)
        of = np.searchsorted(self.starts, frames, side="right") - 1
        after = frames - self.starts[of] - self.blank
        for trial in np.unique(of):
            shown = np.flatnonzero((of == trial) & (after >= 0) & (after < self.lengths[trial]))
            if len(shown):
                out[shown] = self.trials[trial].draw(after[shown] * self.frame_interval)
        if self.channels:
            return np.repeat(out[:, None], self.channels, axis=1)
        return out
