"""What MLA, DASD and their relatives have in common: other languages enter the frozen English text tower through a
multilingual front end.

A subclass says how a caption passes through the tower (`encode_target`). It inherits the two stages, CLA (cross-lingual
alignment: text only, towards the English feature; MLA calls it NLT) and CMA (cross-modal alignment: towards the
picture; MLA: LE), and the alignment losses. Sources: Zhang et al., MLA, NeurIPS 2022; Cai et al., DASD, AAAI 2025, and
its released code.
"""
