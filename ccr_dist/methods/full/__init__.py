"""Full fine-tuning: nothing is adapted, the text tower itself learns the other languages.

Target captions go through the front end into the backbone's own text tower, and blocks, positions, final norm and
projection are trained with the front end (`train: text`), or the whole backbone, picture side and heads included
(`train: all`). Stages and losses are those of MLA and DASD (`crosslingual/`). The teachers stay what they were before
training: English features, and pictures under `train: text`, come from a frozen copy. English queries are asked of the
trained tower, so results in English show what was forgotten.

Not trained is what captions of other languages never pass: the tower's own token embedding.
"""
