#!/usr/bin/env bash
# Everything that needs a GPU, in one run on one GPU, in the order of worth: tests, then measurements. No network, nothing installed.
#   bash tests/gpu/run.sh [--wheels FOLDER] [--out FOLDER] [--minutes 9] [--parts NAMES]
#   bash tests/gpu/run.sh --cpu         the same parts, small, on the CPU: that they work
# --wheels: what the machine lacks, fetched elsewhere by `bash tests/gpu/wheels.sh FOLDER`. --out (build/gpu): kit.json, written anew
# after each part, and kit.log. PYTHON=… another interpreter. Exit code 0: all parts that ran held.
set -euo pipefail
cd "$(dirname "$0")/../.."
export KIT_BEGUN=$(date +%s)
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
wheels=
given=()
while [ $# -gt 0 ]; do
    case $1 in
        --wheels)
            [ $# -ge 2 ] && [ -d "$2" ] || { echo "run.sh: --wheels: expected a folder of wheels; tests/gpu/wheels.sh makes one" >&2; exit 2; }
            wheels=$2
            shift 2
            ;;
        *)
            given+=("$1")
            shift
            ;;
    esac
done
path=$PWD
if [ -n "$wheels" ]; then
    site=$(mktemp -d)
    trap 'rm -rf "$site"' EXIT
    "$python" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --disable-pip-version-check --target "$site" "$wheels"/*.whl
    path+=:$site
fi
export PYTHONPATH=$path${PYTHONPATH:+:$PYTHONPATH} HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false PYTHONUNBUFFERED=1
"$python" -m tests.gpu.kit ${given+"${given[@]}"}
