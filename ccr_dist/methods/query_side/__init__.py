"""What methods with a query side of their own have in common: the vectors of a multilingual sentence encoder, which
they map into the backbone's text space.

Any language that the encoder knows can be asked in, trained or not. English queries go through the backbone, untouched,
unless `english: query` is set.
"""
