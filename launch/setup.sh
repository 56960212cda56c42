#!/usr/bin/env bash
# Makes .venv with everything that demo and tests need, on a CPU-only machine or a CUDA box, and says what it chose.
#   bash launch/setup.sh            VENV=/path PYTHON=python3.12 CCR_TORCH=cpu|cuda bash launch/setup.sh
# Safe to repeat: it does nothing when pyproject.toml has not changed since the last success.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${VENV:-.venv}
python=${PYTHON:-python3}

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "setup: $("$python" --version) is too old; Python 3.11 or newer is needed (PYTHON=…)" >&2; exit 2; }
kind=${CCR_TORCH:-$(command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1 && echo cuda || echo cpu)}
case $kind in cpu | cuda) ;; *) echo "setup: CCR_TORCH=$kind: expected cpu or cuda" >&2; exit 2 ;; esac

stamp=$venv/.ccr-dist-setup
wanted="$kind $(cat pyproject.toml launch/constraints-cpu.txt launch/setup.sh launch/torchvision_shim.py | sha256sum | cut -c1-16)"
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then
    echo "setup: $venv is up to date ($kind)"
else
    echo "setup: making $venv with $("$python" --version) and torch for $kind"
    [ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
    pip=("$venv/bin/python" -m pip install --quiet --disable-pip-version-check)
    if [ "$kind" = cpu ]; then
        pip+=(--constraint launch/constraints-cpu.txt)
        # The CPU build is a tenth of the default one. Where pip is configured to find a CPU build by itself, that one is taken.
        "${pip[@]}" torch numpy || { echo "setup: torch could not be installed" >&2; exit 1; }
        if [ "$("$venv/bin/python" -c 'import torch; print(torch.version.cuda is None)')" != True ]; then
            echo "setup: note: pip's index served a CUDA build of torch; it runs on CPU, only larger"
        fi
    fi
    "${pip[@]}" --editable '.[train,demo,dev]'
    "$venv/bin/python" launch/torchvision_shim.py
    echo "$wanted" >"$stamp"
fi

# Spanish MT of the demo is Debian's apertium. Everything else comes with pip.
modes=$(command -v apertium >/dev/null && apertium -l || true)
if [[ $modes != *eng-spa* ]]; then
    if command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
        echo "setup: installing apertium-eng-spa (apt)"
        { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq apertium apertium-eng-spa; } >/dev/null
    else
        echo "setup: apertium with eng-spa is missing, so Spanish is left out; \`sudo apt-get install apertium apertium-eng-spa\` adds it"
    fi
fi
"$venv/bin/python" - <<'PY'
import torch
print(f"setup: torch {torch.__version__}, " + (f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}" if torch.cuda.is_available() else "CPU"))
PY
