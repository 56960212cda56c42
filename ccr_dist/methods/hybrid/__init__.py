"""DASD's text tower with LECCR's visual side: slots of a description enrich frozen visual tokens, adapters bring
captions there. Not from a paper; the two act on different towers.

Tokens V0 of the frozen image encoder (the global one first; or frames) and slots S0 of the description, over frozen
states of the English text tower, read each other (`models/slots.py`). In the space of the backbone, with v its own
global feature of the item:

    g = v + W_g V1[0]      l_k = v + W_l S1_k      both W zero at the start, where each score is the backbone's

CLA is DASD's, and leaves the visual side alone. CMA has DASD's terms with g for the picture, and the same InfoNCE of g
with the frozen English feature ("english"), which keeps the gallery in reach of English queries, and of the best slot
with the caption ("local", cosines, for either language). What f_sr is drawn to and f_sa kept from in CMA is v, a
constant. Scores may be fused with that of the best slot, by the first of `alpha` in training and the best on validation
at test. The width of the heads is the backbone's.
"""
