"""Less data and noisier data, and what they do to a model."""

import numpy as np
import pytest
import xarray as xr
from scipy.special import xlogy
from xarray.core import indexing

from retinakit.contracts import UserError
from retinakit.pipeline.combine import combine
from retinakit.report import curves
from retinakit.scores import correlation
from retinakit.spikes import sta
from retinakit.testing import SmallModel, small_recording
from retinakit_plugins.analyses.data_efficiency import DataEfficiency, NoiseRobustness
from retinakit_plugins.analyses.sweep_curve import SweepCurve
from retinakit_plugins.datasets import noisy_stimulus
from retinakit_plugins.datasets.fraction import Fraction
from retinakit_plugins.datasets.noisy_stimulus import NoisyStimulus


@pytest.fixture(scope="module")
def recording():
    return small_recording(frames=2001, cells=2)


def noisy(recording, **options):
    return NoisyStimulus(options).load(recording)["train"]["stimulus"].values


class TestFraction:
    def test_the_first_frames_are_kept_and_all_else_is_as_it_was(self, recording):
        part = Fraction({"fraction": 0.301}).load(recording)
        # int(0.301 * 2001) = 602
        xr.testing.assert_identical(
            part["train"].to_dataset(), recording["train"].to_dataset().isel(frame=slice(602))
        )
        for name in ("validation", "test", "truth"):
            assert part[name].to_dataset().identical(recording[name].to_dataset())

    def test_what_is_left_is_said(self, recording):
        kept = Fraction({"fraction": 0.5}).load(recording)["kept"]
        assert int(kept["frames"]) == 1000
        expected = recording["train"]["response"].values[:1000].sum(0)
        np.testing.assert_array_equal(kept["spikes"], expected)

    def test_a_second_segment_stays_one(self, recording):
        train = Fraction({"fraction": 0.75}).load(recording)["train"]
        assert np.unique(train["segment"]).tolist() == [0, 1]

    def test_a_cell_without_a_spike_is_named(self, recording):
        silent = recording.copy(deep=True)
        silent["train"]["response"][:300, 1] = 0
        with pytest.raises(UserError, match="leaves 100 training frames, in which cell 1 has no"):
            Fraction({"fraction": 0.05}).load(silent)

    def test_no_frame_is_too_few(self, recording):
        with pytest.raises(UserError, match="leaves 0 training frames of 2001"):
            Fraction({"fraction": 1e-4}).load(recording)


class TestNoise:
    def test_just_the_fraction_of_images_is_replaced_by_those_of_other_frames(self, recording):
        whole = recording["train"]["stimulus"].values
        changed = (noisy(recording, fraction=0.25) != whole).any((1, 2))
        assert changed.sum() == round(0.25 * 2001)
        shown = {image.tobytes() for image in noisy(recording, fraction=1)}
        assert shown <= {image.tobytes() for image in whole}
        assert (noisy(recording, fraction=1) != whole).any((1, 2)).all()

    def test_what_is_noise_at_one_fraction_is_the_same_noise_at_a_larger_one(self, recording):
        whole = recording["train"]["stimulus"].values
        little, much = (noisy(recording, fraction=part) for part in (0.2, 0.6))
        changed = (little != whole).any((1, 2))
        np.testing.assert_array_equal(little[changed], much[changed])

    @pytest.mark.parametrize("noise", ["images", "pixels"])
    def test_responses_and_what_is_held_out_are_as_they_were(self, recording, noise):
        result = NoisyStimulus({"noise": noise, "fraction": 0.7}).load(recording)
        assert result["train"]["response"].identical(recording["train"]["response"])
        for name in ("validation", "test", "truth"):
            assert result[name].to_dataset().identical(recording[name].to_dataset())
        assert result["train"]["stimulus"].dtype == np.int8

    @pytest.mark.parametrize("noise", ["images", "pixels"])
    def test_without_noise_nothing_changes(self, recording, noise):
        clean = recording["train"]["stimulus"].values
        np.testing.assert_array_equal(noisy(recording, noise=noise, fraction=0), clean)

    def test_shuffled_pixels_stay_in_their_image_and_the_fraction_is_shuffled(self):
        images = np.random.default_rng(0).permuted(np.tile(np.arange(100), (500, 1)), axis=1)
        recording = small_recording(frames=500, size=10)
        dims = ("frame", "y", "x")
        recording["train"]["stimulus"] = xr.Variable(dims, images.reshape(500, 10, 10))
        shuffled = noisy(recording, noise="pixels", fraction=0.3).reshape(500, 100)
        np.testing.assert_array_equal(np.sort(shuffled), np.sort(images))
        # Of 30 shuffled pixels, one stays where it was on average.
        moved = (shuffled != images).sum(1)
        assert moved.max() <= 30 and moved.mean() == pytest.approx(29, abs=0.2)

    def test_channels_of_a_pixel_stay_together(self):
        recording = small_recording(frames=400)
        for name in ("train", "validation", "test"):
            split = recording[name].to_dataset()
            both = xr.concat([split["stimulus"], -split["stimulus"]], "channel")
            both = both.transpose("frame", "channel", "y", "x")
            recording[name] = xr.DataTree(split.assign(stimulus=both))
        shuffled = noisy(recording, noise="pixels", fraction=0.8)
        np.testing.assert_array_equal(shuffled[:, 0], -shuffled[:, 1])

    def test_the_average_shrinks_with_the_images_that_are_left(self):
        recording = small_recording(frames=60_000, cells=1, lags=3)
        whole = sta(recording["train"].to_dataset(), 3)["sta"]
        for part in (0.4, 1.0):
            result = NoisyStimulus({"fraction": part}).load(recording)
            found = sta(result["train"].to_dataset(), 3)["sta"]
            spikes = float(recording["train"]["response"].sum())
            np.testing.assert_allclose(found, (1 - part) * whole, atol=5 / np.sqrt(spikes))

    def test_the_average_of_shuffled_pixels_is_its_expectation(self):
        recording = small_recording(frames=60_000, cells=1, lags=1)
        whole = sta(recording["train"].to_dataset(), 1)["sta"].values
        pixels, chosen = whole.size, round(0.4 * whole.size)
        others = (whole.sum() - whole) / (pixels - 1)
        within = whole / chosen + (1 - 1 / chosen) * others
        expected = (1 - chosen / pixels) * whole + chosen / pixels * within
        result = NoisyStimulus({"fraction": 0.4, "noise": "pixels"}).load(recording)
        found = sta(result["train"].to_dataset(), 1)["sta"]
        spikes = float(recording["train"]["response"].sum())
        np.testing.assert_allclose(found, expected, atol=5 / np.sqrt(spikes))

    def test_a_stimulus_that_is_too_large_to_hold_is_read_where_it_is_wanted(
        self, recording, monkeypatch
    ):
        held = noisy(recording, fraction=0.5)
        monkeypatch.setattr(noisy_stimulus, "HELD", 0)
        stimulus = recording["train"]["stimulus"].variable
        lazy = recording.copy()
        lazy["train"]["stimulus"] = xr.Variable(
            stimulus.dims,
            indexing.LazilyIndexedArray(indexing.NumpyIndexingAdapter(stimulus.values)),
            stimulus.attrs,
        )
        images = NoisyStimulus({"fraction": 0.5})._images(lazy["train"]["stimulus"])
        assert not images._in_memory
        np.testing.assert_array_equal(images.values, held)


def swept(values, dims, **coords):
    """A combined result of one model, `score` swept over all of its dimensions but `cell`."""
    group = xr.Dataset({"score": (dims, np.asarray(values, float))}, coords)
    return group.assign_attrs(sweep=",".join(dim for dim in dims if dim != "cell"))


class TestCurves:
    def test_a_curve_is_mean_and_deviation_over_seeds(self):
        values = np.random.default_rng(0).standard_normal((2, 3, 10))
        group = swept(
            values, ("layers", "filters", "seed"), layers=[1, 2], filters=[1, 2, 4], seed=range(10)
        )
        found = curves(xr.DataTree.from_dict({"/cnn": group}), "score", "filters")
        assert found["curve"].values.tolist() == ["layers 1", "layers 2"]
        np.testing.assert_allclose(found["mean"], values.mean(-1))
        np.testing.assert_allclose(found["deviation"], values.std(-1, ddof=1))
        assert (found["number"] == 10).all() and found["swept"].all()

    def test_missing_fits_are_left_out(self):
        values = [[1.0, 3.0, np.nan], [np.nan, 5.0, np.nan], [np.nan, np.nan, np.nan]]
        group = swept(values, ("filters", "seed"), filters=[1, 2, 4], seed=[0, 1, 2])
        found = curves(xr.DataTree.from_dict({"/cnn": group}), "score", "filters").isel(curve=0)
        np.testing.assert_allclose(found["mean"], [2, 5, np.nan])
        np.testing.assert_allclose(found["deviation"], [np.sqrt(2), np.nan, np.nan])
        assert found["number"].values.tolist() == [2, 1, 0]

    def test_a_model_that_was_not_swept_is_a_level_and_another_has_its_own_points(self):
        tree = xr.DataTree.from_dict(
            {
                "/cnn": swept([[1, 2]], ("cell", "filters"), cell=[7], filters=[1, 4]),
                "/wide": swept([[5]], ("cell", "filters"), cell=[7], filters=[8]),
                "/ln": swept([0.5], ("cell",), cell=[7]),
            }
        )
        found = curves(tree, "score", "filters")
        assert found["filters"].values.tolist() == [1, 4, 8]
        np.testing.assert_allclose(
            found["mean"], [[1, 2, np.nan], [np.nan, np.nan, 5], [0.5, 0.5, 0.5]]
        )
        assert found["swept"].values.tolist() == [True, True, False]
        assert found["curve"].values.tolist() == ["cnn", "wide", "ln"]

    def test_what_is_not_there_is_said(self):
        tree = xr.DataTree.from_dict({"/cnn": swept([1, 2], ("filters",), filters=[1, 2])})
        with pytest.raises(UserError, match="no 'skore'; did you mean 'score'"):
            curves(tree, "skore", "filters")
        with pytest.raises(UserError, match="not swept over 'filter'; did you mean 'filters'"):
            curves(tree, "score", "filter")


class TestSweepCurve:
    def test_several_scores_of_several_results_are_put_together(self):
        first = swept([[1, 3], [2, 6]], ("filters", "seed"), filters=[1, 2], seed=[0, 1])
        second = first.assign(score=first["score"] + 10, other=-first["score"])
        results = {
            "early": xr.DataTree.from_dict({"/cnn": first}),
            "late": xr.DataTree.from_dict({"/cnn": second}),
        }
        found = SweepCurve({"scores": ["score", "other"]}).run(results)
        assert found.attrs["over"] == "filters"
        mean = found["mean"]
        np.testing.assert_allclose(mean.sel(score="score", curve="cnn (early)"), [2, 4])
        np.testing.assert_allclose(mean.sel(score="score", curve="cnn (late)"), [12, 14])
        np.testing.assert_allclose(mean.sel(score="other", curve="cnn (late)"), [-2, -4])
        assert int(found["number"].sel(score="other", curve="cnn (early)").sum()) == 0
        table = SweepCurve({"scores": ["score", "other"]}).table(xr.DataTree(found))
        assert len(table) == 6

    def test_without_a_number_to_draw_against_it_says_so(self):
        named = swept([1, 2], ("start",), start=["patch", "normal"])
        with pytest.raises(UserError, match="swept over an option with numbers"):
            SweepCurve({"scores": ["score"]}).run({"score": xr.DataTree.from_dict({"/a": named})})


def fitted(recording):
    model = SmallModel()
    model.fit(recording)
    return model


class TestDataEfficiency:
    def test_the_numbers_are_those_of_the_recording_that_was_fitted(self, recording):
        part = Fraction({"fraction": 0.4}).load(recording)
        model = fitted(part)
        result = DataEfficiency({"frames": 50}).run(model, part)
        assert int(result["frames"]) == 800
        predicted, known = {}, {}
        for name in ("train", "validation", "test"):
            predicted[name] = model.predict(part[name])
            known[name] = predicted[name].notnull().all("cell").values
        counts = part["train"]["response"].values
        np.testing.assert_array_equal(result["spikes"], counts[known["train"]].sum(0))
        for name in ("train", "validation"):
            p = predicted[name].values[known[name]]
            y = part[name]["response"].values[known[name]]
            loss = (p - xlogy(y, p)).mean(0)
            np.testing.assert_allclose(result[f"{name}_loss"], loss, rtol=1e-9)
        xr.testing.assert_allclose(
            result["correlation_rate"].drop_vars("time", errors="ignore"),
            correlation(predicted["test"], part["test"]["rate"]),
        )
        shown = np.flatnonzero(known["test"])[:50]
        np.testing.assert_array_equal(result["frame"], shown)
        np.testing.assert_allclose(result["rate_true"], part["test"]["rate"].values[shown])

    def test_the_fields_are_those_of_the_cell_and_of_the_model(self):
        recording = small_recording(frames=40_000, cells=1)
        result = DataEfficiency({}).run(fitted(recording), recording)
        true = recording["truth"]["subunit_weight"].values.sum((0, 1))
        for name in ("data", "model"):
            field = result[f"field_{name}"].values[0]
            cosine = (field * true).sum() / np.linalg.norm(field) / np.linalg.norm(true)
            assert cosine > 0.95

    @pytest.mark.parametrize(
        ("analysis", "plugin", "parts", "rises"),
        [
            (DataEfficiency, Fraction, [0.01, 0.1, 1.0], True),
            (NoiseRobustness, NoisyStimulus, [0.0, 0.6, 1.0], False),
        ],
    )
    def test_more_data_is_better_and_more_noise_is_worse(self, analysis, plugin, parts, rises):
        recording = small_recording(frames=20_000, cells=1)
        points = []
        for part in parts:
            data = plugin({"fraction": part}).load(recording)
            points.append(((("fraction", part),), analysis({}).run(fitted(data), data)))
        tree = xr.DataTree.from_dict({"/small": combine(points)})
        found = curves(tree, "correlation_rate", "fraction")["mean"].isel(curve=0).values
        assert (np.diff(found if rises else found[::-1]) > 0.1).all()
        if not rises:
            assert abs(found[-1]) < 0.15
        assert analysis({}).plot(tree).subfigs
        assert analysis({}).table(tree)["fraction"].tolist() == parts


def test_a_pipeline_draws_curves_of_a_sweep(command, tmp_path):
    (tmp_path / "parts.yaml").write_text(
        """
name: parts
datasets:
  cell:
    plugin: subunit_rgc
    with: {frames: 2000, validation_frames: 400, test_frames: 400, threshold: 0.5}
  part: {plugin: fraction, data: cell, sweep: {fraction: [0.3, 1]}}
models:
  ln: {plugin: ln, data: part, with: {lags: 10}, sweep: {seed: [0, 1]}}
analyses:
  efficiency: {plugin: data_efficiency, models: [ln], with: {frames: 50}}
  curve: {plugin: sweep_curve, results: [efficiency]}
"""
    )
    ended = command("parts.yaml")
    assert ended.code == 0, ended.err
    (folder,) = tmp_path.glob("runs/parts/*/analyses")
    with xr.open_datatree(folder / "efficiency.nc", engine="h5netcdf") as tree:
        frames = tree["ln"]["frames"].sel(seed=0).values.tolist()
        by_fit = tree["ln"]["correlation"].isel(cell=0).load()
    assert frames == [600, 2000]
    with xr.open_dataset(folder / "curve.nc", engine="h5netcdf") as curve:
        mean = curve["mean"].isel(score=0, curve=0).load()
        assert curve["number"].values.ravel().tolist() == [2, 2]
    xr.testing.assert_allclose(
        mean.drop_vars(["score", "curve", "long_name"]), by_fit.mean("seed").drop_vars("cell")
    )
