"""What retinakit itself offers to the registry, a line for each plugin. Imports nothing heavy.

A plugin's name, its class, and a summary. The class is in the file of the plugin's name, unless it
is given as `file:Class`.
"""

from collections.abc import Mapping
from typing import TypeVar

from retinakit.registry import AnalysisSpec, DatasetSpec, ModelSpec, PluginSpec, hookimpl

DATASETS = {
    "subunit_rgc": ("SubunitRGC", "Simulated ganglion cells made of subunits (Yan 2020)."),
    "liu2017": ("Liu2017", "Salamander ganglion cells under white noise, from files (Liu 2017)."),
    "hdf5": ("HDF5", "Your own arrays in an HDF5 or NetCDF file."),
    "temporal_collapse": ("TemporalCollapse", "A dataset filtered in time (Yan 2020's Version I)."),
    "fraction": ("Fraction", "Another dataset with the first part of its training frames."),
    "noisy_stimulus": ("NoisyStimulus", "A dataset with noise in a part of its training images."),
    "natural_images": ("NaturalImages", "Simulated cells of a dataset, tested on photographs."),
    "linear_population": ("LinearPopulation", "Simulated neurons of a few types (Klindt 2017)."),
    "conv_population": ("ConvPopulation", "Units of Gabor filters or VGG-19 (Klindt 2017)."),
    "antolik2016": ("Antolik2016", "Mouse V1 under natural images, from files (Antolík 2016)."),
}

MODELS = {
    "ln": ("LN", "Linear filter and nonlinearity, fitted by Poisson likelihood."),
    "cnn": ("CNN", "Convolutional network of one to three layers (Yan 2020)."),
    "ols": ("regression:OLS", "Least squares on the checks around a cell's receptive field."),
    "ridge": ("regression:Ridge", "Least squares around a cell's field, with a squared penalty."),
    "lasso": ("regression:Lasso", "Least squares around a cell's field, with an absolute penalty."),
    "glm": ("GLM", "Linear filter, ReLU and a constant, by least squares with a ridge penalty."),
    "lnp": ("glm:LNP", "Linear filter and exponential by Poisson likelihood, smooth and sparse."),
    "what_where": ("WhatWhere", "Network of a population with a factorized readout (Klindt 2017)."),
}

ANALYSES = {
    "sta": ("STA", "Spike-triggered average, its space and time, and its outline."),
    "score": ("Score", "How well a model predicts, against the noise ceiling."),
    "subunits": ("Subunits", "A model's filters, matched to the true subunits where known."),
    "stc": ("STC", "Spike-triggered covariance: directions beyond those of unrelated spikes."),
    "stnmf": ("STNMF", "Subunits by spike-triggered nonnegative factorization (Liu 2017)."),
    "raster": ("Raster", "Spikes of the cell and of the model in the test frames, and rates."),
    "pruning": ("Pruning", "A network's prediction with its structured filters or random ones."),
    "transfer": ("Transfer", "Each cell's model on the recordings of the others."),
    "features": ("Features", "What a network's filters respond to: ON, OFF, both, or nothing."),
    "model_receptive_field": ("ModelReceptiveField", "A model cell's field beside the cell's."),
    "sweep_curve": ("SweepCurve", "Any score against a swept option, mean and spread over seeds."),
    "data_efficiency": ("DataEfficiency", "Scores against the amount of training data."),
    "noise_robustness": ("data_efficiency:NoiseRobustness", "Scores against noise in images."),
    "flash_response": ("FlashResponse", "Spikes of cells and models to flashed images."),
    "cell_types": ("CellTypes", "Types of cells by what they read from a network."),
    "masks": ("Masks", "Where the cells of a network look, against their true locations."),
    "readout_table": ("ReadoutTable", "One score of several models in several recordings."),
}

Spec = TypeVar("Spec", bound=PluginSpec)


def _specs(kind: type[Spec], folder: str, plugins: Mapping[str, tuple[str, str]]) -> list[Spec]:
    found = []
    for name, (target, summary) in plugins.items():
        file, _, cls = target.rpartition(":")
        place = f"retinakit_plugins.{folder}.{file or name}:{cls}"
        found.append(kind(name=name, target=place, summary=summary))
    return found


@hookimpl
def retinakit_datasets() -> list[DatasetSpec]:
    return _specs(DatasetSpec, "datasets", DATASETS)


@hookimpl
def retinakit_models() -> list[ModelSpec]:
    return _specs(ModelSpec, "models", MODELS)


@hookimpl
def retinakit_analyses() -> list[AnalysisSpec]:
    return _specs(AnalysisSpec, "analyses", ANALYSES)
