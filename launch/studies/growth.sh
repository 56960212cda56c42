# Sourced by launch/study.sh: English captions of Flickr30K with apertium's Spanish, in four disjoint parts; human Spanish and English captions of
# xFlickr&CO. No pictures. DUTCH_DESCRIPTIONS and IGLUE: as in longcaptions.sh.
# GROWTH_PARTS: parts to make; "1 2 3" have 40,000 captions. The query encoder reads some sixty captions a second and core, in two languages:
# the last part, 105,000 captions, takes a core an hour.
need_apertium eng-spa apertium-eng-spa
folder=${DUTCH_DESCRIPTIONS:-DutchDescriptions/Data}
zero=configs/studies/longcaptions/zero_shot.yaml query=configs/studies/longcaptions/map.yaml
ccr shards build xflickrco --out data/xflickrco "folder=${IGLUE:-iglue/datasets/xFlickrCO}"
ccr featurise data/xflickrco --config $zero --from caption.en
for split in val test; do
    ccr translate data/xflickrco/$split --engine apertium --from caption.es --to en --column caption.en.es-apertium
done
mkdir -p data/growth
for part in ${GROWTH_PARTS:-1 2 3 4}; do
    # 400, 1,600, 6,000 and 21,000 pictures, spread over the list: 7,919 is prime, so every line has a place of its own
    awk -v part="$part" '{ at = NR * 7919 % 29000; own = at < 400 ? 1 : at < 2000 ? 2 : at < 8000 ? 3 : 4 } own == part' \
        "$folder/splits/train_images.txt" >"data/growth/$part.txt"
    ccr shards build flickr30k --out "data/growth/$part" "folder=$folder" media=null 'only=[train]' 'languages=[en]' \
        "splits.train.read.file=$PWD/data/growth/$part.txt"
    ccr translate "data/growth/$part/train" --engine apertium --to es
    ccr featurise "data/growth/$part/train" --config $zero --from caption.en
    for caption in en es.apertium; do
        ccr featurise "data/growth/$part/train" --config $query --encoder query --from "caption.$caption" --column "feature.e5.caption.$caption"
    done
done

after_report() { ccr study growth configs/studies/growth.yaml; }
