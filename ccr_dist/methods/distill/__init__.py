"""Multilingual knowledge distillation: the query encoder itself is trained, with a linear map behind it, until a
translated caption is where the backbone's English feature of the caption is.

Trained are the whole encoder, its last blocks, or low-rank updates of its attention (peft's LoRA). A run starts from a
fitted `map` (`init_from`), whose queries it gives at step 0, or from a random map. Sources: Reimers and Gurevych, EMNLP
2020; M-CLIP, Carlsson et al., LREC 2022. A second stage draws captions towards pictures, which is not in the papers.
The encoder has no dropout in training.
"""
