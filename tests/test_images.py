"""Generated images have the statistics of natural scenes."""

import numpy as np
import pytest

from retinakit.simulation import dead_leaves, pink_noise


def spectrum(image, low, high):
    """Mean power between two frequencies, in cycles per pixel."""
    size = len(image)
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.fftfreq(size))
    power = np.abs(np.fft.fft2(image)) ** 2
    return power[(frequency > low) & (frequency < high)].mean()


@pytest.mark.parametrize("make", [dead_leaves, pink_noise])
def test_power_falls_with_the_square_of_the_frequency(make):
    random = np.random.default_rng(0)
    images = [make(256, random) for _ in range(4)]
    falls = np.mean([spectrum(i, 0.02, 0.04) / spectrum(i, 0.08, 0.16) for i in images])
    assert falls == pytest.approx(16, rel=0.35)
    for image in images:
        assert image.shape == (256, 256)
        assert image.mean() == pytest.approx(0, abs=1e-9)
        assert image.std() == pytest.approx(1)


def test_leaves_have_edges_and_noise_has_none():
    """The differences of neighbours in a natural scene are 0 or large: their kurtosis is high."""
    random = np.random.default_rng(0)
    kurtosis = {}
    for make in (dead_leaves, pink_noise):
        difference = np.diff(make(256, random), axis=1)
        kurtosis[make] = np.mean(difference**4) / np.mean(difference**2) ** 2
    assert kurtosis[pink_noise] == pytest.approx(3, abs=0.3)
    assert kurtosis[dead_leaves] > 10
