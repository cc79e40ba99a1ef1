#!/usr/bin/env bash
# Builds the kernels of the sparse readout on a GPU, checks them against double precision, compares
# their times with torch, and writes a file into benchmarks/results. This needs nvcc, a C++ compiler,
# and a Python (set in PYTHON) with torch, NumPy, setuptools and pybind11.
set -euo pipefail
cd "$(dirname "$0")/../.."

python=${PYTHON:-python3}
"$python" -c 'import sys, torch; sys.exit(0 if torch.cuda.is_available() else "torch finds no GPU")'
command -v nvcc > /dev/null || { echo "nvcc is not on the PATH" >&2; exit 1; }

"$python" setup.py build_ext --inplace
export PYTHONPATH=.typing
mkdir -p benchmarks/results
"$python" benchmarks/gpu/readout.py "benchmarks/results/$(date +%F-%H%M)-gpu-readout.json" "$@"
