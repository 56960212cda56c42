#!/usr/bin/env bash
# Sets up and runs the tests.
#   bash launch/test.sh                     all but `slow` and `gpu`, in CCR_TEST_PROCESSES (4) processes, for at most CCR_TEST_SECONDS
#                                           (two hours; two cores need 20 to 40 minutes)
#   bash launch/test.sh --fast              lint, types, architecture and the quick unit tests, in an environment that is ready
#   bash launch/test.sh PYTEST-ARGUMENTS    what they name
# Prints at the end how long each part took; the times of single tests are in build/tests.xml (JUnit).
set -euo pipefail
cd "$(dirname "$0")/.."
bin=${VENV:-.venv}/bin
fast=
if [ "${1:-}" = --fast ]; then
    fast=1
    shift
    [ $# -eq 0 ] || { echo "test: --fast stands alone; for some tests only: bash launch/test.sh $*" >&2; exit 2; }
fi
begun=$SECONDS times=""
lap() { # PART: keeps how long it took
    times+="$(printf '%-12s%8d s' "$1" $((SECONDS - begun)))"$'\n'
    begun=$SECONDS
}
if [ -z "$fast" ] || [ ! -x "$bin/python" ]; then bash launch/setup.sh; fi
lap set-up
export HF_HUB_OFFLINE=${HF_HUB_OFFLINE:-1} OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
unset PYTHONDONTWRITEBYTECODE # hundreds of processes start here; without it each would compile the package again
if [ $# -gt 0 ]; then exec "$bin/python" -m pytest "$@"; fi
"$bin/ruff" check .
"$bin/ruff" format --check .
lap lint
"$bin/mypy" & # takes a minute in a fresh clone
types=$!
status=0
report=build/tests.xml
mkdir -p build && rm -f "$report"
if [ -n "$fast" ]; then
    "$bin/python" -m pytest -q tests/unit -m "not slow and not gpu and not long" --numprocesses 2 --dist loadfile --junit-xml "$report" || status=$?
else
    # Four on two cores: tests on SLURM wait most of the time. The longest files start first (tests/conftest.py).
    limit=${CCR_TEST_SECONDS:-7200}
    timeout --foreground --kill-after=60 "$limit" \
        "$bin/python" -m pytest -m "not slow and not gpu" --numprocesses "${CCR_TEST_PROCESSES:-4}" --dist loadfile --no-loadscope-reorder \
        --durations=15 --junit-xml "$report" || status=$?
    case $status in 124 | 137) echo "The tests were ended after $limit seconds (CCR_TEST_SECONDS). The last lines above say which files had not come to an end." >&2 ;; esac
fi
lap tests
wait $types || status=1
lap "types (rest)" # mypy runs beside the tests: what was left of it when they had ended
[ ! -s "$report" ] || "$bin/python" -m tests.durations "$report" || status=1
printf 'on the clock:\n%s' "$times"
exit $status
