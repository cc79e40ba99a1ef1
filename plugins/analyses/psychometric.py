"""Accuracy or response against a parameter of the trials, for a model and its lesioned copies."""

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray
from pydantic import Field, model_validator
from scipy.optimize import minimize
from scipy.special import expit, ndtr, xlog1py, xlogy

from retinakit import scores as metrics
from retinakit.contracts import (
    Analysis,
    Config,
    Model,
    Progress,
    UserError,
    cases,
    full_history,
    grouped,
    groups,
    label_of_units,
    other_units,
    points,
    segments,
    shown_frames,
    silent,
    trial_parameter,
    trials_with,
    unit_combinations,
)
from retinakit.report import number_axis

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Units = dict[str, list[int]]
"""Indices of units, by layer."""

CASES, CELLS = 4, 6
"""Largest numbers of models, and of cells of each, that are drawn."""

FEW = 3
"""Largest number of curves that are named inside the panel."""

TOGETHER = 500
"""Number of combinations of units whose predictions are scored together."""

MARKERS = "os^vDP"
FUNCTIONS = {"gaussian": ndtr, "logistic": expit}
INTACT = "intact"


class Variant(Config):
    """The silent units of a copy of the model.

    Example:
        >>> Variant(keep={"bipolar": [4]}).silent({"bipolar": 6, "ganglion": 2})
        {'bipolar': [0, 1, 2, 3, 5]}
    """

    without: Units = Field({}, description="The units that are silenced, by layer.")
    keep: Units = Field(
        {}, description="The units that are kept, by layer; the others of the layer are silenced."
    )

    keep_best: int | dict[str, int] | None = Field(
        None,
        description="Number of units that are kept, in all layers together or in each named layer: "
        "of all combinations, the one with most correct decisions in the validation trials. The "
        "units of 'without' are then silenced in addition.",
    )

    @model_validator(mode="after")
    def _consistent(self) -> "Variant":
        if self.keep_best is not None and self.keep:
            raise ValueError("'keep' and 'keep_best' are both set; choose one")
        best = self.keep_best
        numbers = best.values() if isinstance(best, dict) else [1 if best is None else best]
        if any(number < 0 for number in numbers) or sum(numbers) < 1:
            raise ValueError("'keep_best' needs 1 unit or more")
        if both := sorted(self.without.keys() & self.keep.keys()):
            raise ValueError(f"layer '{both[0]}' is in both 'without' and 'keep'; choose one")
        return self

    def silent(self, numbers: Mapping[str, int]) -> Units:
        """The silent units of each layer.

        Args:
            numbers: the number of units of each layer.
        """
        kept = {
            layer: [unit for unit in range(numbers.get(layer, 0)) if unit not in units]
            for layer, units in self.keep.items()
        }
        return {layer: sorted(set(units)) for layer, units in (self.without | kept).items()}


class TrialsConfig(Config):
    """Options of the trials and of their parameter."""

    parameter: str = Field(
        "alpha",
        description="Parameter of the trials on the horizontal axis: a coordinate along the frames "
        "that is constant in a segment, such as alpha, speed or contrast.",
    )
    bins: int | None = Field(
        None,
        ge=1,
        le=10_000,
        description="Number of bins of equal width of the parameter; null: one point for each of "
        "its values.",
    )
    select: dict[str, float | str] = Field(
        {}, description="Only the trials with these parameters, such as {alpha: 2}."
    )
    response: Literal["auto", "accuracy", "mean"] = Field(
        "auto",
        description="'accuracy': fraction of correct decisions; 'mean': mean prediction of each "
        "cell over the frames of a trial; by default accuracy if the responses are decisions (one "
        "class of several).",
    )
    reach: float | None = Field(
        None, description="Level; the smallest value of the parameter that reaches it is reported."
    )
    split: Literal["train", "validation", "test"] = Field("test", description="The split.")


class PsychometricConfig(TrialsConfig):
    """Options of the curves."""

    variants: dict[str, Variant] = Field(
        {},
        description="Copies of the model with silent units, by name, such as {ablated: {keep: "
        "{bipolar: [4], amacrine: [2]}}, blind: {without: {bipolar: [0, 1]}}}.",
    )
    split_by: str | None = Field(
        None,
        description="Another parameter, such as direction, with a curve for each of its values.",
    )
    flip_below: float | None = Field(
        None,
        description="Where the parameter is smaller than this, 1 - accuracy is shown. Murray et "
        "al. do it below alpha = 1, where the dots of the class are the slower ones.",
    )
    fit: Literal["none", "gaussian", "logistic"] = Field(
        "none",
        description="Psychometric function that is fitted: cumulative Gaussian or logistic. With "
        "'flip_below', it is fitted to the values from there on.",
    )
    lapse: float = Field(
        0.0, ge=0, lt=0.5, description="Lapse rate of the fit: errors where the task is easy."
    )

    @model_validator(mode="after")
    def _consistent(self) -> "PsychometricConfig":
        if INTACT in self.variants:
            raise ValueError(f"'{INTACT}' is the name of the whole model; rename the variant")
        if self.split_by == self.parameter:
            raise ValueError("'split_by' and 'parameter' are the same; leave out 'split_by'")
        return self


class Psychometric(Analysis):
    """Accuracy against a parameter of the trials, of a model and of copies with silent units.

    A point is the fraction of correct decisions in the trials with a value of the parameter, with
    its 95 % confidence interval (Wilson). For responses that are not decisions it is the mean over
    trials of the mean prediction of each cell during the stimulus, with its standard error.

    With `fit`, a psychometric function p(x) = g + (1 - g - l) F((x - m) / s) is fitted to the
    correct and wrong decisions by maximum likelihood, where F is the cumulative Gaussian or the
    logistic function, g = 1 / classes is the guess rate and l the lapse rate (Wichmann & Hill
    2001). The threshold is m, at which half of the range from g to 1 - l is reached; it is NaN if
    it is outside the range of the parameter.

    The result has, with dimensions (variant, [SPLIT_BY,] PARAMETER), `accuracy`, `low`, `high` and
    `trials`; or `mean` and `error (..., cell)` and `trials`. The dimensions PARAMETER and SPLIT_BY
    are named after the parameters. With `reach`, `reached` is the smallest value that reaches the
    level, and with `fit`, `threshold` and `width` are m and s. The first variant is "intact".

    Raises:
        UserError: if the trials have no such parameter, none are selected, or the model has no
            such layer or unit.

    Example:
        >>> from retinakit.contracts import make_recording, make_split
        >>> from retinakit.testing import SmallModel
        >>> stimulus = np.random.default_rng(0).choice([-1.0, 1.0], (120, 4, 4))
        >>> trial = np.repeat(np.arange(12), 10)
        >>> split = make_split(
        ...     stimulus, np.ones((120, 2)), frame_interval=0.02, segment=trial,
        ...     trial={"contrast": trial % 3},
        ... )
        >>> recording = make_recording(dict.fromkeys(("train", "validation", "test"), split))
        >>> model = SmallModel()
        >>> _ = model.fit(recording)
        >>> result = Psychometric.with_options(parameter="contrast").run(model, recording)
        >>> result["mean"].dims, result["trials"].values.tolist()
        (('variant', 'contrast', 'cell'), [[4, 4, 4]])
    """

    Config = PsychometricConfig
    quick: ClassVar[dict[str, Any]] = {"parameter": "segment"}

    def run(self, model: Model, data: xr.DataTree, progress: Progress = silent) -> xr.Dataset:
        c = self.config
        split = data[c.split].to_dataset()
        variants = {INTACT: Variant.model_validate({}), **c.variants}
        found_units = [_silent(model, data, split, variant) for variant in variants.values()]
        lesions, active = [one[0] for one in found_units], [one[1] for one in found_units]
        trials = _Trials(c, split, model.lags, c.split_by, c.flip_below)
        self._check_decisions(trials)
        found = []
        for done, prediction in enumerate(model.lesions(split, lesions), start=1):
            found.append(trials.curve(prediction))
            progress(done, len(lesions))
        result = xr.concat(found, "variant").assign_coords(variant=list(variants))
        if any(active):
            result["active"] = ("variant", active)
        if c.reach is not None:
            result = result.assign(reached=_reached(result, c.parameter, c.reach))
        if c.fit != "none":
            result = result.assign(self._fitted(result, split.sizes["cell"]))
        return result

    def _check_decisions(self, trials: "_Trials") -> None:
        """Refuses options of accuracy if mean responses are shown."""
        c = self.config
        given = [("fit", c.fit != "none"), ("flip_below", c.flip_below is not None)]
        for name in [name for name, there in given if there and not trials.accuracy]:
            raise UserError(
                f"'{name}' is for the accuracy of decisions, and the curves are of mean responses; "
                f"leave out '{name}'"
            )

    def _fitted(self, result: xr.Dataset, classes: int) -> dict[str, xr.DataArray]:
        """The threshold and the width of the psychometric function of each curve."""
        c = self.config
        if result[c.parameter].dtype.kind not in "iuf":
            raise UserError(
                f"a psychometric function needs a parameter with numbers, and '{c.parameter}' has "
                "none; set fit: none"
            )
        used = result
        if c.flip_below is not None:
            used = result.isel({c.parameter: result[c.parameter].values >= c.flip_below})
        x = used[c.parameter].values.astype(float)
        if len(x) < 2:
            raise UserError(
                f"a psychometric function needs two values of '{c.parameter}' or more; set fit: "
                "none"
            )
        threshold, width = xr.apply_ufunc(
            lambda p, n: _fit(x, p, n, c.fit, 1 / classes, c.lapse),
            used["accuracy"],
            used["trials"],
            input_core_dims=[[c.parameter], [c.parameter]],
            output_core_dims=[[], []],
            vectorize=True,
        )
        return {"threshold": threshold, "width": width}

    def plot(self, result: xr.DataTree) -> "Figure":
        return _figure(result, self._draw)

    def _draw(self, axis: Any, case: xr.Dataset) -> None:
        c = self.config
        name = "accuracy" if "accuracy" in case else "mean"
        by = [None] if c.split_by is None else list(range(case.sizes[c.split_by]))
        for index, variant in enumerate(case["variant"].values):
            for part in by:
                curve = case.sel(variant=variant)
                curve = curve if part is None else curve.isel({c.split_by: part})
                label = [str(variant)] if case.sizes["variant"] > 1 else []
                label += [] if part is None else [f"{c.split_by} {_text(curve[c.split_by])}"]
                style = {"color": f"C{index}", "marker": MARKERS[(part or 0) % len(MARKERS)]}
                style |= {"ls": "-" if not part else "--", "label": ", ".join(label)}
                if "threshold" in curve and np.isfinite(curve["threshold"]):
                    style["ls"] = "none"
                    self._draw_fit(axis, curve, style["color"], "-" if not part else "--")
                _draw_curve(axis, curve, name, c.parameter, style)
        if name == "accuracy":
            axis.axhline(case.attrs["chance"], color="0.7", lw=0.9, ls=":", zorder=0)
        if case.sizes["variant"] * len(by) > 1:
            _legend(axis, case.sizes["variant"] * len(by))

    def _draw_fit(self, axis: Any, curve: xr.Dataset, color: str, ls: str) -> None:
        c, guess = self.config, curve.attrs["chance"]
        low = curve[c.parameter].values.min() if c.flip_below is None else c.flip_below
        x = np.linspace(low, curve[c.parameter].values.max(), 200)
        rise = FUNCTIONS[c.fit]((x - float(curve["threshold"])) / float(curve["width"]))
        axis.plot(x, guess + (1 - guess - c.lapse) * rise, color=color, ls=ls, lw=1.2)

    def caption(self, result: xr.DataTree) -> str:
        c = self.config
        text = _caption(result, c)
        if c.flip_below is not None:
            text += f" Below {c.parameter} = {c.flip_below:g}, 1 - accuracy is shown."
        if c.fit != "none":
            name = "cumulative Gaussian" if c.fit == "gaussian" else "logistic"
            text += f" Curves: fitted psychometric functions ({name})."
        return text

    def table(self, result: xr.DataTree) -> pd.DataFrame:
        return _table(result, self.config.parameter)


class SubstitutionConfig(TrialsConfig):
    """Options of the units that are exchanged."""

    layer: str | None = Field(
        None, description="Layer of the unit; by default the first layer of the model."
    )
    unit: int | None = Field(
        None,
        ge=0,
        description="Index of the unit that is replaced; by default the first one that the variant "
        "leaves active.",
    )
    by: list[int] | None = Field(
        None, min_length=1, description="Indices of the substitutes; by default all units."
    )
    connections: Literal["own", "replaced"] = Field(
        "own",
        description="'own': the substitute is active in place of the unit with its own weights in "
        "the next layer, as in Murray et al.; 'replaced': with the weights of the unit.",
    )
    variant: Variant = Field(
        Variant.model_validate({}),
        description="Units of the model that are silenced before, such as {keep: {bipolar: [4], "
        "amacrine: [2]}}.",
    )
    reach: float | None = Field(
        0.5, description="Level; the smallest value of the parameter that reaches it is reported."
    )


class Substitution(Analysis):
    """Accuracy against a parameter of the trials, with one unit replaced by each other unit.

    In the ablated model of Murray et al. (Fig 3B) one bipolar cell type is exchanged for each of
    the others. With `connections: own` the unit is silenced and the substitute is active, which
    needs `Model.without` only. In a model in which the other units are not silenced by `variant`,
    this is a lesion of the unit. With `connections: replaced` the output of the unit is that of the
    substitute (`Model.substituted`), so that the weights of the next layer stay those of the unit.

    The result is that of `psychometric`, with the dimension `substitute` in the place of variants,
    and `whole (substitute, [cell])`, the mean over trials. The unit itself is among the substitutes
    and stands for no exchange.

    Raises:
        UserError: as `psychometric`; or if the model cannot substitute units.

    Example:
        >>> from retinakit.contracts import make_recording, make_split
        >>> from retinakit_plugins.models.cnn import CNN
        >>> stimulus = np.random.default_rng(0).choice([-1.0, 1.0], (120, 6, 6))
        >>> trial = np.repeat(np.arange(12), 10)
        >>> split = make_split(
        ...     stimulus, np.ones((120, 2)), frame_interval=0.02, segment=trial,
        ...     trial={"contrast": trial % 3},
        ... )
        >>> recording = make_recording(dict.fromkeys(("train", "validation", "test"), split))
        >>> model = CNN.with_options(lags=5, filters=3, kernel=3, steps=2)
        >>> _ = model.fit(recording)
        >>> exchange = Substitution.with_options(parameter="contrast", connections="replaced")
        >>> dict(exchange.run(model, recording)["mean"].sizes)
        {'substitute': 3, 'contrast': 3, 'cell': 2}
    """

    Config = SubstitutionConfig
    quick: ClassVar[dict[str, Any]] = {"parameter": "segment", "connections": "replaced"}

    def run(self, model: Model, data: xr.DataTree, progress: Progress = silent) -> xr.Dataset:
        c = self.config
        split = data[c.split].to_dataset()
        layer = c.layer or next(iter(model.layers()), "")
        model.check_layer(layer)
        numbers = model.units(split)
        by = c.by or list(range(numbers[layer]))
        model.check_units(layer, by if c.unit is None else [c.unit, *by], numbers[layer])
        before, active_units = _silent(model, data, split, c.variant)
        own = c.unit
        if own is None:
            active = [unit for unit in range(numbers[layer]) if unit not in before.get(layer, [])]
            if not active:
                raise UserError(f"the variant has no active unit of '{layer}'; set 'unit'")
            own = active[0]
        trials = _Trials(c, split, model.lags)
        if c.connections == "own":
            silenced = set(before.get(layer, [])) | {own}
            lesions = [before | {layer: sorted(silenced - {unit})} for unit in by]
            predictions: Iterable[NDArray[Any]] = model.lesions(split, lesions)
        else:
            # The unit is in use, also where the variant does not keep it.
            before[layer] = [unit for unit in before.get(layer, []) if unit != own]
            predictions = (
                prediction
                for unit in by
                for prediction in model.substituted(layer, own, unit).lesions(split, [before])
            )
        found = []
        for done, prediction in enumerate(predictions, start=1):
            found.append(trials.curve(prediction))
            progress(done, len(by))
        result = xr.concat(found, "substitute").assign_coords(substitute=by)
        values = result["accuracy" if "accuracy" in result else "mean"]
        weight = result["trials"]
        result["whole"] = (values.fillna(0) * weight).sum(c.parameter) / weight.sum(c.parameter)
        if c.reach is not None:
            result = result.assign(reached=_reached(result, c.parameter, c.reach))
        result["unit"] = own
        if active_units:
            result["active"] = active_units
        result.attrs["about"] = f"{layer} {own}"
        return result

    def plot(self, result: xr.DataTree) -> "Figure":
        return _figure(result, self._draw, self._draw_bars)

    def _draw(self, axis: Any, case: xr.Dataset) -> None:
        c = self.config
        name = "accuracy" if "accuracy" in case else "mean"
        there = case[name].notnull().any(c.parameter).values
        for index, curve in enumerate(case["substitute"].values[there]):
            own = curve == int(case["unit"])
            style = {"color": "k" if own else f"C{index % 10}", "marker": "o", "ls": "-"}
            style["label"] = f"{int(curve)}{' (itself)' * bool(own)}"
            _draw_curve(axis, case.sel(substitute=curve), name, c.parameter, style)
        if name == "accuracy":
            axis.axhline(case.attrs["chance"], color="0.7", lw=0.9, ls=":", zorder=0)
        title = f"substitute of {case.attrs['about']}"
        _legend(axis, int(there.sum()), title)

    def _draw_bars(self, axis: Any, case: xr.Dataset) -> None:
        case = case.isel(substitute=case["whole"].notnull().values)
        place = np.arange(case.sizes["substitute"])
        own = case["substitute"].values == int(case["unit"])
        axis.bar(place, case["whole"], color=np.where(own, "0.2", "0.6"))
        axis.set_xticks(place, case["substitute"].values.astype(int))
        name, units = "accuracy", ""
        if "mean" in case:
            name, units = "mean response", case["mean"].attrs.get("units", "")
        axis.set(xlabel="substitute", ylabel=f"{name}, all trials" + f" ({units})" * bool(units))

    def caption(self, result: xr.DataTree) -> str:
        c = self.config
        about = next(iter(groups(result).values())).attrs.get("about", "the unit")
        weights = "their own" if c.connections == "own" else "its"
        text = (
            f" {about[:1].upper()}{about[1:]} is replaced by the other units of its layer with "
            f"{weights} weights in the next layer."
        )
        level = f" The table has the smallest {c.parameter} that reaches {c.reach:g}."
        return _caption(result, c) + text + level * (c.reach is not None)

    def table(self, result: xr.DataTree) -> pd.DataFrame:
        return _table(result, self.config.parameter)


def _silent(
    model: Model, data: xr.DataTree, split: xr.Dataset, variant: Variant
) -> tuple[Units, str]:
    """The silent units of a variant, and those that it keeps and leaves active as text.

    The units are checked against the layers of the model.
    """
    best = variant.keep_best
    named = variant.without | variant.keep
    of_best = dict.fromkeys(best) if isinstance(best, dict) else {}
    if not named and best is None:
        return {}, ""
    for layer in (*named, *of_best):
        model.check_layer(layer)
    numbers = model.units(split)
    for layer, units in named.items():
        model.check_units(layer, units, numbers[layer])
    found = variant.silent(numbers)
    among = numbers if isinstance(best, int) else of_best or variant.keep
    if best is not None:
        searched = {layer: numbers[layer] for layer in among}
        for layer, units in _best(model, data["validation"].to_dataset(), searched, best).items():
            found[layer] = sorted({*found.get(layer, []), *units})
    active = [
        (layer, unit)
        for layer in among
        for unit in range(numbers[layer])
        if unit not in found.get(layer, [])
    ]
    return found, (label_of_units(active) or "none") if among else ""


def _best(
    model: Model, split: xr.Dataset, numbers: Mapping[str, int], keep: int | dict[str, int]
) -> Units:
    """The silent units of the combination of kept units with most correct decisions."""
    if not metrics.is_task(split["response"]):
        raise UserError(
            "'keep_best' needs validation trials with decisions, one class of several, and the "
            "responses are others; set 'keep'"
        )
    silenced = [other_units(numbers, kept) for kept in unit_combinations(numbers, keep)]
    decided = split["response"].notnull().all("cell").values
    decided &= full_history(split["segment"], model.lags)
    chosen = xr.DataArray(split["response"].values[decided], dims=("frame", "cell"))
    predictions = (prediction[decided] for prediction in model.lesions(split, silenced))
    accuracy: list[float] = []
    while block := list(islice(predictions, TOGETHER)):
        predicted = xr.DataArray(np.stack(block, -1), dims=("frame", "cell", "lesion"))
        accuracy += metrics.accuracy(predicted, chosen).values.tolist()
    return silenced[int(np.argmax(accuracy))]


class _Trials:
    """The trials of a split, by their parameters.

    Args:
        config: the options.
        split: with the responses.
        lags: of the model.
        split_by: another parameter.
        flip_below: the value of the parameter below which 1 - accuracy is computed.
    """

    def __init__(
        self,
        config: TrialsConfig,
        split: xr.Dataset,
        lags: int,
        split_by: str | None = None,
        flip_below: float | None = None,
    ):
        response = split["response"]
        task = metrics.is_task(response)
        self.accuracy = config.response == "accuracy" or (config.response == "auto" and task)
        if self.accuracy and not task:
            raise UserError(
                "accuracy needs responses that are decisions, 1 for one class and 0 for the "
                "others; set response: mean"
            )
        self.cells, self.units = response["cell"].variable, metrics.prediction_units(response)
        self.chance = 1 / split.sizes["cell"]
        parts = segments(split)
        trial = np.repeat(np.arange(len(parts)), [part.stop - part.start for part in parts])
        used = full_history(split["segment"], lags)
        if self.accuracy:
            used &= response.notnull().all("cell").values
        else:
            shown = np.zeros(len(used), bool)
            for frames in shown_frames(split):
                shown[frames] = True
            used &= shown
        used &= trials_with(split, config.select)
        values = trial_parameter(split, config.parameter)
        used &= values.notnull().values
        if not used.any():
            raise UserError(
                f"no trial is left with a full history of {lags} frames, a known decision and "
                f"{', '.join(f'{n} {v}' for n, v in config.select.items()) or 'its parameter'}; "
                "select others"
            )
        # A sample is a decision, or a trial of which the prediction is averaged over frames.
        self.frames = np.flatnonzero(used)
        self.chosen = response.values[self.frames].astype(float) if self.accuracy else None
        which, self.sample = np.unique(
            self.frames if self.accuracy else trial[used], return_inverse=True
        )
        first = np.flatnonzero(np.r_[True, np.diff(self.sample) > 0])
        at = self.frames[first]
        self.count = len(which)
        self.flipped = np.zeros(self.count, bool)
        value = values.values[at]
        if flip_below is not None:
            if value.dtype.kind not in "iuf":
                raise UserError(f"'{config.parameter}' has no numbers; leave out 'flip_below'")
            self.flipped = value < flip_below
        self.coords: dict[str, Any] = {}
        self.groups = []
        if split_by is not None:
            labels, group = grouped(trial_parameter(split, split_by).values[at])
            self.coords[split_by] = labels
            self.groups.append(group)
        labels, group = _binned(value, config.bins, config.parameter)
        attrs = {k: v for k, v in values.attrs.items() if k in ("units", "long_name")}
        self.coords[config.parameter] = (config.parameter, labels, attrs)
        self.groups.append(group)

    def curve(self, prediction: NDArray[Any]) -> xr.Dataset:
        """The points of a prediction ([repeat,] frame, cell)."""
        shown = prediction[..., self.frames, :].astype(float)
        shown = shown if shown.ndim == 2 else np.nanmean(shown, 0)
        dims = tuple(self.coords)
        shape = tuple(len(c[1]) if isinstance(c, tuple) else len(c) for c in self.coords.values())
        place = tuple(self.groups)

        def summed(values: NDArray[Any]) -> NDArray[Any]:
            total = np.zeros(shape + values.shape[1:])
            np.add.at(total, place, values)
            return total

        number = summed(np.ones(self.count))
        trials = (dims, number.astype(int))
        if self.accuracy:
            predicted = np.where(np.isnan(shown), np.inf, shown)  # missing in a used frame
            dims_of = ("frame", "cell")
            correct = metrics.correct(
                xr.DataArray(predicted, dims=dims_of), xr.DataArray(self.chosen, dims=dims_of)
            ).values
            correct = np.where(self.flipped, 1 - correct, correct)
            with np.errstate(invalid="ignore"):
                fraction = summed(correct) / number
            low, high = metrics.binomial_interval(fraction, number)
            points = {"accuracy": fraction, "low": low, "high": high}
            found = xr.Dataset(
                {name: (dims, values) for name, values in points.items()} | {"trials": trials},
                self.coords,
                {"chance": self.chance},
            )
            found["accuracy"].attrs["long_name"] = "accuracy"
            return found
        total = np.zeros((self.count, shown.shape[1]))
        np.add.at(total, self.sample, shown)
        each = total / np.bincount(self.sample)[:, None]
        number = number[..., None]
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = summed(each) / number
            squares = summed((each - mean[place]) ** 2)
            error = np.sqrt(squares / (number - 1) / number)
        error = np.where(number > 1, error, np.nan)
        attrs = {"units": self.units, "long_name": "mean response"}
        return xr.Dataset(
            {"mean": ((*dims, "cell"), mean, attrs), "error": ((*dims, "cell"), error)}
            | {"trials": trials},
            self.coords | {"cell": self.cells},
        )


def _binned(
    value: NDArray[Any], bins: int | None, name: str
) -> tuple[NDArray[Any], NDArray[np.intp]]:
    """The values of the points, and the point of each sample."""
    if bins is None:
        return grouped(value)
    if value.dtype.kind not in "iuf":
        raise UserError(f"'{name}' has no numbers and cannot be binned; leave out 'bins'")
    edges = np.linspace(value.min(), value.max(), bins + 1)
    return (edges[1:] + edges[:-1]) / 2, np.clip(
        np.searchsorted(edges, value, "right") - 1, 0, bins - 1
    )


def _reached(result: xr.Dataset, parameter: str, level: float) -> xr.DataArray:
    """The smallest value of the parameter at which a curve reaches the level, NaN for none."""
    values = result["accuracy" if "accuracy" in result else "mean"]
    if result[parameter].dtype.kind not in "iuf":
        raise UserError(f"'{parameter}' has no numbers; leave out 'reach'")
    reached: xr.DataArray = result[parameter].where(values >= level).min(parameter)
    return reached


def _fit(
    x: NDArray[Any],
    fraction: NDArray[Any],
    trials: NDArray[Any],
    name: str,
    guess: float,
    lapse: float,
) -> tuple[float, float]:
    """Maximum likelihood threshold and width; NaN if the threshold is outside the range of x."""
    known = (trials > 0) & np.isfinite(fraction)
    x, k, n = x[known], (fraction * trials)[known], trials[known]
    if len(x) < 2 or np.ptp(x) == 0:
        return np.nan, np.nan
    spread = np.ptp(x)

    def loss(parameters: NDArray[Any]) -> float:
        rise = FUNCTIONS[name]((x - parameters[0] * spread) / (np.exp(parameters[1]) * spread))
        p = guess + (1 - guess - lapse) * rise
        p = np.clip(p, 1e-9, 1 - 1e-9)
        return -float((xlogy(k, p) + xlog1py(n - k, -p)).sum())

    starts = [(m, s) for m in np.quantile(x, (0.2, 0.5, 0.8)) / spread for s in (-3.0, -1.5, 0.0)]
    bounds = [((x.min() - spread) / spread, (x.max() + spread) / spread), (-6.0, 3.0)]
    fits = [minimize(loss, start, method="L-BFGS-B", bounds=bounds) for start in starts]
    best = min(fits, key=lambda fit: fit.fun)
    if not x.min() <= best.x[0] * spread <= x.max():
        return np.nan, np.nan
    return float(best.x[0] * spread), float(np.exp(best.x[1]) * spread)


def _text(value: xr.DataArray) -> str:
    """A swept or split value for a legend."""
    one = value.item()
    return f"{one:g}" if isinstance(one, int | float) else str(one)


def _figure(result: xr.DataTree, *draw: Any) -> "Figure":
    """A row of panels for each model and point of a sweep, one for each function or cell."""
    from matplotlib.figure import Figure

    rows: list[tuple[str, list[xr.Dataset]]] = []
    for label, case in islice(cases(result), CASES):
        if "mean" in case and "cell" in case.dims:
            cells = [case.isel(cell=i) for i in range(min(CELLS, case.sizes["cell"]))]
            rows += [(f"{label}\ncell {cell['cell'].item()}", [cell]) for cell in cells]
        else:
            rows.append((label, [case]))
    columns = 3 if len(draw) == 1 and len(rows) > 3 else len(draw) if len(draw) > 1 else len(rows)
    lines = -(-len(rows) * len(draw) // columns)
    figure = Figure(figsize=(max(4.2 * columns, 5.2), 3.4 * lines), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    for axis in axes[len(rows) * len(draw) :]:
        axis.set_axis_off()
    panels = iter(axes)
    for label, (case,) in rows:
        for index, function in enumerate(draw):
            axis = next(panels)
            function(axis, case)
            if len(rows) > 1 and index == 0:
                axis.set_title(label.replace("\n", ", "), fontsize=10)
    return figure


def _draw_curve(
    axis: Any, curve: xr.Dataset, name: str, parameter: str, style: dict[str, Any]
) -> None:
    """Draws one curve with its error bars."""
    values, text = curve[parameter].values, curve[parameter].dtype.kind not in "iuf"
    x = np.arange(len(values)) if text else values
    if text:
        style = style | {"ls": "none"}
    if name == "accuracy":
        error = np.stack([curve[name] - curve["low"], curve["high"] - curve[name]]).clip(0)
    else:
        error = np.nan_to_num(curve["error"].values)
    known = curve[name].notnull().values
    axis.errorbar(
        x[known], curve[name].values[known], error[..., known], ms=4, lw=1.2, elinewidth=0.8,
        capsize=2, **style,
    )  # fmt: skip
    units = curve[parameter].attrs.get("units", "")
    if text:
        axis.set_xticks(x, values)
    else:
        number_axis(axis, parameter, values, "linear")
    axis.set_xlabel(f"{parameter} ({units})" if units not in ("", "1") else parameter)
    label, of = curve[name].attrs.get("long_name", name), curve[name].attrs.get("units", "")
    axis.set_ylabel(label + f" ({of})" * bool(of))


def _legend(axis: Any, curves: int, title: str | None = None) -> None:
    """The names of the curves, beside the panel if there are many."""
    place = {"loc": "center left", "bbox_to_anchor": (1, 0.5)} if curves > FEW else {}
    axis.legend(frameon=False, fontsize=8, title=title, title_fontsize=8, **place)


def _caption(result: xr.DataTree, config: TrialsConfig) -> str:
    """What the points and the error bars are."""
    by_model = groups(result)
    chosen = ", ".join(f"{name} {value}" for name, value in config.select.items())
    trials = f"the trials of the {config.split}" + f" with {chosen}" * bool(chosen)
    if all("accuracy" in group for group in by_model.values()):
        return (
            f"Fraction of correct decisions against {config.parameter} in {trials}. Error bars are "
            "95 % confidence intervals, and the dotted line is chance."
        )
    return (
        f"Mean prediction against {config.parameter} in {trials}, mean ± standard error over "
        "trials."
    )


def _table(result: xr.DataTree, parameter: str) -> pd.DataFrame:
    """One row for each curve: the mean over trials, their number, and the levels."""
    frames = []
    for name, group in groups(result).items():
        values = group["accuracy" if "accuracy" in group else "mean"]
        number = group["trials"].fillna(0)
        rows = {
            str(values.attrs.get("long_name", values.name)): (values.fillna(0) * number).sum(
                parameter
            )
            / number.sum(parameter),
            "trials": number.sum(parameter),
        }
        shown = ("reached", "threshold", "width", "active")
        rows |= {name: group[name] for name in shown if name in group}
        frame = xr.Dataset(rows).to_dataframe().reset_index()
        frame.insert(0, "model", name)
        frames.append(frame[frame["trials"] > 0])
    table = pd.concat(frames, ignore_index=True)
    first = [column for column in points(result) if column in table and column != "cell"]
    return table[[*first, *(column for column in table if column not in first)]]
