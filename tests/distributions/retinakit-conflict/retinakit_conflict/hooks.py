"""A model with a name that is taken, and one written for a later version of the contract."""

from retinakit import ModelSpec, hookimpl


@hookimpl
def retinakit_models() -> list[ModelSpec]:
    return [
        ModelSpec(name="ln", target="retinakit_conflict.models:LN", summary="Another LN model."),
        ModelSpec(
            name="from_the_future",
            target="retinakit_conflict.models:Future",
            summary="A model for plugin contract 99.",
            api=99,
        ),
    ]
