"""LoRA inside the frozen text tower: what it computes, how many parameters, and that the tower's own blocks stay as
they are.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from ccr_dist.errors import ConfigError
from ccr_dist.methods.lora.network import LoraBank
from ccr_dist.methods.params import count
from tests.nearness import apart, close
from tests.small import ENGLISH, LANGUAGES, SPANISH, backbone, batch, context, front_end, method, unsettle

pytestmark = pytest.mark.long

KINDS = ["clip", "custom", "siglip", "bert", "xlm-roberta", "dual"]


@pytest.fixture(scope="module", params=KINDS)
def model(request, tmp_path_factory):
    return backbone(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture
def clip(tmp_path):
    return backbone(tmp_path, "clip")


@pytest.fixture(scope="module")
def frontend(tmp_path_factory):
    return front_end(tmp_path_factory.mktemp("front"))


def merged(model: Any, bank: LoraBank, lang: str, scale: float):
    """A copy of the backbone whose text weights are W + scale B A: what LoRA must compute."""
    model = copy.deepcopy(model)
    model.__dict__.pop("tower", None)  # the cached one; the copy makes its own
    rows = {"q": 0, "k": 1, "v": 2}
    languages: Any = bank.languages
    for block, matrices in zip(model.tower.blocks, languages[f"lang-{lang}"], strict=True):
        for name, part in matrices.items():
            product = scale * part["lora_B"].weight @ part["lora_A"].weight
            if not hasattr(block, "attn"):
                layer = {
                    "q": "attention.self.query",
                    "k": "attention.self.key",
                    "v": "attention.self.value",
                    "o": "attention.output.dense",
                }
                block.get_submodule(layer[name]).weight.data += product
            elif name == "o":
                block.attn.out_proj.weight.data += product
            else:
                width = len(product)
                block.attn.in_proj_weight.data[rows[name] * width : (rows[name] + 1) * width] += product
    return model


@pytest.mark.parametrize("targets", ["qkvo", "qv"])
@torch.no_grad()
def test_it_computes_what_merged_weights_compute(model, frontend, targets):
    built = method("lora", model, frontend, rank=3, alpha=6, targets=targets)
    assert all(set(matrices) == set(targets) for matrices in built.lora.languages["lang-es"])
    tokens = built.front_end.tokenize(SPANISH)
    x = built.front_end(tokens)
    plain = model.tower.run(x, tokens.mask, tokens.end)
    close(built.encode_text(SPANISH, "es")["global"], plain)  # B starts at zero
    unsettle(built.net["adapter"])
    for lang in LANGUAGES:
        expected = merged(model, built.lora, lang, 2.0).tower.run(x, tokens.mask, tokens.end)
        close(built.encode_text(SPANISH, lang)["global"], expected)
        assert apart(expected, plain)


def test_only_the_matrices_are_parameters_and_saved(model, frontend):
    built = method("lora", model, frontend, rank=3)
    width, layers = built.tower.width, built.tower.layers
    names = {name for name, _ in built.net["adapter"].named_parameters()}
    assert names == set(built.net["adapter"].state_dict()) == {
        f"languages.lang-{lang}.{layer}.{target}.{part}.weight"
        for lang in LANGUAGES for layer in range(layers) for target in "qkvo" for part in ("lora_A", "lora_B")
    }  # fmt: skip
    assert count(built)["adapter"] == len(LANGUAGES) * layers * 4 * 2 * 3 * width
    own = {id(parameter) for parameter in model.parameters()}
    for variant, block in zip(built.lora.variants("es"), built.tower.blocks, strict=True):
        assert variant is not block
        assert {id(p) for name, p in variant.named_parameters() if "lora_" not in name} <= own
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_it_leaves_trainable_what_is_trainable(clip, frontend):
    """peft freezes the modules that it changes; their tensors are the backbone's."""
    clip.requires_grad_(True)
    method("lora", clip, frontend)
    assert all(parameter.requires_grad for parameter in clip.parameters())


def test_the_backbone_may_move_or_change_after_building(clip, frontend):
    built = method("lora", clip, frontend, rank=3)
    unsettle(built.net["adapter"])
    before = built.encode_text(SPANISH, "es")["global"]
    clip.double()
    built.net.double()
    after = built.encode_text(SPANISH, "es")["global"]
    assert after.dtype == torch.float64
    close(after.float(), before)
    with torch.no_grad():
        for block in clip.tower.blocks:
            block.attn.in_proj_weight.zero_()
    assert apart(built.encode_text(SPANISH, "es")["global"], after)


def test_dropout_in_training_only_and_never_in_the_frozen_part(clip, frontend):
    built = method("lora", clip, frontend, dropout=0.5)
    built.net.train()
    # B is zero, and nothing else drops
    assert torch.equal(*(built.encode_text(SPANISH, "es")["global"] for _ in range(2)))
    unsettle(built.net["adapter"])
    assert not torch.equal(*(built.encode_text(SPANISH, "es")["global"] for _ in range(2)))
    built.net.eval()
    assert torch.equal(*(built.encode_text(SPANISH, "es")["global"] for _ in range(2)))


def test_the_low_rank_product_learns_from_zero(clip, frontend):
    built = method("lora", clip, frontend)
    outputs = built.outputs("cla", batch())
    built.losses("cla", batch(), outputs, context())["mse"].backward()
    assert all(
        p.grad.abs().sum() > 0 for name, p in built.net.named_parameters() if "lora_B" in name and "lang-es" in name
    )
    assert torch.equal(built.encode_text(ENGLISH, "en")["global"], clip.encode_text(ENGLISH))


def test_counts_on_vit_b():
    """CLIP ViT-B's text tower: width 512, 12 layers. Rank 8 is the match of DASD's Down and Up (399,744)."""
    from open_clip.transformer import ResidualAttentionBlock

    with torch.device("meta"):

        class Tower:
            blocks = tuple(ResidualAttentionBlock(512, 8) for _ in range(12))

        for targets, a_language in (("qkvo", 393_216), ("qv", 196_608)):
            bank = LoraBank(Tower(), ("de", "fr"), rank=8, alpha=8, dropout=0.0, targets=targets, name="ViT-B")
            assert sum(parameter.numel() for parameter in bank.parameters()) == 2 * a_language


def test_another_attention_is_refused():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.attn = nn.Linear(2, 2)

    class Tower:
        blocks = (Block(),)

    with pytest.raises(ConfigError, match=r"some-model: LoRA knows.*blocks are Block\. Use method static or dasd"):
        LoraBank(Tower(), ("de",), rank=8, alpha=8, dropout=0.0, targets="qkvo", name="some-model")
