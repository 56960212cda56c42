"""DASD with noise-aware weights: a caption whose machine translation is doubtful counts less in every loss. Not from a
paper.

Machine translations contain errors that the alignment terms would otherwise teach. The confidence c_i of row i is a
cosine of English features, without gradient, and the weight follows it:

    w_i = floor + (1 - floor) sigmoid((c_i - mean c) / temperature), divided by its mean over the global batch

`confidence: back` compares the frozen features of the source caption and of its back-translation: the noise of two
translations, known before training. `agreement` compares the target caption's own feature, as it is at this step, with
the English one (self-paced: what the model cannot yet explain is put off; the floor keeps it from being given up).
Weights are 1 on average, so the rate of learning does not change, and a batch of equal confidences is DASD's. All terms
of the encoder are weighted, the contrastive one by its rows on either side; the discriminator's own loss is not. `use:
none` makes it the static core's (`dasd/`).
"""
