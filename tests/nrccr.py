"""NRCCR on the tiny models of `small.py`: its sizes, a method, and batches with back-translations."""

from __future__ import annotations

from tests.small import ENGLISH, batch, method

DIM = 10
SMALL = {"train_from": 1, "max_tokens": 20, "text_width": 8, "image_width": 12, "dim": DIM, "heads": 2}


def make(clip, encoder, **options):
    return method("nrccr", clip, encoder=encoder, **{**SMALL, **options})


def data(rows: int = 4, **changes):
    return batch(rows, **{"back_text": [f"{text} again" for text in ENGLISH[:rows]], **changes})


def dot(x, y):
    return sum(a * b for a, b in zip(x, y, strict=True))
