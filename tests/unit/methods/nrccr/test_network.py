"""What the network of NRCCR computes: text pooling, its normalisation over the global batch, frames and pictures."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ccr_dist.errors import ConfigError
from ccr_dist.methods.nrccr.network import BatchNorm, CommonSpace, Statistics
from tests import tiny
from tests.nearness import apart, close
from tests.nrccr import DIM, data, make
from tests.small import ENGLISH, SPANISH, batch, context, unsettle

pytestmark = pytest.mark.long


@pytest.mark.parametrize("pooling", ["tokens", "all"])
def test_outputs_caption_by_caption(clip, encoder, pooling):
    """One caption at a time by the released formulas, in float64; `all` counts its padding, which reads all and no
    token reads.
    """
    built = make(clip, encoder, norm="layer", pooling=pooling)
    built.net.eval().double()
    unsettle(built.net)
    found = built.outputs("train", data(visual=torch.randn(4, tiny.DIM, dtype=torch.float64)))
    text, space = built.net["text"], built.net["text_space"]

    def normed(layer, x):
        return F.layer_norm(x, x.shape[-1:], layer.weight, layer.bias)

    def embed(states):
        x = torch.relu(F.linear(normed(text.project[0], states), text.project[2].weight, text.project[2].bias))
        return normed(text.placed, x + text.positions[: len(states)])

    def attend(queries, memory, asking, there):
        """The release adds -10,000 to scores, but where query and key are there: to all of a query that is not."""
        weight, bias = text.attention.in_proj_weight, text.attention.in_proj_bias
        q, k, v = (
            F.linear(x, weight[i * 8 : i * 8 + 8], bias[i * 8 : i * 8 + 8])
            for i, x in enumerate((queries, memory, memory))
        )
        added = -10_000.0 * (1 - torch.outer(asking.double(), there.double()))
        heads = [torch.softmax(q[:, h] @ k[:, h].T / 2 + added, -1) @ v[:, h] for h in (slice(0, 4), slice(4, 8))]
        return text.attention.out_proj(torch.cat(heads, 1))

    def states_of(caption):
        """States of the real tokens; with `all`, of the padding, too, which reads the real tokens."""
        tokens = built._tokenize([caption])
        return built.encoder(tokens)[0], tokens.mask[0]

    def common(x):
        return F.normalize(normed(space.norm, space.linear(x)), dim=-1)

    for row in range(4):
        (en, en_mask), (es, es_mask) = states_of(ENGLISH[row]), states_of(SPANISH[row])
        x, y = embed(en), embed(es)
        expected = {
            "english": normed(text.attended, x + attend(x, x, en_mask, en_mask)).mean(0),
            "target": normed(text.attended, y + attend(y, y, es_mask, es_mask)).mean(0),
            "teacher": torch.cat([normed(text.attended, attend(x, y, en_mask, es_mask)), y]).mean(0),
        }
        for name, value in expected.items():
            close(found[name][row], common(value), tolerance=1e-8)  # the scores lose digits beside 10,000
        close(found["state_target"][row], es.mean(0))
    assert (len(states_of(ENGLISH[0])[0]) == 20) == (pooling == "all")


def test_packed_texts_change_nothing_and_need_no_padding(clip, encoder):
    found = []
    for pad in ("longest", "packed"):
        torch.manual_seed(0)
        built = make(clip, encoder, pad=pad, norm="layer", dropout=0.0, state_dropout=0.0)
        found.append(built.outputs("train", data()))
    close(found[1], found[0])
    with pytest.raises(ValueError, match="padding"):
        make(clip, encoder, pad="packed", pooling="all")


def test_batch_norm_is_that_of_torch_in_one_process():
    torch.manual_seed(0)
    ours, running, theirs = BatchNorm(6).double(), Statistics(6).double(), nn.BatchNorm1d(6).double()
    with torch.no_grad():
        theirs.weight.copy_(ours.weight.uniform_())
        theirs.bias.copy_(ours.bias.uniform_())
    for rows in (7, 4):
        x = torch.randn(rows, 6, dtype=torch.float64, requires_grad=True)
        a, b = ours(x, running), theirs(x)
        close(a, b)
        weight = torch.randn_like(a)
        inputs = [x, ours.weight], [x, theirs.weight]
        for one, other in zip(
            torch.autograd.grad((a * weight).sum(), inputs[0]),
            torch.autograd.grad((b * weight).sum(), inputs[1]),
            strict=True,
        ):
            close(one, other)
    close((running.mean.data, running.variance.data), (theirs.running_mean, theirs.running_var))
    x = torch.randn(3, 6, dtype=torch.float64)
    close(ours.eval()(x, running), theirs.eval()(x))
    assert ours.train()(x[:1], running).isfinite().all()  # a batch of one


def test_the_mapping_ends_at_unit_length():
    space = CommonSpace(6, DIM, "layer", 0.0)
    close(space(torch.randn(4, 6), None).norm(dim=1), torch.ones(4))


def test_running_statistics_follow_training_and_are_never_trained(clip, encoder):
    built = make(clip, encoder)
    prefixes = tuple(built.trainable("train"))
    still = {name for name in built.named_parameters() if name.startswith("net.") and not name.startswith(prefixes)}
    assert still == {f"net.running.{side}.{what}" for side in ("text", "visual") for what in ("mean", "variance")}
    built.outputs("train", data())
    before = {name: p.detach().clone() for name, p in built.net["running"].named_parameters()}
    assert all(p.abs().sum() > 0 for p in before.values()) and not built.net["running"]["text"].mean.requires_grad
    built.net.eval()
    built.encode_text(SPANISH, "es", ENGLISH)
    assert all(torch.equal(p, before[name]) for name, p in built.net["running"].named_parameters())
    assert "running" not in make(clip, encoder, norm="layer").net


def test_rows_do_not_see_each_other_in_evaluation(clip, encoder):
    for pooling in ("tokens", "all"):
        built = make(clip, encoder, pooling=pooling)
        built.net.eval()
        whole = built.encode_text(SPANISH, "es", ENGLISH)
        for row in range(4):
            alone = built.encode_text(SPANISH[row : row + 1], "es", ENGLISH[row : row + 1])
            for name in ("global", "translated"):
                close(alone[name][0], whole[name][row])


def test_frames_are_a_masked_mean_and_limited(clip, encoder):
    built = make(clip, encoder, visual="frames", frame_width=6, max_frames=5)
    assert built.options.gallery() == {"tokens"} and "tokens" in built.options.training_stages()["train"].needs
    built.net.eval()
    frames = torch.randn(2, 4, 6)
    mask = torch.tensor([[True, True, False, False], [True, True, True, True]])
    both = built.encode_visual(frames, mask)["global"]
    frames[0, 2:] = 9  # padding
    close(built.encode_visual(frames, mask)["global"], both)
    close(built.encode_visual(frames[:1, :2])["global"][0], both[0])
    assert apart(built.encode_visual(frames[1:, [1, 0, 2, 3]])["global"][0], both[1])  # positions count
    for wrong in (torch.randn(1, 6, 6), torch.randn(1, 4, 7), batch(1).visual):
        with pytest.raises(ConfigError, match=r"at most 5 frames of width 6 an item: set method\.max_frames"):
            built.encode_visual(wrong)


def test_frozen_picture_features_cached_or_not(clip, encoder):
    built = make(clip, encoder)
    built.net.eval()
    with torch.no_grad():
        cached = clip.image_features(batch().visual)
    close(built.encode_visual(cached)["global"], built.encode_visual(batch().visual)["global"])
    built.net.train()
    sum(built.losses("train", data(), built.outputs("train", data()), context()).values()).backward()
    assert all(p.grad is None for p in clip.parameters())


@pytest.mark.parametrize("what", ["bf16", "checkpointing"])
def test_autocast_and_checkpointing(clip, encoder, what):
    built = make(clip, encoder, dropout=0, state_dropout=0)

    def gradients():
        built.net.zero_grad()
        losses = built.losses("train", data(), built.outputs("train", data()), context())
        assert all(loss.dtype == torch.float32 for loss in losses.values())
        sum(losses.values()).backward()
        return {name: p.grad.clone() for name, p in built.net.named_parameters() if p.grad is not None}

    exact = gradients()
    if what == "bf16":
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert all(value.isfinite().all() for value in gradients().values())
    else:
        built.gradient_checkpointing = True
        close(gradients(), exact)
