"""Checks the sparse readout on a GPU against double precision, and compares its times with torch.

Usage: python benchmarks/gpu/readout.py RESULT.json [--device cpu] [--tiny]. `run.sh` builds the
kernels first. With `--device cpu --tiny` it runs the same steps on any machine within seconds.
"""

import argparse
import json
import sys
from pathlib import Path
from statistics import median
from time import perf_counter

import torch

from retinakit.layers import Support, factorized_readout
from retinakit.layers.readout_kernels import compiled_sparse, cuda_sparse

SHAPES = {"S1": (64, 32, 1024, 1000), "S2": (256, 4, 2304, 1000), "S3": (128, 64, 576, 5000)}
"""Batch, channels, positions, neurons."""

ODD_SHAPES = {"odd": (33, 9, 70, 37), "one": (1, 1, 1, 1), "long": (5, 130, 3, 100)}
DENSITIES = (0.01, 0.05, 0.2)
PRECISIONS = {"fp32": "highest", "tf32": "high", "bf16": "highest"}
"""The precisions that are timed, with torch's setting for products in single precision."""

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2**-8}
ROUNDS = 30


def inputs(shape, density, dtype, device, seed, local=False):
    """Features, mask, weight and a gradient. `local` masks are contiguous, like trained ones."""
    samples, channels, positions, neurons = shape
    random = torch.Generator(device).manual_seed(seed)

    def normal(*size):
        return torch.randn(size, generator=random, device=device)

    if local:
        start = torch.rand(neurons, generator=random, device=device) * (1 - density) * positions
        after = torch.arange(positions, device=device)[:, None] - start
        inside = (after >= 0) & (after < max(1, density * positions))
    else:
        inside = torch.rand(positions, neurons, generator=random, device=device) < density
    mask = normal(positions, neurons) * inside
    features = normal(samples, channels, positions).to(dtype)
    return features, mask, normal(channels, neurons), normal(samples, neurons)


def product(features, mask, weight):
    """The readout in torch, in the type of the features."""
    samples, channels, positions = features.shape
    mask, weight = mask.to(features.dtype), weight.to(features.dtype)
    under = (features.view(-1, positions) @ mask).view(samples, channels, -1)
    return (under * weight).sum(1)


def sparse(support):
    def read(features, mask, weight):
        return factorized_readout(features, mask, weight, algorithm="sparse", support=support)

    return read


def step(read, tensors, gradient):
    """The output and all gradients."""
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    out = read(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, gradient.to(out.dtype))]


def check(shape, density, dtype, device, seed):
    """Largest differences from double precision, relative to the largest value of each result.

    Raises:
        AssertionError: if one is too large, or if a second run gives anything else.
    """
    *tensors, gradient = inputs(shape, density, dtype, device, seed)
    gradient = gradient.to(dtype).float()
    support = Support.of(tensors[1])
    found = step(sparse(support), tensors, gradient)
    again = step(sparse(support), tensors, gradient)
    exact = step(product, [tensor.double() for tensor in tensors], gradient.double())
    exact[2] *= support.inside
    errors = {}
    for name, one, other, truth in zip(
        ("output", "features", "mask", "weight"), found, again, exact, strict=True
    ):
        assert torch.equal(one, other), f"{name} differs between two runs, seed {seed}"
        scale = truth.abs().max().clamp_min(1e-30)
        errors[name] = ((one.double() - truth).abs().max() / scale).item()
        assert errors[name] <= TOLERANCE[dtype], f"{name}: {errors[name]}, seed {seed}, {shape}"
    return errors


def seconds(runs, device, rounds):
    """Median seconds of each named function; they run alternately."""
    took = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            took[name].append(once(run, device))
    return {name: median(times) for name, times in took.items()}


def once(run, device):
    if device == "cpu":
        begin = perf_counter()
        run()
        return perf_counter() - begin
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1000


def compare(shape, density, precision, device, seed, *, local, training, rounds, compiling):
    """Median seconds of our readout and of those in torch, or the reason why one failed."""
    torch.set_float32_matmul_precision(PRECISIONS[precision])
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    *tensors, gradient = inputs(shape, density, dtype, device, seed, local)
    forms = {"sparse": sparse(Support.of(tensors[1])), "product": product}
    if compiling:
        # On a GPU this uses CUDA graphs, because small readouts are limited by kernel launches.
        mode = "default" if device == "cpu" else "reduce-overhead"
        for name in tuple(forms):
            torch._dynamo.reset()
            forms[f"{name} compiled"] = torch.compile(forms[name], fullgraph=True, mode=mode)
    runs, failures = {}, {}
    for name, read in forms.items():

        def run(read=read):
            if training:
                step(read, tensors, gradient)
            else:
                with torch.no_grad():
                    read(*tensors)

        try:
            for _ in range(3):
                run()
            runs[name] = run
        except Exception as error:  # if one fails to compile, the others are still timed
            failures[name] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
    return seconds(runs, device, rounds) | failures


def main(arguments):
    parser = argparse.ArgumentParser()
    parser.add_argument("result", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="use small shapes and do not compile")
    options = parser.parse_args(arguments)
    device = options.device
    shapes = {"odd": ODD_SHAPES["odd"]} if options.tiny else SHAPES
    serving = compiled_sparse if device == "cpu" else cuda_sparse
    if not serving.serves(torch.empty(0, device=device)):
        sys.exit(f"the compiled kernels for {device} are not installed")

    seed = torch.seed() % 2**31
    half = [] if device == "cpu" else [torch.bfloat16]
    checks = [
        {"shape": name, "density": density, "dtype": str(dtype)}
        | check(shape, density, dtype, device, seed)
        for name, shape in (ODD_SHAPES | shapes).items()
        for density in (*DENSITIES, 1.0)
        for dtype in (torch.float32, *half)
    ]
    print(f"{len(checks)} checks against double precision passed, seed {seed}")
    times = []
    for name, shape in shapes.items():
        for precision in PRECISIONS if half else ("fp32",):
            for density in DENSITIES:
                for local in (False, True):
                    for training in (False, True):
                        found = compare(
                            shape,
                            density,
                            precision,
                            device,
                            seed,
                            local=local,
                            training=training,
                            rounds=ROUNDS,
                            compiling=not options.tiny,
                        )
                        case = {
                            "shape": name,
                            "precision": precision,
                            "density": density,
                            "local": local,
                            "training": training,
                        }
                        times.append(case | {"seconds": found})
                        print(json.dumps(times[-1]), flush=True)
    about = {
        "device": torch.cuda.get_device_name() if device != "cpu" else "cpu",
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "seed": seed,
    }
    content = about | {"checks": checks, "times": times}
    options.result.write_text(json.dumps(content, indent=1) + "\n")
    print(f"written: {options.result}")


if __name__ == "__main__":
    main(sys.argv[1:])
