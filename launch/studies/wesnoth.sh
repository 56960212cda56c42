# Sourced by launch/study.sh: units of Battle for Wesnoth with descriptions of 80 words in English and 12 other languages, all by people and all in
# the test split: nothing is trained on them. Spanish is also made by machine from the English, and either Spanish is translated to English.
need_apertium eng-spa apertium-eng-spa
data=data/wesnoth
ccr shards build wesnoth --out $data shared=all split=test
ccr translate $data/test --engine apertium --to es --back
ccr translate $data/test --engine apertium --from caption.es --to en --column caption.en.es-apertium
ccr featurise $data/test --config configs/studies/wesnoth/_base.yaml --from caption.en --column feature.minilm.caption.en
ccr featurise $data/test --config configs/studies/wesnoth/_e5.yaml --from caption.en --column feature.e5.caption.en
