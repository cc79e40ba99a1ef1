"""The time of the LN model and its held-out bits per spike, compared with peers on the same data.

A cell with one linear filter and a softplus sees 100,000 frames of 9 x 9 checks, binary white noise
or spatial 1/f noise, and has 5 spikes in 100 frames. A side fits a filter of 20 lags and predicts
40,000 held-out frames. Our time includes the averages of the stimulus, the evidence for the prior
and the projection of the stimulus. Peers get the matrix of lagged stimuli (float32), which is not
counted. Our bits must not be lower than the peer's by more than `TOLERANCE`.

Rank and length factor of `ln` are set, as no peer chooses between models; the contests
`ln-...-selection-...` have the defaults, which choose both on validation frames, and no target.
nemos and RFEst have their defaults, except that ASD starts from lengths of 2 frames and checks.
scikit-learn's PoissonRegressor has the penalty `RIDGE`. RFEst's splines have 7 degrees of freedom
for the lags and 6 for each side. Peers that estimate a filter without an output nonlinearity (ASD,
splineLG, and pyret's average) get the monotone spline of `ln`.
"""

from functools import cache, partial
from importlib import import_module
from typing import Any

import numpy as np
import xarray as xr
from contest import Contest
from scipy.fft import irfft2, rfft2

from retinakit.contracts import make_recording, make_split
from retinakit.regression import MonotoneSpline
from retinakit.scores import bits_per_spike
from retinakit_plugins.models.ln import LN

LAGS, SIDE = 20, 9
FRAMES = {"train": 100_000, "validation": 10_000, "test": 40_000}
SPIKES = 0.05
"Spikes per frame."
INTERVAL = 0.01
TOLERANCE = 0.002
"In bits per spike."
RIDGE = 0.01
"The penalty of scikit-learn's PoissonRegressor, the best of .001, .01, .1 and 1, its default."


def true_filter(side: int, lags: int = LAGS) -> np.ndarray:
    """A centre, a weaker surround, and a biphasic course (lag, y, x)."""
    places = np.arange(side) - side // 2
    distance = np.add.outer(places**2, places**2)
    space = np.exp(-distance / (2 * 1.2**2)) - 0.15 * np.exp(-distance / (2 * 2.5**2))
    lag = np.arange(lags)
    course = np.exp(-((lag - 4) ** 2) / 8) - 0.5 * np.exp(-((lag - 9) ** 2) / 18)
    product = np.multiply.outer(course, space)
    return product / np.linalg.norm(product)


def stimulus(kind: str, frames: int, side: int, random: np.random.Generator) -> np.ndarray:
    if kind == "binary":
        return 2 * random.integers(0, 2, (frames, side, side), np.int8) - 1
    # The amplitude spectrum is 1/f in space, and frames are independent.
    size = 2 * side
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size))
    frequency[0, 0] = np.inf
    white = random.standard_normal((frames, size, size), np.float32)
    pink = irfft2(rfft2(white) / frequency.astype(np.float32))[:, :side, :side]
    return np.ascontiguousarray(pink / pink.std())


def simulated(kind: str, frames: dict[str, int], side: int, cells: int = 1) -> xr.DataTree:
    """A recording whose cells have the same filter and nonlinearity, and its true rates."""
    random = np.random.default_rng(0)
    product = true_filter(side)
    splits: dict[str, xr.Dataset] = {}
    scale = gain = np.nan
    for name, number in frames.items():
        shown = stimulus(kind, number, side, random)
        flat = shown.reshape(number, -1).astype(np.float32)
        by_lag = flat @ product.reshape(LAGS, -1).T.astype(np.float32)
        drive = np.zeros(number)
        for lag in range(LAGS):
            drive[lag:] += by_lag[: number - lag, lag]
        if name == "train":
            scale = 2 / drive.std()
        rate = np.logaddexp(0, scale * drive - 3)
        if name == "train":
            gain = SPIKES / rate.mean()
        rates = np.repeat(gain * rate[:, None], cells, 1)
        counts = random.poisson(rates).astype(np.int16)
        splits[name] = make_split(shown, counts, frame_interval=INTERVAL, rate=rates)
    return make_recording(splits)


@cache
def recording(kind: str) -> xr.DataTree:
    return simulated(kind, FRAMES, SIDE)


@cache
def design(kind: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The lagged stimuli (frame, lag · y · x), oldest lag first, and the counts, as peers take."""
    split = recording(kind)[name]
    flat = split["stimulus"].values.reshape(FRAMES[name], -1).astype(np.float32)
    windows = np.lib.stride_tricks.sliding_window_view(flat, LAGS, axis=0)
    lagged = np.ascontiguousarray(windows.swapaxes(1, 2)).reshape(len(windows), -1)
    return lagged, split["response"].values[LAGS - 1 :, 0].astype(float)


def bits(rate: Any, kind: str) -> np.ndarray:
    """The bits per held-out spike of a prediction for the frames with a full history."""
    counts = design(kind, "test")[1]
    both = (xr.DataArray(np.asarray(values), dims="frame") for values in (rate, counts))
    return np.array(float(bits_per_spike(*both)))


def truth(kind):
    return bits(recording(kind)["test"]["rate"].values[LAGS - 1 :, 0], kind)


def ours(kind, **options):
    model = LN.with_options(lags=LAGS, **options)
    model.fit(recording(kind))
    rate = model.predict(recording(kind)["test"].to_dataset())
    return bits(rate.values[LAGS - 1 :, 0], kind)


def scikit_learn(kind):
    regressor = import_module("sklearn.linear_model").PoissonRegressor(alpha=RIDGE)
    regressor.fit(*design(kind, "train"))
    return bits(regressor.predict(design(kind, "test")[0]), kind)


def nemos(kind):
    import_module("jax").config.update("jax_debug_nans", False)  # which RFEst sets
    regressor = import_module("nemos.glm").GLM()
    regressor.fit(*design(kind, "train"))
    return bits(regressor.predict(design(kind, "test")[0]), kind)


def with_spline(weights, kind):
    """The bits of a filter with a nonlinearity fitted to its drives."""
    lagged, counts = design(kind, "train")
    weights = np.asarray(weights, np.float32).ravel()
    weights = weights / (lagged[:5000] @ weights).std()
    spline, shape = MonotoneSpline.fitted((lagged @ weights).astype(float), counts, 8, "poisson")
    return bits(spline((design(kind, "test")[0] @ weights).astype(float), shape)[0], kind)


def asd(kind):
    lagged, counts = design(kind, "train")
    model = import_module("rfest").ASD(lagged, counts, (LAGS, SIDE, SIDE))
    model.fit(p0=[1.0, 1.0, 2.0, 2.0, 2.0], num_iters=20, verbose=0)
    return with_spline(model.w_opt, kind)


def spline_lg(kind):
    lagged, counts = design(kind, "train")
    model = import_module("rfest").splineLG(lagged, counts, (LAGS, SIDE, SIDE), (7, 6, 6))
    return with_spline(model.w_spl, kind)


def spline_lnp(kind):
    lagged, counts = design(kind, "train")
    model = import_module("rfest").splineLNP(lagged, counts, (LAGS, SIDE, SIDE), (7, 6, 6))
    model.fit(verbose=0)
    return bits(np.maximum(model.predict(design(kind, "test")[0]), 1e-9), kind)


def pyret(kind):
    tools = import_module("pyret.filtertools")
    split = recording(kind)["train"]
    counts = split["response"].values[:, 0]
    frames = np.arange(len(counts) + 1) * INTERVAL
    spikes = (np.repeat(np.arange(len(counts)), counts) + 0.5) * INTERVAL
    flat = split["stimulus"].values.reshape(len(counts), -1).astype(float)
    average, _ = tools.sta(frames, flat, spikes[spikes > frames[LAGS + 1]], LAGS)
    return with_spline(average, kind)


def compared(kind, mine, theirs):
    """Demands that our bits are no lower, and shows them beside the truth's."""
    remark = f"{float(mine):.3f} against {float(theirs):.3f} of {float(truth(kind)):.3f} bits"
    assert mine >= theirs - TOLERANCE, remark
    return remark


ONE = {"rank": 1, "length_factors": [1.0]}
PEERS = [
    # name, the peer, the library, target of the ratio
    ("scikit-learn", scikit_learn, "sklearn", 4.0),
    ("spline-lg", spline_lg, "rfest", 20.0),
    ("pyret", pyret, "pyret", None),
    ("spline-lnp", spline_lnp, "rfest", 20.0),
    ("nemos", nemos, "nemos", 20.0),
    ("asd", asd, "rfest", 20.0),
]


def missing(library):
    """The reason why a peer cannot run, or ""."""
    try:
        import_module(library)
        return ""
    except ImportError as error:
        return f"not installed ({error})"


def contests():
    def sides(kind, peer, options):
        for name in ("train", "test"):
            design(kind, name)
        return partial(ours, kind, **options), partial(peer, kind)

    chosen = [
        (f"ln-{kind}-{name}", kind, peer, library, target, ONE)
        for kind in ("binary", "pink")
        for name, peer, library, target in PEERS
    ]
    for kind in ("binary", "pink"):
        chosen.append(
            (f"ln-{kind}-selection-scikit-learn", kind, scikit_learn, "sklearn", None, {})
        )
    return [
        Contest(
            id=name,
            group=f"LN model, {kind} noise",
            target=target,
            sides=partial(sides, kind, peer, options),
            tolerance=TOLERANCE,
            compare=partial(compared, kind),
            missing=missing(library),
        )
        for name, kind, peer, library, target, options in chosen
    ]
