"""Full fine-tuning: what is trained, that its teachers stay the untrained backbone's, and that English is forgotten."""

from __future__ import annotations

import copy

import pytest
import torch

from ccr_dist.errors import ConfigError
from ccr_dist.methods.params import count
from tests.nearness import apart, close
from tests.small import ENGLISH, SPANISH, backbone, batch, context, method

pytestmark = pytest.mark.long

KINDS = ["clip", "custom", "bert", "dual"]


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    return {kind: backbone(tmp_path_factory.mktemp(kind), kind) for kind in KINDS}


@pytest.fixture(params=KINDS)
def model(request, originals):
    """Trained in the test: a copy."""
    return copy.deepcopy(originals[request.param])


@pytest.fixture
def clip(originals):
    return copy.deepcopy(originals["clip"])


def side(model, data):
    size = 160 if model.heads is not None else 32  # timm's test model in the dual backbone takes other pictures
    return torch.nn.functional.interpolate(data.visual, size=size)


def train(built, *, steps=2):
    """A few steps of all stages, as the training loop takes them: listed parameters only, pictures of the backbone's
    size.
    """
    named = built.named_parameters()
    for parameter in named.values():
        parameter.requires_grad_(False)
    trained = {name: p for name, p in named.items() if name.startswith(tuple(built.trainable("cla")))}
    for parameter in trained.values():
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(trained.values(), lr=1e-2, weight_decay=0.1)
    for stage in built.options.training_stages():
        for _ in range(steps):
            data = batch()
            data.visual = side(built.backbone, data)
            optimizer.zero_grad()
            outputs = built.outputs(stage, data)
            torch.stack(list(built.losses(stage, data, outputs, context()).values())).sum().backward()
            optimizer.step()
    return trained


@pytest.mark.parametrize("part", ["text", "all"])
def test_what_is_listed_is_trained_and_the_teacher_stays(model, frontend, part):
    built = method("full", model, frontend, train=part, keep_english=True)
    data = batch()
    data.visual = side(model, data)
    start = {name: p.detach().clone() for name, p in built.named_parameters().items()}
    english, pictures = model.encode_text(ENGLISH).detach(), model.encode_image(data.visual).detach()
    trained = train(built)
    moved = {name for name, p in built.named_parameters().items() if not torch.equal(p, start[name])}
    assert moved <= set(trained)
    sides = {model.part_of(name.removeprefix("backbone.")) for name in moved if name.startswith("backbone.")}
    assert sides == (
        {"text"} if part == "text" else {"text", "image"} | ({"heads"} if model.heads is not None else set())
    )
    unused = (
        "logit_scale",
        "token_embedding.weight",
        "word_embeddings.weight",
        "pooler.dense.weight",
        "pooler.dense.bias",
    )
    assert all(name.endswith(unused) for name in set(trained) - moved)

    model.eval()
    assert apart(model.encode_text(ENGLISH), english), "English is forgotten"
    after = built.outputs("cma", data)
    close(after["english"], english)
    assert apart(after["visual"], pictures, least=1e-3) == (part != "text")
    assert after["visual"].requires_grad == (part == "all") and not after["english"].requires_grad
    assert apart(built.encode_visual(data.visual)["global"], pictures, least=1e-3) == (part != "text")


def test_the_teacher_takes_cached_features_and_heads_of_before(originals, frontend):
    model = copy.deepcopy(originals["dual"])
    built = method("full", model, frontend, train="all")
    cached = model.text_features(ENGLISH).detach()
    expected = model.encode_text(ENGLISH).detach()
    train(built)
    again = built.outputs("cla", batch(source_text=[], source_feature=cached))["english"]
    close(again, expected)


@torch.no_grad()
def test_pictures_go_through_the_backbone_that_strategies_wrap(clip, frontend, monkeypatch):
    built = method("full", clip, frontend)
    data = batch()
    expected = built.teacher.encode_image(data.visual)
    monkeypatch.setattr(built.teacher, "image_features", lambda pixels: pytest.fail("these modules have no hooks"))
    close(built.picture(data.visual), expected)


def test_the_target_path_is_the_front_end_and_the_backbones_own_tower(clip, frontend):
    built = method("full", clip, frontend)
    tokens = built.front_end.tokenize(SPANISH)
    expected = clip.tower.run(built.front_end(tokens), tokens.mask, tokens.end)
    assert torch.equal(built.encode_text(SPANISH, "es")["global"], expected)
    built.encode_text(SPANISH, "es")["global"].sum().backward()
    assert clip.model.transformer.resblocks[0].attn.in_proj_weight.grad.abs().sum() > 0
    assert clip.model.text_projection.grad.abs().sum() > 0 and clip.model.visual.proj.grad is None


def test_nothing_of_the_teacher_is_counted_or_saved(clip, frontend):
    before = sum(parameter.numel() for parameter in clip.parameters())
    built = method("full", clip, frontend)
    numbers = count(built)
    assert numbers["total"] == before + sum(parameter.numel() for parameter in built.net.parameters())
    assert set(built.net) == {"front_end"} and not built.aux
    text = sum(p.numel() for name, p in clip.named_parameters() if clip.part_of(name) == "text")
    assert numbers["trainable"] == numbers["table"] + numbers["front_end"] + text - clip.tower.token_table().numel()


def test_features_of_pictures_cannot_train_the_picture_side(clip, frontend):
    features = clip.image_features(batch().visual).detach()
    assert method("full", copy.deepcopy(clip), frontend).outputs("cma", batch(visual=features))["visual"].shape == (
        4,
        16,
    )
    built = method("full", clip, frontend, train="all")
    with pytest.raises(ConfigError, match="name the column of pictures"):
        built.outputs("cma", batch(visual=features))


@pytest.mark.parametrize("part", ["text", "all"])
def test_a_rank_without_rows_takes_part(model, frontend, part):
    built = method("full", model, frontend, train=part)
    data = batch(0)
    data.visual = torch.zeros(0, 3, *([160] * 2 if model.heads is not None else [32] * 2))
    outputs = built.outputs("cma", data)
    assert all(len(value) == 0 for value in outputs.values())
    sum(value.sum() for value in outputs.values()).backward()
    blocks = [p for block in model.tower.blocks for p in block.parameters()]
    assert all(p.grad is not None for p in [*blocks, *built.net.parameters()])
    if part == "all":
        assert any(p.grad is not None for name, p in model.named_parameters() if model.part_of(name) == "image")
