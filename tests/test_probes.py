"""Gratings, bars, spots and chirps: their frames, and the recordings that are made of them."""

import pickle

import numpy as np
import pytest
import xarray as xr
from pydantic import ValidationError

from retinakit.contracts import UserError, blocks, segments, shown_frames
from retinakit.simulation import (
    cells_of,
    chirp_contrast,
    crossing_time,
    grating,
    moving_bar,
    simulate,
    spot,
)
from retinakit.testing import SmallModel, small_recording
from retinakit_plugins.analyses.film_strip import FilmStrip
from retinakit_plugins.analyses.tuning import Tuning
from retinakit_plugins.datasets.chirp import Chirp
from retinakit_plugins.datasets.gratings import Gratings
from retinakit_plugins.datasets.moving_bars import MovingBars
from retinakit_plugins.datasets.spots import Spots
from retinakit_plugins.datasets.temporal_collapse import TemporalCollapse

WAVE = {"spatial_frequency": 0.125, "temporal_frequency": 2.0}
PROBES = [Gratings, MovingBars, Spots, Chirp]


@pytest.fixture(scope="module")
def cells():
    return small_recording(seed=3)


class TestGrating:
    def test_its_period_is_one_over_the_spatial_frequency(self):
        frame = grating([0.0], 3, 24, direction=0, **WAVE)[0]
        np.testing.assert_allclose(frame[:, 8:], frame[:, :-8], atol=1e-6)
        np.testing.assert_allclose(frame[:, 4:], -frame[:, :-4], atol=1e-6)
        np.testing.assert_array_equal(frame[0], frame[2])

    @pytest.mark.parametrize(
        ("direction", "shift"), [(0, (0, 1)), (90, (-1, 0)), (180, (0, -1)), (270, (1, 0))]
    )
    def test_it_moves_one_check_in_its_direction_at_its_speed(self, direction, shift):
        speed = 2.0 / 0.125
        frames = grating([0.3, 0.3 + 1 / speed], 9, 9, direction=direction, **WAVE)
        moved = np.roll(frames[0], shift, (0, 1))
        np.testing.assert_allclose(frames[1][1:-1, 1:-1], moved[1:-1, 1:-1], atol=1e-5)

    def test_an_oblique_one_has_the_same_period_along_its_motion(self):
        wave = grating([0.0], 41, 41, direction=30, spatial_frequency=0.1, contrast=0.5)[0]
        y, x = np.indices(wave.shape) - 20
        expected = 0.5 * np.cos(0.2 * np.pi * (x * np.cos(np.pi / 6) - y * 0.5))
        np.testing.assert_allclose(wave, expected, atol=1e-6)

    def test_a_square_one_has_two_values_and_a_window_is_round(self):
        wave = grating([0.0], 40, 40, direction=45, square=True, radius=15, **WAVE)[0]
        inside = spot(40, 40, radius=15)
        assert set(np.unique(wave[inside == 1])) == {-1, 1}
        assert not wave[inside == 0].any()


class TestBarAndSpot:
    def test_the_bar_is_where_its_speed_puts_it(self):
        time = np.arange(0, 3, 0.1)
        bar = moving_bar(time, 20, 30, direction=180, speed=15, bar_width=4, contrast=-0.5)
        reach = (np.hypot(20, 30) + 4) / 2
        middle = 14.5 - (15 * time - reach)
        inside = (middle > 2) & (middle < 27)
        weight = bar[inside].sum(1)
        np.testing.assert_allclose(weight.sum(1), -0.5 * 4 * 20, rtol=1e-5)
        place = (weight * np.arange(30)).sum(1) / weight.sum(1)
        np.testing.assert_allclose(place, middle[inside], atol=0.05)

    @pytest.mark.parametrize("direction", [0, 45, 90, 200])
    def test_it_has_not_come_at_the_onset_and_is_gone_at_the_end(self, direction):
        end = crossing_time(12, 20, speed=8, bar_width=3)
        bar = moving_bar([0, end / 2, end], 12, 20, direction=direction, speed=8, bar_width=3)
        assert np.abs(bar[[0, 2]]).max() < 1e-6
        assert bar[1].max() > 0.9

    def test_the_area_of_a_disc_and_of_a_ring_is_theirs(self):
        for radius in (0.8, 1.5, 4.0):
            area = spot(30, 31, radius=radius, centre=(14.3, 15)).sum()
            assert area == pytest.approx(np.pi * radius**2, rel=0.05)
        ring = spot(30, 30, radius=9, inner_radius=5)
        assert ring.sum() == pytest.approx(np.pi * (81 - 25), rel=0.02)
        outside = spot(30, 30, radius=np.inf, inner_radius=5)
        np.testing.assert_allclose(outside + spot(30, 30, radius=5), 1, atol=0.05)

    def test_a_spot_at_a_corner_is_cut(self):
        assert spot(9, 9, radius=3, centre=(0, 0)).sum() < 0.5 * np.pi * 9


class TestChirp:
    def test_it_lasts_32_s_with_32_cycles_of_up_to_8_hz(self):
        time = np.arange(0, 32, 0.001)
        contrast, part = chirp_contrast(time)
        assert {name: round((part == name).sum() / 1000) for name in np.unique(part)} == {
            "bright": 3,
            "contrast": 8,
            "dark": 7,
            "frequency": 8,
            "grey": 6,
        }
        sweep = contrast[part == "frequency"]
        assert np.count_nonzero((sweep[1:] > 0) & (sweep[:-1] <= 0)) == 32
        assert np.count_nonzero(np.diff(np.sign(sweep[-1000:])) > 0) in (7, 8)

    def test_the_contrast_grows_linearly(self):
        contrast, part = chirp_contrast(np.arange(0, 32, 0.001))
        peaks = contrast[part == "contrast"].reshape(16, 500).max(1)
        np.testing.assert_allclose(peaks, (np.arange(16) * 0.5 + 0.125) / 8, atol=0.02)

    def test_frames_at_the_ends_of_parts_belong_to_the_next_one(self):
        for rate in (30, 60, 59.94, 7):
            _, part = chirp_contrast(np.arange(33 * 60) / rate)
            assert abs((part == "bright").sum() - 3 * rate) < 1


@pytest.mark.parametrize("probe", PROBES)
class TestRecordings:
    def test_only_the_test_of_a_recording_is_replaced(self, probe, cells):
        made = probe(probe.quick).load(cells)
        for name in ("train", "validation", "truth"):
            assert made[name].to_dataset().identical(cells[name].to_dataset())
        test = made["test"].to_dataset()
        again = simulate(cells_of(cells["truth"].to_dataset()), test["stimulus"].values)
        np.testing.assert_array_equal(test["rate"], again.rate)
        for dim in ("y", "x", "cell"):
            assert test[dim].identical(cells["test"][dim])

    def test_a_trial_is_grey_then_the_stimulus_then_grey(self, probe, cells):
        test = probe(probe.quick).load(cells)["test"].to_dataset()
        for part in segments(test):
            trial = test.isel(frame=part)
            before = trial["from_onset"] < -1e-9
            after = trial["from_onset"] > trial["duration"] - 1e-9
            assert before.sum() == after.sum() == 6
            assert not trial["stimulus"].values[before | after].any()
            assert trial["stimulus"].values[~(before | after)].any()
        assert len(np.unique(test["trial"])) == len(segments(test))

    def test_without_cells_there_is_a_photodiode(self, probe):
        made = probe(probe.quick | {"height": 6, "width": 7, "frame_rate": 50}).load()
        test = made["test"].to_dataset()
        assert test.attrs["frame_interval"] == 0.02
        mean = test["stimulus"].mean(("y", "x"))
        np.testing.assert_allclose(test["response"].sel(cell="photodiode"), mean, atol=1e-6)

    def test_frames_that_are_drawn_are_those_in_memory(self, probe, cells, monkeypatch):
        given = probe.quick | {"height": 6, "width": 7}
        held = probe(given).load()["test"]["stimulus"]
        known = probe(probe.quick).load(cells)
        monkeypatch.setattr("retinakit.simulation.trials.IN_MEMORY", 0)
        drawn = probe(given).load()["test"]["stimulus"]
        assert not drawn.variable._in_memory
        pickle.dumps(drawn.variable)
        np.testing.assert_array_equal(drawn[10:30], held[10:30])
        for part in blocks(drawn):
            np.testing.assert_array_equal(drawn[part].values, held[part].values)
        assert (
            probe(probe.quick).load(cells)["test"]["response"].identical(known["test"]["response"])
        )

    def test_other_cells_have_no_response_and_covariates_their_mean(self, probe):
        recording = small_recording(frames=200, covariates=True)
        test = probe(probe.quick).load(recording)["test"]
        assert test["response"].isnull().all()
        mean = recording["train"]["covariates"].mean("frame")
        np.testing.assert_allclose(test["covariates"][5], mean)

    def test_all_channels_show_the_same(self, probe):
        recording = small_recording(frames=200, truth=False)
        for name in ("train", "validation", "test"):
            split = recording[name].to_dataset()
            channels = xr.concat([split["stimulus"]] * 2, "channel")
            channels = channels.transpose("frame", "channel", "y", "x")
            recording[name] = xr.DataTree(split.assign(stimulus=channels))
        stimulus = probe(probe.quick).load(recording)["test"]["stimulus"]
        assert stimulus.sizes["channel"] == 2
        assert stimulus[:, 0].equals(stimulus[:, 1])

    def test_what_cannot_be_shown_says_why(self, probe, cells):
        with pytest.raises(UserError, match=r"make blank 0\.13 s or longer"):
            probe(probe.quick | {"blank": 0.05}).load(cells)
        with pytest.raises(UserError, match="leave out width, or data"):
            probe(probe.quick | {"width": 9}).load(cells)
        collapsed = TemporalCollapse({"lags": 5, "cell": 0}).load(cells)
        with pytest.raises(UserError, match="already filtered in time"):
            probe(probe.quick).load(collapsed)


class TestParameters:
    def test_gratings_have_their_parameters(self, cells):
        given = {"directions": [0, 225], "spatial_frequencies": [0.1, 0.2], "contrasts": [0.5]}
        test = Gratings(given | {"temporal_frequencies": [4]}).load(cells)["test"].to_dataset()
        first = test.isel(frame=[part.start for part in segments(test)])
        assert first["direction"].values.tolist() == [0, 0, 225, 225]
        assert first["orientation"].values.tolist() == [90, 90, 135, 135]
        np.testing.assert_allclose(first["speed"], [40, 20, 40, 20])
        assert test["spatial_frequency"].attrs["units"] == "cycle/check"

    def test_frequencies_that_alias_are_refused(self, cells):
        with pytest.raises(UserError, match=r"spatial_frequencies up to 0\.5"):
            Gratings({"spatial_frequencies": [0.6]}).load()
        with pytest.raises(UserError, match="16 Hz cannot be shown at 30 frames per second"):
            Gratings({"temporal_frequencies": [16]}).load(cells)
        with pytest.raises(UserError, match="20 Hz cannot be shown"):
            Chirp({"frequencies": [0, 20]}).load(cells)
        with pytest.raises(ValidationError, match="greater than 0"):
            MovingBars({"speeds": [0]})

    def test_cells_prefer_their_own_spot_of_their_own_sign(self, cells):
        given = {"radii": [0.5, 2.0], "centre": "cells", "lags": 5}
        test = Spots(given).load(cells)["test"].to_dataset()
        peak = test["rate"].groupby("trial").max("frame")
        first = test.isel(frame=[part.start for part in segments(test)])
        for cell in (0, 1):
            rate = peak.sel(cell=cell).values
            own = first["centred_on"].values == cell
            bright = first["contrast"].values > 0
            large = first["radius"].values > 1
            at = {"own": own & bright & large, "small": own & bright & ~large}
            at |= {"dark": own & ~bright & large, "other": ~own & bright & large}
            assert {name for name in at if rate[at[name]] < rate[at["own"]]} == set(at) - {"own"}

    def test_spots_say_what_they_need(self, cells):
        with pytest.raises(UserError, match="needs the recording of cells"):
            Spots({"centre": "cells"}).load()
        with pytest.raises(UserError, match="outside the field of 8 x 8"):
            Spots({"centre": [9, 2]}).load(cells)
        with pytest.raises(UserError, match="need a larger outer_radius"):
            Spots({"shapes": ["ring"], "outer_radius": 2}).load(cells)
        ring = Spots({"shapes": ["centre_surround"], "radii": [2], "contrasts": [1]}).load(cells)
        assert ring["test"]["stimulus"].min() == -1
        assert ring["test"]["stimulus"].max() == 1

    def test_a_chirp_names_its_parts(self, cells):
        test = Chirp().load(cells)["test"].to_dataset()
        bright = test["part"] == "bright"
        assert bright.sum() == 90
        assert (test["stimulus"][bright] == 1).all()


def test_tuning_is_measured_while_the_stimulus_is_shown(cells):
    model = SmallModel()
    model.fit(cells)
    data = Gratings({"directions": [0, 90], "temporal_frequencies": [3.0], "blank": 0.5}).load(
        cells
    )
    predicted = model.predict(data["test"].to_dataset())
    parts = shown_frames(data["test"].to_dataset())
    assert [(part.start, part.stop) for part in parts] == [(15, 45), (75, 105)]
    mean = Tuning({"parameter": "direction"}).run(model, data)["mean"]
    expected = np.stack([predicted[part].mean("frame") for part in parts], 1)
    np.testing.assert_allclose(mean, expected, rtol=1e-6)
    f1 = Tuning({"parameter": "direction", "response": "f1"}).run(model, data)["mean"]
    wave = np.exp(-2j * np.pi * 3 * np.arange(30) / 30) * 2 / 30
    expected = np.stack([np.abs(wave @ predicted[part].values) for part in parts], 1)
    np.testing.assert_allclose(f1, expected, rtol=1e-6)


def test_a_strip_of_a_full_field_is_its_course(cells):
    strip = FilmStrip().run(Chirp(Chirp.quick).load(cells))
    assert dict(strip["strip"].sizes) == {"trial": 1, "shown": 57, "y": 1, "x": 1}
    assert float(strip["from_start"][0, 0]) == 0


def test_a_pipeline_shows_probes_to_cells_and_alone(command, tmp_path):
    (tmp_path / "probes.yaml").write_text(
        """
name: probes
datasets:
  cells:
    plugin: subunit_rgc
    with: {frames: 500, validation_frames: 100, test_frames: 100, threshold: 0.5, lags: 5}
  alone: {plugin: gratings, with: {height: 5, directions: [0]}}
  shown: {plugin: gratings, data: cells, with: {directions: [0]}}
analyses:
  strip: {plugin: film_strip, data: [alone, shown]}
"""
    )
    ended = command("probes.yaml")
    assert ended.code == 0, ended.err
    (path,) = tmp_path.glob("runs/probes/*/analyses/strip.nc")
    with xr.open_datatree(path, engine="h5netcdf") as tree:
        assert tree["alone"].sizes["y"] == 5
        assert tree["shown"].sizes["y"] == 8
