"""A small network from the vectors of a frozen multilingual sentence encoder to the shared space, trained on English
captions and pictures, without captions in other languages.

Two layers; any language that the encoder knows then takes the same way. Source: uCLIP (arXiv 2511.13036), which trains
such a projection contrastively between two frozen encoders. Here pictures take part, too, and so do regression to the
English features (`mse`, `cosine`) and, by `pairs: translations`, machine translations.
"""
