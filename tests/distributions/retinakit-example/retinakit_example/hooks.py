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
    models = {
        "ridge": ("Ridge", "Linear filter by ridge regression, in closed form."),
        "recurrent": ("Recurrent", "Recurrent network, with a state in time."),
        "pupil": ("Pupil", "Linear filter with a gain that the pupil sets."),
        "negative_binomial": ("NegativeBinomial", "Counts more variable than Poisson's."),
        "shared_core": ("SharedCore", "Convolution that several recordings have in common."),
    }
    return [
        ModelSpec(
            name=f"example_{name}",
            target=f"retinakit_example.example_{name}:Example{cls}",
            summary=summary,
        )
        for name, (cls, summary) in models.items()
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
