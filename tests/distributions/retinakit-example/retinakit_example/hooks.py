"""What this distribution offers. Read at every listing, so it imports nothing heavy."""

from retinakit import AnalysisSpec, DatasetSpec, ModelSpec, hookimpl


@hookimpl
def retinakit_datasets() -> list[DatasetSpec]:
    return [
        DatasetSpec(
            name="example_cell",
            target="retinakit_example.example_cell:ExampleCell",
            summary="Linear-nonlinear Poisson cells under white noise.",
        )
    ]


@hookimpl
def retinakit_models() -> list[ModelSpec]:
    return [
        ModelSpec(
            name="example_ridge",
            target="retinakit_example.example_ridge:ExampleRidge",
            summary="Linear filter by ridge regression, in closed form.",
        )
    ]


@hookimpl
def retinakit_analyses() -> list[AnalysisSpec]:
    return [
        AnalysisSpec(
            name="example_rates",
            target="retinakit_example.example_rates:ExampleRates",
            summary="Mean rates in the test frames, recorded and predicted.",
        )
    ]
