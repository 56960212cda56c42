"""weighted, described and hybrid: their formulas and losses against plain loops in float64, and that they are DASD
where they should be.
"""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional as F

from ccr_dist.errors import ConfigError
from ccr_dist.evaluate.retrieval import PLAIN, Fusion
from ccr_dist.methods import registry
from tests.nearness import apart, close
from tests.small import (
    ENGLISH,
    SPANISH,
    batch,
    context,
    cosine,
    method,
    same_value_and_gradient,
    unsettle,
)

N, D, W, K = 4, 16, 24, 3  # rows, shared space, tower width, slots
BACK = ["a lemon on the table", "two dogs play in snow", "a small bed", "the boat in a river"]
DESCRIPTIONS = ["a lemon", "the snow and two dogs are playing in it", "a man with a beard and a red hat", "a boat"]
SLOTS = {"slots": K, "slot_blocks": 1, "heads": 2}


@pytest.fixture
def outputs():
    generator = torch.Generator().manual_seed(3)
    sizes = dict.fromkeys(("global", "english", "visual", "sr", "back", "taught", "own"), (D,))
    sizes |= {"sa": (W,), "code": (W,), "taught_code": (W,), "local": (K, D)}
    made = {name: torch.randn(N, *size, generator=generator, dtype=torch.float64) for name, size in sizes.items()}
    return {
        name: value if name in ("english", "back", "own") else value.requires_grad_() for name, value in made.items()
    }


def info_nce(scores, group, weights=(1,) * N):
    """Half the cross entropy of every row and of every column of scores[i][j]; row and column i count weights[i]
    times.
    """
    total = 0
    for of in (lambda i, j: scores[i][j], lambda i, j: scores[j][i]):
        for i in range(N):
            bottom = torch.logsumexp(torch.stack([of(i, j) for j in range(N)]), 0)
            right = [j for j in range(N) if group[j] == group[i]]
            total = total - weights[i] * sum(of(i, j) - bottom for j in right) / len(right) / N
    return total / 2


def described_batch(rows=N, **changes):
    return batch(rows, **{"description": DESCRIPTIONS[:rows], **changes})


def backward(built, stage, data, ctx):
    outputs = built.outputs(stage, data)
    losses = built.losses(stage, data, outputs, ctx)
    torch.stack(list(losses.values())).sum().backward()
    return outputs, losses


# weighted


@pytest.mark.parametrize("confidence", ["back", "agreement"])
def test_weights_follow_the_confidence_and_are_one_on_average(clip, frontend, outputs, confidence):
    built = method("weighted", clip, frontend, rank=4, confidence=confidence, temperature=0.2, floor=0.3)
    other = outputs["back" if confidence == "back" else "global"]
    certain = [float(cosine(outputs["english"][i], other[i].detach())) for i in range(N)]
    middle = sum(certain) / N
    raw = [0.3 + 0.7 / (1 + math.exp(-(c - middle) / 0.2)) for c in certain]
    weights = built.weights(outputs, context())
    close(weights, torch.tensor([N * w / sum(raw) for w in raw], dtype=torch.float64))
    assert not weights.requires_grad and max(certain) - min(certain) > 0.1
    alike = {**outputs, "back": outputs["english"], "global": outputs["english"] * 2}
    close(built.weights(alike, context()), torch.ones(N, dtype=torch.float64))


@pytest.mark.parametrize("stage", ["cla", "cma"])
def test_every_term_of_the_encoder_is_weighted(clip, frontend, outputs, stage):
    built = method("weighted", clip, frontend, rank=4, cosine=0.5, scale=20.0, consistency=0.3, adversarial=0.02)
    built.aux.double()
    group, ctx = [7, 3, 7, 5], context()
    w = built.weights(outputs, ctx)
    losses = built.losses(stage, batch(group=group), outputs, ctx)
    y, x, sr, sa = outputs["english"], outputs["global"], outputs["sr"], outputs["sa"]
    expected = {"mse": sum(w[i] * sum((x[i, j] - y[i, j]) ** 2 for j in range(D)) / D for i in range(N)) / N}
    expected["cosine"] = 0.5 * sum(w[i] * (1 - cosine(x[i], y[i])) for i in range(N)) / N
    if stage == "cma":
        y = outputs["visual"].detach()
        scores = [[20 * cosine(x[i], outputs["visual"][j]) for j in range(N)] for i in range(N)]
        expected["contrastive"] = info_nce(scores, group, w)

    def distance(d):
        return d if stage == "cla" else torch.where(d < 1, 0.5 * d**2, d - 0.5)

    expected["consistency"] = (
        0.3 * sum(w[i] * distance(abs(sr[i, j] - y[i, j])) for i in range(N) for j in range(D)) / (N * D)
    )
    logits = built.aux["discriminator"](torch.cat([sa, ctx.permute(y)], -1))
    told = -(F.logsigmoid(logits[:, 0]) + F.logsigmoid(-logits[:, 1])) / 2
    expected["adversarial"] = 0.02 * sum(w[i] * told[i] for i in range(N)) / N
    assert losses.keys() == expected.keys()
    inputs = {"consistency": [sr], "adversarial": [sa]}
    for name, value in expected.items():
        same_value_and_gradient(losses[name], value, inputs.get(name, [x]))


def test_of_equal_weights_it_is_dasd(clip, frontend):
    plain, weighted = method("dasd", clip, frontend, rank=4), method("weighted", clip, frontend, rank=4, floor=1)
    sharp = method("weighted", clip, frontend, rank=4, temperature=0.01, floor=0)
    for stage in ("cla", "cma"):
        data = batch(back_text=BACK)
        terms = [built.losses(stage, data, built.outputs(stage, data), context()) for built in (plain, weighted, sharp)]
        close(terms[1], terms[0])
        assert abs(terms[2]["mse"].item() - terms[0]["mse"].item()) > 1e-4
    own = [built.auxiliary_losses("cma", data, built.outputs("cma", data), context()) for built in (plain, sharp)]
    close(own[0], own[1])  # the judge sees all captions alike


def test_weighted_reads_what_its_confidence_needs(clip, frontend):
    kind = registry.method("weighted")
    back, agreement = (
        kind.Options(name="weighted", confidence=c, keep_english=False).training_stages() for c in ("back", "agreement")
    )
    assert back["cla"].needs == {"source_feature", "target_text", "back_feature"}
    assert back["cma"].needs == {"visual", "source_feature", "target_text", "back_feature"}
    assert agreement["cma"].needs == {"visual", "source_feature", "target_text"}
    built = method("weighted", clip, frontend, rank=4)
    texts = built.outputs("cla", batch(back_text=BACK))["back"]
    cached = built.outputs("cla", batch(back_feature=clip.text_features(BACK).detach()))["back"]
    close(texts, cached)
    close(texts, clip.encode_text(BACK).detach())
    _, losses = backward(built, "cla", batch(0, back_text=[]), context(3))
    assert all(float(loss.detach()) == 0 for loss in losses.values())


# described


def test_at_its_start_described_is_dasd(clip, frontend):
    plain, built = method("dasd", clip, frontend, rank=4), method("described", clip, frontend, rank=4, **SLOTS)
    built.net.eval()
    close(built.encode_text(SPANISH, "es"), plain.encode_text(SPANISH, "es"))
    for stage in ("cla", "cma"):
        outputs = built.outputs(stage, described_batch())
        close(outputs["taught"], outputs["global"])
        losses, theirs = built.losses(stage, described_batch(), outputs, context()), plain.outputs(stage, batch())
        expected = plain.losses(stage, batch(), theirs, context())
        close({name: losses[name] for name in expected}, expected)
        assert float(losses["teacher"].detach()) == 0 and losses["taught_mse"] == losses["mse"]


def test_taught_features_by_their_formula(clip, frontend):
    """Item by item, without padding: z* = W_z [f_sr; f_sa] + W_d mean(slots), and the tower with the cores of z*."""
    built = method("described", clip, frontend, rank=4, **SLOTS)
    built.net.eval()
    unsettle(built.net)
    found, net, tower = built.outputs("cla", described_batch()), built.net, built.tower
    for row in range(N):
        x, mask, _ = tower.embed_native([DESCRIPTIONS[row]])
        h = tower.states(x, mask)
        slots = net["slots"](F.layer_norm(h[:, : int(mask.sum())], (W,)))
        tokens = built.front_end.tokenize([SPANISH[row]])
        first, own = built.describe(tokens)
        code = net["generator"].code(torch.cat([own["sr"], own["sa"]], -1))
        taught = code + slots.mean(1) @ net["shift"].weight.T
        for name, value in (("code", code), ("taught_code", taught)):
            close(found[name][row], value[0])
        for name, value in (("global", code), ("taught", taught)):
            z = value * torch.sigmoid(1.702 * value)
            cores = [layer(z).reshape(1, 4, 4) for layer in net["generator"].cores]
            close(found[name][row], built.adapt(tokens, "es", first, cores)[0])
        close(found["global"][row], built.encode_text(SPANISH, "es")["global"][row])
    assert apart(found["taught"], found["global"])
    other = built.outputs("cla", described_batch(description=DESCRIPTIONS[::-1]))
    close(other["global"], found["global"])
    assert apart(other["taught"], found["taught"])


@pytest.mark.parametrize("stage", ["cla", "cma"])
def test_losses_of_described(clip, frontend, outputs, stage):
    built = method("described", clip, frontend, rank=4, scale=20.0, taught=0.7, teacher=0.3, **SLOTS)
    built.aux.double()
    losses = built.losses(stage, batch(), outputs, context())
    x, y, code, taught = (outputs[name] for name in ("taught", "english", "code", "taught_code"))
    mse = 0.7 * sum((x[i, j] - y[i, j]) ** 2 for i in range(N) for j in range(D)) / (N * D)
    same_value_and_gradient(losses["taught_mse"], mse, [x])
    if stage == "cma":
        scores = [[20 * cosine(x[i], outputs["visual"][j]) for j in range(N)] for i in range(N)]
        same_value_and_gradient(losses["taught_contrastive"], 0.7 * info_nce(scores, range(N)), [x])
    apart = 0.3 * sum((code[i, j] - taught[i, j].detach()) ** 2 for i in range(N) for j in range(W)) / (N * W)
    same_value_and_gradient(losses["teacher"], apart, [code])
    assert torch.autograd.grad(losses["teacher"], taught, allow_unused=True) == (None,)
    assert ("taught_contrastive" in losses) == (stage == "cma") and "taught_consistency" not in losses
    assert "teacher" not in method("described", clip, frontend, rank=4, teacher=0, **SLOTS).losses(
        "cla", described_batch(), built.outputs("cla", described_batch()), context()
    )


def test_described_learns_its_shift_and_refuses_constant_cores(clip, frontend):
    built = method("described", clip, frontend, rank=4, **SLOTS)
    assert all("description" in stage.needs for stage in built.options.training_stages().values())
    assert built.options.gallery() == {"visual"}  # queries and items need no description
    unsettle(built.net)
    backward(built, "cma", described_batch(), context())
    assert all(
        p.grad is not None and p.grad.abs().sum() > 0
        for name, p in built.net.named_parameters()
        if name.startswith(("slots", "shift"))
    )
    with pytest.raises(ValidationError, match="constant cores"):
        registry.options("described")(name="described", use="none")
    with pytest.raises(ConfigError, match=r"method\.heads: 5 heads do not divide a text tower of width 24"):
        method("described", clip, frontend, rank=4, **{**SLOTS, "heads": 5})


def test_descriptions_that_fill_the_context_are_counted(clip, frontend):
    built = method("described", clip, frontend, rank=4, **SLOTS)
    built.outputs("cla", described_batch())
    assert built.filled_contexts == 0
    captions = built.truncated
    built.outputs("cla", described_batch(description=[*DESCRIPTIONS[:3], "dog " * 40]))
    assert built.truncated == 2 * captions + 1


# hybrid


def hybrid(clip, frontend, **options):
    return method("hybrid", clip, frontend, rank=4, blocks=1, **{**SLOTS, **options})


def test_at_its_start_hybrid_scores_like_the_backbone(clip, frontend):
    built, pictures = hybrid(clip, frontend), batch().visual
    visual, own = built.encode_visual(pictures, None, DESCRIPTIONS), clip.encode_image(pictures)
    close(visual["global"], own)
    close(visual["local"], own[:, None].expand(-1, K, -1))
    text = {"global": torch.randn(3, D)}
    parts = built.scores(text, visual)
    close(parts["local"], parts["global"])
    close(parts["global"], F.normalize(text["global"], dim=-1) @ F.normalize(own, dim=-1).T)
    assert torch.equal(built.encode_text(ENGLISH, "en")["global"], clip.encode_text(ENGLISH))


def test_described_pictures_by_their_formula(clip, frontend):
    built = hybrid(clip, frontend)
    built.net.eval()
    unsettle(built.net)
    pictures, net, tower = batch().visual, built.net, built.tower
    found = built.encode_visual(pictures, None, DESCRIPTIONS)
    with torch.no_grad():
        tokens = clip.image_tokens(pictures)
    cached = built.encode_visual(tokens, torch.ones(tokens.shape[:2], dtype=torch.bool), DESCRIPTIONS)
    for row in range(N):
        x, mask, _ = tower.embed_native([DESCRIPTIONS[row]])
        h = tower.states(x, mask)
        slots = net["slots"](F.layer_norm(h[:, : int(mask.sum())], (W,)))
        enriched = net["interaction"].visual(tokens[row : row + 1], slots)[0]
        semantics = net["interaction"].slots(slots, tokens[row : row + 1])[0]
        own = clip.image_features(pictures)[row]
        expected = {"global": own + net["to_global"](enriched[0]), "local": own + net["to_local"](semantics)}
        for name, value in expected.items():
            close(found[name][row], value)
            close(cached[name][row], value)
    assert apart(found["global"], clip.encode_image(pictures))
    with pytest.raises(ConfigError, match=r"holds vectors of width 5, but tokens of .* have 16: .*--tokens"):
        built.encode_visual(torch.zeros(1, 3, 5), None, ["a"])


def test_frames_are_pooled_by_their_mask(clip, frontend):
    built = hybrid(clip, frontend, visual="video")
    built.net.eval()
    frames, mask = torch.randn(2, 3, D), torch.tensor([[True, True, False], [True, True, True]])
    close(built.encode_visual(frames, mask, DESCRIPTIONS[:2])["global"][0], frames[0, :2].mean(0))
    unsettle(built.net)
    before = built.encode_visual(frames, mask, DESCRIPTIONS[:2])
    frames[0, 2] = 7
    close(built.encode_visual(frames, mask, DESCRIPTIONS[:2]), before)


def test_losses_of_hybrid(clip, frontend, outputs):
    built = hybrid(clip, frontend, scale=20.0, english=0.6, local=0.4, consistency=0.3)
    built.aux.double()
    group = [7, 3, 7, 5]
    losses = built.losses("cma", described_batch(group=group), outputs, context())
    assert set(losses) == {"mse", "contrastive", "english", "local", "consistency", "adversarial"}
    x, y, g, local = (outputs[name] for name in ("global", "english", "visual", "local"))
    for name, weight, text in (("contrastive", 1, x), ("english", 0.6, y)):
        scores = [[20 * cosine(text[i], g[j]) for j in range(N)] for i in range(N)]
        same_value_and_gradient(
            losses[name], weight * info_nce(scores, group), [g, x] if name == "contrastive" else [g]
        )
    total = 0
    for text in (x, y):
        total = total + info_nce(
            [[20 * max(cosine(text[i], local[j, k]) for k in range(K)) for j in range(N)] for i in range(N)], group
        )
    same_value_and_gradient(losses["local"], 0.4 * total, [local, x])
    d = (outputs["sr"] - outputs["own"]).abs()
    same_value_and_gradient(
        losses["consistency"], 0.3 * torch.where(d < 1, 0.5 * d**2, d - 0.5).mean(), [outputs["sr"]]
    )
    assert torch.autograd.grad(losses["consistency"], g, allow_unused=True) == (None,)
    assert set(built.losses("cla", batch(), outputs, context())) == {"mse", "consistency", "adversarial"}
    off = hybrid(clip, frontend, english=0, local=0).losses(
        "cma", described_batch(), built.outputs("cma", described_batch()), context()
    )
    assert not {"english", "local"} & set(off)


@pytest.mark.parametrize("width", [None, 8])
def test_stages_of_hybrid_train_what_they_read(clip, frontend, width):
    built = hybrid(clip, frontend, width=width)
    assert ("narrow" in built.net) == (width is not None)
    stages = built.options.training_stages()
    assert stages["cla"].needs == {"source_feature", "target_text"}
    assert stages["cma"].needs == {"tokens", "description", "source_feature", "target_text"}
    parts = {"cla": {"front_end", "adapter", "characteristics", "generator"}, "cma": set(built.net)}
    unsettle(built.net)
    for stage, expected in parts.items():
        built.net.zero_grad()
        backward(built, stage, described_batch(lang="to"), context())
        reached = {
            name.split(".")[0]
            for name, p in built.net.named_parameters()
            if p.grad is not None and p.grad.abs().sum() > 0
        }
        assert reached == expected == {prefix.split(".")[1] for prefix in built.trainable(stage)}
    assert all(p.grad is None for p in clip.parameters())


def test_hybrid_offers_fusions_to_validation(clip, frontend):
    assert hybrid(clip, frontend, alpha=(1, 0.9)).fusions() == [PLAIN, Fusion({"global": 0.9, "local": 0.1})]
    plain = hybrid(clip, frontend, alpha=(1,))
    assert plain.visual_parts == ("global",) == tuple(plain.encode_visual(batch().visual, None, DESCRIPTIONS))
    with pytest.raises(ConfigError, match=r"method\.heads: 5 heads do not divide tokens of width 16"):
        hybrid(clip, frontend, heads=5)


# All of them.

METHODS = {
    "weighted": ("weighted", {"rank": 4}, {"back_text": BACK}),
    "agreement": ("weighted", {"rank": 4, "confidence": "agreement"}, {}),
    "described": ("described", {"rank": 4, **SLOTS}, {"description": DESCRIPTIONS}),
    "hybrid": ("hybrid", {"rank": 4, "blocks": 1, **SLOTS}, {"description": DESCRIPTIONS}),
    "hybrid, cached": (
        "hybrid",
        {"rank": 4, "blocks": 1, **SLOTS},
        {"description": DESCRIPTIONS, "visual": torch.zeros(0, 0, D)},
    ),
}


@pytest.mark.parametrize("stage", ["cla", "cma"])
@pytest.mark.parametrize("kind", METHODS)
def test_a_rank_without_rows_takes_part(clip, frontend, kind, stage):
    name, options, extra = METHODS[kind]
    built = method(name, clip, frontend, **options)
    ctx = context(3)
    ctx.gather = lambda rows: torch.cat([rows, torch.ones(3, *rows.shape[1:], dtype=rows.dtype)])
    if name == "hybrid":
        ctx.transpose = lambda scores: scores
    data = batch(0, **{key: value if key == "visual" else [] for key, value in extra.items()})
    outputs, losses = backward(built, stage, data, ctx)
    assert all(len(value) == 0 for value in outputs.values()) and all(
        float(loss.detach()) == 0 for loss in losses.values()
    )
    trained = [
        p
        for n, p in built.named_parameters().items()
        if n.startswith(tuple(built.trainable(stage))) and "lang-to" not in n
    ]
    assert all(p.grad is not None for p in trained)


@pytest.mark.parametrize("kind", ["agreement", "described", "hybrid"])
def test_checkpointing_and_autocast(clip, frontend, kind):
    name, options, extra = METHODS[kind]
    built = method(name, clip, frontend, **options, **({"slot_dropout": 0} if name != "weighted" else {}))
    unsettle(built.net)
    gradients = []
    for checkpointing in (False, True):
        built.gradient_checkpointing = checkpointing
        built.net.zero_grad()
        backward(built, "cma", batch(**extra), context())
        gradients.append({n: p.grad for n, p in built.net.named_parameters() if p.grad is not None})
    close(gradients[0], gradients[1])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = built.outputs("cma", batch(**extra))
        losses = built.losses("cma", batch(**extra), outputs, context())
        assert all(loss.dtype == torch.float32 for loss in losses.values())
        torch.stack(list(losses.values())).sum().backward()
    assert all(p.grad.isfinite().all() for p in built.net.parameters() if p.grad is not None)
