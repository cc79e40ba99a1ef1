"""Indices of temporal filters, and the separation of filters with an offset."""

import numpy as np
import pytest
import xarray as xr

from retinakit.spikes import separate, temporal_autocorrelation, temporal_regularity

LAGS = np.arange(20)
FILTERS = {
    "delta": ((LAGS == 3) * 1.0, 0.949487),
    "flat": (np.full(20, 0.3), -1.0),
    "alternating": ((-1.0) ** LAGS, -0.000500),
    "half on": ((LAGS < 10) * 2.0, 0.157407),
}


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize("scale", [1, -3.0])
def test_temporal_regularity_is_equation_8(name, scale):
    values, expected = FILTERS[name]
    found = float(temporal_regularity(xr.DataArray(scale * values, dims="lag")))
    assert found == pytest.approx(expected, abs=1e-6)


def test_noise_has_the_regularity_of_a_biphasic_filter_and_not_its_autocorrelation():
    noise = xr.DataArray(
        np.random.default_rng(0).standard_normal((4000, 20)), dims=("filter", "lag")
    )
    regularity = temporal_regularity(noise)
    assert float(regularity.mean()) == pytest.approx(0.31, abs=0.01)
    assert float(regularity.std()) == pytest.approx(0.08, abs=0.01)
    assert float(temporal_autocorrelation(noise).mean()) == pytest.approx(-1 / 19, abs=0.01)
    biphasic = xr.DataArray(np.sin(np.pi * LAGS / 5) * (LAGS < 10), dims="lag")
    assert float(temporal_autocorrelation(biphasic)) > 0.7


@pytest.mark.parametrize("function", [temporal_regularity, temporal_autocorrelation])
def test_a_filter_of_zeros_or_of_nan_has_no_index(function):
    filters = np.stack([np.zeros(20), np.r_[np.nan, np.ones(19)]])
    assert np.isnan(function(xr.DataArray(filters, dims=("filter", "lag")))).all()


def test_a_constant_filter_and_one_lag_have_no_autocorrelation():
    for values in (np.full(20, 0.1), [0.5]):
        assert np.isnan(temporal_autocorrelation(xr.DataArray(values, dims="lag")))


def test_an_offset_of_a_filter_is_not_its_first_singular_vector():
    random = np.random.default_rng(0)
    temporal = np.sin(2 * np.pi * LAGS / 20)
    spatial = random.standard_normal((9, 9))
    spatial -= spatial.mean()
    kernel = xr.DataArray(np.multiply.outer(temporal, spatial) + 3.0, dims=("lag", "y", "x"))
    cosines = []
    for subtract in (False, True):
        found = separate(kernel, subtract_mean=subtract)["temporal"].values
        cosines.append(abs(found @ temporal) / np.linalg.norm(temporal))
    assert cosines[0] < 0.1 and cosines[1] == pytest.approx(1)
