# Sourced by launch/study.sh: what `queries` reads, and the query encoder's features of what people wrote in eleven other languages.
. launch/studies/queries.sh
for lang in ar de fa fr id it ja ko ru tr zh; do
    ccr featurise $data/train --config configs/studies/kernel.yaml --encoder query --from "caption.$lang" --column "feature.e5.caption.$lang"
done
