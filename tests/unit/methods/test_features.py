"""Pictures of a batch through the backbone: how many at a time, and that it makes no difference."""

from __future__ import annotations

import pytest
import torch

from ccr_dist.methods.features import encode_visual, image_tokens
from tests.nearness import close
from tests.small import backbone

N = 37


@pytest.fixture(params=["dual", "clip"])
def model(request, tmp_path):
    return backbone(tmp_path, request.param)


@pytest.fixture
def sizes(model, monkeypatch):
    """Of the batches that the image encoder sees."""
    seen: list[int] = []
    for name in ("image_features", "image_tokens"):

        def spy(pixels, plain=getattr(model, name)):
            seen.append(len(pixels))
            return plain(pixels)

        monkeypatch.setattr(model, name, spy)
    return seen


def pixels() -> torch.Tensor:
    return torch.randn(N, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def unfreeze(model, part="image"):
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(model.part_of(name) == part)


@pytest.mark.parametrize("encode", [encode_visual, image_tokens])
def test_a_frozen_encoder_sees_some_pictures_at_a_time(model, sizes, encode):
    whole = model.encode_image(pixels()) if encode is encode_visual else model.image_tokens(pixels())
    assert sizes.pop() == N and not sizes
    close(encode(model, pixels()), whole)
    assert sum(sizes) == N and max(sizes) <= 16
    assert encode(model, pixels()[:0] if encode is encode_visual else pixels()[:1]).shape[1:] == whole.shape[1:]


def test_heads_are_trained_on_slices_and_the_encoder_is_not(tmp_path):
    model = backbone(tmp_path, "dual")
    model.trainable_parameters("heads")
    encode_visual(model, pixels()).square().sum().backward()
    found = [parameter.grad.clone() for parameter in model.heads.image.parameters()]
    model.zero_grad()
    model.encode_image(pixels()).square().sum().backward()
    close(found, [parameter.grad for parameter in model.heads.image.parameters()])


@pytest.mark.parametrize("encode", [encode_visual, image_tokens])
def test_a_trained_encoder_sees_all_at_once_unless_it_computes_again_or_only_measures(model, sizes, encode):
    unfreeze(model)
    encode(model, pixels())
    assert sizes == [N]
    with torch.no_grad():
        encode(model, pixels())
    assert max(sizes[1:]) <= 16
    sizes.clear()
    image_tokens(model, pixels(), recompute=True).sum().backward()
    assert max(sizes) <= 16 and sum(sizes) == 2 * N


def test_weights_in_shards_are_called_once_a_batch_on_every_rank(model, sizes):
    model.slices = False
    encode_visual(model, pixels())
    image_tokens(model, pixels())
    assert sizes == [N, N]


def test_computing_again_slice_by_slice_changes_no_gradient(model):
    unfreeze(model.double())
    found = []
    for recompute in (False, True):
        model.zero_grad()
        image_tokens(model, pixels().double(), recompute=recompute).square().sum().backward()
        found.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert found[0]
    close(found[1], found[0])
