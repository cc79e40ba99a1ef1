"""Lesions and substitutions of units, and accuracy against a parameter of the trials."""

from itertools import combinations
from math import comb
from typing import Any, Self

import numpy as np
import pytest
import xarray as xr
from pydantic import ValidationError
from scipy.stats import binomtest, norm

from retinakit.contracts import Model, UserError, coordinates_of, make_recording, make_split
from retinakit.pipeline.combine import combine
from retinakit.scores import accuracy, binomial_interval, is_task
from retinakit_plugins.analyses.lesion import Lesion
from retinakit_plugins.analyses.psychometric import Psychometric, Substitution
from retinakit_plugins.analyses.score import Score

CHECKS = 4


class Circuit(Model):
    """Three bipolar units see a check each; two ganglion units are their own class each.

    Ganglion unit 0 adds bipolar units 0 and 2, ganglion unit 1 takes unit 1. The amacrine unit
    inhibits both by a tenth of bipolar unit 0. Units are silent where `gain` is 0, and have the
    output of another unit by `source`.
    """

    lags = 2
    sizes = (("bipolar", 3), ("amacrine", 1), ("ganglion", 2))

    def fit(self, recording: xr.DataTree, **_: Any) -> xr.Dataset:
        self.field = coordinates_of(recording["train"].to_dataset(), self.lags)
        self.gain = {layer: np.ones(size) for layer, size in self.sizes}
        self.source = {layer: np.arange(size) for layer, size in self.sizes}
        return xr.Dataset()

    def layers(self) -> dict[str, str]:
        return {layer: "type" for layer, _ in self.sizes}

    def outputs(self, split: xr.Dataset) -> dict[str, Any]:
        def output(layer: str, values: Any) -> Any:
            return (values * self.gain[layer])[:, self.source[layer]]

        seen = np.maximum(split["stimulus"].values[:, 0, :3].astype(float), 0)
        bipolar = output("bipolar", seen)
        amacrine = output("amacrine", -0.1 * bipolar[:, :1])
        drive = np.stack([bipolar[:, 0] + bipolar[:, 2], bipolar[:, 1]], 1)
        ganglion = output("ganglion", np.maximum(drive + amacrine, 0))
        return {"bipolar": bipolar, "amacrine": amacrine, "ganglion": ganglion}

    def respond(self, split: xr.Dataset) -> Any:
        return self.outputs(split)["ganglion"]

    def activity(self, split: Any, layer: str) -> xr.DataArray:
        self.check_layer(layer)
        split = self.prepare(split)
        return self.label(self.outputs(split)[layer], split, ("frame", "type"))

    def _copy(self) -> Self:
        other = type(self)()
        other.restore(self.state())
        return other

    def without(self, layer: str, units: Any) -> Self:
        self.check_units(layer, units, dict(self.sizes).get(layer, 0))
        other = self._copy()
        other.gain[layer][list(units)] = 0
        return other

    def substituted(self, layer: str, unit: int, by: int) -> Self:
        self.check_units(layer, [unit, by], dict(self.sizes).get(layer, 0))
        other = self._copy()
        other.source[layer][unit] = other.source[layer][by]
        return other

    def parameters(self) -> xr.Dataset:
        return self.field

    def state(self) -> xr.Dataset:
        named = {
            f"{n}_{layer}": getattr(self, n)[layer]
            for n in ("gain", "source")
            for layer, _ in self.sizes
        }
        return self.field.assign({name: (f"of_{name}", values) for name, values in named.items()})

    def restore(self, state: xr.Dataset) -> None:
        self.field = state.drop_vars(list(state.data_vars))
        for part in ("gain", "source"):
            setattr(
                self,
                part,
                {layer: state[f"{part}_{layer}"].values.copy() for layer, _ in self.sizes},
            )


def task(trials: int = 60, levels: Any = (0.0, 0.2, 0.4), correct: Any = None) -> xr.DataTree:
    """Trials of three frames; the class is the brighter of the first two checks.

    The parameter `difference` is how much brighter it is, and `brighter` which of them. With
    `correct`, the class is that with a probability `correct(difference)` only.
    """
    random = np.random.default_rng(0)
    brighter = chosen = random.integers(0, 2, trials)
    difference = random.choice(levels, trials)
    if correct is not None:
        chosen = np.where(random.random(trials) < correct(difference), brighter, 1 - brighter)
    stimulus = np.zeros((trials, 3, 1, CHECKS))
    stimulus[:, :, 0, :2] = 0.5
    stimulus[np.arange(trials), :, 0, brighter] += difference[:, None]
    response = np.full((trials, 3, 2), np.nan)
    response[:, 2] = np.eye(2)[chosen]
    split = make_split(
        stimulus.reshape(-1, 1, CHECKS),
        response.reshape(-1, 2),
        frame_interval=0.02,
        segment=np.repeat(np.arange(trials), 3),
        units="decision",
        trial={"difference": np.repeat(difference, 3), "brighter": np.repeat(brighter, 3)},
    )
    return make_recording({"train": split, "validation": split, "test": split})


@pytest.fixture
def circuit() -> tuple[Circuit, xr.DataTree]:
    model, recording = Circuit(), task()
    model.fit(recording)
    return model, recording


def test_a_decision_is_one_class_of_several():
    response = task()["test"]["response"]
    assert is_task(response)
    assert not is_task(response.isel(cell=[0]))
    assert not is_task(response.where(response != 1, 2.0))
    guess = xr.zeros_like(response)  # all classes alike
    assert float(accuracy(guess, response)) == 0.5


def test_the_interval_of_a_fraction_is_wilsons():
    for hits, trials in ((0, 5), (7, 9), (100, 100)):
        expected = binomtest(hits, trials).proportion_ci(method="wilson")
        np.testing.assert_allclose(binomial_interval(hits / trials, trials), expected, atol=1e-12)


def test_each_unit_has_the_accuracy_without_it(circuit):
    model, recording = circuit
    result = Lesion({}).run(model, recording)
    test = recording["test"].to_dataset()
    assert result["lesion"].values.tolist() == [
        *(f"bipolar {unit}" for unit in range(3)),
        "amacrine 0",
        "ganglion 0",
        "ganglion 1",
    ]
    for label, score in zip(result["lesion"].values, result["score"].values, strict=True):
        layer, unit = label.split()
        assert score == accuracy(model.without(layer, [int(unit)]).predict(test), test["response"])
    assert float(result["intact"]) == accuracy(model.predict(test), test["response"])
    by_label = result["drop"].to_series()
    assert (by_label[["bipolar 2", "amacrine 0"]] == 0).all()  # both classes are inhibited alike
    assert (by_label[["bipolar 0", "bipolar 1", "ganglion 0", "ganglion 1"]] > 0.15).all()


def test_kept_units_are_the_complement_of_the_silenced_ones(circuit):
    model, recording = circuit
    kept, silenced = (
        Lesion(options).run(model, recording) for options in ({"keep": 4}, {"silence": 2})
    )
    assert kept.sizes["lesion"] == silenced.sizes["lesion"] == comb(6, 4)
    rows = {
        tuple(1 - row): score
        for row, score in zip(silenced["chosen"].values, silenced["score"].values, strict=True)
    }
    for row, score in zip(kept["chosen"].values, kept["score"].values, strict=True):
        assert score == rows[tuple(row)]
    best = kept["lesion"].values[kept["score"].values.argmax()]
    assert best == "bipolar 0, 1 · ganglion 0, 1"


def test_numbers_in_each_layer_restrict_the_combinations(circuit):
    model, recording = circuit
    options = {"keep": {"bipolar": 2, "ganglion": 2}}
    result = Lesion(options).run(model, recording)  # the amacrine unit is not touched
    pairs = [f"bipolar {a}, {b} · ganglion 0, 1" for a, b in combinations(range(3), 2)]
    assert result["lesion"].values.tolist() == pairs
    assert float(result["score"].sel(lesion=pairs[0])) == float(result["intact"])


@pytest.mark.parametrize("silence", [1, {"bipolar": 1, "ganglion": 1}, 3])
def test_lesions_of_a_third_partys_model_are_drawn(circuit, silence):
    analysis = Lesion({"silence": silence})
    swept = combine([((("seed", seed),), analysis.run(*circuit)) for seed in (0, 1)])
    result = xr.DataTree.from_dict({"/circuit": swept})
    analysis.plot(result).draw_without_rendering()
    assert "accuracy" in analysis.caption(result).lower()
    table = analysis.table(result)
    assert list(table.columns[:3]) == ["model", "seed", "silenced"]
    assert table["drop"].iloc[0] == table["drop"].max()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": ["horizontal"]}, "has no layer 'horizontal'"),
        ({"keep": 7}, "7 units cannot be chosen from the 6 of bipolar and amacrine and ganglion"),
        ({"silence": 3, "most": 19}, "there are 20 combinations"),
        ({"score": "bits_per_spike", "split": "train"}, ""),
    ],
)
def test_what_cannot_be_chosen_is_refused(circuit, options, message):
    model, recording = circuit
    if not message:
        assert Lesion(options).run(model, recording)["score"].dims == ("lesion", "cell")
        return
    with pytest.raises(UserError, match=message):
        Lesion(options).run(model, recording)


def test_spikes_are_scored_by_correlation(network, recording_of):
    kernels = np.random.default_rng(0).standard_normal((3, 2, 5, 5)) / 3
    model = network(kernels)
    data = recording_of(model, frames=50, repeats=3)
    result = Lesion({}).run(model, data)
    test = data["test"].to_dataset()
    predicted = model.without("layer1", [1]).predict(test).values[1:, 0]
    mean = test["response"].values.mean(0)[1:, 0]
    expected = np.corrcoef(predicted, mean)[0, 1]
    np.testing.assert_allclose(result["score"].isel(lesion=1, cell=0), expected, atol=1e-6)


def drawn(analysis, result):
    """Draws a result as the report does, and returns the table."""
    tree = xr.DataTree.from_dict({"/circuit": combine([((), result)])})
    analysis.plot(tree).draw_without_rendering()
    assert analysis.caption(tree)
    return analysis.table(tree)


def test_accuracy_rises_with_the_parameter_and_falls_for_the_class_of_a_silent_unit(circuit):
    blind = {"left blind": {"keep": {"bipolar": [1, 2]}}}
    options = {"parameter": "difference", "split_by": "brighter", "variants": blind, "reach": 0.9}
    analysis = Psychometric(options)
    result = analysis.run(*circuit)
    accuracy = result["accuracy"].transpose("variant", "brighter", "difference")
    intact, left_blind = accuracy.values  # with no difference, both classes are as likely
    np.testing.assert_array_equal(intact, [[0.5, 1, 1]] * 2)
    np.testing.assert_array_equal(left_blind, [[0, 0, 0], [1, 1, 1]])
    assert int(result["trials"].isel(variant=0).sum()) == 60
    low, high = binomial_interval(accuracy, result["trials"].transpose(*accuracy.dims))
    np.testing.assert_allclose(result["low"], low)
    np.testing.assert_allclose(result["high"], high)
    reached = result["reached"].transpose("variant", "brighter").values
    np.testing.assert_array_equal(reached, [[0.2, 0.2], [np.nan, 0]])
    assert len(drawn(analysis, result)) == 4


def test_parameters_of_text_keep_their_order(circuit):
    model, recording = circuit
    test = recording["test"].to_dataset()
    names = np.where(test["brighter"].values == test["brighter"].values[0], "z", "a")
    named = recording.assign({"test": xr.DataTree(test.assign_coords(side=("frame", names)))})
    analysis = Psychometric({"parameter": "side", "select": {"difference": 0.4}})
    result = analysis.run(model, named)
    assert result["side"].values.tolist() == ["z", "a"]
    assert (result["accuracy"] == 1).all()
    drawn(analysis, result)


def test_below_a_value_one_minus_accuracy_is_shown(circuit):
    options = {"parameter": "difference", "flip_below": 0.3}
    result = Psychometric(options).run(*circuit)
    np.testing.assert_array_equal(result["accuracy"].isel(variant=0), [0.5, 0, 1])


def test_mean_predictions_of_decisions_are_probabilities(circuit):
    analysis = Psychometric({"parameter": "difference", "response": "mean"})
    result = analysis.run(*circuit)
    assert result["mean"].attrs["units"] == "probability"
    figure = analysis.plot(xr.DataTree.from_dict({"/circuit": combine([((), result)])}))
    assert figure.axes[0].get_ylabel() == "mean response (probability)"


@pytest.mark.parametrize("number", [0, -1, {"bipolar": -1, "amacrine": 3}, {"bipolar": 0}])
def test_a_variant_keeps_one_unit_or_more(number):
    with pytest.raises(ValidationError, match="needs 1 unit or more"):
        Psychometric({"variants": {"small": {"keep_best": number}}})


@pytest.mark.parametrize("given", [{"fit": "gaussian"}, {"flip_below": 0.3}])
def test_options_of_accuracy_are_refused_for_mean_responses(circuit, given):
    analysis = Psychometric({"parameter": "difference", "response": "mean"} | given)
    with pytest.raises(UserError, match=f"leave out '{next(iter(given))}'"):
        analysis.run(*circuit)


@pytest.mark.parametrize("fit", ["gaussian", "logistic"])
def test_the_threshold_of_a_psychometric_function_is_found(fit):
    levels = np.linspace(0.05, 0.65, 9)
    data = task(3000, levels, lambda x: 0.5 + 0.5 * norm.cdf((x - 0.3) / 0.1))
    model = Circuit()
    model.fit(data)
    analysis = Psychometric({"parameter": "difference", "fit": fit})
    result = analysis.run(model, data)
    assert float(result["threshold"].squeeze()) == pytest.approx(0.3, abs=0.02)
    width = 0.1 if fit == "gaussian" else 0.1 / 1.7  # the logistic function that is closest
    assert float(result["width"].squeeze()) == pytest.approx(width, rel=0.2)
    drawn(analysis, result)


def test_a_substitute_acts_with_its_own_weights_or_those_of_the_unit(circuit):
    model, data = circuit
    options = {"parameter": "difference", "variant": {"keep": {"bipolar": [0, 1]}}}
    own, replaced = (Substitution(options | {"connections": c}) for c in ("own", "replaced"))
    result = own.run(model, data)
    test = data["test"].to_dataset()
    for unit in (1, 2):  # the unit is silent, the substitute is active
        silent = model.without("bipolar", [one for one in (0, 2) if one != unit])
        expected = accuracy(silent.predict(test), test["response"])
        assert float(result["whole"].sel(substitute=unit)) == pytest.approx(float(expected))
    assert result["accuracy"].sel(substitute=0).values.tolist() == [0.5, 1, 1]
    drawn(own, result)
    in_place = replaced.run(model, data)
    # With unit 1 in the place of unit 0, both classes see the same check.
    assert in_place["accuracy"].sel(substitute=1).values.tolist() == [0.5, 0.5, 0.5]
    assert in_place["accuracy"].sel(substitute=0).values.tolist() == [0.5, 1, 1]
    drawn(replaced, in_place)


def test_parameters_that_the_trials_do_not_have_are_refused(circuit):
    with pytest.raises(UserError, match=r"no parameter 'diference'.*did you mean 'difference'"):
        Psychometric({"parameter": "diference"}).run(*circuit)
    with pytest.raises(UserError, match=r"no trial is left .* brighter 7"):
        Psychometric({"parameter": "difference", "select": {"brighter": 7}}).run(*circuit)


def test_decisions_are_scored_by_accuracy(circuit):
    model, recording = circuit
    score = Score()
    result = score.run(model, recording)
    test = recording["test"].to_dataset()
    assert float(result["accuracy"]) == float(accuracy(model.predict(test), test["response"])) > 0.6
    number = int(test["response"].notnull().all("cell").sum())
    assert int(result["decisions"]) == number and "cross_entropy" not in result
    found = float(result["accuracy_low"]), float(result["accuracy_high"])
    assert np.allclose(found, binomial_interval(float(result["accuracy"]), number))
    assert "warning" not in result
    assert drawn(score, result)["accuracy"].tolist() == [float(result["accuracy"])]
    guess = score.run(model.without("ganglion", [0, 1]), recording)
    assert float(guess["accuracy"]) == 0.5 and "most frequent class" in str(guess["warning"].values)


def test_the_best_combination_of_kept_units_is_that_of_the_lesions(circuit):
    model, recording = circuit
    lesions = Lesion.with_options(keep=3, split="validation").run(model, recording)
    best = lesions["lesion"].values[lesions["score"].values.argmax()]
    variants = {"best": {"keep_best": 3}, "less": {"keep_best": 3, "without": {"ganglion": [0]}}}
    curves = Psychometric.with_options(parameter="difference", variants=variants)
    result = curves.run(model, recording)
    assert result["active"].values[:2].tolist() == ["", best]
    assert "ganglion 0" not in str(result["active"].values[2])
    assert drawn(curves, result)["active"].iloc[1] == best
    exchange = Substitution.with_options(parameter="difference", variant={"keep_best": 3})
    result = exchange.run(model, recording)
    assert f"bipolar {int(result['unit'])}" in best
    drawn(exchange, result)
