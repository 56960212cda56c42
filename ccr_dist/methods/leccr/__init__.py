"""LECCR: slots, compressed from a detailed description of every item, enrich its picture or video; one text encoder for
all languages.

Wang et al., "Multimodal LLM Enhanced Cross-lingual Cross-modal Retrieval", and its released code. Tokens of a picture
(CLIP's, the global one first) or frames of a video and the slots of an English description read each other
(`network.py`). One multilingual text encoder, trained with the rest, encodes English and translated captions, and
descriptions without gradient; English queries are therefore encoded by it, not by the backbone. Seven loss terms
(`losses.py`). Every row has its English caption and one in the target language; descriptions are read at test time,
too.

The six switches have two modes, and each can be set on its own (`caption_marks` is a switch although no formula shows
it):

    switch              released                                intended
    soft_temperature    1: none, the term has almost no effect  0.05, to be chosen on validation
    teacher             mixed: its slot part is transposed      aligned: texts x items, as the rest of it
    vision_axis         tokens: each feature over the tokens    features: each vector
    slot_start          zero: slots differ by dropout alone     normal: N(0, 0.02^2)
    local_labels        diagonal: captions of one item          group: correct for each other, as in the global terms
                        are wrong for each other
    caption_marks       released: ,.'!?"()*#:;~-/               ascii: all punctuation of ASCII; white space of any kind
                        become spaces                           separates words

Gradients are those of the global batch for any number of processes. The released code trains with two processes, and
its gradients depend on that: features that are gathered (global and softened terms, and the vision term of pictures)
receive half of their gradient. All other terms (local, diversity, and the vision term of videos) are computed in each
process separately, with its 64 rows alone as negatives; what is not gathered (the temperature, and the projections of
the vision term of pictures) receives the whole gradient. `processes: 2` reproduces exactly this on any number of
processes, and is set in the published configs. `stages.*.negatives: local` is something else: it divides the global
terms among the processes, too, which the released code never does.

Differences from the released code in either mode: padded frames never count; the released code includes them in the
vision term. Descriptions and captions are truncated at their limits, with a count; the released code fails on long
ones. A caption of punctuation alone is an empty caption; the released code raises an error. Captions are prepared in
the same way in training and test, in all languages. Modules that the released code holds without using them are left
out (a matching head, BERT's pooler, CLIP's text tower, second norms). Selection is on validation, as for every method;
the released code selects on the test set. Random draws (order, crops, dropout, starts) differ. Weight decay, warm-up
and the epsilon of AdamW belong to the stage: `configs/_leccr.yaml` has the released ones.

Without descriptions (the ablation) the same two towers remain: no slots and no interaction, no local, diversity or
vision term, and softened matching has the global similarities alone as its teacher (`soft: 0` turns it off). `local: 0`
likewise takes the slots out of the teacher and out of the score.
"""
