"""Receptive fields of any size on screens of any size, their significance, and signed responses."""

import numpy as np
import pytest
import xarray as xr
from scipy.ndimage import gaussian_filter

from retinakit.contracts import make_recording, make_split
from retinakit.spikes import (
    ELLIPSE,
    analytic_noise,
    fit_ellipse,
    gaussian,
    receptive_field,
    response_field,
    shuffled_noise,
    sta,
)
from retinakit.spikes.smoothing import widths
from retinakit_plugins.analyses.sta import STA

COURSE = np.array([0, 0, 0.3, 0.8, 1, 0.6, 0.1, -0.3, -0.4, -0.2])
BIPHASIC = np.array([0, 1, -1, 0, 0])


def field(shape, peak=8.0, size=(60, 80), course=COURSE, surround=0.0, lag_window=1):
    """A Gaussian field (centre_y, centre_x, sd, sd, angle) in noise of deviation 1."""
    random = np.random.default_rng(3)
    y, x = map(np.arange, size)
    image = gaussian(y, x, [1, *shape])
    wide = [*shape[:2], 2 * shape[2], 2 * shape[3], shape[4]]
    image = image - surround * gaussian(y, x, [1, *wide])
    noise = random.standard_normal((len(course), *size))
    if lag_window > 1:
        window = np.ones(lag_window) / lag_window**0.5
        noise = np.apply_along_axis(np.convolve, 0, noise, window, "same")
    return xr.DataArray(noise + peak * np.multiply.outer(course, image), dims=("lag", "y", "x"))


def of_unit_variance(movie):
    """The noise of a field with independent normal values of variance 1."""
    count = len(widths(movie.sizes["y"], movie.sizes["x"]))
    return xr.Dataset(
        {
            "mean": 0.0,
            "deviation": ("width", np.ones(count)),
            "kurtosis": ("width", np.zeros(count)),
        }
    )


class TestWholeScreen:
    @pytest.mark.parametrize("lag_window", [1, 6])
    @pytest.mark.parametrize("peak", [2, 6, 12])
    def test_a_small_field_on_a_large_screen_is_found(self, peak, lag_window):
        movie = field([41, 150, 3, 3, 0], peak, (150, 200), lag_window=lag_window)
        found = receptive_field(movie)
        assert bool(found["found"]) and float(found["peak_z"]) > 4 * peak
        assert np.hypot(found["centre_y"] - 41, found["centre_x"] - 150) < 2
        assert 2 < float(found["sd_minor"]) <= float(found["sd_major"]) < 4.5
        unit = COURSE / np.linalg.norm(COURSE)
        assert float(found["temporal"].values @ unit) > (0.98 if peak > 2 else 0.9)

    def test_noise_has_no_receptive_field(self):
        found = receptive_field(field([41, 150, 3, 3, 0], 0, (150, 200), lag_window=6))
        assert not bool(found["found"]) and np.isnan(found["sd_major"])
        assert 5.5 < float(found["threshold"]) < 6 and "below" in found["reason"].item()

    def test_the_threshold_grows_with_the_tails_of_the_noise(self):
        movie = field([4, 8, 2, 1.5, 0.3], size=(10, 14))
        noise = of_unit_variance(movie)
        found = [
            float(receptive_field(movie, noise.assign(kurtosis=noise["kurtosis"] + k))["threshold"])
            for k in (0, 1e-12, 1e-6, 1e-4, 1.1e-4, 1e-2, 1)
        ]
        assert found == sorted(found) and found[4] < 1.01 * found[0] < found[6] / 1.3


SHAPES = {
    "few checks": {"shape": [20, 40, 0.7, 0.7, 0], "peak": 15},
    "a third of the screen": {"shape": [28, 42, 13, 10, 0.4], "peak": 4},
    "elongated": {"shape": [20, 40, 8, 2, 1.0]},
    "at the border": {"shape": [0, 40, 3, 3, 0]},
    "in a corner": {"shape": [58, 78, 3, 2, 0.2], "peak": 15},
    "OFF": {"shape": [20, 40, 3, 3, 0], "peak": -8},
    "biphasic": {"shape": [20, 40, 3, 3, 0], "course": BIPHASIC},
    "10 x 14": {"shape": [4, 8, 2, 1.5, 0.3], "size": (10, 14)},
    "8 x 8": {"shape": [3, 4, 1.2, 1.2, 0], "size": (8, 8)},
}


class TestShapes:
    @pytest.mark.parametrize("name", SHAPES)
    def test_the_outline_is_that_of_the_field(self, name):
        movie = field(**SHAPES[name])
        noise = of_unit_variance(movie) if "size" in SHAPES[name] else None
        found = receptive_field(movie, noise)
        y, x, major, minor, _ = SHAPES[name]["shape"]
        assert bool(found["found"]) and found["reason"].item() == ""
        assert np.hypot(found["centre_y"] - y, found["centre_x"] - x) < 0.3 + major / 8
        np.testing.assert_allclose([found["sd_major"], found["sd_minor"]], [major, minor], rtol=0.2)
        polarity = np.sign(SHAPES[name].get("peak", 8))
        course = SHAPES[name].get("course", COURSE)
        assert polarity * float(found["temporal"].values @ course) > 0.9 * np.linalg.norm(course)

    def test_the_outline_of_a_field_with_a_surround_is_around_its_centre(self):
        found = receptive_field(field([20, 40, 3, 3, 0], 20, surround=0.25))
        assert np.hypot(found["centre_y"] - 20, found["centre_x"] - 40) < 0.3
        assert 2 < float(found["sd_minor"]) <= float(found["sd_major"]) < 3
        assert float(found["spatial"].sel(y=20, x=47)) < 0

    def test_a_block_of_four_checks_has_an_outline(self):
        block = xr.DataArray(np.zeros((8, 10)), dims=("y", "x"))
        block[3:5, 4:6] = 1
        fitted = fit_ellipse(block)
        assert 0.4 < float(fitted["sd_minor"]) <= float(fitted["sd_major"]) < 0.7
        np.testing.assert_allclose([fitted["centre_y"], fitted["centre_x"]], [3.5, 4.5], atol=0.01)

    @pytest.mark.parametrize(("dim", "size"), [("x", (1, 20)), ("y", (20, 1)), ("x", (2, 30))])
    def test_a_bar_has_a_centre_and_a_width_along_its_side(self, dim, size):
        shape = [8, 0, 2, 2, 0] if dim == "y" else [0, 8, 2, 2, 0]
        movie = field(shape, size=size)
        found = receptive_field(movie, of_unit_variance(movie))
        assert float(found[f"centre_{dim}"]) == pytest.approx(8, abs=0.3)
        assert float(found["sd_major"]) == pytest.approx(2, rel=0.15) and found["found"]
        assert np.isnan(found["sd_minor"])

    def test_a_full_field_has_a_course_and_no_outline(self):
        movie = field([0, 0, 1, 1, 0], size=(1, 1))
        found = receptive_field(movie, of_unit_variance(movie))
        assert bool(found["found"]) and "too few" in found["reason"].item()
        assert float(found["temporal"].values @ COURSE) > 0.9 * np.linalg.norm(COURSE)

    def test_a_gaussian_at_its_bounds_is_refused_with_the_reason(self):
        flat = xr.DataArray(np.ones((20, 30)), dims=("y", "x"))
        one = flat.where((flat["y"] == 5) & (flat["x"] == 9), 0)
        images = xr.concat([flat, one, 0 * flat], "image")
        fitted = fit_ellipse(images)
        assert all(np.isnan(fitted[name]).all() for name in ELLIPSE)
        assert "wider" in fitted["reason"][0].item() and "narrow" in fitted["reason"][1].item()
        assert all(fitted["reason"].values)

    def test_the_outline_is_in_the_units_of_the_coordinates(self):
        movie = field([20, 40, 4, 2, 0.5], 30)
        scaled = movie.assign_coords(y=600 - 10.0 * np.arange(60), x=10.0 * np.arange(80))
        found, same = receptive_field(scaled), receptive_field(movie)
        assert float(found["centre_y"]) == pytest.approx(600 - 10 * float(same["centre_y"]))
        assert float(found["sd_major"]) == pytest.approx(10 * float(same["sd_major"]))
        assert float(found["angle"]) == pytest.approx(np.pi - float(same["angle"]))


def stimulus(kind, random, shape=(6000, 12, 16)):
    if kind == "held":  # each frame is shown twice
        return np.repeat(random.choice([-1, 1], (shape[0] // 2, *shape[1:])), 2, 0).astype(np.int8)
    if kind == "correlated":
        noise = gaussian_filter(random.standard_normal(shape), (2, 1.5, 1.5), mode="wrap")
        return noise.astype(np.float32)
    return (random.choice([-1, 1], shape) * (random.random(shape) < 0.02)).astype(np.int8)


def spikes(kind, random, shape=(6000, 60)):
    if kind == "few":
        return (random.random(shape) < 30 / shape[0]).astype(np.uint8)
    bursts = random.random(shape) < 0.03
    return sum(np.roll(bursts, lag, 0) * (3 - lag) for lag in range(3)).astype(np.uint8)


@pytest.mark.parametrize("shown", ["held", "correlated", "sparse"])
@pytest.mark.parametrize("fired", ["bursts", "few"])
def test_noise_is_found_as_often_as_said_for_any_stimulus_and_number_of_spikes(shown, fired):
    random = np.random.default_rng(0)
    split = make_split(stimulus(shown, random), spikes(fired, random), frame_interval=0.1)
    average, noise = sta(split, 8)["sta"], analytic_noise([split], 8)
    spread = ((average - noise["mean"]) ** 2).mean() / (noise["deviation"][:, 0] ** 2).mean()
    assert float(spread) == pytest.approx(1, abs=0.1)
    # Of 60 cells 6 ± 2.3 are expected.
    assert float(receptive_field(average, noise, false_positive=0.1)["found"].mean()) < 0.22


def trace(units="z-score", **options):
    """An ON cell's calcium trace under a checkerboard."""
    random = np.random.default_rng(0)
    checks = random.choice(np.array([-1, 1], np.int8), (3000, 8, 10))
    drive = np.roll(checks[:, 3:5, 4:6].mean((1, 2)), 1) + 0.5 * random.standard_normal(3000)
    return make_split(checks, drive[:, None], frame_interval=0.1, units=units)


class TestSignedResponses:
    def test_the_average_does_not_depend_on_the_baseline(self):
        split = trace()
        averages = [
            sta(split.assign(response=split["response"] + baseline), 4)["sta"].isel(cell=0)
            for baseline in (-1.0, -0.01, 0.01, 1.0)
        ]
        for average in averages[1:]:
            np.testing.assert_allclose(average, averages[0], atol=1e-5)
        assert 0.2 < float(averages[0].max()) < 1
        assert averages[0].argmax(...)["lag"] == 1

    def test_it_is_the_covariance_over_the_mean_absolute_deviation(self):
        split = trace()
        response = split["response"].values[3:, 0]
        deviation = response - response.mean()
        shown = split["stimulus"].values[2:-1]  # at lag 1
        expected = np.tensordot(deviation, shown, 1) / abs(deviation).sum()
        average = sta(split, 4)
        np.testing.assert_allclose(average["sta"].sel(lag=1).isel(cell=0), expected, atol=1e-6)
        covariance = np.tensordot(deviation, shown, 1) / len(deviation)
        found = response_field(split, 4).sel(lag=1).isel(cell=0)
        np.testing.assert_allclose(found, covariance, atol=1e-6)

    def test_a_cell_does_not_depend_on_the_signs_of_another(self):
        split = trace()
        counts = np.random.default_rng(1).poisson(1.0, 3000)
        both = np.stack([counts, split["response"].values[:, 0]], 1)
        pair = make_split(split["stimulus"].values, both, frame_interval=0.1, units="events")
        alone = make_split(split["stimulus"].values, counts[:, None], frame_interval=0.1)
        np.testing.assert_allclose(sta(pair, 4)["sta"][0], sta(alone, 4)["sta"][0], atol=1e-6)

    def test_the_table_and_caption_say_spikes_only_of_spikes(self):
        analysis = STA({"lags": 4})
        recording = make_recording(dict.fromkeys(("train", "validation", "test"), trace()))
        result = xr.DataTree.from_dict({"calcium": analysis.run(recording)})
        table = analysis.table(result)
        assert "weight" in table and "spikes" not in table
        assert "Response-triggered" in analysis.caption(result)
        assert result["calcium"]["found"].all()


def test_the_figure_of_a_large_screen_shows_the_part_around_the_field():
    random = np.random.default_rng(0)
    shown = random.choice(np.array([-1, 1], np.int8), (3000, 60, 80))
    drive = np.tensordot(shown, gaussian(np.arange(60), np.arange(80), [1, 40, 20, 2, 2, 0]))
    split = make_split(
        shown, random.poisson(np.exp(0.5 * drive - 1)).clip(0, 9)[:, None], frame_interval=0.1
    )
    analysis = STA({"lags": 3})
    recording = make_recording(dict.fromkeys(("train", "validation", "test"), split))
    result = xr.DataTree.from_dict({"screen": analysis.run(recording)})
    axis = analysis.plot(result).axes[0]
    assert axis.get_xticks()[0] > 5 and axis.get_xticks()[-1] < 40
    assert axis.get_yticks()[0] > 25 and len(axis.patches) == 1


@pytest.mark.parametrize("noise", ["analytic", "shuffled"])
@pytest.mark.parametrize("screen", [(12, 14), (100, 100)])
def test_checks_that_never_change_are_no_receptive_field(noise, screen):
    random = np.random.default_rng(0)
    stimulus = random.choice([-1.0, 1.0], (2000, *screen)).astype(np.float32)
    stimulus[:, 5:7, 9] = 1  # such as a fixation point
    stimulus[:, :2] = -1  # and a border
    drive = stimulus[:, 7, 4] + stimulus[:, 7, 5] + stimulus[:, 8, 4]
    rate = np.stack([np.exp(0.6 * drive - 1), np.full(2000, 0.5)], 1)
    split = make_split(stimulus, random.poisson(rate), frame_interval=0.1)
    of = (
        analytic_noise([split], 2)
        if noise == "analytic"
        else shuffled_noise([split], 2, 0, draws=5, seed=0)
    )
    found = receptive_field(sta(split, 2)["sta"], of)
    assert found["found"].values.tolist() == [True, False]
    assert (int(found["peak_y"][0]), int(found["peak_x"][0])) in [(7, 4), (7, 5), (8, 4)]
    assert abs(found["spatial"].values[:, 5:7, 9]).max() < 0.1
    if noise == "analytic":  # checks that never change do not reduce the variance of the others
        r = split["response"].isel(frame=slice(1, None)).values
        white = (r**2).sum(0) ** 0.5 / r.sum(0)
        np.testing.assert_allclose(of["deviation"][:, 0], white, rtol=0.02)
