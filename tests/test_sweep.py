"""Choosing among the points of a sweep."""

import numpy as np
import pytest
import xarray as xr
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from retinakit.contracts import UserError
from retinakit.report import chosen, number_axis
from retinakit_plugins.analyses.score import Score
from retinakit_plugins.analyses.sweep_curve import SweepCurve


def result():
    """Two models: one swept over two penalties, and one that was not."""
    random = np.random.default_rng(0)
    sizes = {"samples": [1, 2], "mask": [0.1, 0.2, 0.3], "weight": [1, 2], "cell": [0, 1, 2]}
    shape = [len(v) for v in sizes.values()]
    variables = {name: (list(sizes), random.random(shape)) for name in ("error", "score")}
    swept = xr.Dataset(variables, sizes, {"sweep": "samples,mask,weight"})
    other = swept.isel(mask=0, weight=0, drop=True).assign_attrs(sweep="samples")
    return xr.DataTree.from_dict({"/swept": swept, "/other": other})


@pytest.mark.parametrize("largest", [False, True])
def test_the_best_point_is_that_of_the_mean_over_cells(largest):
    before = result()
    after = chosen(before, ["mask", "weight"], "error", largest=largest)
    swept = before["swept"].to_dataset()
    for samples in (1, 2):
        errors = swept["error"].sel(samples=samples).mean("cell").values
        place = errors.argmax() if largest else errors.argmin()
        mask, weight = np.unravel_index(place, errors.shape)
        found = after["swept"].to_dataset().sel(samples=samples)
        expected = swept.sel(samples=samples).isel(mask=mask, weight=weight)
        np.testing.assert_array_equal(found["score"], expected["score"])
        assert float(found["best_mask"]) == float(expected["mask"])
        assert float(found["best_weight"]) == float(expected["weight"])
    assert after["swept"].attrs["sweep"] == "samples"
    xr.testing.assert_identical(after["other"].to_dataset(), before["other"].to_dataset())


def test_a_point_that_failed_is_not_chosen():
    before = result()
    swept = before["swept"].to_dataset()
    before["swept"] = xr.DataTree(swept.assign(error=swept["error"].where(swept["mask"] > 0.2)))
    after = chosen(before, ["mask"], "error")
    assert (after["swept/best_mask"] == 0.3).all()


def test_what_cannot_choose_is_named():
    with pytest.raises(UserError, match="not swept over 'mas'; did you mean 'mask'"):
        chosen(result(), ["mas"], "error")
    with pytest.raises(UserError, match="of 'swept' have no 'eror'; did you mean 'error'"):
        chosen(result(), ["mask"], "eror")


def test_a_curve_is_of_the_best_points_and_not_below_the_floor():
    options = {"scores": ["score"], "over": "samples", "spread": ["cell"], "floor": 0.5}
    curve = SweepCurve(options | {"best_over": ["mask", "weight"], "best_by": "error"})
    drawn = curve.run({"score": result()})
    best = chosen(result(), ["mask", "weight"], "error")
    for name in ("swept", "other"):
        expected = best[name]["score"].clip(min=0.5).mean("cell")
        np.testing.assert_allclose(drawn["mean"].sel(curve=name).values[0], expected)


@pytest.mark.parametrize(
    ("score", "expected"),
    [
        ([0.0, 0.4, 0.9], 10**2.8),  # 0.8 of the way from 100 to 1000
        ([0.9, 0.1, 1.0], 10.0),
        ([0.0, np.nan, 1.0], 10**2.6),
        ([0.0, 0.1, 0.2], np.nan),
    ],
)
def test_a_curve_tells_where_it_reaches_a_score(score, expected):
    """Klindt et al.'s experimental design: how many samples for 80 % of the variance."""
    coords = {"samples": [10, 100, 1000]}
    group = xr.Dataset({"fev": ("samples", score)}, coords, {"sweep": "samples"})
    level = group.drop_vars("samples").isel(samples=0).assign_attrs(sweep="")
    options = {"scores": ["fev"], "over": "samples", "reach": 0.8}
    curve, results = SweepCurve(options), xr.DataTree.from_dict({"/cnn": group, "/ln": level})
    result = curve.run({"score": results})
    reached = result["reached"].sel(score="fev")
    np.testing.assert_allclose(reached.sel(curve="cnn"), expected)
    assert np.isnan(reached.sel(curve="ln"))  # it was not swept over samples
    caption = curve.caption(xr.DataTree(result))
    assert ("cnn at" in caption) == np.isfinite(expected)


def test_no_two_of_many_models_look_alike():
    sizes = {"samples": [1.0, 2.0], "cell": [0]}
    swept = xr.Dataset(coords=sizes)
    for name in ("correlation", "bits_per_spike"):
        swept[name] = ("samples", "cell"), np.ones((2, 1))
    across = swept.isel(samples=0, drop=True)
    swept.attrs["sweep"] = "samples"
    models = {f"/swept_{i}": swept for i in range(12)}
    models |= {f"/level_{i}": across for i in range(12)}
    figure = Score({}).plot(xr.DataTree.from_dict(models))
    handles, labels = figure.axes[0].get_legend_handles_labels()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == labels
    looks = [(to_hex(h.get_color()), h.get_marker(), h.get_linestyle()) for h in handles]
    assert len(labels) == len(set(map(str, looks))) == 24


def test_the_ticks_are_the_values_of_every_model():
    models = {}
    for name, samples in (("ols", [256, 4096, 16384]), ("cnn", [64, 256])):
        group = xr.Dataset(coords={"samples": samples, "cell": [0]}, attrs={"sweep": "samples"})
        for score in ("correlation", "fev"):
            group[score] = ("samples", "cell"), np.ones((len(samples), 1))
        models[f"/{name}"] = group
    axis = Score({}).plot(xr.DataTree.from_dict(models)).axes[0]
    assert axis.get_xticks().tolist() == [64, 256, 4096, 16384]
    assert axis.get_xscale() == "log" and axis.get_xlabel() == "samples"


@pytest.mark.parametrize(("values", "turned"), [([1, 2, 4], 0), ([2**i for i in range(6, 15)], 90)])
def test_ticks_without_room_are_turned(values, turned):
    axis = Figure().subplots()
    number_axis(axis, "samples", np.array(values))
    assert [label.get_text() for label in axis.get_xticklabels()] == [str(v) for v in values]
    assert {label.get_rotation() for label in axis.get_xticklabels()} == {turned}
