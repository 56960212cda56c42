#!/usr/bin/env bash
# Forward, losses and encoding of every method on `cuda` without values, by torch's CUDA build: a tensor left on the CPU raises. No GPU is
# needed, but a network and 8 GB of disk for an environment of its own, which is removed afterwards.
#   bash tests/gpu/fake.sh            TORCH=2.13.0 TORCHVISION=0.28.0 PYTHON=python3 bash tests/gpu/fake.sh
# FAKE_VENV=FOLDER keeps the environment there, and uses the one that is there.
set -euo pipefail
cd "$(dirname "$0")/../.."
venv=${FAKE_VENV:-$(mktemp -d)/venv}
[ -n "${FAKE_VENV:-}" ] || trap 'rm -rf "$(dirname "$venv")"' EXIT
if [ ! -x "$venv/bin/python" ]; then
    mkdir -p "$(dirname "$venv")"
    free=$(df --output=avail --block-size=1G "$(dirname "$venv")" | tail -1)
    [ "$free" -ge 8 ] || { echo "fake.sh: $(dirname "$venv") has $free GB free; expected 8 for torch's CUDA build (FAKE_VENV=… puts it elsewhere)" >&2; exit 1; }
    "${PYTHON:-python3}" -m venv "$venv"
    # Three equal signs: this build and no local one, such as one for CPUs.
    torch=("torch===${TORCH:-2.13.0}" "torchvision===${TORCHVISION:-0.28.0}")
    "$venv/bin/python" -m pip install --quiet --no-cache-dir --disable-pip-version-check "${torch[@]}" --editable '.[train]' pytest pytest-timeout hypothesis
fi
export PYTHONPATH=$PWD HF_HUB_OFFLINE=1 FAKE_DEVICE=cuda
"$venv/bin/python" -c 'import torch; print("fake.sh: torch", torch.__version__, "CUDA", torch.version.cuda); raise SystemExit(torch.version.cuda is None)' ||
    { echo "fake.sh: this torch has no CUDA; expected the CUDA build of the index" >&2; exit 1; }
# Not the options of pyproject.toml: they need pytest-xdist.
"$venv/bin/python" -m pytest -q -p no:cacheprovider -o addopts=--import-mode=importlib tests/unit/methods/test_on_a_device.py
