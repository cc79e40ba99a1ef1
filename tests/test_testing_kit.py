"""The conformance kit passes what keeps the contracts, and finds each way to break one."""

import copy
import pickle
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pydantic
import pytest
import torch
import xarray as xr
from matplotlib.figure import Figure
from numpy.typing import NDArray
from pydantic import BaseModel, Field
from torch import nn

from retinakit import Analysis, Config, Dataset, Model, UserError
from retinakit.contracts import (
    SPLITS,
    FittedModel,
    Progress,
    groups,
    make_split,
    segments,
    silent,
    validate,
)
from retinakit.regression import spread_over_history
from retinakit.spikes import sta
from retinakit.testing import (
    ANALYSIS_CHECKS,
    DATASET_CHECKS,
    MODEL_CHECKS,
    SmallModel,
    check_analysis,
    check_dataset,
    check_model,
    registered,
    small_recording,
)


@pytest.fixture(scope="module")
def recording() -> xr.DataTree:
    return small_recording(frames=400)


Inputs = Callable[[type[Model]], xr.DataTree]


@pytest.fixture(scope="module")
def inputs(recording: xr.DataTree) -> Inputs:
    """The recording that suits a model: one with covariates for a model that needs them."""
    covariates = small_recording(frames=400, covariates=True)
    return lambda model: covariates if issubclass(model, WithPupil) else recording


def failures(check: Any, *args: Any, **kwargs: Any) -> list[str]:
    """The names of the checks that fail."""
    try:
        check(*args, **kwargs)
    except AssertionError as error:
        return [line.strip().split(":")[0] for line in str(error).splitlines()[1:]]
    return []


def every(cls: type) -> Iterator[type]:
    for subclass in cls.__subclasses__():
        yield subclass
        yield from every(subclass)


# Plugins that keep the contract. A broken one derives from one of them and says in `breaks` which
# checks must find it.


class GoodConfig(Config):
    frames: int = Field(200, ge=10, description="Frames of a split.")
    scale: float = Field(1.0, description="Unused.")


class GoodDataset(Dataset):
    """White noise and independent spikes."""

    Config = GoodConfig
    breaks: ClassVar[list[str]] = []

    def load(self) -> xr.DataTree:
        random = np.random.default_rng(self.seed)
        return xr.DataTree.from_dict(
            {name: self.split(random) for name in ("train", "validation", "test")}
        )

    def split(self, random: np.random.Generator) -> xr.Dataset:
        frames = self.config.frames
        return make_split(
            (2 * random.integers(0, 2, (frames, 5, 5)) - 1).astype(np.int8),
            random.poisson(1.0, (frames, 2)),
            frame_interval=0.02,
        )


class GoodDerived(Dataset):
    """Another dataset without its first frames."""

    breaks: ClassVar[list[str]] = []

    def load(self, data: xr.DataTree) -> xr.DataTree:
        return xr.DataTree.from_dict(
            {name: data[name].to_dataset().isel(frame=slice(10, None)) for name in SPLITS}
        )


class GoodModel(SmallModel):
    """The kit's own model, fitted in steps with a checkpoint."""

    breaks: ClassVar[list[str]] = []

    def fit(
        self,
        recording: xr.DataTree,
        *,
        checkpoint: Path | None = None,
        progress: Progress = silent,
    ) -> xr.Dataset:
        curves = super().fit(recording)
        self.take_steps(checkpoint, progress)
        return curves

    def take_steps(self, checkpoint: Path | None, progress: Progress) -> None:
        done = int(checkpoint.read_text()) if checkpoint and checkpoint.exists() else 0
        for step in range(done, 4):
            progress(step, 4)
            if checkpoint:
                checkpoint.write_text(str(step + 1))


class GoodAnalysis(Analysis):
    """Spike-triggered averages."""

    breaks: ClassVar[list[str]] = []

    def run(self, data: xr.DataTree) -> xr.Dataset:
        return sta(data["train"].to_dataset(), 3)

    def plot(self, result: xr.DataTree) -> Figure:
        figure = Figure()
        for group in groups(result).values():
            spikes = group["spikes"].values
            figure.subplots().plot(spikes.reshape(-1, spikes.shape[-1]).T)
        return figure

    def caption(self, result: xr.DataTree) -> str:
        return "Spikes of each cell."


class GoodOfModel(GoodAnalysis):
    """Mean prediction of each cell."""

    def run(self, model: Model, data: xr.DataTree) -> xr.Dataset:  # type: ignore[override]
        rate = model.predict(data["test"])
        return xr.Dataset({"spikes": rate.mean("frame")})


class GoodOfFamily(GoodAnalysis):
    """Mean prediction of every model."""

    def run(self, models: list[FittedModel]) -> xr.Dataset:  # type: ignore[override]
        means = [m.model.predict(m.data["test"]).mean("frame") for m in models]
        names = pd.Index([m.name for m in models], name="name")
        return xr.Dataset({"spikes": xr.concat(means, names)})


class GoodOfResults(GoodAnalysis):
    """Spikes of another analysis."""

    def run(self, results: dict[str, xr.DataTree]) -> xr.Dataset:  # type: ignore[override]
        return next(iter(groups(results["other"]).values()))[["spikes"]]


# Options and seeds, which any kind of plugin may break.


class NotAConfig(GoodDataset):
    class Config(BaseModel):  # type: ignore[assignment]
        model_config = pydantic.ConfigDict(frozen=True, extra="forbid")
        frames: int = Field(200, description="Frames of a split.")

    breaks: ClassVar[list[str]] = ["config_class"]


class NotThroughJson(GoodDataset):
    class Config(GoodConfig):
        sizes: Any = Field((1, 2), description="JSON has no tuple, it becomes a list.")

    breaks: ClassVar[list[str]] = ["config_round_trip"]


class NotFrozen(GoodDataset):
    class Config(GoodConfig):
        model_config = pydantic.ConfigDict(frozen=False)

    breaks: ClassVar[list[str]] = ["config_frozen"]


class TakesAnything(GoodDataset):
    class Config(GoodConfig):
        model_config = pydantic.ConfigDict(extra="ignore")

    breaks: ClassVar[list[str]] = ["config_extra"]


class NotDescribed(GoodDataset):
    class Config(GoodConfig):
        depth: int = 3

    breaks: ClassVar[list[str]] = ["config_described"]


class NoDefault(GoodDataset):
    class Config(GoodConfig):
        depth: int = Field(description="How deep.")

    breaks: ClassVar[list[str]] = ["config_described"]
    options: ClassVar[dict[str, Any]] = {"depth": 2}


class ForgetsSeed(GoodDataset):
    def __init__(self, config: Any = None, *, seed: int = 0):
        super().__init__(config)

    breaks: ClassVar[list[str]] = ["seed_kept"]


# Datasets.


class NegativeSpikes(GoodDataset):
    def split(self, random: np.random.Generator) -> xr.Dataset:
        split = super().split(random)
        split["response"][3, 0] = -1
        return split

    breaks: ClassVar[list[str]] = ["recording_valid"]


class NotATree(GoodDataset):
    def load(self) -> Any:
        return dict(super().load().children)

    breaks: ClassVar[list[str]] = [
        "recording_valid",
        "recording_labelled",
        "stimulus_compact",
        "dataset_determinism",
        "recording_stored",
    ]


class NoUnits(GoodDataset):
    def split(self, random: np.random.Generator) -> xr.Dataset:
        split = super().split(random)
        del split["y"].attrs["units"]
        return split

    breaks: ClassVar[list[str]] = ["recording_labelled"]


class TimeInMilliseconds(GoodDataset):
    def split(self, random: np.random.Generator) -> xr.Dataset:
        split = super().split(random)
        return split.assign_coords(time=("frame", split["time"].values * 1000, {"units": "s"}))

    breaks: ClassVar[list[str]] = ["recording_labelled"]


class UnlabelledTruth(GoodDataset):
    def load(self) -> xr.DataTree:
        recording = super().load()
        recording["truth"] = xr.DataTree(dataset=xr.Dataset({"temporal": ("lag", np.ones(3))}))
        return recording

    breaks: ClassVar[list[str]] = ["recording_labelled"]


class WastefulStimulus(GoodDataset):
    def split(self, random: np.random.Generator) -> xr.Dataset:
        split = super().split(random)
        return split.assign(stimulus=split["stimulus"].astype(np.float32).assign_attrs(units="1"))

    breaks: ClassVar[list[str]] = ["stimulus_compact"]


class UnseededDataset(GoodDataset):
    def split(self, random: np.random.Generator) -> xr.Dataset:
        return super().split(np.random.default_rng())

    breaks: ClassVar[list[str]] = ["dataset_determinism"]


class AttributeNotStored(GoodDataset):
    def load(self) -> xr.DataTree:
        recording = super().load()
        recording["train"].attrs["options"] = {"frames": 1}
        return recording

    breaks: ClassVar[list[str]] = ["recording_stored"]


class FileNotThere(GoodDataset):
    def files(self) -> list[Path]:
        return [Path("nowhere.h5")]

    breaks: ClassVar[list[str]] = ["files_listed"]


class ChangesData(GoodDerived):
    def load(self, data: xr.DataTree) -> xr.DataTree:
        data["train"].to_dataset()["response"].values[:10] += 1
        return super().load(data)

    breaks: ClassVar[list[str]] = ["data_unchanged"]


class NotMadeAlone(GoodDerived):
    """`data` has a default, and is needed all the same."""

    def load(self, data: xr.DataTree | None = None) -> xr.DataTree:
        assert data is not None, "there is no data"
        return super().load(data)

    breaks: ClassVar[list[str]] = ["made_alone"]


class WithoutFirstRow(GoodDerived):
    """The rows after the first one are needed."""

    def load(self, data: xr.DataTree) -> xr.DataTree:
        if data["train"].sizes["y"] == 1:
            raise ValueError("there is no second row")
        return super().load(data)

    breaks: ClassVar[list[str]] = ["bars_and_full_field"]


# Models.


class NoValidationCurve(GoodModel):
    def fit(self, *args: Any, **kwargs: Any) -> xr.Dataset:
        return super().fit(*args, **kwargs).rename(validation_loss="loss")

    breaks: ClassVar[list[str]] = ["curves_labelled"]


class DropsTime(GoodModel):
    def predict(self, split: Any) -> xr.DataArray:
        return super().predict(split).drop_vars("time")

    breaks: ClassVar[list[str]] = ["prediction_labelled"]


class WrongUnits(GoodModel):
    def fit(self, recording: xr.DataTree, **kwargs: Any) -> xr.Dataset:
        curves = super().fit(recording, **kwargs)
        self.field = self.weights = self.weights.assign_attrs(response_units="Hz")
        return curves

    breaks: ClassVar[list[str]] = ["prediction_labelled"]


class WantsResponses(GoodModel):
    def respond(self, split: xr.Dataset) -> NDArray[Any]:
        return super().respond(split) + ("response" in split)

    breaks: ClassVar[list[str]] = ["forms_of_stimulus"]


class SumOfPixels(nn.Module):
    """Predicts the sum of a frame; with `every`, not from the first prediction on."""

    def forward(self, frames: torch.Tensor, every: int = 1) -> torch.Tensor:
        return frames[4:].sum((1, 2))[:, None][every - 1 :: every]


class BeginsLate(GoodModel):
    module = SumOfPixels()

    breaks: ClassVar[list[str]] = ["every_prediction"]


class PredictsWithoutHistory(GoodModel):
    def predict(self, split: Any) -> xr.DataArray:
        return super().predict(split).fillna(0.0)

    breaks: ClassVar[list[str]] = ["history_only", "short_stimulus"]


class LosesFrames(GoodModel):
    def respond(self, split: xr.Dataset) -> NDArray[Any]:
        rate = super().respond(split)
        rate[30::100] = np.nan
        return rate

    breaks: ClassVar[list[str]] = ["history_only", "missing_responses"]


class NegativeRate(GoodModel):
    class Config(Config):
        loss: str = Field("poisson", description="What is minimised.")

    def respond(self, split: xr.Dataset) -> NDArray[Any]:
        return super().respond(split) - 1

    breaks: ClassVar[list[str]] = ["rate_not_negative"]


class UnseededModel(GoodModel):
    def fit(self, *args: Any, **kwargs: Any) -> xr.Dataset:
        curves = super().fit(*args, **kwargs)
        self.weights["offset"] = self.weights["offset"] + np.random.default_rng().random()
        return curves

    breaks: ClassVar[list[str]] = ["model_determinism", "unseen_test_split", "interrupted_fit"]


class LooksAtTest(GoodModel):
    def fit(self, recording: xr.DataTree, **kwargs: Any) -> xr.Dataset:
        curves = super().fit(recording, **kwargs)
        mean = recording["test"].to_dataset()["response"].mean().item()
        self.weights["offset"] = self.weights["offset"] + mean
        return curves

    breaks: ClassVar[list[str]] = ["unseen_test_split"]


class ForgetsState(GoodModel):
    def state(self) -> xr.Dataset:
        return self.weights.assign(offset=self.weights["offset"] * 0)

    breaks: ClassVar[list[str]] = ["saved_and_loaded"]


class SavesPickle(GoodModel):
    def state(self) -> xr.Dataset:
        content = pickle.dumps({"offset": self.weights["offset"].values.tolist()})
        return self.weights.assign(blob=("byte", np.frombuffer(content, np.uint8)))

    def restore(self, state: xr.Dataset) -> None:
        super().restore(state.drop_vars("blob"))

    breaks: ClassVar[list[str]] = ["file_open_to_all"]


class SavesNumpyFile(GoodModel):
    def save(self, path: Any, curves: xr.Dataset | None = None) -> None:
        np.savez(path, **{str(k): v.values for k, v in self.weights.data_vars.items()})
        path.with_suffix(".nc.npz").rename(path)

    breaks: ClassVar[list[str]] = ["saved_and_loaded", "file_open_to_all"]


class ChangesRecording(GoodModel):
    def fit(self, recording: xr.DataTree, **kwargs: Any) -> xr.Dataset:
        curves = super().fit(recording, **kwargs)
        recording["train"].to_dataset()["stimulus"].values[:10] *= 2
        return curves

    breaks: ClassVar[list[str]] = ["recording_unchanged"]


class ChangesStimulus(GoodModel):
    def respond(self, split: xr.Dataset) -> NDArray[Any]:
        rate = super().respond(split)
        split["stimulus"].values[:1] = 0
        return rate

    breaks: ClassVar[list[str]] = ["recording_unchanged"]


class PropagatesMissing(GoodModel):
    def fit(self, recording: xr.DataTree, **kwargs: Any) -> xr.Dataset:
        curves = super().fit(recording, **kwargs)
        mean = np.asarray(recording["train"].to_dataset()["response"], float).mean(0)
        self.weights["offset"] = ("cell", mean)
        return curves

    breaks: ClassVar[list[str]] = ["missing_responses"]


class TakesMissingForSilence(GoodModel):
    def fit(self, recording: xr.DataTree, **kwargs: Any) -> xr.Dataset:
        filled = recording.copy(deep=True)
        for name in ("train", "validation"):
            filled[name] = xr.DataTree(dataset=filled[name].to_dataset().fillna(0))
        return super().fit(filled, **kwargs)

    breaks: ClassVar[list[str]] = ["missing_responses"]


class FailsOnEmpty(GoodModel):
    def predict(self, split: Any) -> xr.DataArray:
        assert len(getattr(split, "stimulus", split)) > 0
        return super().predict(split)

    breaks: ClassVar[list[str]] = ["short_stimulus"]


class AcceptsAnySize(GoodModel):
    def prepare(self, split: Any) -> xr.Dataset:
        if isinstance(split, xr.Dataset):
            split = split.isel({dim: slice(self.field.sizes[dim]) for dim in ("y", "x")})
        return super().prepare(split)

    breaks: ClassVar[list[str]] = ["wrong_size_refused"]


class VagueAboutSize(GoodModel):
    def prepare(self, split: Any) -> xr.Dataset:
        try:
            return super().prepare(split)
        except UserError:
            raise UserError("the stimulus is wrong") from None

    breaks: ClassVar[list[str]] = ["wrong_size_refused"]


class PeeksAtNextFrame(GoodModel):
    def respond(self, split: xr.Dataset) -> NDArray[Any]:
        ahead = np.roll(split["stimulus"].values[:, 0, 0], -1)
        same = np.roll(split["segment"].values, -1) == split["segment"].values
        return super().respond(split) + np.where(same, ahead, 0)[:, None]

    breaks: ClassVar[list[str]] = ["causality"]


class NormalisesByWholeStimulus(GoodModel):
    def respond(self, split: xr.Dataset) -> NDArray[Any]:
        return super().respond(split) + split["stimulus"].values.mean()

    breaks: ClassVar[list[str]] = ["causality", "segments_apart"]


class ReachesIntoSegmentBefore(GoodModel):
    def respond(self, split: xr.Dataset) -> NDArray[Any]:
        return super().respond(split) + np.cumsum(split["stimulus"].values[:, 0, 0])[:, None]

    breaks: ClassVar[list[str]] = ["segments_apart"]


class UnlabelledParameters(GoodModel):
    def parameters(self) -> xr.Dataset:
        return xr.Dataset({"weight": ("feature", self.weights["filter"].values.ravel())})

    breaks: ClassVar[list[str]] = ["parameters_labelled"]


class NoLagTime(GoodModel):
    def parameters(self) -> xr.Dataset:
        return self.weights.drop_vars("lag_time")

    breaks: ClassVar[list[str]] = ["parameters_labelled"]


class NameOfItsDimension(GoodModel):
    def parameters(self) -> xr.Dataset:
        values = self.weights["filter"].values
        return xr.Dataset({"filter": (("filter", "lag", "y", "x"), values), "gain": 1.0})

    breaks: ClassVar[list[str]] = ["parameters_labelled"]


class NoParameters(GoodModel):
    def parameters(self) -> xr.Dataset:
        return xr.Dataset()

    breaks: ClassVar[list[str]] = ["parameters_labelled"]


class ForgetsUnrecordedCells(GoodModel):
    def fit(self, recording: xr.DataTree, **kwargs: Any) -> xr.Dataset:
        curves = super().fit(recording, **kwargs)
        known = np.isfinite(recording["validation"].to_dataset()["response"]).any("frame")
        self.weights["offset"] = self.weights["offset"].where(known)
        return curves

    breaks: ClassVar[list[str]] = ["missing_responses"]


class SharesBetweenCells(GoodModel):
    cells_apart: ClassVar[bool] = True

    def fit(self, recording: xr.DataTree, **kwargs: Any) -> xr.Dataset:
        curves = super().fit(recording, **kwargs)
        self.weights["offset"] = self.weights["offset"] + self.weights["offset"].mean()
        return curves

    breaks: ClassVar[list[str]] = ["cells_independent"]


class NeedsTwoRows(GoodModel):
    def fit(self, recording: xr.DataTree, **kwargs: Any) -> xr.Dataset:
        if recording["train"].sizes["y"] == 1:
            raise UserError("the stimulus has one row")
        return super().fit(recording, **kwargs)

    breaks: ClassVar[list[str]] = ["bars_and_full_field"]


class DeclaresTwoRows(NeedsTwoRows):
    any_field = False
    breaks: ClassVar[list[str]] = []


class WithPupil(GoodModel):
    """Rates that the pupil's diameter multiplies."""

    inputs: ClassVar[tuple[str, ...]] = ("stimulus", "covariates")

    def respond(self, split: xr.Dataset) -> NDArray[Any]:
        if "covariates" not in split:
            raise UserError("the split has no 'covariates'; give the whole split")
        return super().respond(split) * split["covariates"].values[:, :1]


class TakesStimulusAlone(WithPupil):
    def respond(self, split: xr.Dataset) -> NDArray[Any]:
        return super().respond(split) if "covariates" in split else GoodModel.respond(self, split)

    breaks: ClassVar[list[str]] = ["forms_of_stimulus"]


class IgnoresCovariates(WithPupil):
    def respond(self, split: xr.Dataset) -> NDArray[Any]:
        if "covariates" in split:
            split = split.assign(covariates=xr.ones_like(split["covariates"]))
        return super().respond(split)

    breaks: ClassVar[list[str]] = ["covariates_used"]


class WithSpikeHistory(GoodModel):
    """Rates that a spike of the cell in the frame before doubles."""

    inputs: ClassVar[tuple[str, ...]] = ("stimulus", "response")

    def respond(self, split: xr.Dataset) -> NDArray[Any]:
        if "response" not in split:
            raise UserError("the split has no 'response'; give the whole split")
        spikes = np.nan_to_num(split["response"].values)  # ([repeat,] frame, cell)
        return super().respond(split) * (1 + (self.history(spikes, split) > 0))

    def history(self, spikes: NDArray[Any], split: xr.Dataset) -> NDArray[Any]:
        before = np.roll(spikes, 1, axis=-2)
        begins = np.diff(split["segment"].values, prepend=-1) != 0
        before[..., begins, :] = 0
        return before

    def simulate(self, split: xr.Dataset, repeats: int, seed: int) -> xr.DataArray:
        rate = super().respond(split)
        spikes = np.random.default_rng(seed).poisson(np.nan_to_num(rate), (repeats, *rate.shape))
        without = split.drop_vars("response")
        return self.label(spikes, without, ("repeat", "frame", "cell"))


class SimulatesFromResponses(WithSpikeHistory):
    def simulate(self, split: xr.Dataset, repeats: int, seed: int) -> xr.DataArray:
        return super().simulate(split, repeats, seed) + split["response"].mean()

    breaks: ClassVar[list[str]] = ["simulated_spikes"]


class SeesPresentSpikes(WithSpikeHistory):
    def history(self, spikes: NDArray[Any], split: xr.Dataset) -> NDArray[Any]:
        return spikes

    breaks: ClassVar[list[str]] = ["causality_of_responses"]


class CountsSpikesOfSegmentBefore(WithSpikeHistory):
    def history(self, spikes: NDArray[Any], split: xr.Dataset) -> NDArray[Any]:
        return (np.cumsum(spikes, axis=-2) - spikes) % 2

    breaks: ClassVar[list[str]] = ["segments_apart"]


class PropagatesMissingHistory(WithSpikeHistory):
    def respond(self, split: xr.Dataset) -> NDArray[Any]:
        rate = super().respond(split)
        return np.where(np.isnan(split["response"].values).any((-3, -1))[:, None], np.nan, rate)

    breaks: ClassVar[list[str]] = ["missing_history"]


class AveragesRepeats(WithSpikeHistory):
    def respond(self, split: xr.Dataset) -> NDArray[Any]:
        rate = super().respond(split)
        return rate.mean(0) if rate.ndim == 3 else rate

    breaks: ClassVar[list[str]] = ["prediction_labelled"]


class IgnoresResponses(WithSpikeHistory):
    def history(self, spikes: NDArray[Any], split: xr.Dataset) -> NDArray[Any]:
        return np.zeros_like(spikes)

    breaks: ClassVar[list[str]] = ["responses_used"]


class Layered(GoodModel):
    """The filters of the cells as a layer."""

    def layers(self) -> dict[str, str]:
        return {"filters": "filter"}

    def activity(self, split: Any, layer: str) -> xr.DataArray:
        self.check_layer(layer)
        split = self.prepare(split)
        return self.label(self.respond(split), split, ("frame", "filter"))

    def without(self, layer: str, units: Sequence[int]) -> Self:
        self.check_units(layer, units, self.weights.sizes["cell"])
        other = copy.deepcopy(self)
        for name in ("filter", "offset"):
            other.weights[name][list(units)] = 0
        return other


class UnitsLast(Layered):
    def activity(self, split: Any, layer: str) -> xr.DataArray:
        return super().activity(split, layer).expand_dims("y", 1)

    breaks: ClassVar[list[str]] = ["activity_labelled"]


class ActiveWithoutHistory(Layered):
    def activity(self, split: Any, layer: str) -> xr.DataArray:
        return super().activity(split, layer).fillna(0)

    breaks: ClassVar[list[str]] = ["activity_labelled"]


class AnyLayer(Layered):
    def activity(self, split: Any, layer: str) -> xr.DataArray:
        return super().activity(split, "filters")

    breaks: ClassVar[list[str]] = ["unknown_layer_refused"]


class SilencesItself(Layered):
    def without(self, layer: str, units: Sequence[int]) -> Self:
        other = super().without(layer, units)
        self.weights = other.weights
        return self

    breaks: ClassVar[list[str]] = ["silenced_units"]


class SilencesAll(Layered):
    def without(self, layer: str, units: Sequence[int]) -> Self:
        everything = range(self.weights.sizes["cell"])
        return super().without(layer, everything if units else units)

    breaks: ClassVar[list[str]] = ["silenced_units"]


class SilencesNothing(Layered):
    def without(self, layer: str, units: Sequence[int]) -> Self:
        return super().without(layer, [])

    breaks: ClassVar[list[str]] = ["silenced_units"]


class LesionsOfOneLayer(Layered):
    def lesions(self, split: Any, combinations: Any) -> Any:
        for _ in combinations:
            yield self.without("filters", [0]).predict(split).values

    breaks: ClassVar[list[str]] = ["lesions_agree"]


class Substituting(Layered):
    def substituted(self, layer: str, unit: int, by: int) -> Self:
        self.check_units(layer, [unit, by], self.weights.sizes["cell"])
        other = copy.deepcopy(self)
        for name in ("filter", "offset"):
            other.weights[name][unit] = other.weights[name].values[by]
        return other


class SubstitutesTheOther(Substituting):
    def substituted(self, layer: str, unit: int, by: int) -> Self:
        return super().substituted(layer, by, unit)

    breaks: ClassVar[list[str]] = ["substituted_units"]


class Differentiable(GoodModel):
    """A rectified filter, of which the gradient is known."""

    def stimulus_gradient(self, split: Any, weight: Any, layer: Any = None) -> Any:
        split = self.prepare(split)
        rate = np.nan_to_num(self.respond(split))
        weight = self.broadcast_weight(weight, split, rate.shape)
        kernel, pieces = self.weights["filter"].values, segments(split)
        return (weight * rate).sum(1), spread_over_history(weight * (rate > 0), kernel, pieces)


class WrongLag(Differentiable):
    def stimulus_gradient(self, split: Any, weight: Any, layer: Any = None) -> Any:
        value, gradient = super().stimulus_gradient(split, weight, layer)
        return value, np.roll(gradient, 1, axis=0)

    breaks: ClassVar[list[str]] = ["gradient_of_outputs"]


class PartOfGradient(Differentiable):
    def stimulus_gradient(self, split: Any, weight: Any, layer: Any = None) -> Any:
        value, gradient = super().stimulus_gradient(split, weight, layer)
        return value, gradient * (np.arange(gradient.shape[-1]) < 4)

    breaks: ClassVar[list[str]] = ["gradient_of_outputs"]


class UnweightedValue(Differentiable):
    def stimulus_gradient(self, split: Any, weight: Any, layer: Any = None) -> Any:
        value, gradient = super().stimulus_gradient(split, weight, layer)
        return value + 1, gradient

    breaks: ClassVar[list[str]] = ["gradient_of_outputs"]


class Several(GoodModel):
    """Rates of cells with an offset that all recordings have in common."""

    several: ClassVar[bool] = True
    shared: ClassVar[tuple[str, ...]] = ("core",)
    parts: dict[str, "Several"]

    def fit(
        self, recording: Any, *, checkpoint: Path | None = None, progress: Progress = silent
    ) -> xr.Dataset:
        if isinstance(recording, xr.DataTree):
            curves = super().fit(recording, checkpoint=checkpoint, progress=progress)
            self.share(1.0)
            return curves
        self.parts = {name: type(self)(self.config, seed=self.seed) for name in recording}
        for name, part in self.parts.items():
            curves = part.fit(recording[name])
        self.take_steps(checkpoint, progress)
        self.field = part.field
        return curves

    def share(self, offset: float) -> None:
        self.weights["module.core.offset"] = offset

    def respond(self, split: xr.Dataset) -> NDArray[Any]:
        return super().respond(split) + self.weights["module.core.offset"].item()

    @property
    def recordings(self) -> tuple[str, ...]:
        return tuple(getattr(self, "parts", ()))

    def of(self, name: str) -> Model:
        return self.parts[name] if name in self.recordings else super().of(name)

    def parameters(self) -> xr.Dataset:
        if not self.recordings:
            return super().parameters()
        labelled = [
            part.weights[["offset"]].assign_coords(
                cell=[f"{name}/{cell}" for cell in part.weights["cell"].values],
                recording=("cell", [name] * part.weights.sizes["cell"]),
            )
            for name, part in self.parts.items()
        ]
        return xr.concat(labelled, "cell", coords="minimal", compat="override")[["offset"]]

    def state(self) -> xr.Dataset:
        if not self.recordings:
            return super().state()
        states = []
        for name, part in self.parts.items():
            renamed = part.weights.rename({v: f"{name}.{v}" for v in part.weights.variables})
            renamed.attrs = {f"{name}.{key}": v for key, v in part.weights.attrs.items()}
            states.append(renamed)
        joined = xr.merge(states, combine_attrs="no_conflicts")
        return joined.assign_attrs(recordings=",".join(self.parts))

    def restore(self, state: xr.Dataset) -> None:
        if "recordings" not in state.attrs:
            return super().restore(state)
        self.parts = {name: type(self)() for name in state.attrs["recordings"].split(",")}
        for name, part in self.parts.items():
            own = {
                v: v.removeprefix(f"{name}.") for v in map(str, state.variables) if f"{name}." in v
            }
            renamed = state[list(own)].rename(own)
            renamed.attrs = {
                key.removeprefix(f"{name}."): v
                for key, v in state.attrs.items()
                if f"{name}." in key
            }
            part.restore(renamed)
        self.field = part.field
        return None


class PredictsFirstRecording(Several):
    def prepare(self, split: Any) -> xr.Dataset:
        return super().prepare(split) if not self.recordings else self.of("one").prepare(split)

    def respond(self, split: xr.Dataset) -> NDArray[Any]:
        return super().respond(split) if not self.recordings else self.of("one").respond(split)

    breaks: ClassVar[list[str]] = ["fitted_to_several"]


class UnnamedRecordings(Several):
    def parameters(self) -> xr.Dataset:
        return super().parameters().drop_vars("recording", errors="ignore")

    breaks: ClassVar[list[str]] = ["parameters_of_several"]


class SharesNothing(Several):
    def share(self, offset: float) -> None:
        super().share(offset * self.weights.sizes["cell"])

    breaks: ClassVar[list[str]] = ["shared_parts"]


class SavesFirstRecording(Several):
    def state(self) -> xr.Dataset:
        return self.of("one").state() if self.recordings else super().state()

    breaks: ClassVar[list[str]] = ["several_saved"]


class StartsSeveralAgain(Several):
    def fit(self, recording: Any, **kwargs: Any) -> xr.Dataset:
        checkpoint = kwargs.get("checkpoint")
        again = not isinstance(recording, xr.DataTree) and checkpoint and checkpoint.exists()
        curves = super().fit(recording, **kwargs)
        for part in self.parts.values() if again else ():
            part.share(0.0)
        return curves

    breaks: ClassVar[list[str]] = ["several_resumed"]


class StartsAgainInTheMiddle(GoodModel):
    def fit(
        self,
        recording: xr.DataTree,
        *,
        checkpoint: Path | None = None,
        progress: Progress = silent,
    ) -> xr.Dataset:
        done = int(checkpoint.read_text()) if checkpoint and checkpoint.exists() else 0
        curves = super().fit(recording, checkpoint=checkpoint, progress=progress)
        self.weights["offset"] = self.weights["offset"] + (4 - done)
        return curves

    breaks: ClassVar[list[str]] = ["interrupted_fit"]


class SwallowsInterruption(GoodModel):
    def fit(
        self,
        recording: xr.DataTree,
        *,
        checkpoint: Path | None = None,
        progress: Progress = silent,
    ) -> xr.Dataset:
        try:
            return super().fit(recording, checkpoint=checkpoint, progress=progress)
        except Exception:
            return super().fit(recording)

    breaks: ClassVar[list[str]] = ["interrupted_fit"]


# Analyses.


class AsksForSpikes(GoodAnalysis):
    def run(self, data: xr.DataTree, spikes: Any = None, *, when: Any) -> xr.Dataset:  # type: ignore[override]
        return super().run(data)

    breaks: ClassVar[list[str]] = [
        "run_parameters",
        "result_labelled",
        "analysis_determinism",
        "inputs_unchanged",
        "unrecorded_cell",
        "result_stored",
        "plotted_from_disk",
        "plotted_after_sweep",
        "caption_given",
        "table_given",
        "bars_and_full_field",
    ]


class UnlabelledResult(GoodAnalysis):
    def run(self, data: xr.DataTree) -> xr.Dataset:
        return super().run(data).drop_vars("cell")

    breaks: ClassVar[list[str]] = ["result_labelled"]


class UnseededAnalysis(GoodAnalysis):
    def run(self, data: xr.DataTree) -> xr.Dataset:
        return super().run(data) + np.random.default_rng().random()

    breaks: ClassVar[list[str]] = ["analysis_determinism"]


class ChangesInputs(GoodAnalysis):
    def run(self, data: xr.DataTree) -> xr.Dataset:
        result = super().run(data)
        data["test"].to_dataset()["response"].values[:] += 1
        return result

    breaks: ClassVar[list[str]] = ["inputs_unchanged"]


class ChangesModel(GoodOfModel):
    def run(self, model: Any, data: xr.DataTree) -> xr.Dataset:
        result = super().run(model, data)
        model.weights["offset"].values[:] += 0.1
        return result

    breaks: ClassVar[list[str]] = ["analysis_determinism", "inputs_unchanged"]


class WantsEveryCell(GoodAnalysis):
    def run(self, data: xr.DataTree) -> xr.Dataset:
        if data["test"].to_dataset()["response"].isnull().any():
            raise UserError("a response of the test is missing")
        return super().run(data)

    breaks: ClassVar[list[str]] = ["unrecorded_cell"]


class DrawsTwoRows(GoodAnalysis):
    def run(self, data: xr.DataTree) -> xr.Dataset:
        if data["train"].sizes["y"] == 1:
            raise ValueError("not enough rows")
        return super().run(data)

    breaks: ClassVar[list[str]] = ["bars_and_full_field"]


class ResultNotStored(GoodAnalysis):
    def run(self, data: xr.DataTree) -> xr.Dataset:
        return super().run(data).assign_attrs(kept=None)

    breaks: ClassVar[list[str]] = ["result_stored"]


class PlotsFromItself(GoodAnalysis):
    def run(self, data: xr.DataTree) -> xr.Dataset:
        self.spikes = super().run(data)["spikes"]
        return super().run(data)

    def plot(self, result: xr.DataTree) -> Figure:
        figure = Figure()
        figure.subplots().plot(self.spikes)
        return figure

    breaks: ClassVar[list[str]] = [
        "plotted_from_disk",
        "plotted_after_sweep",
        "bars_and_full_field",
    ]


class PlotsAxes(GoodAnalysis):
    def plot(self, result: xr.DataTree) -> Any:
        return super().plot(result).axes[0]

    breaks: ClassVar[list[str]] = [
        "plotted_from_disk",
        "plotted_after_sweep",
        "bars_and_full_field",
    ]


class PlotsNoSweep(GoodAnalysis):
    def plot(self, result: xr.DataTree) -> Figure:
        figure = Figure()
        for group in groups(result).values():
            figure.subplots().bar(range(group.sizes["cell"]), group["spikes"].values)
        return figure

    breaks: ClassVar[list[str]] = ["plotted_after_sweep"]


class NoCaption(GoodAnalysis):
    def caption(self, result: xr.DataTree) -> str:
        return " "

    breaks: ClassVar[list[str]] = ["caption_given"]


class TableIsText(GoodAnalysis):
    def table(self, result: xr.DataTree) -> Any:
        return "spikes: 3"

    breaks: ClassVar[list[str]] = ["table_given"]


BROKEN_DATASETS = [c for base in (GoodDataset, GoodDerived) for c in every(base)]
BROKEN_MODELS = [c for c in every(GoodModel) if c.breaks]
BROKEN_ANALYSES = [c for c in every(GoodAnalysis) if c.breaks]


@pytest.mark.parametrize("dataset", [GoodDataset, GoodDerived])
def test_a_dataset_that_keeps_the_contract_passes(
    dataset: type[Dataset], recording: xr.DataTree
) -> None:
    check_dataset(dataset, recording)


@pytest.mark.parametrize(
    "model",
    [SmallModel, GoodModel, WithPupil, WithSpikeHistory, Layered, Several, DeclaresTwoRows],
)
def test_a_model_that_keeps_the_contract_passes(model: type[Model], inputs: Inputs) -> None:
    check_model(model, inputs(model))


@pytest.mark.parametrize("analysis", [GoodAnalysis, GoodOfModel, GoodOfFamily, GoodOfResults])
def test_an_analysis_that_keeps_the_contract_passes(
    analysis: type[Analysis], recording: xr.DataTree
) -> None:
    other = xr.DataTree.from_dict({"cell": sta(recording["train"].to_dataset(), 3)})
    check_analysis(analysis, recording, results={"other": other})


@pytest.mark.parametrize("dataset", BROKEN_DATASETS)
def test_a_broken_dataset_fails_just_the_checks_of_what_it_breaks(
    dataset: Any, recording: xr.DataTree
) -> None:
    instance = dataset(getattr(dataset, "options", None))
    assert failures(check_dataset, instance, recording) == dataset.breaks


@pytest.mark.parametrize("model", BROKEN_MODELS)
def test_a_broken_model_fails_just_the_checks_of_what_it_breaks(model: Any, inputs: Inputs) -> None:
    assert failures(check_model, model, inputs(model)) == model.breaks


@pytest.mark.parametrize("analysis", BROKEN_ANALYSES)
def test_a_broken_analysis_fails_just_the_checks_of_what_it_breaks(
    analysis: Any, recording: xr.DataTree
) -> None:
    assert failures(check_analysis, analysis, recording) == analysis.breaks


@pytest.mark.parametrize(
    ("checks", "broken"),
    [
        (DATASET_CHECKS, BROKEN_DATASETS),
        (MODEL_CHECKS, [*BROKEN_DATASETS, *BROKEN_MODELS]),
        (ANALYSIS_CHECKS, [*BROKEN_DATASETS, *BROKEN_ANALYSES]),
    ],
    ids=["dataset", "model", "analysis"],
)
def test_every_check_is_failed_by_a_plugin_that_breaks_it(checks: Any, broken: Any) -> None:
    assert {check.__name__ for check in checks} <= {name for b in broken for name in b.breaks}


def test_a_failure_names_the_plugin_the_check_and_what_was_found(recording: xr.DataTree) -> None:
    with pytest.raises(AssertionError) as raised:
        check_model(PeeksAtNextFrame, recording)
    first, second = str(raised.value).splitlines()
    assert first == f"PeeksAtNextFrame fails 1 of {len(MODEL_CHECKS)} checks:"
    assert second.startswith("  causality: changing the frames after 52 changes predictions")
    assert "the first is frame 52 of the cell at index 0" in second


def test_an_expected_failure_is_accepted(recording: xr.DataTree) -> None:
    check_model(PeeksAtNextFrame, recording, expected_failures={"causality": "it is meant to peek"})


def test_an_expected_failure_that_passes_is_an_error(recording: xr.DataTree) -> None:
    with pytest.raises(AssertionError, match=r"causality: passes.*was meant to peek"):
        check_model(SmallModel, recording, expected_failures={"causality": "was meant to peek"})


def test_an_expected_failure_of_a_check_that_is_not_there_is_an_error() -> None:
    with pytest.raises(ValueError, match="there is no check casuality"):
        check_model(SmallModel, expected_failures={"casuality": "misspelt"})


def test_an_analysis_that_asks_for_results_must_be_given_some(recording: xr.DataTree) -> None:
    with pytest.raises(UserError, match="GoodOfResults has the parameter 'results'"):
        check_analysis(GoodOfResults, recording)


def test_an_instance_is_not_fitted_by_its_check(recording: xr.DataTree) -> None:
    model = GoodModel()
    check_model(model, recording)
    assert not hasattr(model, "weights")


def test_an_instance_is_checked_with_its_own_options() -> None:
    frames = []

    class Watched(GoodDataset):
        def load(self) -> xr.DataTree:
            frames.append(self.config.frames)
            return super().load()

    check_dataset(Watched({"frames": 37}, seed=3))
    assert set(frames) == {37}


def test_a_class_is_checked_with_its_quick_options() -> None:
    frames = []

    class Watched(GoodDataset):
        quick: ClassVar[dict[str, Any]] = {"frames": 41}

        def load(self) -> xr.DataTree:
            frames.append(self.config.frames)
            return super().load()

    check_dataset(Watched)
    assert set(frames) == {41}


def test_checking_an_analysis_leaves_no_figure_of_pyplot_open(recording: xr.DataTree) -> None:
    class ByPyplot(GoodAnalysis):
        """Drawn by pyplot."""

        def plot(self, result: xr.DataTree) -> Figure:
            figure, _ = plt.subplots()
            return figure

    before = plt.get_fignums()
    check_analysis(ByPyplot, recording)
    assert plt.get_fignums() == before


@pytest.mark.parametrize("cells", [1, 3])
def test_the_small_recording_keeps_the_contract(cells: int) -> None:
    recording = small_recording(cells=cells)
    validate(recording)
    assert recording["train"].sizes["cell"] == cells
    assert len(np.unique(recording["train"]["segment"])) == 2
    assert recording["test"].sizes["repeat"] == 5


def test_the_small_recording_follows_its_seed() -> None:
    assert small_recording(seed=1).identical(small_recording(seed=1))
    assert not small_recording(seed=1).identical(small_recording(seed=2))


def test_the_truth_of_the_small_recording_gives_its_rate() -> None:
    recording = small_recording(frames=200, cells=2)
    truth, test = recording["truth"].to_dataset(), recording["test"].to_dataset()
    stimulus = test["stimulus"].values.astype(float)
    expected = np.zeros(test["rate"].shape)
    for t in range(len(stimulus)):
        lags = np.arange(min(t + 1, truth.sizes["lag"]))
        drive = np.einsum("lyx,csyx->csl", stimulus[t - lags], truth["subunit_weight"].values)
        filtered = np.einsum("csl,cl->cs", drive, truth["temporal"].values[:, lags])
        expected[t] = 0.5 * np.maximum(filtered, 0).sum(1)
    np.testing.assert_allclose(test["rate"], expected, atol=1e-12)


def test_the_pupil_of_the_small_recording_multiplies_its_rate() -> None:
    plain, modulated = (
        small_recording(covariates=wanted)["train"].to_dataset() for wanted in (False, True)
    )
    pupil = modulated["covariates"].sel(covariate="pupil", drop=True)
    xr.testing.assert_allclose(modulated["rate"], plain["rate"] * pupil)


def test_the_spikes_of_the_small_recording_follow_its_rate() -> None:
    test = small_recording(repeats=200)["test"].to_dataset()
    error = test["response"].mean("repeat") - test["rate"]
    # 1000 means of 200 Poisson counts: 5 standard errors.
    assert float((np.abs(error) - 5 * np.sqrt(test["rate"] / 200)).max()) < 0.05


def test_registered_lists_the_built_in_plugins_with_their_full_names() -> None:
    ids = [param.id for param in registered("model", distribution="retinakit")]
    assert "retinakit:ln" in ids and "retinakit:cnn" in ids


def test_registered_refuses_a_distribution_that_is_not_installed() -> None:
    with pytest.raises(UserError, match="no distribution 'retinakit-nothing'"):
        registered("model", distribution="retinakit-nothing")


def test_registered_refuses_a_kind_that_is_not_one() -> None:
    with pytest.raises(UserError, match="known: dataset, model, analysis"):
        registered("models")


def test_a_class_that_lacks_a_method_is_named_with_it() -> None:
    class Half(Model):
        pass

    with pytest.raises(AssertionError, match=r"Half must define .*parameters"):
        check_model(Half)
