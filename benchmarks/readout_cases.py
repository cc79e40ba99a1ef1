"""The factorized readout on sparse masks, compared with torch and with other libraries.

The nonzero entries of the masks are at random positions. This is the harder case, because masks of
contiguous positions, in order, share more of the cache. The peer "torch" is the fastest of two
einsums, a matrix product and the compiled product, as measured on this machine. Contests use one
thread, unless their name gives another number.

A sparse training step does not compute the gradient outside the support. It is needed from time to
time to add entries to the support. The time of this gradient and of the choice of a new support is
divided by the number of steps between them and added to the time of a step.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import cache, partial

import numpy as np
import torch
from contest import NO_MEMORY, Contest, MemoryContest, peak_megabytes, timed
from torch.nn.functional import softplus

from retinakit.kernels import compiled
from retinakit.layers import Support, factorized_readout
from retinakit.training import ExactZeros, ProximalAdam

SHAPES = {"S1": (64, 32, 1024, 1000), "S2": (256, 4, 2304, 1000), "S3": (128, 64, 576, 5000)}
"""Batch, channels, positions, neurons."""

DENSITIES = {"1": 0.01, "5": 0.05, "20": 0.2, "100": 1.0}
"""Fraction of the mask entries that are not 0, by its percentage."""

TARGETS = {
    ("inference", "1"): 15,
    ("inference", "5"): 6,
    ("inference", "20"): 1.7,
    ("inference", "100"): 0.95,
    ("training", "1"): 12,
    ("training", "5"): 4,
    ("training", "20"): 1.3,
    ("training", "100"): 0.9,
}

REFRESH_EVERY = 200
"""Steps between choices of the support, each from `BATCHES` gradients of all entries."""

BATCHES = ExactZeros.BATCHES
TOLERANCE = 1e-5


class Case:
    """Features, masks and weights for which the output is near 1, and a gradient of the output."""

    def __init__(self, shape: str, density: str) -> None:
        samples, channels, positions, neurons = SHAPES[shape]
        random = torch.Generator().manual_seed(0)
        part = DENSITIES[density]

        def normal(*size):
            return torch.randn(size, generator=random)

        self.features = normal(samples, channels, positions)
        inside = torch.rand(positions, neurons, generator=random) < part
        self.mask = normal(positions, neurons) * inside / (positions * part) ** 0.5
        self.weight = normal(channels, neurons) / channels**0.5
        self.gradient = normal(samples, neurons)
        self.support = Support.of(self.mask)


class Form(ABC):
    """An implementation of the readout, with tensors in its own layout."""

    end = staticmethod(lambda out: out)
    "The operation that follows the readout."

    def leaves(self, case: Case) -> list[torch.Tensor]:
        return [case.features, case.mask, case.weight]

    @abstractmethod
    def read(self, features, mask, weight):
        """The output (sample, neuron) of the readout."""

    def canonical(self, gradients):
        """Converts gradients to the layout of a Case."""
        return gradients


class Ours(Form):
    def __init__(self, case: Case, end=Form.end, algorithm="sparse") -> None:
        self.support = None if algorithm == "dense" else case.support
        self.algorithm, self.end = algorithm, end

    def read(self, features, mask, weight):
        return self.end(
            factorized_readout(
                features,
                mask,
                weight,
                algorithm=self.algorithm,
                support=self.support,
                sparse_gradient=True,
            )
        )


class Einsums(Form):
    def read(self, features, mask, weight):
        return torch.einsum("bkn,kn->bn", torch.einsum("bkp,pn->bkn", features, mask), weight)


class Product(Form):
    def read(self, features, mask, weight):
        samples, channels, positions = features.shape
        under = (features.view(-1, positions) @ mask).view(samples, channels, -1)
        return (under * weight).sum(1)


# This is compiled for each shape and mode, and again for each number of threads.
torch._dynamo.config.recompile_limit = 100


class Compiled(Product):
    def __init__(self) -> None:
        self.read = torch.compile(super().read, fullgraph=True, dynamic=False)


class NeuralPredictors(Form):
    """FullFactorized2d."""

    def __init__(self) -> None:
        from neuralpredictors.layers.readouts import FullFactorized2d

        self.layer = FullFactorized2d

    def leaves(self, case):
        side = round(case.features.shape[2] ** 0.5)
        features = case.features.unflatten(2, (side, side))
        neurons = case.mask.shape[1]
        self.module = self.layer(features.shape[1:], neurons, bias=False, normalize=False)
        mask = case.mask.T.unflatten(1, (side, side)).contiguous()
        return [features, mask, case.weight.T.contiguous()]

    def read(self, features, mask, weight):
        values = {"spatial": mask, "_features": weight}
        return torch.func.functional_call(self.module, values, features)

    def canonical(self, gradients):
        features, mask, weight = gradients
        return [features.flatten(2), mask.flatten(1).T, weight.T]


class OpenRetina(Form):
    """FactorizedReadout."""

    end = staticmethod(softplus)

    def __init__(self) -> None:
        from openretina.modules.readout.factorized import FactorizedReadout

        self.layer = FactorizedReadout

    def leaves(self, case):
        side = round(case.features.shape[2] ** 0.5)
        features = case.features.unflatten(2, (1, side, side))
        shape, scales = features.shape[1:], [(0.0, 1.0), (0.0, 1.0)]
        self.module = self.layer(shape, case.mask.shape[1], 0, 0, 0, side, init_scales=scales)
        return [features, case.mask, case.weight]

    def read(self, features, mask, weight):
        values = {"mask_weights": mask, "feature_weights": weight}
        return torch.func.functional_call(self.module, values, features)[:, 0]

    def canonical(self, gradients):
        return [gradients[0].flatten(2), *gradients[1:]]


PEERS = {
    "einsums": Einsums,
    "product": Product,
    "compiled": cache(Compiled),
    "neuralpredictors": NeuralPredictors,
    "openretina": OpenRetina,
}
TORCH = ("einsums", "product", "compiled")


def infer(form: Form, leaves: list[torch.Tensor]) -> np.ndarray:
    with torch.no_grad():
        return form.read(*leaves).numpy()


def train(form: Form, leaves: list[torch.Tensor], gradient: torch.Tensor) -> np.ndarray:
    """A training step without the optimizer. The gradients are compared before the contest."""
    out = form.read(*leaves)
    torch.autograd.grad(out, leaves, gradient)
    return out.detach().numpy()


def side(form: Form, case: Case, mode: str):
    """The work of one side, as a function without arguments."""
    leaves = [leaf.clone().requires_grad_(mode == "training") for leaf in form.leaves(case)]
    if mode == "inference":
        return partial(infer, form, leaves)
    return partial(train, form, leaves, case.gradient)


def gradients(form: Form, case: Case) -> list[torch.Tensor]:
    leaves = [leaf.clone().requires_grad_() for leaf in form.leaves(case)]
    found = torch.autograd.grad(form.read(*leaves), leaves, case.gradient)
    of_features, of_mask, of_weight = form.canonical(found)
    return [of_features, case.support.values(of_mask), of_weight]


def agree_on_gradients(ours: Form, theirs: Form, case: Case) -> None:
    """Compares gradients relative to the largest one, and those of masks on the support only."""
    for mine, other in zip(gradients(ours, case), gradients(theirs, case), strict=True):
        largest = other.abs().max()
        torch.testing.assert_close(mine / largest, other / largest, rtol=0, atol=TOLERANCE)


case = cache(Case)


@cache
def best_torch(shape: str, mode: str, threads: int) -> str:
    """The name of the fastest implementation in torch. The caller sets the number of threads."""

    def seconds(name):
        run = side(PEERS[name](), case(shape, "1"), mode)
        if name == "compiled":
            run()
        return timed(run)[1]

    return min(TORCH, key=seconds)


def sides(shape: str, density: str, mode: str, peer: str, threads: int):
    torch.set_num_threads(threads)
    name = best_torch(shape, mode, threads) if peer == "torch" else peer
    here, theirs = case(shape, density), PEERS[name]()
    ours = Ours(here, theirs.end, "dense" if density == "100" else "sparse")
    if mode == "training":
        agree_on_gradients(ours, theirs, here)
    return side(ours, here, mode), side(theirs, here, mode)


def whole_gradient(shape: str, density: str):
    """The gradient of all entries of the masks from one batch."""
    here = case(shape, density)
    mask = here.mask.clone().requires_grad_()

    def work() -> np.ndarray:
        out = factorized_readout(
            here.features, mask, here.weight, support=here.support, whole_gradient=True
        )
        torch.autograd.grad(out, mask, here.gradient)
        return out.detach().numpy()

    return work


def refresh(shape: str, density: str):
    """The choice of a new support, which is equal to the old one here."""
    here = case(shape, density)
    mask = here.mask.clone()
    optimizer = ProximalAdam([{"params": [mask], "l1": 1.0}])
    optimizer.restrict(mask, here.support.inside)
    gradient = here.support.inside.float()
    return lambda: optimizer.refresh(mask, gradient).entry.numpy()


def missing(peer: str) -> str:
    """The reason why a peer cannot run here, or ""."""
    if compiled is None:
        return "the compiled kernels are not installed"
    if peer not in TORCH and peer in PEERS:
        try:
            PEERS[peer]()
        except ImportError as error:
            return f"not installed ({error})"
    return ""


def group(shape: str, density: str, mode: str) -> str:
    """A description of the case."""
    samples, channels, positions, neurons = SHAPES[shape]
    return (
        f"readout, {mode}, {shape}: {samples} samples, {channels} channels, {positions} "
        f"positions, {neurons} neurons, {density}% of the masks"
    )


def contests() -> Iterator[Contest]:
    """All contests in one thread, and some against torch in two threads."""
    for shape in SHAPES:
        for mode in ("inference", "training"):
            for density in DENSITIES:
                for peer in ("torch", *PEERS) if density == "1" else ("torch",):
                    yield contest(shape, density, mode, peer)
            yield contest(shape, "5", mode, "torch", threads=2)


def contest(shape: str, density: str, mode: str, peer: str, threads: int = 1) -> Contest:
    overhead = (
        (partial(whole_gradient, shape, density), REFRESH_EVERY // BATCHES),
        (partial(refresh, shape, density), REFRESH_EVERY),
    )
    suffix = "" if threads == 1 else f"-{threads}threads"
    return Contest(
        f"readout-{shape}-{density}%-{mode}-{peer}{suffix}",
        group(shape, density, mode) + (f", {threads} threads" if threads > 1 else ""),
        TARGETS.get((mode, density)) if peer == "torch" else None,
        partial(sides, shape, density, mode, peer, threads),
        TOLERANCE,
        overhead=overhead if mode == "training" and density != "100" else (),
        missing=missing(peer),
    )


WORKSPACE = 25
"""Megabytes that the dense readout may use in addition to its arguments."""

LESS = 4
"""Target of the ratio of a product's memory to ours in a dense training step. For S1 and S2 the
memory of a product is little more than that of the gradients."""


def memory_contests() -> Iterator[MemoryContest]:
    """The contests of memory, for dense masks and masks with 1 % nonzero entries."""
    for shape in SHAPES:
        prefix = f"readout-{shape}"
        yield MemoryContest(f"{prefix}-100%-inference-memory", 1, partial(workspace, shape))
        for density in ("100", "1"):
            yield MemoryContest(
                f"{prefix}-{density}%-training-memory",
                LESS if density == "100" else None,
                partial(step_memory, shape, density),
                missing("torch") or NO_MEMORY if density == "1" else NO_MEMORY,
            )


def workspace(shape: str) -> tuple[float, float]:
    """Megabytes of the dense readout with its output, and the megabytes that it may use."""
    torch.set_num_threads(1)
    here = case(shape, "100")
    return peak_megabytes(side(Ours(here, algorithm="dense"), here, "inference")), WORKSPACE


def step_memory(shape: str, density: str) -> tuple[float, float]:
    """Megabytes of a training step with its gradients, and those of a product."""
    torch.set_num_threads(1)
    here = case(shape, density)
    ours = Ours(here, algorithm="dense" if density == "100" else "sparse")
    mine, theirs = (
        peak_megabytes(side(form, here, "training")) for form in (ours, PEERS["product"]())
    )
    return mine, theirs
