"""A linear map from the vectors of a multilingual sentence encoder plus a residual that is generated for each caption.

The map is that of a `map` run (`init_from`), or begins at zero; the residual begins at zero, so that step 0 is the map.
It is U(V x * tanh(G x)): x, the encoder's vector, is also what the residual is generated from, since one vector a
caption is what feature columns hold. `generated: false` leaves tanh(G x) out: a static residual of the same shape, to
compare with. Ours, after DASD's adapters, whose cores are generated (Cai et al., AAAI 2025).
"""
