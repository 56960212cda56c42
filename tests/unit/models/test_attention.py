"""Self-attention of open_clip's blocks: the library's values and gradients, whatever is frozen, under the library's
names.
"""

from __future__ import annotations

import copy

import open_clip
import pytest
import torch
from torch import nn

from ccr_dist.models.attention import SelfAttention, use_self_attention
from tests.nearness import close
from tests.small import ENGLISH, backbone


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("causal", [True, False])
def test_one_block_by_the_library(trained, causal):
    torch.manual_seed(0)
    theirs = open_clip.transformer.ResidualAttentionBlock(24, 3).requires_grad_(trained)
    ours = copy.deepcopy(theirs)
    use_self_attention(ours)
    assert type(ours.attn) is SelfAttention and type(theirs.attn) is nn.MultiheadAttention
    mask = torch.full((5, 5), float("-inf")).triu(1) if causal else None
    inputs = [torch.randn(2, 5, 24, generator=torch.Generator().manual_seed(1)).requires_grad_() for _ in range(2)]
    outputs = [block(x, attn_mask=mask) for block, x in zip((ours, theirs), inputs, strict=True)]
    close(*outputs)
    for output in outputs:
        output.square().sum().backward()
    close(inputs[0].grad, inputs[1].grad)
    for (name, mine), (other, right) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert name == other and (mine.grad is None) == (not trained)
        if trained:
            close(mine.grad, right.grad)


def test_frozen_weights_are_multiplied_once(monkeypatch):
    """n and T of a frozen block are folded: what the library's own attention does not do."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Calls(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            names.append(str(function))
            return function(*args, **(kwargs or {}))

    block = open_clip.transformer.ResidualAttentionBlock(24, 3).requires_grad_(False)
    use_self_attention(block)
    names: list[str] = []
    with Calls():
        block(torch.randn(2, 5, 24, requires_grad=True)).sum().backward()
    assert not [name for name in names if "bmm" in name] and len([name for name in names if "addmm" in name]) == 4


@pytest.mark.parametrize("kind", ["clip", "custom"])
def test_both_sides_of_a_backbone_have_it(tmp_path, kind):
    model = backbone(tmp_path, kind)
    blocks = [block for block in model.modules() if isinstance(block, open_clip.transformer.ResidualAttentionBlock)]
    assert len(blocks) == 4 and {type(block.attn) for block in blocks} == {SelfAttention}
    plain = copy.deepcopy(model)
    for block in plain.modules():
        if isinstance(block, SelfAttention):
            block.__class__ = nn.MultiheadAttention
    assert list(plain.state_dict()) == list(model.state_dict())
    close(model.encode_text(ENGLISH), plain.encode_text(ENGLISH))
    pixels = torch.randn(3, 3, 32, 32)
    close(model.encode_image(pixels), plain.encode_image(pixels))
