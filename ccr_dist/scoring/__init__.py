"""Scores of query rows against a gallery, in blocks: the best k, ranks, and an approximate index with its recall.

Belongs here: products of NumPy rows, error bounds, what is exact and what is not. Does not belong here: models,
datasets, torch.
"""
