#!/usr/bin/env bash
# The sparse readout on a GPU: builds the kernels, checks them against double precision, times them
# beside torch, and writes one file into benchmarks/results. Needs nvcc, a C++ compiler, and torch,
# NumPy, setuptools and pybind11 in the Python that PYTHON names.
set -euo pipefail
cd "$(dirname "$0")/../.."

python=${PYTHON:-python3}
"$python" -c 'import sys, torch; sys.exit(0 if torch.cuda.is_available() else "torch finds no GPU")'
command -v nvcc > /dev/null || { echo "nvcc is not on the PATH" >&2; exit 1; }

"$python" setup.py build_ext --inplace
export PYTHONPATH=.typing
mkdir -p benchmarks/results
"$python" benchmarks/gpu/readout.py "benchmarks/results/$(date +%F-%H%M)-gpu-readout.json" "$@"
