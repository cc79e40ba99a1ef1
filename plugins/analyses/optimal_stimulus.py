"""Most exciting stimuli of a model's cells or units, by gradient ascent (Walker et al. 2019)."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import combinations, islice
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray
from pydantic import Field, model_validator
from scipy.ndimage import gaussian_filter

from retinakit.contracts import (
    Analysis,
    Config,
    Model,
    Progress,
    UserError,
    cases,
    full_history,
    groups,
    lag_coordinate,
    points,
    silent,
)
from retinakit.report import draw_field, extended, in_time, to_hertz
from retinakit.scores import prediction_units
from retinakit.spikes import separate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = NDArray[np.float32]

WINDOWS = 64
"""Largest number of clips of the training stimulus, and of noise, that are shown to the model."""

VALUES = 2**24
"""Largest number of values of these clips, if they are more than 8."""

CANDIDATES = 8
"""Clips of noise of which a seed starts from the one with the largest gradient."""

MARGIN = 2
"""Width in checks of what is shown around the receptive field."""

DISTANCE = 0.3
"""Length of the noise from which diverse stimuli start, relative to the norm of the stimulus."""

OUTSIDE = 0.05
"""Values with less than this part of the largest squared gradient are outside the receptive field,
in which diverse stimuli are made different."""

UNRESPONSIVE = (
    "the response does not depend on the stimulus: the gradients are 0 for clips of the training "
    "stimulus and for noise, so there is no optimal stimulus"
)

NOT_CONVERGED = 0.01
"""Relative increase of the response in the second half of the steps, above which there is a
warning."""


class OptimalStimulusConfig(Config):
    """Options of the search.

    The stimuli of Murray et al.'s deep visualisation are those of constraint `range` with range
    [-1, 1], dropout 0.1, weight_decay 1e-5, learning_rate 1e-3 and steps 5000, for a unit of the
    layer `ganglion` at the position [8, 8], with whole_clip.
    """

    cells: list[int | str] | None = Field(
        None, min_length=1, description="Names of the cells; by default all. Not with a layer."
    )
    layer: str | None = Field(
        None, description="Name of a layer, such as layer1, for its units; by default the cells."
    )
    units: list[int] | None = Field(
        None, min_length=1, description="Units of the layer, counted from 0; by default all."
    )
    position: list[int] | None = Field(
        None,
        min_length=1,
        description="Position [y, x] of the units in their map, counted from 0; by default the "
        "central one.",
    )
    minus: int | str | None = Field(
        None,
        description="Name of a cell, or number of a unit, whose response is subtracted: the "
        "stimulus then separates the others from this one.",
    )
    frames: int | None = Field(
        None,
        ge=1,
        description="Number of frames of the clip. The response is summed over its frames with a "
        "full history; by default there is one, the last.",
    )
    whole_clip: bool = Field(
        False,
        description="Sum the response of a unit over all frames of the clip, also those without a "
        "full history, for a model of clips that begins each from rest, such as retina_circuit.",
    )
    constraint: Literal["norm", "range"] = Field(
        "norm",
        description="'norm': the L2 norm of the contrast is fixed, and steps along the gradient "
        "are projected onto it; 'range': each value is between two limits, by a tanh, and the "
        "steps are those of Adam.",
    )
    norm: float | None = Field(
        None,
        gt=0,
        description="Norm of the contrast, the difference from the mean stimulus; by default that "
        "of the training stimulus in the receptive field.",
    )
    range: list[float] | None = Field(
        None,
        min_length=2,
        max_length=2,
        description="Limits of the stimulus, with constraint: range; by default those of the "
        "training stimulus.",
    )
    seeds: int = Field(4, ge=1, description="Number of searches, each from other noise.")
    steps: int = Field(300, ge=1, description="Number of steps of a search.")
    learning_rate: float | None = Field(
        None,
        gt=0,
        description="With constraint: norm, length of the first step relative to the norm, by "
        "default 0.1; it decreases to 0. With constraint: range, learning rate of Adam, by default "
        "0.05.",
    )
    noise: float = Field(
        1.0,
        ge=0,
        description="With constraint: norm, standard deviation of noise that is added to the clip "
        "for the gradients of the first half of the search and decreases to 0, relative to the "
        "contrast in the receptive field. It activates rectified units without a gradient.",
    )
    weight_decay: float = Field(
        0.0, ge=0, description="Weight decay of Adam, with constraint: range."
    )
    dropout: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Fraction of the values, drawn anew in each step, that are left out in the "
        "search.",
    )
    blur: float = Field(
        0.0,
        ge=0,
        description="Standard deviation in checks of a Gaussian by which gradients are smoothed "
        "over space, for stimuli without fine structure.",
    )
    blur_frames: float = Field(
        0.0, ge=0, description="Standard deviation in frames of the same over time."
    )
    total_variation: float = Field(
        0.0,
        ge=0,
        description="Weight of the gradient of the total variation over space, relative to the "
        "gradient of the response; its stimuli have regions of constant contrast.",
    )
    diverse: int = Field(
        0,
        ge=0,
        description="Number of further stimuli that differ from each other as much as possible "
        "while the response is at least `level` of the optimum (Ding et al. 2023); with "
        "constraint: norm.",
    )
    level: float = Field(
        0.85, gt=0, lt=1, description="Response to the diverse stimuli, relative to the optimum."
    )
    scales: list[float] = Field(
        [-1.0, -0.5, 0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5],
        min_length=1,
        description="Contrasts at which the response to the found stimulus is measured, relative "
        "to its own; a negative contrast is the inverted stimulus.",
    )

    @model_validator(mode="after")
    def _consistent(self) -> "OptimalStimulusConfig":
        if self.layer is None and (self.units is not None or self.position is not None):
            raise ValueError("'units' and 'position' are of a layer; set layer, or cells")
        if self.layer is not None and self.cells is not None:
            raise ValueError("'cells' and 'layer' are both set; leave out one of them")
        if self.whole_clip and (self.layer is None or self.frames is not None):
            raise ValueError("'whole_clip' needs a layer, and no 'frames'")
        if self.constraint == "range":
            if self.norm is not None:
                raise ValueError("'norm' needs constraint: norm; leave it out")
            if self.diverse:
                raise ValueError("'diverse' needs constraint: norm; leave it out")
        elif self.range is not None or self.weight_decay:
            raise ValueError("'range' and 'weight_decay' need constraint: range; leave them out")
        if self.range is not None and self.range[0] >= self.range[1]:
            raise ValueError("'range' is not increasing; give the lower limit first")
        return self


class OptimalStimulus(Analysis):
    """The stimuli to which a model's cells, or the units of a layer, respond most.

    Gradient ascent from noise finds the clip that maximises the response of a cell, of a unit, or
    the difference of two. With the constraint `norm` (Walker et al. 2019), its contrast, the
    difference from the mean stimulus, has a fixed L2 norm. By default this is the norm of the
    training stimulus in the receptive field, √(N Σ p s²). Here p is the squared gradient by each
    value of the clip, with the sum 1, averaged over clips of the training stimulus and of noise, s²
    is the mean squared contrast of the training stimulus, and N = 1 / Σ p² is the size of the
    receptive field in values. With the constraint `range`, the clip is the tanh of a parameter map
    (Murray et al.). Values without a gradient are the mean stimulus.

    The result has `stimulus (cell, seed, lag, [channel,] y, x)` in the units of the training
    stimulus, within the rectangle on which the responses depend. For a layer, the dimension of its
    units replaces `cell`; for a clip in which several frames have a response, `frame` replaces
    `lag`. Lag 0 is the frame of the response. `response (cell, seed)` is the response reached,
    `best_seed` the seed with the largest one, `norm` that of its contrast, and `curve (cell,
    scale)` the response to it with its contrast scaled. `similarity` is the mean cosine between
    the stimuli of the seeds, `noise_response` the mean response to white noise with the same root
    mean square contrast in the receptive field, and `receptive_field_size` is N. With `diverse`
    there are `diverse_stimulus (cell, example, ...)` and `diverse_response (cell, example)`. With
    `whole_clip` there is `prediction (unit, frame, cell)`, the model's predictions while the best
    stimulus is shown after the mean stimulus.

    A stimulus that matches the receptive field drives a cell much more than any frame of white
    noise of the same contrast. The response to it is then an extrapolation of the fitted
    nonlinearity, and `curve` shows it at lower contrasts.

    Raises:
        UserError: if the model has no gradient, layer or unit of this name, or the clip is shorter
            than its history.

    Example:
        >>> from retinakit.testing import small_recording
        >>> from retinakit_plugins.models.ln import LN
        >>> recording = small_recording()
        >>> model = LN.with_options(lags=5)
        >>> _ = model.fit(recording)
        >>> result = OptimalStimulus.with_options(steps=100, seeds=2).run(model, recording)
        >>> dict(result["stimulus"].sizes)
        {'cell': 2, 'seed': 2, 'lag': 5, 'y': 8, 'x': 8}
        >>> kernel = model.parameters()["kernel"][0].values.ravel()
        >>> found = result["stimulus"][0, 0].values.ravel() - float(result["mean_stimulus"])
        >>> float(kernel @ found / np.linalg.norm(kernel) / np.linalg.norm(found)) > 0.99
        True
    """

    Config = OptimalStimulusConfig
    quick: ClassVar[dict[str, Any]] = {"steps": 5, "seeds": 2, "diverse": 2}

    def run(self, model: Model, data: xr.DataTree, progress: Progress = silent) -> xr.Dataset:
        c = self.config
        train = data["train"].to_dataset()
        frames = c.frames or model.lags
        if frames < model.lags:
            raise UserError(
                f"the clip has {frames} frames and a response of the {type(model).__name__} "
                f"depends on {model.lags}; set frames to {model.lags} or more, or leave it out"
            )
        if train.sizes["frame"] < frames:
            raise UserError(
                f"the clip has {frames} frames and the training stimulus {train.sizes['frame']}; "
                "make frames smaller"
            )
        windows = self._windows(train, frames)
        clips = _Clips.like(train)
        dim, weights = self._targets(model, clips.split(windows[:1]))
        found: dict[Any, xr.Dataset | None] = {}
        for number, (name, weight) in enumerate(weights.items()):
            shown = _Shown(model, clips, c.layer, weight, c.whole_clip)

            def tell(done: float, total: float, message: str = "", number: int = number) -> None:
                progress(number * total + done, len(weights) * total, "optimal stimuli")

            found[name] = self._search(shown, windows, tell)
        combined = _together(found, dim, float(windows.mean()), windows.shape[-2:])
        if c.whole_clip:
            combined["prediction"] = _predictions(combined, model, dim, windows.shape[2:])
        units = prediction_units(train["response"])
        return self._labelled(combined, model, frames, dim, units)

    def _windows(self, train: xr.Dataset, frames: int) -> Array:
        """Clips of the training stimulus, (window, frame, [channel,] y, x)."""
        stimulus, whole = train["stimulus"], np.flatnonzero(full_history(train["segment"], frames))
        if not len(whole):  # the clip is longer than the segments
            whole = np.arange(frames - 1, len(stimulus))
        size = frames * int(np.prod(stimulus.shape[1:]))
        number = int(np.clip(VALUES // size, 8, WINDOWS))
        random = np.random.default_rng(self.seed)
        ends = np.sort(random.choice(whole, number)) + 1
        read = [stimulus[end - frames : end].values for end in ends.tolist()]
        return np.stack(read).astype(np.float32)

    def _targets(
        self, model: Model, clip: xr.Dataset
    ) -> tuple[str, dict[Any, NDArray[np.float64]]]:
        """The dimension of the targets, and the weight (1, unit, ...) of each by its name."""
        c = self.config
        model.check_fitted()
        if c.layer is None:
            dim, names = "cell", model.field["cell"].values.tolist()
            chosen = c.cells
            shape: Any = (1, len(names))
            place: tuple[int, ...] = ()
        else:
            model.check_layer(c.layer)
            dim = model.layers()[c.layer]
            activity = model.activity(clip, c.layer)
            shape = (1, *activity.shape[1:])
            names, chosen = list(range(shape[1])), c.units
            place = tuple(c.position or [(size - 1) // 2 for size in shape[2:]])
            if len(place) != len(shape[2:]) or any(
                not 0 <= at < size for at, size in zip(place, shape[2:], strict=True)
            ):
                raise UserError(
                    f"position is {list(place)} and a map of layer '{c.layer}' has "
                    f"{' x '.join(map(str, shape[2:])) or 'no'} positions; count them from 0"
                )
        index = {str(name): number for number, name in enumerate(names)}
        for name in [*(chosen or []), *([] if c.minus is None else [c.minus])]:
            if str(name) not in index:
                shown = ", ".join(list(index)[:10]) + (", ..." if len(index) > 10 else "")
                raise UserError(f"the model has no {dim} {name}; its {dim}s are {shown}")
        weights = {}
        for name in names if chosen is None else [names[index[str(name)]] for name in chosen]:
            if c.minus is not None and str(name) == str(c.minus):
                continue  # the difference would be 0
            weights[name] = np.zeros(shape)
            weights[name][0, index[str(name)], *place] = 1
            if c.minus is not None:
                weights[name][0, index[str(c.minus)], *place] = -1
        if not weights:
            raise UserError(f"'minus' is the only {dim}; choose another one for it")
        return dim, weights

    def _search(self, shown: "_Shown", windows: Array, progress: Progress) -> xr.Dataset | None:
        """The result for one target, in the rectangle that it depends on; None without one."""
        c = self.config
        grey, deviation = float(windows.mean()), float(windows.std()) or 1.0
        random = np.random.default_rng([self.seed, 1])
        noise = grey + deviation * random.standard_normal(windows.shape).astype(np.float32)
        slopes = [np.nan_to_num(shown(clips)[1]) for clips in (windows, noise)]
        # The clips with the strongest responses do not outweigh the others.
        power = np.mean([(_unit(slope) ** 2).mean(0) for slope in slopes], 0)
        if not power.any():
            return None
        box = _box(power)
        small = shown.cropped(box, noise, slopes[1]) or shown.cropped(box, windows, slopes[0])
        if small is not None:
            shown = small
            windows, noise, power = (part[..., *box] for part in (windows, noise, power))
        support = power > 0
        size = float(power.sum() ** 2 / (power**2).sum())
        share = (power / power.sum()).astype(np.float32)
        norm = c.norm or float(np.sqrt(size * (share * (windows - grey) ** 2).sum() / len(windows)))
        limits = c.range or [float(windows.min()), float(windows.max())]
        search = _Search(c, shown, support, share, grey, norm or 1.0, limits)
        starts = search.starts(random)
        stimulus, traces = search.ascend(starts, random, progress)
        response = shown(stimulus)[0]
        best = int(np.argmax(np.nan_to_num(response, nan=-np.inf)))
        contrast = stimulus - grey
        spread = float(np.sqrt((share * contrast[best] ** 2).sum()))
        noise = grey + spread * (noise - grey) / deviation
        clip_dims = shown.clips.dims
        scales = np.array(c.scales, np.float32).reshape(-1, *[1] * support.ndim)
        result = {
            "stimulus": (("seed", *clip_dims), stimulus),
            "response": ("seed", response),
            "best_seed": best,
            "norm": float(np.linalg.norm(contrast[best])),
            "similarity": _similarity(contrast),
            "noise_response": float(shown(noise)[0].mean()),
            "receptive_field_size": size,
            "curve": ("scale", shown(grey + scales * contrast[best])[0]),
            "warning": self._warning(traces, response),
        }
        if c.diverse:
            examples = search.diverse(stimulus[best], float(response[best]), random)
            result["diverse_stimulus"] = (("example", *clip_dims), examples)
            result["diverse_response"] = ("example", shown(examples)[0])
        places = {d: np.arange(p.start, p.stop) for d, p in zip("yx", box, strict=True)}
        whole = {} if small else dict(zip("yx", box, strict=True))
        return xr.Dataset(result).isel(whole).assign_coords(places)

    def _warning(self, traces: NDArray[np.float64], response: NDArray[np.float64]) -> str:
        if not np.isfinite(response).all():
            return "the response to the stimulus is not finite; set a smaller norm"
        c, middle = self.config, traces[self.config.steps // 2]
        change = (response - middle) / np.maximum(np.abs(response), 1e-12)
        best = change[response.argmax()]
        if c.dropout == 0 and best > NOT_CONVERGED:
            return (
                f"the response to the optimal stimulus increases by {best:.1%} in the second half "
                "of the search; raise steps"
            )
        return ""

    def _labelled(
        self, result: xr.Dataset, model: Model, frames: int, dim: str, units: str
    ) -> xr.Dataset:
        c, field = self.config, model.field
        interval = float(field.attrs["frame_interval"])
        coords: dict[str, Any] = {
            "seed": np.arange(c.seeds),
            "scale": list(c.scales),
            **({"channel": field["channel"].variable} if "channel" in field.coords else {}),
            **{d: (d, field[d].values[result[d].values], field[d].attrs) for d in ("y", "x")},
        }
        if c.diverse:
            coords["example"] = np.arange(c.diverse)
        if frames == model.lags and not c.whole_clip:
            result = result.isel(frame=slice(None, None, -1)).rename(frame="lag")
            coords |= lag_coordinate(np.arange(frames), interval)
        else:
            coords["frame"] = np.arange(frames)
            coords["time"] = ("frame", np.arange(frames) * interval, {"units": "s"})
        for name in ("response", "noise_response", "curve", "diverse_response"):
            if name in result and c.layer is None:
                result[name].attrs["units"] = units
        attrs = {"frame_interval": interval}
        return result.assign_coords(coords).transpose(dim, ...).assign_attrs(attrs)

    def plot(self, result: xr.DataTree) -> "Figure":
        from matplotlib.figure import Figure

        shown = list(islice(_shown_cases(result), ROWS))
        lines = [line for label, one in shown for line in _lines(label, one)]
        strip = max(len(one) for _, one, _ in lines)
        figure = Figure(figsize=(1.25 * strip + 3.3, 1.35 * len(lines) + 0.4), layout="constrained")
        ratios = [1.0] * strip + [1.4]
        grid = figure.subplots(len(lines), strip + 1, squeeze=False, width_ratios=ratios)
        for axis in grid.flat:
            axis.set_axis_off()
        for (label, panels, one), axes in zip(lines, grid, strict=True):
            for axis, (title, draw) in zip(axes, panels, strict=False):
                axis.set_axis_on()
                axis.set(xticks=[], yticks=[])
                draw(axis)
                axis.set_title(title, fontsize=8, pad=2)
            axes[0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=9)
            if one is not None:
                axes[-1].set_axis_on()
                _draw_curve(axes[-1], one)
        return figure

    def caption(self, result: xr.DataTree) -> str:
        c = self.config
        total = len(list(_shown_cases(result)))
        target = f"unit of {c.layer}" if c.layer else "cell"
        what = f"response of the {target}"
        if c.minus is not None:
            what = f"difference between the response of the {target} and that of {c.minus}"
        limit = {
            "norm": "a contrast of fixed norm",
            "range": "all values between two limits",
        }[c.constraint]
        return (
            f"Stimuli that maximise the {what}, with {limit}: the best of {c.seeds} searches. Red "
            "is above the mean stimulus and blue below. Left: its spatial and temporal parts, with "
            "the fraction of its power in their product, and single frames, the response at the "
            "end. Right: the response to the stimulus with its "
            "contrast scaled (1 is that of the search), and to white noise with the same root mean "
            "square contrast in the receptive field (dashed)."
            + (
                f" Below: stimuli that differ from each other, with {c.level:.0%} of the response."
                if c.diverse
                else ""
            )
            + " Predictions: those of the model during the clip." * c.whole_clip
            + (f" The first {ROWS} of {total} are shown." if total > ROWS else "")
        )

    def table(self, result: xr.DataTree) -> pd.DataFrame:
        frames = []
        for name, group in groups(result).items():
            best = group["response"].max("seed")
            numbers = xr.Dataset(
                {
                    "response": best,
                    "to noise": group["noise_response"],
                    "lowest seed": group["response"].min("seed"),
                    "similarity of seeds": group["similarity"],
                    "norm": group["norm"],
                    "receptive field (values)": group["receptive_field_size"],
                }
            )
            frame = numbers.expand_dims("row").to_dataframe().reset_index()
            frame.insert(0, "model", name)
            frames.append(frame)
        table = pd.concat(frames, ignore_index=True).drop(columns="row")
        first = [column for column in points(result) if column in table]
        return table[[*first, *[column for column in table if column not in first]]]


ROWS, STRIP = 8, 6


@dataclass(frozen=True)
class _Clips:
    """How clips are shown to a model.

    Attributes:
        dims: of the stimulus.
        interval: in seconds.
        covariates: (covariate,), their means in training, if the recording has them.
    """

    dims: tuple[str, ...]
    interval: float
    covariates: xr.DataArray | None

    @classmethod
    def like(cls, train: xr.Dataset) -> "_Clips":
        mean = train["covariates"].mean("frame") if "covariates" in train else None
        dims = tuple(str(dim) for dim in train["stimulus"].dims)
        return cls(dims, float(train.attrs["frame_interval"]), mean)

    def split(self, clips: NDArray[Any]) -> xr.Dataset:
        """A split of which each clip (clip, frame, [channel,] y, x) is a segment."""
        frames = clips.shape[0] * clips.shape[1]
        split = xr.Dataset(
            {"stimulus": (self.dims, clips.reshape(frames, *clips.shape[2:]))},
            {"segment": ("frame", np.repeat(np.arange(len(clips)), clips.shape[1]))},
            {"frame_interval": self.interval},
        )
        if self.covariates is not None:
            split["covariates"] = self.covariates.expand_dims(frame=frames)
        return split


@dataclass(frozen=True)
class _Shown:
    """The response of a target to clips, and its gradient.

    Attributes:
        weight: (1, unit, ...), of the outputs of the model or of the layer.
        whole: whether responses are those of all frames of a clip.
    """

    model: Model
    clips: _Clips
    layer: str | None
    weight: NDArray[np.float64]
    whole: bool

    def cropped(self, box: tuple[slice, slice], clips: Array, gradient: Array) -> "_Shown | None":
        """The same for a rectangle of the field, which takes less time, or None.

        The position of the unit in the map of the rectangle is the one with the same gradient.

        Args:
            box: the rows and columns.
            clips: (clip, frame, [channel,] y, x), of the whole field.
            gradient: for these clips.
        """
        field = clips.shape[-2:]
        if self.layer is None or all(
            p.stop - p.start == n for p, n in zip(box, field, strict=True)
        ):
            return None
        strongest = [int((gradient.reshape(len(gradient), -1) ** 2).sum(1).argmax())]
        clip, expected = clips[strongest][..., *box], gradient[strongest][..., *box]
        try:  # a layer that needs the whole field, such as a recurrent one, refuses a part
            model = self.model.cropped(*box)
            places = model.activity(self.clips.split(clip), self.layer).shape[2:]
        except UserError:
            return None
        units = self.weight.reshape(self.weight.shape[1], -1).sum(1)
        close = 1e-4 * float(np.abs(expected).max())
        for place in np.ndindex(places):
            weight = np.zeros((1, len(units), *places))
            weight[0, :, *place] = units
            small = replace(self, model=model, weight=weight)
            if close > 0 and np.allclose(small(clip)[1], expected, rtol=1e-3, atol=close):
                return small
        return None

    def __call__(self, clips: Array) -> tuple[NDArray[np.float64], Array]:
        """The responses (clip,) to clips, and their gradients (clip, frame, [channel,] y, x)."""
        split = self.clips.split(clips)
        if self.whole and self.layer is not None:
            value, gradient = self.model.course_gradient(split, self.weight, self.layer)
        else:
            value, gradient = self.model.stimulus_gradient(split, self.weight, self.layer)
        return value.reshape(len(clips), -1).sum(1), gradient.reshape(clips.shape)


@dataclass(frozen=True)
class _Search:
    """The search of the optimal stimulus of one target.

    Attributes:
        support: (frame, [channel,] y, x) the values with a gradient; the others are `grey`.
        share: of the same shape, the power of the gradient, with the sum 1.
        grey: the mean stimulus.
        norm: of the contrast.
        limits: of the stimulus.
    """

    config: OptimalStimulusConfig
    shown: _Shown
    support: NDArray[np.bool_]
    share: Array
    grey: float
    norm: float
    limits: list[float]

    def starts(self, random: np.random.Generator) -> Array:
        """Noise (seed, frame, [channel,] y, x), of candidates those with the largest gradient."""
        c = self.config
        if c.constraint == "range":
            shape = (c.seeds, *self.support.shape)
            return random.uniform(-1, 1, shape).astype(np.float32)
        found = []
        for _ in range(c.seeds):
            noise = random.standard_normal((CANDIDATES, *self.support.shape)).astype(np.float32)
            noise = self._projected(noise * np.sqrt(self.share))
            slope = np.nan_to_num(self.shown(self.grey + noise)[1])
            found.append(noise[int((slope.reshape(CANDIDATES, -1) ** 2).sum(1).argmax())])
        return np.stack(found)

    def ascend(
        self, start: Array, random: np.random.Generator, progress: Progress
    ) -> tuple[Array, NDArray[np.float64]]:
        """The stimuli (seed, ...) after all steps, and the responses (step, seed) before each."""
        c = self.config
        parameters, values = start, np.empty((c.steps, len(start)))
        adam = _Adam(c.learning_rate or 0.05, c.weight_decay)
        for step in range(c.steps):
            kept = self._kept(start.shape, random)
            contrast, slope = self._mapped(parameters * kept)
            values[step], gradient = self.shown(self.grey + self._disturbed(contrast, step, random))
            direction = self._direction(gradient, contrast)
            if c.constraint == "range":
                length = np.sqrt((gradient**2).sum(_over(gradient), keepdims=True))
                parameters = adam.step(parameters, direction * length * slope * kept)
            else:
                parameters = self._step(parameters, direction * kept, step)
            progress(step + 1, c.steps)
        return self.grey + self._mapped(parameters)[0], values

    def diverse(self, best: Array, response: float, random: np.random.Generator) -> Array:
        """Stimuli that are as different as possible, with at least `level` of the response.

        In each step, a stimulus whose response is too small ascends the gradient, and another one
        is moved away from the nearest of the others, in the receptive field.
        """
        c = self.config
        noise = random.standard_normal((c.diverse, *best.shape)) * np.sqrt(self.share)
        moved = best - self.grey + DISTANCE * self._projected(noise.astype(np.float32))
        contrast = self._projected(moved)
        inside = self.share > OUTSIDE * self.share.max()
        for step in range(c.steps):
            values, gradient = self.shown(self.grey + contrast)
            direction = self._direction(gradient, contrast)
            for index in np.flatnonzero(values >= c.level * response) if c.diverse > 1 else ():
                others = np.delete(contrast, index, 0)
                away = contrast[index] - others
                nearest = away[int((away.reshape(len(away), -1) ** 2).sum(1).argmin())]
                push = (nearest * inside)[None]
                direction[index] = self._direction(push, contrast[index : index + 1])[0]
            contrast = self._step(contrast, direction, step)
        return self.grey + contrast

    def _step(self, contrast: Array, direction: Array, step: int) -> Array:
        """One projected step, of a length that decreases to 0."""
        c = self.config
        rate = (c.learning_rate or 0.1) * 0.5 * (1 + np.cos(np.pi * step / c.steps))
        return self._projected(contrast + np.float32(rate * self.norm) * direction)

    def _projected(self, contrast: Array) -> Array:
        return np.float32(self.norm) * _unit(np.where(self.support, contrast, 0))

    def _mapped(self, parameters: Array) -> tuple[Array, Array | float]:
        """The contrast for the parameters, and its derivative by them."""
        if self.config.constraint == "norm":
            return parameters, 1.0
        low, high = self.limits
        curve = np.tanh(parameters)
        shown = np.float32((low + high) / 2 - self.grey) + np.float32((high - low) / 2) * curve
        slope = np.float32((high - low) / 2) * (1 - curve**2)
        return np.where(self.support, shown, 0), slope

    def _disturbed(self, contrast: Array, step: int, random: np.random.Generator) -> Array:
        """The contrast with the noise of this step."""
        c = self.config
        size = c.noise * (1 - 2 * step / c.steps)
        if size <= 0 or c.constraint == "range":
            return contrast
        deviation = size * self.norm * np.sqrt((self.share**2).sum())  # norm / √N
        noise = self.support * random.standard_normal(contrast.shape, np.float32)
        return contrast + (deviation * noise).astype(np.float32)

    def _kept(self, shape: tuple[int, ...], random: np.random.Generator) -> Array | float:
        """The mask of dropout, 1 on average."""
        left_out = self.config.dropout
        if not left_out:
            return 1.0
        kept = random.random(shape, np.float32) >= left_out
        return kept.astype(np.float32) / np.float32(1 - left_out)

    def _direction(self, gradient: Array, contrast: Array) -> Array:
        """The direction of ascent, of unit length without the total variation."""
        c = self.config
        direction = np.nan_to_num(gradient, posinf=0, neginf=0)
        if c.blur or c.blur_frames:
            between = [0.0] * (gradient.ndim - 4)
            widths = [0.0, c.blur_frames, *between, c.blur, c.blur]
            direction = gaussian_filter(direction, widths, mode="constant")
        direction = _unit(np.where(self.support, direction, 0))
        if c.total_variation:
            slope = _variation_slope(contrast) / np.float32(np.sqrt(self.support.sum()))
            direction = direction - np.float32(c.total_variation) * slope
        return direction


class _Adam:
    """Steps of Adam (Kingma & Ba 2015) uphill, with weight decay in the gradient as in torch."""

    def __init__(self, rate: float, decay: float):
        self.rate, self.decay, self.number = rate, decay, 0
        self.mean: Any = 0.0
        self.power: Any = 0.0

    def step(self, parameters: Array, gradient: Array) -> Array:
        gradient = gradient - np.float32(self.decay) * parameters
        self.number += 1
        self.mean = np.float32(0.9) * self.mean + np.float32(0.1) * gradient
        self.power = np.float32(0.999) * self.power + np.float32(0.001) * gradient**2
        mean = self.mean / np.float32(1 - 0.9**self.number)
        power = self.power / np.float32(1 - 0.999**self.number)
        moved: Array = parameters + np.float32(self.rate) * mean / (np.sqrt(power) + 1e-8)
        return moved


def _over(clips: NDArray[Any]) -> tuple[int, ...]:
    return tuple(range(1, clips.ndim))


def _unit(clips: Array) -> Array:
    """Each clip, divided by its norm; 0 where that is 0."""
    norm = np.sqrt((clips.astype(float) ** 2).sum(_over(clips), keepdims=True))
    return (clips / np.where(norm > 0, norm, 1)).astype(np.float32)


def _variation_slope(contrast: Array) -> Array:
    """The gradient of Σ |differences of neighbours in y and in x|, smooth near 0."""
    slope = np.zeros_like(contrast)
    edge = 0.05 * float(np.abs(contrast).max()) or 1.0
    for axis in (-2, -1):
        change = np.moveaxis(np.diff(contrast, axis=axis), axis, -1)
        sign = change / np.sqrt(change**2 + np.float32(edge) ** 2)
        at: Any = np.moveaxis(slope, axis, -1)  # a view
        at[..., 1:] += sign
        at[..., :-1] -= sign
    return slope


def _similarity(contrast: Array) -> float:
    """The mean cosine between the stimuli of the seeds."""
    unit = _unit(contrast).reshape(len(contrast), -1).astype(float)
    cosines = [float(a @ b) for a, b in combinations(unit, 2)]
    return float(np.mean(cosines)) if cosines else np.nan


def _box(power: Array) -> tuple[slice, slice]:
    """The rows and columns of the smallest rectangle outside of which there is no power."""
    used = np.any(power > 0, axis=tuple(range(power.ndim - 2)))
    rows, columns = (np.flatnonzero(used.any(axis)).tolist() for axis in (1, 0))
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def _together(
    found: dict[Any, xr.Dataset | None], dim: str, grey: float, field: tuple[int, ...]
) -> xr.Dataset:
    """The results of all targets, in the rectangle that holds those of each, and a margin."""
    known = [result for result in found.values() if result is not None]
    if not known:
        raise UserError(
            f"the response of no {dim} depends on the stimulus: the gradients are 0 for clips of "
            "the training stimulus and for noise; choose others, or another model"
        )
    blank = {
        name: xr.zeros_like(values).where(values.dtype.kind != "f", np.nan)
        for name, values in known[0].data_vars.items()
    }
    missing = xr.Dataset(blank).assign(warning=UNRESPONSIVE)
    filled = dict.fromkeys(("stimulus", "diverse_stimulus"), grey)
    combined: xr.Dataset = xr.concat(
        [(missing if one is None else one).assign_coords({dim: n}) for n, one in found.items()],
        dim,
        join="outer",
        fill_value=filled,
    )
    places = {}
    for of, size in zip(("y", "x"), field, strict=True):
        first, last = int(combined[of].min()) - MARGIN, int(combined[of].max()) + MARGIN
        places[of] = np.arange(max(first, 0), min(last + 1, size))
    combined = combined.reindex(places, fill_value=filled)
    for name in filled.keys() & combined.keys():
        of_targets = combined["response"].notnull().any("seed")
        combined[name] = combined[name].where(of_targets)
    return combined.assign(mean_stimulus=grey)


def _predictions(found: xr.Dataset, model: Model, dim: str, size: tuple[int, ...]) -> xr.DataArray:
    """The predictions (unit, frame, cell) while the best stimulus of each unit is shown."""
    grey, before = float(found["mean_stimulus"]), model.lags - 1
    courses = []
    for unit in range(found.sizes[dim]):
        one = found.isel({dim: unit})
        best = one["stimulus"].isel(seed=int(one["best_seed"])).fillna(grey)
        shown = np.full((before + best.sizes["frame"], *size), grey, np.float32)
        y, x = (slice(int(best[of][0]), int(best[of][-1]) + 1) for of in ("y", "x"))
        shown[before:, ..., y, x] = best.transpose("frame", ..., "y", "x")
        courses.append(model.predict(shown)[before:].drop_vars(["time", "segment"]))
    together = xr.concat(courses, dim).assign_coords({dim: found[dim]})
    return together.where(found["response"].notnull().any("seed"))


def _shown_cases(result: xr.DataTree) -> Iterator[tuple[str, xr.Dataset]]:
    """Every target of every point of the sweeps, with a label."""
    for label, case in cases(result):
        dims = [str(dim) for dim in case["response"].dims if dim != "seed"]
        if not dims:
            yield label, case
            continue
        (dim,) = dims
        for index, name in enumerate(case[dim].values):
            yield "\n".join(filter(None, (label, f"{dim} {name}"))), case.isel({dim: index})


Panel = tuple[str, Callable[[Any], None]]


def _lines(label: str, one: xr.Dataset) -> list[tuple[str, list[Panel], xr.Dataset | None]]:
    """The lines of panels of a target: its stimulus, and the diverse ones."""
    best = one["stimulus"].isel(seed=int(one["best_seed"]))
    lines: list[tuple[str, list[Panel], xr.Dataset | None]] = [(label, _views(best, one), one)]
    if "prediction" in one and one["prediction"].notnull().any():
        lines[0][1].append(("predictions", lambda axis: _draw_predictions(axis, one)))
    if "diverse_stimulus" in one:
        panels = []
        for index in range(min(one.sizes["example"], STRIP + 2)):
            contrast = _contrast(one["diverse_stimulus"].isel(example=index), one)
            ratio = float(one["diverse_response"][index] / one["response"].max())
            panels.append((f"{ratio:.0%}", _drawn(_flat(contrast))))
        lines.append(("diverse", panels, None))
    return lines


def _contrast(stimulus: xr.DataArray, one: xr.Dataset) -> xr.DataArray:
    """The difference from the mean stimulus, with the dimension lag, without missing pixels."""
    contrast = stimulus - float(one["mean_stimulus"])
    for dim in ("y", "x"):  # which other points of a sweep have
        if contrast.notnull().any():
            contrast = contrast.dropna(dim, how="all")
    if "frame" in contrast.dims:
        last = float(contrast["time"].max())
        contrast = contrast.isel(frame=slice(None, None, -1)).rename(frame="lag")
        contrast = contrast.assign_coords(lag_time=last - contrast["time"])
        contrast = contrast.assign_coords(lag=np.arange(contrast.sizes["lag"]))
    return contrast


def _flat(contrast: xr.DataArray) -> xr.DataArray:
    """The spatial part of a stimulus, or for bars and full fields its course in time."""
    parts = separate(contrast)
    sign = np.sign(float(parts["temporal"].sum())) or 1.0
    return in_time(sign * parts["spatial"], sign * parts["temporal"])


def _drawn(field: xr.DataArray, limit: float | None = None) -> Callable[[Any], None]:
    return lambda axis: draw_field(axis, field, limit=limit)


def _views(stimulus: xr.DataArray, one: xr.Dataset) -> list[Panel]:
    contrast = _contrast(stimulus, one)
    if not contrast.notnull().any():
        return [("no response", lambda axis: None)]
    if len(extended(contrast)) < 2 or contrast.sizes["lag"] == 1:
        return [("", _drawn(contrast))]
    parts = separate(contrast)
    sign = np.sign(float(parts["temporal"].sum())) or 1.0
    share = float(parts["separability"].mean())
    panels: list[Panel] = [
        (f"in space ({share:.0%})", _drawn(sign * parts["spatial"])),
        ("in time", lambda axis: _draw_course(axis, sign * parts["temporal"])),
    ]
    limit = float(np.abs(contrast).max())
    power = (contrast**2).sum([dim for dim in contrast.dims if dim != "lag"])
    strong = np.flatnonzero(power > 0.02 * power.max())
    lags = np.unique(np.linspace(strong[-1], strong[0], STRIP).round().astype(int))[::-1]
    for lag in lags:
        time = f"{round(-1000 * float(contrast['lag_time'][lag]))} ms"
        panels.append((time, _drawn(contrast.isel(lag=lag), limit)))
    return panels


def _draw_course(axis: Any, temporal: xr.DataArray) -> None:
    course = temporal if temporal.ndim == 1 else temporal.isel({temporal.dims[0]: 0})
    axis.axhline(0, color="0.8", lw=0.6, zorder=0)
    axis.plot(-1000 * course["lag_time"], course, color="0.2", lw=1)
    axis.set(xticks=[round(-1000 * float(course["lag_time"].max())), 0])
    axis.tick_params(labelsize=7)


def _draw_predictions(axis: Any, one: xr.Dataset) -> None:
    for cell in one["cell"].values[:STRIP]:
        axis.plot(1000 * one["time"], one["prediction"].sel(cell=cell), lw=1, label=str(cell))
    axis.set(xticks=[0, round(1000 * float(one["time"].max()))])
    axis.set_yticks([0, round(float(one["prediction"].max()), 2)])
    axis.tick_params(labelsize=7)
    axis.legend(frameon=False, fontsize=6, handlelength=1)


def _draw_curve(axis: Any, one: xr.Dataset) -> None:
    factor, label = 1.0, "activity"
    if "units" in one["response"].attrs:
        factor, label = to_hertz(one["response"], float(one.attrs["frame_interval"]))
    axis.plot(one["scale"], factor * one["curve"], ".-", color="0.2", lw=1, ms=4)
    axis.axhline(factor * float(one["noise_response"]), color="C1", lw=1, ls="--")
    axis.axvline(1, color="0.85", lw=0.8, zorder=0)
    axis.set_ylabel(label, fontsize=8)
    axis.set_xlabel("relative contrast", fontsize=8)
    axis.tick_params(labelsize=7)
