"""Checks of the gradient of a model by the stimulus. A model without a gradient passes them.

The name of a check is the name of its function.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from retinakit.contracts.errors import UserError
from retinakit.contracts.model import Model
from retinakit.contracts.recording import full_history, mean_over_repeats
from retinakit.testing.case import demand
from retinakit.testing.model_case import ModelCase, two_segments

STEP = 1e-3
"""Length of the step of finite differences, relative to that of the stimulus."""

TOLERANCE = 0.03
"""Largest difference from finite differences, relative to the length of the gradient. Rectified
units change their slope in a few frames."""


def gradient_of_outputs(case: ModelCase) -> None:
    """`stimulus_gradient` gives the weighted sum of the outputs and their finite differences."""
    shown = two_segments(case.shown)
    random = np.random.default_rng(0)
    # Noise that is not on the edges of rectified units.
    noise = 0.3 * random.standard_normal(shown["stimulus"].shape)
    shown["stimulus"] = shown["stimulus"].astype(np.float32) + noise.astype(np.float32)
    counted = full_history(shown["segment"], case.model.lags)
    layers: list[str | None] = [None, *case.model.layers()]
    for layer in layers:
        what = f"of layer '{layer}'" if layer else "of the prediction"
        weight = random.standard_normal(_outputs(case.model, shown, layer).shape)
        weight[random.random(len(weight)) < 0.9] = 0  # in most frames
        try:
            value, gradient = case.model.stimulus_gradient(shown, weight, layer)
        except UserError:
            if layer is None:
                return
            raise
        expected = _weighted(case.model, shown, weight, layer)
        demand(
            np.shape(value) == expected.shape
            and np.allclose(value, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max()),
            f"the values {what} by stimulus_gradient() are not the sums of weight times output, "
            "(frame,)",
        )
        demand(
            np.shape(gradient) == shown["stimulus"].shape and np.isfinite(gradient).all(),
            f"the gradient {what} has the shape {np.shape(gradient)} or is not finite; the "
            f"stimulus has {shown['stimulus'].shape}",
        )
        length = float(np.linalg.norm(gradient))
        demand(
            length > 0 or np.ptp(expected[counted]) == 0,
            f"the gradient {what} is 0 and the outputs depend on the stimulus",
        )
        step = STEP * float(np.linalg.norm(shown["stimulus"]))
        for direction in _directions(gradient, random):
            change = 0.5 * step * direction.astype(np.float32)
            ahead, behind = (
                _weighted(case.model, shown.assign(stimulus=at), weight, layer).sum()
                for at in (shown["stimulus"] + change, shown["stimulus"] - change)
            )
            found, slope = float((gradient * direction).sum()), float(ahead - behind) / step
            demand(
                abs(found - slope) <= TOLERANCE * max(_length(gradient, direction), abs(slope)),
                f"along a direction of the stimulus, the output {what} changes by {slope:.4g} and "
                f"stimulus_gradient() gives {found:.4g}",
            )


def _outputs(model: Model, split: xr.Dataset, layer: str | None) -> NDArray[Any]:
    """The predictions (frame, cell), or the activity (frame, unit, ...) of a layer."""
    if layer is None:
        return mean_over_repeats(model.predict(split)).values
    return model.activity(split, layer).values


def _weighted(
    model: Model, split: xr.Dataset, weight: NDArray[Any], layer: str | None
) -> NDArray[Any]:
    """The weighted sum of the outputs of each frame."""
    weighted = np.nan_to_num(_outputs(model, split, layer) * weight)
    return weighted.reshape(len(weight), -1).sum(1)


def _directions(
    gradient: NDArray[Any], random: np.random.Generator
) -> Iterator[NDArray[np.float64]]:
    """Directions of unit length: the gradient, and random ones in the frame of its largest part."""
    if np.any(gradient):
        yield gradient / np.linalg.norm(gradient)
    largest = int((gradient.reshape(len(gradient), -1) ** 2).sum(1).argmax())
    for _ in range(4):
        direction = np.zeros(gradient.shape)
        direction[largest] = random.standard_normal(gradient.shape[1:])
        yield direction / np.linalg.norm(direction)


def _length(gradient: NDArray[Any], direction: NDArray[np.float64]) -> float:
    """The length of the gradient in the elements of a direction."""
    return float(np.linalg.norm(gradient[direction != 0]))


GRADIENT_CHECKS: tuple[Callable[[Any], None], ...] = (gradient_of_outputs,)
