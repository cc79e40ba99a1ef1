"""Spatial kernels of a model and their asymmetry."""

import numpy as np
import pytest
import xarray as xr

from retinakit.contracts import UserError
from retinakit.pipeline.combine import combine
from retinakit.testing import SmallModel, small_recording
from retinakit_plugins.analyses.kernels import Kernels


class Slanted(SmallModel):
    def parameters(self) -> xr.Dataset:
        rising = np.tile([0.0, 1, 2, 3, 4], (5, 1))
        kernels = np.stack([rising, rising[:, ::-1], rising.T, np.ones((5, 5))])
        return xr.Dataset({"space": (("type", "kernel_y", "kernel_x"), kernels)})


def test_weights_that_increase_to_the_right_have_a_positive_asymmetry() -> None:
    model = Slanted()
    model.fit(small_recording())
    analysis = Kernels.with_options(variable="space")
    result = analysis.run(model)
    # Σ w x / Σ w of the weights 0 to 4 at -1, -.5, ..., 1.
    np.testing.assert_allclose(result["asymmetry_x"], [0.5, -0.5, 0, 0], atol=1e-12)
    np.testing.assert_allclose(result["asymmetry_y"], [0, 0, 0.5, 0], atol=1e-12)
    np.testing.assert_allclose(result["column_sum"][0], [0, 5, 10, 15, 20])
    tree = xr.DataTree.from_dict({"/slanted": combine([((), result)])})
    analysis.plot(tree).draw_without_rendering()
    assert list(analysis.table(tree)["asymmetry_x"].round(6)) == [0.5, -0.5, 0, 0]
    with pytest.raises(UserError, match=r"no parameter 'kernel'.*space"):
        Kernels().run(model)
