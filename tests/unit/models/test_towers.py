"""The opened text towers compute what the wrapped libraries compute, and adapters get their slot after every block."""

from __future__ import annotations

import pytest
import torch

from ccr_dist.errors import ConfigError
from ccr_dist.models.backbones.build import build_backbone
from tests.nearness import apart, close
from tests.tiny import DIM, TEXTS, tiny_clip_config, tiny_dual_config

KINDS = ["clip", "custom", "siglip", "bert", "xlm-roberta", "dual"]


@pytest.fixture(scope="module", params=KINDS)
def backbone(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    config = tiny_dual_config(folder) if request.param == "dual" else tiny_clip_config(folder, text=request.param)
    return build_backbone(config)


@torch.no_grad()
def test_blocks_in_a_row_equal_the_library(backbone):
    tower = backbone.tower
    expected = backbone.encode_text(TEXTS)
    assert torch.pdist(torch.nn.functional.normalize(expected, dim=-1)).min() > 1e-3  # else agreeing would show nothing
    actual = tower.run(*tower.embed_native(TEXTS))
    assert actual.shape == (len(TEXTS), DIM) == (len(TEXTS), tower.dim)
    close(actual, expected)


@torch.no_grad()
def test_texts_too_long_for_the_context(backbone):
    tower = backbone.tower
    texts = ["lemon " * 200, "a lemon"]
    x, mask, end = tower.embed_native(texts)
    assert x.shape[1] <= tower.context_length
    close(tower.run(x, mask, end), backbone.encode_text(texts))


@torch.no_grad()
def test_a_slot_after_each_block(backbone):
    tower = backbone.tower
    x, mask, end = tower.embed_native(TEXTS)
    seen = []
    same = tower.run(x, mask, end, after=lambda layer, h: seen.append((layer, tuple(h.shape))) or h)
    assert seen == [(layer, (len(TEXTS), x.shape[1], tower.width)) for layer in range(tower.layers)]
    assert torch.equal(same, tower.run(x, mask, end))
    for layer in range(tower.layers):
        bumped = tower.run(
            x, mask, end, after=lambda at, h, layer=layer: h + torch.linspace(-1, 1, h.shape[-1]) * (at == layer)
        )
        assert apart(bumped, same)


def test_checkpointing_gives_the_same_gradients(backbone):
    tower = backbone.tower
    scale = torch.nn.Parameter(torch.ones(tower.layers))

    def gradient(checkpoint):
        scale.grad = None
        tower.run(
            *tower.embed_native(TEXTS), after=lambda layer, h: h * scale[layer], checkpoint=checkpoint
        ).square().sum().backward()
        return scale.grad.clone()

    plain = gradient(False)
    assert plain.abs().min() > 0
    close(gradient(True), plain)


@torch.no_grad()
def test_rows_do_not_leak_into_each_other_and_no_rows_are_fine(backbone):
    tower = backbone.tower
    x, mask, end = tower.embed_native(TEXTS)
    order = torch.arange(len(TEXTS)).flip(0)
    close(tower.run(x[order], mask[order], end[order]), tower.run(x, mask, end)[order])
    assert tower.run(x[:0], mask[:0], end[:0]).shape == (0, DIM)
    assert backbone.encode_text([]).shape == (0, DIM)


@torch.no_grad()
def test_padding_is_neutral_unless_the_length_is_fixed(backbone):
    tower = backbone.tower
    x, mask, end = tower.embed_native(TEXTS)
    full = tower.run(x, mask, end)
    longer = x.shape[1] + 3 <= tower.context_length
    longest = int(end.max()) + 1
    if tower.fixed_length:
        assert apart(tower.run(x[:, :-3], mask[:, :-3], end), full)
    elif longer:
        padded = torch.nn.functional.pad(x, (0, 0, 0, 3), value=7.0)
        close(tower.run(padded, torch.nn.functional.pad(mask, (0, 3)), end), full)
    else:
        close(tower.run(x[:, :longest], mask[:, :longest], end), full)


@torch.no_grad()
def test_sentence_position_and_special_vectors(backbone):
    tower = backbone.tower
    x, mask, end = tower.embed_native(TEXTS)
    h = torch.randn(len(TEXTS), x.shape[1], tower.width)
    sentence = tower.sentence(h, mask, end)
    if tower.special["end"] is not None:  # BERT-like
        assert torch.equal(sentence, h[:, 0])
        assert torch.equal(x[:, 0], tower.special["start"].expand(len(TEXTS), -1))
        assert torch.equal(x[torch.arange(len(TEXTS)), end], tower.special["end"].expand(len(TEXTS), -1))
    else:
        assert torch.equal(sentence, h[:, -1] if tower.fixed_length else h[torch.arange(len(TEXTS)), end])


def test_vocabulary_names_rows_of_the_token_table(backbone):
    tower = backbone.tower
    rows = tower.token_table()
    assert rows.shape[1] == tower.width
    assert max(tower.vocabulary().values()) < len(rows)


@torch.no_grad()
def test_autocast(backbone):
    tower = backbone.tower
    with torch.autocast("cpu", torch.bfloat16):
        half = tower.run(*tower.embed_native(TEXTS))
    cosine = torch.nn.functional.cosine_similarity(half.float(), backbone.encode_text(TEXTS))
    assert cosine.min() > 0.99


def test_an_architecture_without_slots_is_named(tmp_path):
    backbone = build_backbone(tiny_clip_config(tmp_path, text="xlm-roberta"))
    backbone.model.text.transformer.config.model_type = "electra"
    with torch.no_grad():
        assert backbone.encode_text(TEXTS).shape == (len(TEXTS), DIM)
    with pytest.raises(ConfigError, match=r"electra.*Supported are.*XLM-RoBERTa"):
        _ = backbone.tower


def test_a_pooling_without_slots_is_named(tmp_path):
    backbone = build_backbone(tiny_clip_config(tmp_path, text="custom"))
    backbone.model.text.pool_type = "none"
    with pytest.raises(ConfigError, match="pooling is 'none'"):
        _ = backbone.tower
