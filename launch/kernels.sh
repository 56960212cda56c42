#!/usr/bin/env bash
# The tests that compare computed numbers, on the kernels of other CPUs: bash launch/kernels.sh [pytest arguments]. Minutes; not part of test.sh.
# PyTorch, oneDNN and MKL use an older instruction set than the machine has, and another number of threads, so sums are
# made in another order and rounded differently. A test that fails here but not in test.sh expects the last bits of one
# CPU: see tests/nearness.py.
set -euo pipefail
cd "$(dirname "$0")/.."
export HF_HUB_OFFLINE=${HF_HUB_OFFLINE:-1}
mapfile -t files < <(grep -rl --include='test_*.py' 'tests.nearness' tests/unit | sort)
[ "${#files[@]}" -gt 0 ] || { echo "kernels: no test in tests/unit uses tests/nearness.py" >&2; exit 1; }
status=0
for kernels in "default SSE41 SSE4_2 2" "avx2 AVX2 AVX2 1" "widest ALL any 2"; do
  read -r aten onednn mkl threads <<<"$kernels"
  echo "== $aten, $threads thread(s)"
  chosen=(OMP_NUM_THREADS="$threads")
  [ "$aten" = widest ] || chosen+=(ATEN_CPU_CAPABILITY="$aten" ONEDNN_MAX_CPU_ISA="$onednn" MKL_ENABLE_INSTRUCTIONS="$mkl")
  env "${chosen[@]}" "${VENV:-.venv}/bin/python" -m pytest -q -m "not slow and not gpu" "${files[@]}" "$@" || status=1
done
exit $status
