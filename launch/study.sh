#!/usr/bin/env bash
# A whole study by one command: bash launch/study.sh CORPUS [options of `ccr-dist study run`, such as --jobs 2 --only dasd,static --seeds 0]
# Prepares the data (launch/studies/CORPUS.sh: build, translate, featurise), runs configs/studies/CORPUS.yaml, and writes its report.
# Safe to interrupt and repeat: what is complete is reused, with a note.
set -euo pipefail
cd "$(dirname "$0")/.."
corpus=${1:-}
if [ -z "$corpus" ] || [ ! -f "launch/studies/$corpus.sh" ]; then
    echo "study: which corpus? There are: $(basename -s .sh launch/studies/*.sh | tr '\n' ' ')" >&2
    exit 2
fi
shift
[ $# -gt 0 ] || set -- --jobs "$(nproc)"
[ -n "${CCR_NO_SETUP:-}" ] || bash launch/setup.sh
bin=${VENV:-.venv}/bin
export HF_HUB_OFFLINE=${HF_HUB_OFFLINE:-1} TOKENIZERS_PARALLELISM=false
begun=$SECONDS

say() { printf '\n[%4d s] %s\n' $((SECONDS - begun)) "$*"; }
ccr() { "$bin/ccr-dist" "$@"; }

# need_apertium MODE PACKAGE: installs the language pair where that is possible, unless it is installed.
need_apertium() {
    local modes
    modes=$(command -v apertium >/dev/null && apertium -l || true)
    if ! grep -qw -- "$1" <<<"$modes"; then
        if command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
            say "installing $2 (apt)"
            { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq apertium "$2"; } >/dev/null
        else
            echo "study: apertium has no mode $1: sudo apt-get install apertium $2" >&2
            exit 2
        fi
    fi
}

# machine_translation DATA LANG ENGINE: training captions into LANG and back, with features of what came back; queries of val and test into English.
machine_translation() {
    ccr translate "$1/train" --engine "$3" --to "$2" --back
    ccr featurise "$1/train" --config configs/demo/english.yaml --from "caption.en.back-$2-$3" --column "feature.minilm.back-$2"
    for split in val test; do
        ccr translate "$1/$split" --engine "$3" --from "caption.$2" --to en --column "caption.en.$2-$3"
    done
}

# frozen_features DATA: of the demo's encoders: pictures, their tokens on a 3 x 3 grid, and English captions.
frozen_features() {
    ccr featurise "$1" --config configs/demo/english.yaml --from image --column feature.efficientnet-lite0 --batch 16 # fits a CPU's caches
    ccr featurise "$1" --config configs/demo/english.yaml --from image --tokens --grid 3 --column feature.efficientnet-lite0.tokens-3 --batch 16
    ccr featurise "$1/train" --config configs/demo/english.yaml --from caption.en --column feature.minilm.caption.en
}

ccr study run "configs/studies/$corpus.yaml" "$@" --dry-run >/dev/null # report mistakes before the data is made
say "data of $corpus"
. "launch/studies/$corpus.sh"
say "runs"
status=0
ccr study run "configs/studies/$corpus.yaml" "$@" || status=$?
case $status in 2 | 75) exit $status ;; esac # a mistake in what was asked, or stopped: nothing new to report
say "report"
ccr study report "configs/studies/$corpus.yaml" || { [ $status != 0 ] || status=1; }
if declare -F after_report >/dev/null; then after_report; fi
say "done"
exit $status
