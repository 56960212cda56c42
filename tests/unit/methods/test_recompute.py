"""Gradient checkpointing of whole backbones: which blocks are computed again, and that gradients are the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from ccr_dist.methods import recompute
from ccr_dist.methods.base import Method
from ccr_dist.models.backbones.backbone import Backbone
from ccr_dist.models.backbones.build import build_backbone
from ccr_dist.models.backbones.transformers.options import TransformersConfig
from tests import small
from tests.dual_encoders import KINDS, dual_folder
from tests.nearness import close

pytestmark = pytest.mark.long
PIXELS = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)
BACKBONES = ["clip", "custom", "bert", "dual", *(f"hf-{kind}" for kind in KINDS)]


def backbone(folder: Any, kind: str) -> Backbone:
    if kind.startswith("hf-"):
        name = kind.removeprefix("hf-")
        return build_backbone(TransformersConfig(kind="transformers", model=str(dual_folder(folder / name, name))))
    return small.backbone(folder, kind)


def gradients(method: Method) -> dict[str, torch.Tensor]:
    """Of one step."""
    torch.manual_seed(0)  # dropout of heads
    data = small.batch()
    see = method.backbone.image_transform()
    data.visual = torch.stack([see(Image.fromarray(pixels)) for pixels in PIXELS])
    outputs = method.outputs("english", data)
    losses = method.losses("english", data, outputs, small.context())
    method.backbone.zero_grad()
    losses["contrastive"].backward()
    return {name: p.grad.clone() for name, p in method.backbone.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("train", ["text", "all"])
@pytest.mark.parametrize("kind", BACKBONES)
def test_the_english_stage_computes_blocks_again(tmp_path, monkeypatch, kind, train) -> None:
    model = backbone(tmp_path, kind)
    method = small.method("english", model, languages=(), train=train)
    calls: list[Any] = []
    real = recompute.checkpoint
    monkeypatch.setattr(recompute, "checkpoint", lambda *given, **named: calls.append(given) or real(*given, **named))
    plain = gradients(method)
    assert method.recomputes and not calls
    method.gradient_checkpointing = True
    again = gradients(method)
    assert calls and plain.keys() == again.keys()
    close(again, plain)
    with torch.no_grad():
        before = len(calls)
        model.encode_text(small.ENGLISH)
    assert len(calls) == before
    # each block once, and as many as there are of what is trained
    blocks = {name: block for name, block in recompute.blocks_of(model).items() if not name.startswith("heads.")}
    sides = [
        name
        for name, block in blocks.items()
        if train == "all" or all(model.part_of(f"{name}.{key}") == "text" for key, _ in block.named_parameters())
    ]
    assert len(calls) == len(sides) >= 2


def test_the_english_stage_of_heads_has_nothing_to_compute_again(tmp_path) -> None:
    method = small.method("english", small.backbone(tmp_path, "dual"), languages=())
    assert not method.recomputes


def test_blocks_are_the_outermost_ones() -> None:
    inner = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    model = nn.ModuleDict({"a": nn.ModuleList([inner, nn.ModuleList([nn.Linear(2, 2)])]), "b": nn.ReLU()})
    # a list in a list cannot be called, but what is in it; the same module counts once
    assert list(recompute.blocks_of(model)) == ["a.0", "a.1.0"]
