"""LECCR: slots, compressed from a detailed description of every item, enrich its picture or video; one text encoder for
all languages.

Wang et al., "Multimodal LLM Enhanced Cross-lingual Cross-modal Retrieval", and its released code. Tokens of a picture
(CLIP's, the global one first) or frames of a video and the slots of an English description read each other
(`network.py`). One multilingual text encoder, trained with the rest, takes English and translated captions
alike, and descriptions without gradient; English queries are therefore asked of this encoder, not of the backbone's.
Seven loss terms, in `losses.py`. Every row carries its English caption and one of the target language; descriptions are read
at test time, too.

Two modes, each of whose switches can be set on its own (`caption_marks` is one, too, that no formula shows):

    switch              released                                intended
    soft_temperature    1: none, the term is all but inert      0.05, to be chosen on validation
    teacher             mixed: its slot part is transposed      aligned: texts x items, as the rest of it
    vision_axis         tokens: each feature over the tokens    features: each vector
    slot_start          zero: slots differ by dropout alone     normal: N(0, 0.02^2)
    local_labels        diagonal: captions of one item          group: right for each other, as in the global terms
                        are wrong for each other
    caption_marks       released: ,.'!?"()*#:;~-/               ascii: all punctuation of ASCII; white space of any kind
                        become spaces                           separates words

Gradients are those of the global batch for any number of processes. The released ones are those of its two: the
gathered terms (global, softened, and vision for pictures) pull at each feature with a share of 1/2, and the rest
(local, diversity, and vision for videos) is each process' own, with its 64 rows alone as negatives; what stands behind
the gathering, the temperature and the projections of the vision term for pictures, gets the whole gradient. `processes:
2` gives exactly that, on any number of processes, and stands in the published configs. `stages.*.negatives: local` is
another thing: it takes the global terms apart, too, which the release never does.

Where this differs from the released code in either mode: padded frames never count; the release takes them into the
vision term. Descriptions and captions are cut at their limits, with a count, where long ones crash the release; a
caption of nothing but marks is an empty one, where the release raises. Captions are prepared alike in training and
test, in all languages. Modules that the release holds without using them are left out (a matching head, BERT's pooler,
CLIP's text tower, second norms). Selection is on validation, as for every method; the release selects on the test set.
The dice (order, crops, dropout, starts) are other ones. Weight decay, warm-up and AdamW's epsilon are the stage's
affair: `configs/_leccr.yaml` has the released ones.

Without descriptions (the ablation) the same two towers remain: no slots and no interaction, no local, diversity or
vision term, and softened matching has the global similarities alone as its teacher (`soft: 0` turns it off). `local: 0`
likewise takes the slots out of the teacher and out of the score.
"""
