"""The English stage: contrastive fine-tuning of the backbone itself on English pairs, before any other language is
looked at.

For a dual encoder it trains the projection heads that make a retriever of two unimodal models; for a CLIP it is DASD's
and MLA's "EN finetune": `train: all`, `scale: 100`, `positives: diagonal`, 5 epochs of batches of 128 at a rate of
3e-6. `train: text` locks the picture side (LiT, Zhai et al., CVPR 2022), whose features may then be cached. Other runs
stand on the result by `backbone.weights`.
"""
