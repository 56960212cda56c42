#!/usr/bin/env bash
# Sets up and runs the tests: bash launch/test.sh [pytest arguments]. Default: all but `slow` and `gpu`, in CCR_TEST_PROCESSES (4) processes,
# at most CCR_TEST_SECONDS (two hours; two cores need 40 minutes).
set -euo pipefail
cd "$(dirname "$0")/.."
bash launch/setup.sh
export HF_HUB_OFFLINE=${HF_HUB_OFFLINE:-1} OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
unset PYTHONDONTWRITEBYTECODE # hundreds of processes start here; without it each would compile the package anew
bin=${VENV:-.venv}/bin
if [ $# -gt 0 ]; then exec "$bin/python" -m pytest "$@"; fi
"$bin/ruff" check .
"$bin/ruff" format --check .
"$bin/mypy" & # takes a minute in a fresh clone
types=$!
# Four on two cores: tests on SLURM wait most of the time. The longest files start first (tests/conftest.py).
status=0
limit=${CCR_TEST_SECONDS:-7200}
timeout --foreground --kill-after=60 "$limit" \
  "$bin/python" -m pytest -m "not slow and not gpu" --numprocesses "${CCR_TEST_PROCESSES:-4}" --dist loadfile --no-loadscope-reorder --durations=15 || status=$?
case $status in 124 | 137) echo "The tests were ended after $limit seconds (CCR_TEST_SECONDS). The last lines above say which files had not come to an end." >&2 ;; esac
wait $types || status=1
exit $status
