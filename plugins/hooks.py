"""What retinakit itself offers to the registry. Imports nothing heavy."""

from retinakit.registry import AnalysisSpec, DatasetSpec, ModelSpec, hookimpl


@hookimpl
def retinakit_datasets() -> list[DatasetSpec]:
    folder = "retinakit_plugins.datasets"
    return [
        DatasetSpec(
            name="subunit_rgc",
            target=f"{folder}.subunit_rgc:SubunitRGC",
            summary="Simulated ganglion cells made of subunits, with their truth (Yan 2020).",
        ),
        DatasetSpec(
            name="liu2017",
            target=f"{folder}.liu2017:Liu2017",
            summary="Salamander ganglion cells under white noise (Liu 2017), from its files.",
        ),
        DatasetSpec(
            name="hdf5",
            target=f"{folder}.hdf5:HDF5",
            summary="Your own arrays in an HDF5 or NetCDF file.",
        ),
        DatasetSpec(
            name="temporal_collapse",
            target=f"{folder}.temporal_collapse:TemporalCollapse",
            summary="Another dataset, filtered in time with the cell's filter (Yan's Version I).",
        ),
        DatasetSpec(
            name="fraction",
            target=f"{folder}.fraction:Fraction",
            summary="Another dataset with the first part of its training frames.",
        ),
        DatasetSpec(
            name="noisy_stimulus",
            target=f"{folder}.noisy_stimulus:NoisyStimulus",
            summary="Another dataset with noise in a part of its training images.",
        ),
        DatasetSpec(
            name="natural_images",
            target=f"{folder}.natural_images:NaturalImages",
            summary="Simulated cells of another dataset, tested on flashed photographs.",
        ),
        DatasetSpec(
            name="linear_population",
            target=f"{folder}.linear_population:LinearPopulation",
            summary="Simulated linear neurons of a few types at many places (Klindt 2017).",
        ),
        DatasetSpec(
            name="conv_population",
            target=f"{folder}.conv_population:ConvPopulation",
            summary="Units of a convolutional network (Gabor, VGG-19), shown images (Klindt 2017).",
        ),
        DatasetSpec(
            name="antolik2016",
            target=f"{folder}.antolik2016:Antolik2016",
            summary="Mouse V1 under natural images (Antolík 2016), from its files.",
        ),
    ]


@hookimpl
def retinakit_models() -> list[ModelSpec]:
    folder = "retinakit_plugins.models"
    return [
        ModelSpec(
            name="ln",
            target=f"{folder}.ln:LN",
            summary="Linear filter and nonlinearity, fitted by Poisson likelihood.",
        ),
        ModelSpec(
            name="cnn",
            target=f"{folder}.cnn:CNN",
            summary="Convolutional network of one to three layers (Yan 2020).",
        ),
        ModelSpec(
            name="ols",
            target=f"{folder}.regression:OLS",
            summary="Least squares on the checks around a cell's receptive field.",
        ),
        ModelSpec(
            name="ridge",
            target=f"{folder}.regression:Ridge",
            summary="Least squares around a cell's field, with a penalty on squared weights.",
        ),
        ModelSpec(
            name="lasso",
            target=f"{folder}.regression:Lasso",
            summary="Least squares around a cell's field, with a penalty on absolute weights.",
        ),
        ModelSpec(
            name="glm",
            target=f"{folder}.glm:GLM",
            summary="Linear filter, ReLU and a constant, by least squares with a ridge penalty.",
        ),
        ModelSpec(
            name="lnp",
            target=f"{folder}.glm:LNP",
            summary="Linear filter and exponential by Poisson likelihood, smooth and sparse.",
        ),
        ModelSpec(
            name="what_where",
            target=f"{folder}.what_where:WhatWhere",
            summary="A network for a population with a factorized readout (Klindt 2017).",
        ),
    ]


@hookimpl
def retinakit_analyses() -> list[AnalysisSpec]:
    folder = "retinakit_plugins.analyses"
    return [
        AnalysisSpec(
            name="sta",
            target=f"{folder}.sta:STA",
            summary="Spike-triggered average, its space and time, and its outline.",
        ),
        AnalysisSpec(
            name="score",
            target=f"{folder}.score:Score",
            summary="How well a model predicts, against the noise ceiling.",
        ),
        AnalysisSpec(
            name="subunits",
            target=f"{folder}.subunits:Subunits",
            summary="A model's filters, matched to the true subunits where they are known.",
        ),
        AnalysisSpec(
            name="stc",
            target=f"{folder}.stc:STC",
            summary="Spike-triggered covariance: directions beyond those of unrelated spikes.",
        ),
        AnalysisSpec(
            name="stnmf",
            target=f"{folder}.stnmf:STNMF",
            summary="Subunits by spike-triggered non-negative matrix factorization (Liu 2017).",
        ),
        AnalysisSpec(
            name="raster",
            target=f"{folder}.raster:Raster",
            summary="Spikes of the cell and of the model in the test frames, and their rates.",
        ),
        AnalysisSpec(
            name="pruning",
            target=f"{folder}.pruning:Pruning",
            summary="What a network predicts with its structured filters, or as many others.",
        ),
        AnalysisSpec(
            name="transfer",
            target=f"{folder}.transfer:Transfer",
            summary="Each cell's model on the recordings of the others.",
        ),
        AnalysisSpec(
            name="features",
            target=f"{folder}.features:Features",
            summary="What a network's filters respond to in noise: ON, OFF, mixed, or nothing.",
        ),
        AnalysisSpec(
            name="model_receptive_field",
            target=f"{folder}.model_receptive_field:ModelReceptiveField",
            summary="The receptive field of a model neuron beside the cell's.",
        ),
        AnalysisSpec(
            name="sweep_curve",
            target=f"{folder}.sweep_curve:SweepCurve",
            summary="Any score against a swept option, mean and deviation over seeds.",
        ),
        AnalysisSpec(
            name="data_efficiency",
            target=f"{folder}.data_efficiency:DataEfficiency",
            summary="Correlation and loss against the amount of training data, with examples.",
        ),
        AnalysisSpec(
            name="noise_robustness",
            target=f"{folder}.data_efficiency:NoiseRobustness",
            summary="Correlation and loss against the noise in the training images, with examples.",
        ),
        AnalysisSpec(
            name="flash_response",
            target=f"{folder}.flash_response:FlashResponse",
            summary="Spikes of cells and models to flashed images, and images without any.",
        ),
        AnalysisSpec(
            name="cell_types",
            target=f"{folder}.cell_types:CellTypes",
            summary="Types of cells by what they read from a network, against the true ones.",
        ),
        AnalysisSpec(
            name="masks",
            target=f"{folder}.masks:Masks",
            summary="Where the cells of a network look, against their true locations.",
        ),
        AnalysisSpec(
            name="readout_table",
            target=f"{folder}.readout_table:ReadoutTable",
            summary="One score of several models in several recordings, the best by validation.",
        ),
    ]
