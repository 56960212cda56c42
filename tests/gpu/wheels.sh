#!/usr/bin/env bash
# Fetches into FOLDER the wheels of wheels.txt, for Python 3.12 on x86-64 Linux; needs pip and a network.
#   bash tests/gpu/wheels.sh FOLDER          PYTHON=python3.12 bash tests/gpu/wheels.sh FOLDER
# deepspeed comes as source and is built here: without its operators it is Python alone.
set -euo pipefail
[ $# -eq 1 ] || { echo "wheels: expected one FOLDER for the wheels: bash tests/gpu/wheels.sh FOLDER" >&2; exit 2; }
list="$(cd "$(dirname "$0")" && pwd)/wheels.txt"
mkdir -p "$1"
folder="$(cd "$1" && pwd)"
pip=("${PYTHON:-python3}" -m pip)
platforms=()
for platform in manylinux_2_28_x86_64 manylinux_2_27_x86_64 manylinux_2_17_x86_64 manylinux2014_x86_64 manylinux_2_12_x86_64 manylinux2010_x86_64; do
    platforms+=(--platform "$platform")
done
"${pip[@]}" download --quiet --no-deps --only-binary=:all: --python-version 3.12 --implementation cp "${platforms[@]}" \
    --dest "$folder" $(grep -v -e '^#' -e '^deepspeed' "$list")
# In a folder of its own: pip looks for a pyproject.toml where it is started.
(cd "$folder" && DS_BUILD_OPS=0 "${pip[@]}" wheel --quiet --no-deps --wheel-dir "$folder" "$(grep '^deepspeed' "$list")")
bytes=$(cat "$folder"/*.whl | wc -c)
echo "wheels: $(find "$folder" -name '*.whl' | wc -l) wheels, $((bytes / 1048576)) MiB in $folder"
[ "$bytes" -lt $((64 << 20)) ] || { echo "wheels: expected less than 64 MiB" >&2; exit 1; }
