"""One linear map in closed form from the vectors of a multilingual sentence encoder to the backbone's English text
features.

Ridge regression on English captions, or on their translations, too; nothing is trained by gradients, and a language
that the encoder knows needs no captions. Sources: M2M (arXiv 2601.10096), which fits such a map for a CLIP; Izenman, J.
Multivariate Analysis 5, 1975 (reduced rank).
"""
