#!/usr/bin/env bash
# Every figure of docs/performance.md that needs an NVIDIA GPU, in one go: bash docs/gpu.sh [folder for the results].
# From a checkout with pip install -e ".[dev,gpu]"; about 20 minutes and 60 GB of GPU memory.
set -euo pipefail
out=${1:-runs/gpu}
mkdir -p "$out"
nvidia-smi --query-gpu=name,driver_version --format=csv | tee "$out/machine.txt"
# What only a device can show: graphs replay what steps do, and the kernel's products.
pytest -q -rs tests/test_capture.py tests/test_symmetric.py tests/test_linalg.py | tee "$out/tests.txt"
bench() { normgeo bench speed --device cuda "${@:2}" --out "$out/$1" | tee "$out/$1.txt"; }
bench sizes --width 64,256,768,2048 --depth 4 --tokens 65536 --compile
bench large --width 4096 --depth 1
bench gpt-124M --width 768 --depth 12 --only normgeo --tokens 65536
bench gpt-1.2B --width 2048 --depth 24 --only "normgeo tight" --tokens 65536
