"""The registry entries of the built-in plugins. Importing this module imports none of them.

Each entry maps a plugin's name to its class and a one-line summary. The class is in the module of
the same name as the plugin, or in another one if it is given as `module:Class`.
"""

from collections.abc import Mapping
from typing import TypeVar

from retinakit.registry import AnalysisSpec, DatasetSpec, ModelSpec, PluginSpec, hookimpl

DATASETS = {
    "subunit_rgc": ("SubunitRGC", "Simulated ganglion cells made of subunits (Yan 2020)."),
    "liu2017": ("Liu2017", "Salamander ganglion cells under white noise, from files (Liu 2017)."),
    "hdf5": ("HDF5", "Arrays in an HDF5, NetCDF-4 or MATLAB file."),
    "temporal_collapse": ("TemporalCollapse", "A dataset filtered in time (Yan 2020's Version I)."),
    "fraction": ("Fraction", "A dataset reduced to the first fraction of its training frames."),
    "noisy_stimulus": ("NoisyStimulus", "A dataset with noise in its training stimulus."),
    "natural_images": ("NaturalImages", "A dataset's simulated cells, tested on photographs."),
    "natural_movie": ("NaturalMovie", "A movie shown to simulated cells (for Zheng 2021)."),
    "linear_population": ("LinearPopulation", "Simulated linear neurons (Klindt 2017)."),
    "conv_population": ("ConvPopulation", "Simulated cells: Gabor or VGG-19 units (Klindt 2017)."),
    "moving_dots": ("MovingDots", "Dots moving left and right, a task (Murray et al.)."),
    "gratings": ("Gratings", "Drifting gratings, for a dataset's cells or alone."),
    "moving_bars": ("MovingBars", "Bars crossing the field, for a dataset's cells or alone."),
    "spots": ("Spots", "Flashed discs and rings, for a dataset's cells or alone."),
    "chirp": ("Chirp", "Full-field chirp, for a dataset's cells or alone (Baden 2016)."),
    "onken2016": ("Onken2016", "Salamander under natural movies, from files (Onken 2016)."),
    "antolik2016": ("Antolik2016", "Mouse V1 under natural images, from files (Antolík 2016)."),
}

MODELS = {
    "ln": ("LN", "Linear filter and nonlinearity, fitted by Poisson likelihood."),
    "quadratic": ("Quadratic", "Linear and squared filters, for complex cells (Park 2011)."),
    "cnn": ("CNN", "Convolutional network of one to three layers (Yan 2020)."),
    "crnn": ("CRNN", "Convolutional and recurrent network, and its CNN (Zheng 2021)."),
    "ols": ("regression:OLS", "Least squares on the stimulus around a cell's receptive field."),
    "ridge": ("regression:Ridge", "Ridge regression around a cell's receptive field."),
    "lasso": ("regression:Lasso", "Lasso regression around a cell's receptive field."),
    "rectified_linear": ("RectifiedLinear", "Linear filter and ReLU, by penalised least squares."),
    "glm": ("GLM", "Stimulus filter, spike history and coupling of a GLM (Pillow 2008)."),
    "lnp": ("rectified_linear:LNP", "Smooth, sparse filter and exponential (Klindt 2017)."),
    "retina_circuit": ("RetinaCircuit", "Bipolar, amacrine and ganglion types (Murray)."),
    "what_where": ("WhatWhere", "Population network with a factorized readout (Klindt 2017)."),
}

ANALYSES = {
    "sta": ("STA", "Spike-triggered average, its spatial and temporal parts, and its outline."),
    "score": ("Score", "Prediction scores on the test frames, with the noise ceiling."),
    "subunits": ("Subunits", "A model's filters, matched to the true subunits where known."),
    "stc": ("STC", "Spike-triggered covariance, with significance from shifted spikes."),
    "stnmf": ("STNMF", "Subunits by spike-triggered nonnegative factorization (Liu 2017)."),
    "raster": ("Raster", "Spikes and rates of the cells and of the models in the test frames."),
    "pruning": ("Pruning", "Prediction of a network with some of its filters left out (Yan 2020)."),
    "transfer": ("Transfer", "Score of each cell's model on the recordings of the other cells."),
    "features": ("Features", "Feature of each network filter: ON, OFF, mixed or noise (Yan 2020)."),
    "model_receptive_field": ("ModelReceptiveField", "Receptive fields of cells and of models."),
    "sweep_curve": ("SweepCurve", "Any score against a swept option, mean and spread over seeds."),
    "data_efficiency": ("DataEfficiency", "Scores against the amount of training data."),
    "noise_robustness": ("data_efficiency:NoiseRobustness", "Scores against stimulus noise."),
    "flash_response": ("FlashResponse", "Spike counts of cells and models for flashed images."),
    "cell_types": ("CellTypes", "Cell types by the feature weights of a readout (Klindt 2017)."),
    "masks": ("Masks", "Locations of a readout's masks, against the true cell locations."),
    "optimal_stimulus": ("OptimalStimulus", "Most exciting stimuli of cells or network units."),
    "glm_filters": ("GLMFilters", "Filters of a GLM, and its test by time rescaling (KS plot)."),
    "kernels": ("Kernels", "Spatial kernels of a model, and their asymmetry along x and y."),
    "film_strip": ("FilmStrip", "Frames of some trials of a stimulus."),
    "motion_difficulty": ("MotionDifficulty", "Speeds of moving dots (Murray et al., Fig 1)."),
    "lesion": ("Lesion", "Scores of a model with units silenced, or with only some kept."),
    "psychometric": ("Psychometric", "Accuracy or response against a parameter of the trials."),
    "substitution": ("psychometric:Substitution", "Psychometric curves with one unit exchanged."),
    "tuning": ("Tuning", "Tuning to direction, orientation, speed and other parameters."),
    "filter_indices": ("FilterIndices", "Spatial against temporal regularity of filters (Zheng)."),
    "parameter_count": ("ParameterCount", "Number of parameters of models, by part (Zheng 2021)."),
    "white_noise_receptive_field": (
        "WhiteNoiseReceptiveField",
        "Receptive fields of a model's cells and their distance from the data's (Zheng 2021).",
    ),
    "scene_complexity": ("SceneComplexity", "Complexity of a movie's patches (Zheng 2021)."),
    "scene_performance": (
        "scene_complexity:ScenePerformance",
        "Prediction of the cells in each patch against its complexity (Zheng 2021).",
    ),
    "readout_table": ("ReadoutTable", "A table of one score, models against recordings."),
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
