# Sourced by launch/study.sh: English captions of Flickr30K with apertium's Spanish; human Spanish and English captions of xFlickr&CO. No pictures.
# DUTCH_DESCRIPTIONS: Data of a clone of github.com/cltl/DutchDescriptions; IGLUE: datasets/xFlickrCO of one of github.com/e-bug/iglue.
# CAPTION_ROWS: of Flickr30K's 29,000 training pictures, five captions each; encoding 15,000 captions takes a core some six minutes.
need_apertium eng-spa apertium-eng-spa
ccr shards build flickr30k --out data/flickr30k-texts "folder=${DUTCH_DESCRIPTIONS:-DutchDescriptions/Data}" media=null 'only=[train]' 'languages=[en]' \
    "limit=${CAPTION_ROWS:-3000}"
ccr shards build xflickrco --out data/xflickrco "folder=${IGLUE:-iglue/datasets/xFlickrCO}"
ccr translate data/flickr30k-texts/train --engine apertium --to es
for split in val test; do
    ccr translate data/xflickrco/$split --engine apertium --from caption.es --to en --column caption.en.es-apertium
done
for texts in data/flickr30k-texts/train data/xflickrco; do
    ccr featurise $texts --config configs/studies/longcaptions/zero_shot.yaml --from caption.en
done

# Does a longer query, or one that is hard to translate, need another method?
after_report() {
    ccr study bins configs/studies/longcaptions.yaml --by words
    ccr study bins configs/studies/longcaptions.yaml --by 'chrf:caption.en.{lang}-apertium:caption.en.google-{lang}'
}
