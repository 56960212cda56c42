"""Batches of LECCR, with descriptions; frames of several lengths; its loss and gradients."""

from __future__ import annotations

import torch

from tests.small import batch, context
from tests.tiny import TEXTS

DESCRIPTIONS = [f"{text} and {text}" for text in TEXTS[:4]]


FRAMES = 8  # width of frame features


def video(**options):
    return {"visual": "video", "frame_width": FRAMES, **options}


def data(rows=4, **changes):
    return batch(rows, **{"description": DESCRIPTIONS[:rows], **changes})


def clips(lengths=(3, 5, 1, 4)):
    mask = torch.arange(max(lengths, default=0)) < torch.tensor(lengths, dtype=torch.int64)[:, None]
    frames = torch.randn(*mask.shape, FRAMES, generator=torch.Generator().manual_seed(1)) * mask.unsqueeze(-1)
    return data(len(lengths), visual=frames, visual_mask=mask)


def total(built, given, outputs=None):
    outputs = outputs or built.outputs("train", given)
    return torch.stack(list(built.losses("train", given, outputs, context(len(given))).values())).sum()


def gradients(built):
    trained = tuple(built.trainable("train"))
    return {name: p.grad for name, p in built.named_parameters().items() if name.startswith(trained)}
