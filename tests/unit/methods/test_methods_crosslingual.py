"""The adapted text path of static and DASD, on every kind of backbone: what it computes, what it leaves alone, and for
how many rows.
"""

from __future__ import annotations

import hashlib

import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional as F

from ccr_dist.config import StageConfig
from ccr_dist.errors import ConfigError
from ccr_dist.methods import registry
from ccr_dist.methods.dasd.characteristics import TRUNK
from ccr_dist.models import token_counts
from ccr_dist.train.optimizers.optimizer import make_optimizer
from tests.nearness import apart, close
from tests.small import ENGLISH, SPANISH, backbone, batch, context, front_end, method, unsettle

pytestmark = pytest.mark.long

KINDS = ["clip", "custom", "bert", "dual"]
METHODS = {
    "bottleneck": ("static", {"hidden": 8}),
    "core": ("static", {"adapter": "core", "rank": 4}),
    "none": ("static", {"adapter": "none"}),
    "dasd": ("dasd", {"rank": 4}),
    "dasd figure": ("dasd", {"rank": 4, "characteristics": "figure", "positions": "all"}),
    "dasd without sr": ("dasd", {"rank": 4, "use": "sa"}),
    "dasd without sa": ("dasd", {"rank": 4, "use": "sr"}),
    "dasd without generator": ("dasd", {"rank": 4, "use": "none"}),
    "dasd released": (
        "dasd",
        {"rank": 4, "positions": "all", "discriminator": "released", "pairing": "reversed", "sr_start": "zeros"},
    ),
    "lora": ("lora", {"rank": 2}),
}


@pytest.fixture(scope="module", params=KINDS)
def model(request, tmp_path_factory):
    return backbone(tmp_path_factory.mktemp(request.param), request.param)


def make(kind, model, frontend, **changes):
    name, options = METHODS[kind]
    return method(name, model, frontend, **{**options, **changes})


def backward(built, stage, data, ctx):
    outputs = built.outputs(stage, data)
    losses = built.losses(stage, data, outputs, ctx)
    torch.stack(list(losses.values())).sum().backward()
    return outputs, losses


def digests(module):
    return {
        name: hashlib.sha256(t.detach().numpy().tobytes()).hexdigest()
        for name, t in [*module.named_parameters(), *module.named_buffers()]
    }


def test_dasd_by_its_formulas(clip, frontend):
    """Caption by caption through CLIP's own blocks, methods of the paper's section on dynamic adapters."""
    built = method("dasd", clip, frontend, rank=4)
    unsettle(built.net)
    text, net = clip.model, built.net
    tokens = built.front_end.tokenize(SPANISH)
    fast = built.encode_text(SPANISH, "es")
    for row in range(len(SPANISH)):
        end = int(tokens.end[row])
        h0 = (
            net["front_end"].linear(net["front_end"].table.weight[tokens.ids[row]])
            + text.positional_embedding[: tokens.ids.shape[1]]
        )

        def block(layer, h):
            return text.transformer.resblocks[layer](h[None], attn_mask=text.attn_mask[: len(h), : len(h)])[0]

        shallow = F.layer_norm(block(1, block(0, h0)), (24,))
        sr, sa = shallow[end] @ net["characteristics"].to_semantic, shallow[: end + 1].mean(0)
        z = net["generator"].code(torch.cat([sr, sa]))
        z = z * torch.sigmoid(1.702 * z)
        h = h0
        for layer in range(2):
            core = net["generator"].cores[layer](z).reshape(4, 4)
            adapter = net["adapter"].languages["lang-es"][layer]
            h = block(layer, h)
            h = h + adapter.up(torch.relu(adapter.down(h) @ core))
        expected = text.ln_final(h)[end] @ text.text_projection
        for name, value in (("global", expected), ("sr", sr), ("sa", sa)):
            close(fast[name][row], value)


@pytest.mark.parametrize("kind", METHODS)
def test_with_up_at_zero_the_tower_is_the_frozen_one(model, frontend, kind):
    built = make(kind, model, frontend)
    unsettle(built.net)
    with torch.no_grad():
        for name, parameter in built.net.named_parameters():
            if ".up." in name or "lora_B" in name:
                parameter.zero_()
        tokens = built.front_end.tokenize(SPANISH)
        plain = built.tower.run(built.front_end(tokens), tokens.mask, tokens.end)
        close(built.encode_text(SPANISH, "es")["global"], plain)
        unsettle(built.net)
        if kind != "none":
            assert apart(built.encode_text(SPANISH, "es")["global"], built.encode_text(SPANISH, "to")["global"])


@pytest.mark.parametrize("kind", ["bottleneck", "dasd", "dasd figure"])
def test_a_tower_that_attends_to_padding_is_adapted_alike(tmp_path, frontend, kind):
    """SigLIP-like: bidirectional, pooled at the last position. LoRA: test_lora.py."""
    built = make(kind, backbone(tmp_path, "siglip"), frontend)
    unsettle(built.net)
    backward(built, "cma", batch(), context())
    assert all(
        p.grad is not None and p.grad.abs().sum() > 0
        for name, p in built.net.named_parameters()
        if "lang-to" not in name
    )
    tokens = built.front_end.tokenize(SPANISH)
    plain = built.tower.run(built.front_end(tokens), tokens.mask, tokens.end)
    assert apart(built.encode_text(SPANISH, "es")["global"], plain)


def test_unit_cores_make_dasd_the_static_adapter(clip, frontend):
    dynamic, static = (
        method("dasd", clip, frontend, rank=4, start="identity"),
        method("static", clip, frontend, hidden=4),
    )
    unsettle(dynamic.net["adapter"])
    static.net["adapter"].load_state_dict(dynamic.net["adapter"].state_dict())
    static.net["front_end"].load_state_dict(dynamic.net["front_end"].state_dict())
    close(dynamic.encode_text(SPANISH, "es")["global"], static.encode_text(SPANISH, "es")["global"])


def test_every_caption_has_cores_of_its_own(clip, frontend):
    built = make("dasd", clip, frontend)
    seen = {}
    built.generator.register_forward_hook(lambda module, inputs, cores: seen.update(enumerate(cores)))
    built.encode_text([SPANISH[0], SPANISH[1], SPANISH[0]], "es")
    for core in seen.values():
        assert apart(core[0], core[1])
        close(core[0], core[2])


@pytest.mark.parametrize("kind", METHODS)
def test_rows_do_not_see_each_other(model, frontend, kind):
    built = make(kind, model, frontend)
    whole, order = built.encode_text(SPANISH, "es"), [2, 0, 3, 1]
    turned = built.encode_text([SPANISH[i] for i in order], "es")
    for name in whole:
        close(turned[name], whole[name][order])
        close(built.encode_text(SPANISH[:1], "es")[name], whole[name][:1])


@pytest.mark.parametrize("kind", ["bottleneck", "dasd"])
def test_padding_to_the_longest_gives_the_same(model, tmp_path, kind):
    padded, short = (make(kind, model, front_end(tmp_path / pad, pad=pad)) for pad in ("context", "longest"))
    short.net.load_state_dict(padded.net.state_dict())
    close(short.encode_text(SPANISH, "es"), padded.encode_text(SPANISH, "es"))


def test_a_mean_over_padding_is_one_over_the_context_whatever_else_is_in_the_batch(model, tmp_path):
    padded, short = (make("dasd released", model, front_end(tmp_path / pad, pad=pad)) for pad in ("context", "longest"))
    short.net.load_state_dict(padded.net.state_dict())
    expected = padded.encode_text(SPANISH, "es")
    close(short.encode_text(SPANISH, "es"), expected)
    alone = short.encode_text(SPANISH[:1], "es")
    close(alone["sa"], expected["sa"][:1])


@pytest.mark.parametrize("kind", ["bottleneck", "core", "dasd", "dasd without generator", "dasd released", "lora"])
@pytest.mark.parametrize("rows", [0, 1, 5])
def test_packed_texts_give_the_same_values_and_gradients(model, tmp_path, kind, rows):
    """Two texts are equally long, and all share one row, of which a part stays empty."""
    texts = [*SPANISH, "dos", "un limón " * 4][:rows]
    padded, packed = (make(kind, model, front_end(tmp_path / pad, pad=pad)) for pad in ("longest", "packed"))
    unsettle(padded.net)
    packed.net.load_state_dict(padded.net.state_dict())
    outputs, expected = packed.encode_text(texts, "es"), padded.encode_text(texts, "es")
    close(outputs, expected)
    for found in (outputs, expected):
        sum(value.square().sum() for value in found.values()).backward()
    for mine, theirs in zip(packed.net.parameters(), padded.net.parameters(), strict=True):
        assert (mine.grad is None) == (theirs.grad is None)
        if mine.grad is not None:
            close(mine.grad, theirs.grad)


def test_packed_texts_in_a_tower_without_fused_attention(tmp_path):
    model = backbone(tmp_path / "bert", "bert")
    model.model.text.transformer.config._attn_implementation = "eager"
    padded, packed = (make("dasd", model, front_end(tmp_path / pad, pad=pad)) for pad in ("longest", "packed"))
    packed.net.load_state_dict(padded.net.state_dict())
    close(packed.encode_text(SPANISH, "es"), padded.encode_text(SPANISH, "es"))


def test_packed_texts_share_rows_inside_of_blocks(clip, tmp_path):
    built = make("dasd", clip, front_end(tmp_path, pad="packed"))
    shapes = []
    hooks = [
        block.register_forward_pre_hook(lambda _, inputs: shapes.append(inputs[0].shape[:2]))
        for block in built.tower.blocks
    ]
    built.encode_text(SPANISH * 20, "es")
    for hook in hooks:
        hook.remove()
    used = 20 * int((built.front_end.tokenize(SPANISH).end + 1).sum())
    assert len(set(shapes)) == 1 and used <= shapes[0].numel() <= 1.05 * used + 64


def test_towers_that_texts_cannot_be_packed_for(clip, frontend, tmp_path):
    fixed = backbone(tmp_path, "siglip")
    with pytest.raises(ConfigError, match=r"pad: packed.*changes the result"):
        method("dasd", fixed, {**frontend, "pad": "packed"})
    blocks, usual = clip.tower.blocks, clip.tower.blocks[0].attn.__class__
    try:
        blocks[0].attn.__class__ = torch.nn.MultiheadAttention
        del clip.__dict__["tower"]
        with pytest.raises(ConfigError, match=r"pad: packed.*pad: longest"):
            method("dasd", clip, {**frontend, "pad": "packed"})
    finally:
        blocks[0].attn.__class__ = usual
        del clip.__dict__["tower"]


@pytest.mark.parametrize("kind", ["bottleneck", "dasd", "lora"])
def test_training_changes_what_is_listed_and_english_not_at_all(model, frontend, kind):
    built = make(kind, model, frontend)
    before, english = digests(model), model.encode_text(ENGLISH)
    trained = {
        name: p for name, p in built.named_parameters().items() if name.startswith(tuple(built.trainable("cla")))
    }
    optimizer = torch.optim.AdamW(trained.values(), lr=1e-2, weight_decay=0.1)
    start = {name: p.detach().clone() for name, p in trained.items()}
    for stage in built.options.training_stages():
        for lang in ("es", "to"):
            optimizer.zero_grad()
            backward(built, stage, batch(lang=lang), context())
            optimizer.step()
    assert digests(model) == before
    still = [name for name, p in trained.items() if torch.equal(p, start[name])]
    assert not still
    assert torch.equal(built.encode_text(ENGLISH, "en")["global"], english)
    assert torch.equal(english, model.encode_text(ENGLISH))
    assert apart(built.encode_text(ENGLISH, "es")["global"], english)
    assert torch.equal(built.encode_visual(batch().visual)["global"], model.encode_image(batch().visual))


@pytest.mark.parametrize("kind", METHODS)
def test_an_untrained_language_gets_no_gradient(clip, frontend, kind):
    built = make(kind, clip, frontend)
    backward(built, "cma", batch(lang="to"), context())
    grads = {name: p.grad is not None for name, p in built.net.named_parameters()}
    assert all(has != ("lang-es" in name) for name, has in grads.items())


@pytest.mark.parametrize("stage", ["cla", "cma"])
@pytest.mark.parametrize("kind", METHODS)
def test_a_rank_without_rows_takes_part(model, frontend, kind, stage):
    """Its outputs are empty and hang on every parameter; its shares are zero. Here the other ranks' rows are made
    up.
    """
    built = make(kind, model, frontend)
    ctx = context(3)
    ctx.gather = lambda rows: torch.cat([rows, torch.ones(3, *rows.shape[1:], dtype=rows.dtype)])
    data = batch(0)
    outputs, losses = backward(built, stage, data, ctx)
    assert all(len(value) == 0 for value in outputs.values())
    assert all(float(loss.detach()) == 0 for loss in losses.values())
    missing = [name for name, p in built.net.named_parameters() if p.grad is None and "lang-to" not in name]
    assert not missing
    for name, loss in built.auxiliary_losses(
        stage, data, {key: value.detach() for key, value in outputs.items()}, ctx
    ).items():
        loss.backward()
        assert float(loss.detach()) == 0 and all(p.grad is not None for p in built.aux[name].parameters())


@pytest.mark.parametrize("kind", METHODS)
def test_checkpointing_and_autocast(model, frontend, kind):
    built = make(kind, model, frontend)
    grads = []
    for checkpointing in (False, True):
        built.gradient_checkpointing = checkpointing
        built.net.zero_grad()
        backward(built, "cma", batch(), context())
        grads.append({name: p.grad for name, p in built.net.named_parameters() if p.grad is not None})
    close(grads[0], grads[1])
    exact = built.outputs("cma", batch())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = built.outputs("cma", batch())
        losses = built.losses("cma", batch(), outputs, context())
        assert all(loss.dtype == torch.float32 for loss in losses.values())
        torch.stack(list(losses.values())).sum().backward()
    assert F.cosine_similarity(outputs["global"].float(), exact["global"], dim=-1).min() > 0.98
    assert all(p.grad.isfinite().all() for p in built.net.parameters() if p.grad is not None)


@pytest.mark.parametrize("kind", ["bottleneck", "dasd", "lora"])
def test_rebuilt_from_its_state(model, tmp_path, kind):
    frontend = front_end(tmp_path, rows="used")
    built = make(kind, model, frontend)
    unsettle(built.net)
    again = type(built)(built.options, model, built.languages, state=built.state())
    again.net.load_state_dict(built.net.state_dict())
    close(again.encode_text(SPANISH, "to"), built.encode_text(SPANISH, "to"))


def test_the_trunk_costs_one_block_more(clip, frontend):
    """Its first block is the tower's own: two layers and a trunk of two make three blocks, not four or five."""
    built = make("dasd", clip, frontend)
    calls = []
    inner = built.tower.block
    built.tower.block = lambda layer, h, mask: calls.append(layer) or inner(layer, h, mask)
    try:
        built.encode_text(SPANISH, "es")
    finally:
        del built.tower.block
    assert sorted(calls) == [0, 1, 1] and TRUNK["code"] == 2


def test_the_released_start_of_the_semantic_projection(clip, frontend):
    assert method("dasd", clip, frontend, sr_start="zeros").net["characteristics"].to_semantic.abs().sum() == 0
    normal = method("dasd", clip, frontend).net["characteristics"].to_semantic
    assert normal.std().item() == pytest.approx(24**-0.5, rel=0.1)


@pytest.mark.parametrize(
    ("stages", "needs"), [(("cla",), {"cla"}), (("cma",), {"cma"}), (("cla", "cma"), {"cla", "cma"})]
)
def test_stages_can_be_left_out(stages, needs):
    for name in ("static", "dasd", "lora", "full"):
        kind = registry.method(name)
        assert set(kind.Options(name=name, stages=stages, contrastive=1).training_stages()) == needs
    assert set(registry.options("dasd")(name="dasd", stages=["cma"], cma_semantics="english").training_stages()) == {
        "cma"
    }
    # what no stage needs may be off
    assert registry.options("static")(name="static", stages=["cma"], mse=0).stages == ("cma",)
    for wrong, message in (
        ({"stages": ["cma", "cla"]}, "not .cma, cla"),
        ({"stages": []}, "stages are"),
        ({"mse": 0}, "mse and cosine are off"),
    ):
        with pytest.raises(ValidationError, match=message):
            registry.options("static")(name="static", **wrong)


@pytest.mark.parametrize("optimizer", ["adamw", "bert_adam"])
@pytest.mark.parametrize("kind", ["bottleneck", "dasd", "lora"])
def test_a_step_in_one_language_leaves_the_others_adapters_alone(clip, frontend, kind, optimizer):
    """Joint training: neither decay nor momentum of earlier steps moves them, and the shared parts learn from every
    language.
    """
    built = make(kind, clip, frontend)
    trained = {
        name: p for name, p in built.named_parameters().items() if name.startswith(tuple(built.trainable("cla")))
    }
    made = make_optimizer(
        StageConfig(steps=9, batch=4, lr=1e-2, weight_decay=0.1, optimizer=optimizer), trained, torch.device("cpu")
    )
    moved = {}
    for lang in ("es", "to"):
        before = {name: p.detach().clone() for name, p in trained.items()}
        made.zero_grad()
        backward(built, "cla", batch(lang=lang), context())
        made.step()
        moved[lang] = {name for name, p in trained.items() if not torch.equal(p, before[name])}
    for lang, other in (("es", "to"), ("to", "es")):
        assert not any(f"lang-{other}" in name for name in moved[lang])
        own = {name for name in trained if f"lang-{lang}" in name and (kind != "lora" or "lora_B" in name)}
        assert own <= moved[lang]  # of LoRA, A has no gradient in the first step
        assert {"net.front_end.linear.weight", "net.front_end.table.weight"} <= moved[lang]
        assert kind != "dasd" or {"net.generator.code.weight", "net.characteristics.to_semantic"} <= moved[lang]


def test_video_by_pooled_features(clip, frontend):
    """A video is one vector, the mean of its frames' features, in the place of a picture's: training and gallery."""
    built = make("dasd", clip, frontend)
    frames = [clip.image_features(torch.randn(count, 3, 32, 32)) for count in (3, 5, 1, 2)]
    pooled = torch.stack([rows.mean(0) for rows in frames]).detach()
    outputs, losses = backward(built, "cma", batch(visual=pooled), context())
    assert torch.equal(outputs["visual"], pooled) and torch.equal(built.encode_visual(pooled)["global"], pooled)
    logits = 100 * F.normalize(outputs["global"], dim=-1) @ F.normalize(pooled, dim=-1).T
    expected = (F.cross_entropy(logits, torch.arange(4)) + F.cross_entropy(logits.T, torch.arange(4))) / 2
    close(losses["contrastive"], expected)


def test_texts_that_are_cut_are_counted(clip, frontend):
    built = make("bottleneck", clip, frontend)
    limit = clip.tower.context_length
    clip.truncated = 0
    built.encode_text(["un " * (limit - 2), "un " * (limit - 1), *SPANISH[:3]], "es")
    assert built.truncated == 1
    built.outputs("cla", batch(target_text=["perro " * 99] * 4))
    assert built.truncated == 5
    with token_counts.again():
        built.outputs("cla", batch(target_text=["perro " * 99] * 4))
        built.encode_text(["perro " * 99], "es")
    assert built.truncated == 5, "they were counted before"


def test_english_texts_that_are_cut_are_counted(tmp_path):
    for kind in ("clip", "siglip", "bert", "xlm-roberta", "dual"):
        model = backbone(tmp_path / kind, kind)
        long, built = model.tower.context_length - 2, method("clip", model, languages=())  # without start and end
        found = []
        for words in (long - 1, long, long + 1, 3 * long):
            before = built.truncated
            built.encode_text(["lemon " * words, "a lemon"], "en")
            found.append(built.truncated - before)
        assert found == [0, 0, 1, 1], kind
