"""What methods with a query side of their own have in common: a multilingual sentence encoder, and a linear map from
its vectors into the backbone's text space.

Any language that the encoder knows can be asked in, trained or not. English queries go through the backbone, untouched.
"""
