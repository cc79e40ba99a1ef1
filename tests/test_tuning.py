"""Tuning curves: the preferences of cells that are known by construction."""

from typing import Any

import numpy as np
import pytest
import xarray as xr
from pydantic import ValidationError

from retinakit.contracts import Model, UserError, coordinates_of, make_recording, make_split
from retinakit.pipeline.combine import combine
from retinakit_plugins.analyses.tuning import Tuning

SIDE, LAGS, RATE = 12, 8, 40.0
CYCLES = 1 / 6
"""Spatial frequency of the gratings and filters, in cycles per pixel."""


def grating(direction: Any, speed: Any, frames: int) -> Any:
    """A drifting grating (frame, y, x); 0 is to the right and 90 upwards, speed in pixel/frame."""
    y, x = np.mgrid[:SIDE, :SIDE]
    angle = np.deg2rad(direction)
    along = x * np.cos(angle) - y * np.sin(angle)
    time = np.arange(frames)[:, None, None]
    return np.cos(2 * np.pi * CYCLES * (along - speed * time))


class Energy(Model):
    """Motion energy (Adelson & Bergen 1985): squares of two filters a quarter cycle apart."""

    lags = LAGS

    def fit(self, recording: xr.DataTree, **_: Any) -> xr.Dataset:
        self.field = coordinates_of(recording["train"].to_dataset(), self.lags)
        return xr.Dataset()

    def prefer(self, directions: Any, speeds: Any) -> None:
        window = np.hanning(LAGS + 2)[1:-1, None, None]
        moving = [grating(d, s, LAGS) * window for d, s in zip(directions, speeds, strict=True)]
        shifted = [
            np.roll(grating(d, s, LAGS + 12), -round(0.25 / CYCLES / s), 0)[:LAGS] * window
            for d, s in zip(directions, speeds, strict=True)
        ]
        self.filters = np.stack([np.stack(moving), np.stack(shifted)])  # (2, cell, lag, y, x)

    def respond(self, split: xr.Dataset) -> Any:
        stimulus = split["stimulus"].values.astype(float)
        windows = np.lib.stride_tricks.sliding_window_view(stimulus, LAGS, 0)
        drive = np.einsum("tyxl,pclyx->tcp", windows, self.filters) / SIDE**2
        rate = np.full((len(stimulus), drive.shape[1]), np.nan)
        rate[LAGS - 1 :] = (drive**2).sum(-1)
        return rate

    def parameters(self) -> xr.Dataset:
        return self.field

    state = parameters

    def restore(self, state: xr.Dataset) -> None:
        self.field = state


class Shown(Energy):
    """The prediction of a cell is its check, and the layer has the values with the other sign."""

    lags = 1

    def respond(self, split: xr.Dataset) -> Any:
        return split["stimulus"].values[:, 0]

    def layers(self) -> dict[str, str]:
        return {"inhibition": "type"}

    def activity(self, split: Any, layer: str) -> xr.DataArray:
        self.check_layer(layer)
        split = self.prepare(split)
        values = -split["stimulus"].values.transpose(0, 2, 1)
        return self.label(values, split, ("frame", "type", "y"))


def trials(stimuli: Any, **parameters: Any) -> xr.DataTree:
    """A recording of one trial for each stimulus; cells, one for each column, fire in each bin."""
    frames = len(stimuli[0])
    movie = np.concatenate(stimuli)
    split = make_split(
        movie,
        np.ones((len(movie), movie.shape[-1])),
        frame_interval=1 / RATE,
        segment=np.repeat(np.arange(len(stimuli)), frames),
        trial={name: np.repeat(values, frames) for name, values in parameters.items()},
    )
    return make_recording(dict.fromkeys(("train", "validation", "test"), split))


def fitted(model: Model, data: xr.DataTree) -> Any:
    cells = data["test"].sizes["cell"]
    model.fit(data)
    return model, cells


def drawn(analysis: Tuning, result: xr.Dataset) -> Any:
    tree = xr.DataTree.from_dict({"/model": combine([((), result)])})
    analysis.plot(tree).draw_without_rendering()
    assert analysis.caption(tree)
    return analysis.table(tree)


def test_preferred_directions_and_speeds_of_motion_detectors_are_found():
    true = np.resize([45.0, 180.0, 270.0], SIDE)
    fast = np.resize([1.0, 1.0, 0.5], SIDE)
    directions = np.arange(0, 360, 45.0)
    data = trials([grating(d, 1.0, 24) for d in directions], direction=directions)
    model, _ = fitted(Energy(), data)
    model.prefer(true, fast)
    analysis = Tuning({"shown": 3})
    result = analysis.run(model, data)
    np.testing.assert_allclose(result["preferred_direction"][:3], true[:3], atol=1)
    assert (result["dsi"] > 0.5).all() and (result["direction_index"] > 0.3).all()
    assert len(drawn(analysis, result)) == SIDE
    speeds = np.array([0.25, 0.5, 1.0, 1.5])
    data = trials(
        [grating(d, s, 24) for s in speeds for d in (45.0, 180.0, 270.0)],
        speed=np.repeat(speeds, 3),
        direction=np.tile([45.0, 180.0, 270.0], 4),
    )
    analysis = Tuning({"parameter": "speed", "split_by": "direction", "shown": 3})
    result = analysis.run(model, data)
    for cell in range(3):
        own = result["preferred"].isel(cell=cell).sel(direction=true[cell])
        assert float(own) == fast[cell]
    drawn(analysis, result)


def test_indices_are_those_of_a_curve_that_is_known():
    angles = np.arange(0, 360, 30.0)
    towards = np.array([0.0, 75.0, 210.0])
    curve = 1 + np.cos(np.deg2rad(angles[:, None] - towards))  # (trial, cell)
    sharp = np.maximum(np.cos(2 * np.deg2rad(angles[:, None] - [90.0])), 0)
    stimuli = np.repeat(np.hstack([curve, sharp])[:, None, None], 2, 1)
    data = trials(stimuli, direction=angles)
    model, _ = fitted(Shown(), data)
    result = Tuning({}).run(model, data)
    np.testing.assert_allclose(result["preferred_direction"][:3], towards, atol=1e-6)
    np.testing.assert_allclose(result["direction_index"], [0.5, 0.5, 0.5, 0], atol=1e-6)
    np.testing.assert_allclose(result["dsi"][[0, 2, 3]], [1, 1, 0], atol=1e-6)
    np.testing.assert_allclose(result["osi"][[0, 3]], [0, 1], atol=1e-6)
    np.testing.assert_allclose(result["orientation_index"][:3], 0, atol=1e-6)
    assert result["orientation_index"][3] > 0.7


@pytest.mark.parametrize("layer", [None, "inhibition"])
def test_preferred_orientations_of_cells_and_of_inhibitory_units_are_found(layer):
    angles = np.arange(0, 180, 22.5)
    towards = np.array([0.0, 67.5, 150.0])
    curve = 1 + np.cos(2 * np.deg2rad(angles[:, None] - towards))
    data = trials(np.repeat(curve[:, None, None], 2, 1), orientation=angles)
    model, _ = fitted(Shown(), data)
    analysis = Tuning({"parameter": "orientation", "layer": layer})
    result = analysis.run(model, data)
    away = (result["preferred_orientation"] - towards + 90) % 180 - 90
    np.testing.assert_allclose(away, 0, atol=1e-6)
    np.testing.assert_allclose(result["orientation_index"], 0.5, atol=1e-6)
    assert (result["sign"] == (1 if layer is None else -1)).all()
    assert result["mean"].dims == ("cell" if layer is None else "type", "orientation")
    drawn(analysis, result)


def test_mean_peak_and_the_modulation_at_the_temporal_frequency():
    frequency = np.array([4.0, 5.0])
    time = np.arange(22) / RATE  # two whole cycles and a rest
    waves = [3 + np.cos(2 * np.pi * f * time)[:, None, None] * [[1.0, 2.0]] for f in frequency]
    data = trials(waves, temporal_frequency=frequency)
    model, _ = fitted(Shown(), data)
    for measure, expected in {"f1": [1, 2], "peak": [4, 5]}.items():
        options = {"parameter": "temporal_frequency", "response": measure}
        result = Tuning(options).run(model, data)
        np.testing.assert_allclose(result["mean"].isel(temporal_frequency=1), expected, atol=1e-6)
    options = {"parameter": "temporal_frequency", "start": 2, "stop": 10}
    result = Tuning(options).run(model, data)
    np.testing.assert_allclose(result["mean"][:, 1], waves[1][2:10, 0].mean(0), atol=1e-6)
    np.testing.assert_array_equal(result["recorded"], 1)
    assert "(spikes per bin)" in Tuning(options).caption(xr.DataTree.from_dict({"/model": result}))


def test_angles_at_unequal_steps_have_no_index_and_missing_parameters_are_refused():
    data = trials(np.ones((3, 2, 1, 1)), direction=[0.0, 10.0, 200.0])
    model, _ = fitted(Shown(), data)
    result = Tuning({}).run(model, data)
    assert "dsi" not in result and "equal steps" in result["warning"].item()
    drawn(Tuning({}), result)
    with pytest.raises(UserError, match=r"no parameter 'speed'"):
        Tuning({"parameter": "speed"}).run(model, data)
    with pytest.raises(UserError, match=r"no trial with direction 45"):
        Tuning({"select": {"direction": 45}}).run(model, data)


def test_curves_are_not_split_by_their_own_parameter():
    with pytest.raises(ValidationError, match="are the same"):
        Tuning({"parameter": "direction", "split_by": "direction"})
