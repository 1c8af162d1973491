#!/usr/bin/env bash
# Every figure of docs/performance.md that needs an NVIDIA GPU: bash docs/gpu.sh [folder for the results [part ...]].
# From a checkout, with what normgeo and its tests need (pip install -e ".[dev,gpu]"); 80 GB of GPU memory. Each part ends
# within ten minutes, prints and saves what it has as it goes, and costs no other part its turn.
set -uo pipefail
out=${1:-runs/gpu}
parts=("${@:2}")
[ ${#parts[@]} -gt 0 ] || parts=(tests 124M 1.2B large sizes passes)
export PYTHONUNBUFFERED=1
mkdir -p "$out"
nvidia-smi --query-gpu=name,driver_version --format=csv | tee "$out/machine.txt"
failed=()
run() { timeout 540 "${PYTHON:-python3}" "${@:2}" 2>&1 | tee "$out/$1.txt" || failed+=("$1"); }
bench() { run "$1" -c "from normgeo.cli import main; main()" bench speed --device cuda "${@:2}" --out "$out/$1"; }
for part in "${parts[@]}"; do
    case $part in
        # What only a device can show: graphs replay what steps do, and the kernel's products.
        tests) run tests -m pytest -q -rs -p no:cacheprovider tests/test_capture.py tests/test_symmetric.py tests/test_linalg.py ;;
        124M) bench 124M --width 768 --depth 12 --only normgeo --tokens 65536 --vocabulary 50304 ;;
        1.2B) bench 1.2B --width 2048 --depth 24 --only tight --tokens 65536 --vocabulary 50304 ;;
        large) bench large --width 4096 --depth 1 ;;
        sizes) bench sizes --width 2048,768,256,64 --depth 4 --tokens 65536 ;;
        passes) bench passes --width 2048,768 --depth 4 --seconds 6 --compile ;;
        *) echo "unknown part $part"; exit 2 ;;
    esac
done
[ ${#failed[@]} -eq 0 ] || { echo "not all of these came to their end: ${failed[*]}"; exit 1; }
