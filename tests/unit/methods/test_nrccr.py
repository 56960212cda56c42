"""NRCCR: its losses against plain loops in float64, its normalisation over the global batch, text pooling, frames, and
a whole run.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from ccr_dist.config import DataConfig
from ccr_dist.errors import ConfigError
from ccr_dist.evaluate.retrieval import PLAIN, Fusion
from ccr_dist.methods import registry
from ccr_dist.methods.nrccr.network import BatchNorm, CommonSpace, Statistics
from ccr_dist.methods.run_config import load_config
from ccr_dist.train import commands
from tests import tiny, toy
from tests.nearness import apart, close
from tests.small import ENGLISH, SPANISH, backbone, batch, context, method, unsettle

pytestmark = pytest.mark.long

N, D = 5, 10
GROUP = [7, 3, 7, 5, 3]
SMALL = {"train_from": 1, "max_tokens": 20, "text_width": 8, "image_width": 12, "dim": D, "heads": 2}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return backbone(tmp_path_factory.mktemp("clip"), "clip")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return tiny.tiny_encoder(tmp_path_factory.mktemp("encoder"))


def make(model, encoder, **options):
    return method("nrccr", model, encoder=encoder, **{**SMALL, **options})


def data(rows: int = 4, **changes):
    return batch(rows, **{"back_text": [f"{text} again" for text in ENGLISH[:rows]], **changes})


@pytest.fixture
def outputs():
    generator = torch.Generator().manual_seed(3)
    made = {
        name: torch.randn(N, D, generator=generator, dtype=torch.float64)
        for name in ("visual", "english", "target", "teacher", "back")
    }
    made = {name: F.normalize(value, dim=-1) for name, value in made.items()}
    made |= {
        name: torch.randn(N, 24, generator=generator, dtype=torch.float64) for name in ("state_english", "state_target")
    }
    return {name: value.requires_grad_() for name, value in made.items()}


def same_value_and_gradient(fast: Tensor, slow: Tensor, inputs: list[Tensor]) -> None:
    close(fast, slow)
    fast_gradients = torch.autograd.grad(fast, inputs, retain_graph=True, allow_unused=True)
    slow_gradients = torch.autograd.grad(slow, inputs, retain_graph=True, allow_unused=True)
    for a, b in zip(fast_gradients, slow_gradients, strict=True):
        close(torch.zeros(()) if a is None else a, torch.zeros(()) if b is None else b)


def dot(x, y):
    return sum(a * b for a, b in zip(x, y, strict=True))


def triplets(x, y, group, margin):
    total = 0
    for one, other in ((x, y), (y, x)):
        for i in range(len(one)):
            wrong = [dot(one[i], other[j]) for j in range(len(other)) if group[j] != group[i]]
            violation = margin + max(wrong) - dot(x[i], y[i])
            total = total + (violation if violation > 0 else 0)
    return total


def distilled(visual, target, teacher, tau):
    visual_fixed, teacher = visual.detach(), teacher.detach()
    total = 0
    for rows, columns, fixed_rows, fixed_columns in (
        (visual, target, visual_fixed, teacher),
        (target, visual, teacher, visual_fixed),
    ):
        for i in range(len(rows)):
            soft = torch.stack([dot(fixed_rows[i], fixed_columns[j]) / tau for j in range(len(columns))])
            logits = torch.stack([dot(rows[i], columns[j]) / tau for j in range(len(columns))])
            weights = torch.exp(soft) / torch.exp(soft).sum()
            total = total - sum(
                w * (z - torch.log(torch.exp(logits).sum())) for w, z in zip(weights, logits, strict=True)
            )
    return total / len(visual) / 2


@pytest.mark.parametrize("positives", ["group", "diagonal"])
def test_losses_by_their_formulas(model, encoder, outputs, positives):
    weights = {"english": 1.1, "target": 0.7, "back": 0.4, "similarity": 0.3, "feature": 0.2, "adversarial": 0.01}
    built = make(model, encoder, positives=positives, margin=0.3, temperature=0.11, beta=0.05, **weights)
    built.aux.double()
    rows = data(N, source_text=[], target_text=[], back_text=[], group=GROUP)
    losses = built.losses("train", rows, outputs, context(N))
    assert losses.keys() == weights.keys()

    group = GROUP if positives == "group" else range(N)
    visual, english, target, teacher, back = (
        outputs[name] for name in ("visual", "english", "target", "teacher", "back")
    )
    everything = list(outputs.values())
    for name, x, y in (("english", visual, english), ("target", visual, target), ("back", english, back)):
        same_value_and_gradient(losses[name], weights[name] * triplets(x, y, group, 0.3), everything)
    same_value_and_gradient(losses["similarity"], 0.3 * distilled(visual, target, teacher, 0.11), everything)

    def distance(d):
        return 0.5 * d**2 / 0.05 if d < 0.05 else d - 0.025

    apart = sum(distance(abs(target[i, j] - teacher[i, j])) for i in range(N) for j in range(D)) / (N * D)
    same_value_and_gradient(losses["feature"], 0.2 * apart, everything)

    def told(state, which):
        logits = built.aux["discriminator"](state)
        return sum(-torch.log(torch.sigmoid(v if k == which else -v)) for k, v in enumerate(logits)) / 2

    state_english, state_target = outputs["state_english"], outputs["state_target"]
    same_value_and_gradient(losses["adversarial"], 0.01 * sum(told(state, 0) for state in state_target) / N, everything)
    judge = sum(told(state_english[i].detach(), 0) + told(state_target[i].detach(), 1) for i in range(N)) / (2 * N)
    detached = {name: value.detach() for name, value in outputs.items()}
    own = built.auxiliary_losses("train", rows, detached, context(N))["discriminator"]
    same_value_and_gradient(own, judge, list(built.aux.parameters()))


def test_a_batch_without_negatives_ranks_nothing(model, encoder, outputs):
    built = make(model, encoder)
    built.aux.double()
    losses = built.losses(
        "train", data(N, source_text=[], target_text=[], back_text=[], group=[1] * N), outputs, context(N)
    )
    assert all(float(losses[name].detach()) == 0 for name in ("english", "target", "back"))
    sum(losses.values()).backward()
    assert all(value.grad.isfinite().all() for name, value in outputs.items() if name != "state_english")


def test_terms_of_weight_zero_are_gone_with_what_only_they_read(model, encoder):
    none = {"back": 0, "similarity": 0, "feature": 0, "adversarial": 0}
    built = make(model, encoder, **none)
    assert "back_text" not in built.options.training_stages()["train"].needs and not built.aux
    outputs = built.outputs("train", batch())
    assert set(outputs) == {"visual", "english", "target"}
    assert set(built.losses("train", batch(), outputs, context())) == {"english", "target"}
    assert built.auxiliary_losses("train", batch(), outputs, context()) == {}
    assert make(model, encoder).options.training_stages()["train"].needs == {
        "visual",
        "source_text",
        "target_text",
        "back_text",
    }


@pytest.mark.parametrize("pooling", ["tokens", "all"])
def test_outputs_caption_by_caption(model, encoder, pooling):
    """One caption at a time by the released formulas, in float64; `all` counts its padding, which reads all and no
    token reads.
    """
    built = make(model, encoder, norm="layer", pooling=pooling)
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


def test_packed_texts_change_nothing_and_need_no_padding(model, encoder):
    found = []
    for pad in ("longest", "packed"):
        torch.manual_seed(0)
        built = make(model, encoder, pad=pad, norm="layer", dropout=0.0, state_dropout=0.0)
        found.append(built.outputs("train", data()))
    close(found[1], found[0])
    with pytest.raises(ValueError, match="padding"):
        make(model, encoder, pad="packed", pooling="all")


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
    space = CommonSpace(6, D, "layer", 0.0)
    close(space(torch.randn(4, 6), None).norm(dim=1), torch.ones(4))


def test_running_statistics_follow_training_and_are_never_trained(model, encoder):
    built = make(model, encoder)
    prefixes = tuple(built.trainable("train"))
    still = {name for name in built.named_parameters() if name.startswith("net.") and not name.startswith(prefixes)}
    assert still == {f"net.running.{side}.{what}" for side in ("text", "visual") for what in ("mean", "variance")}
    built.outputs("train", data())
    before = {name: p.detach().clone() for name, p in built.net["running"].named_parameters()}
    assert all(p.abs().sum() > 0 for p in before.values()) and not built.net["running"]["text"].mean.requires_grad
    built.net.eval()
    built.encode_text(SPANISH, "es", ENGLISH)
    assert all(torch.equal(p, before[name]) for name, p in built.net["running"].named_parameters())
    assert "running" not in make(model, encoder, norm="layer").net


def test_rows_do_not_see_each_other_in_evaluation(model, encoder):
    for pooling in ("tokens", "all"):
        built = make(model, encoder, pooling=pooling)
        built.net.eval()
        whole = built.encode_text(SPANISH, "es", ENGLISH)
        for row in range(4):
            alone = built.encode_text(SPANISH[row : row + 1], "es", ENGLISH[row : row + 1])
            for name in ("global", "translated"):
                close(alone[name][0], whole[name][row])


@pytest.mark.parametrize("norm", ["batch", "layer"])
@pytest.mark.parametrize("visual", ["image", "frames"])
def test_a_rank_without_rows_takes_part(model, encoder, monkeypatch, visual, norm):
    """Its outputs are empty and hang on every parameter; its shares are zero. Here the other ranks' rows are made
    up.
    """

    def gathered(rows, counts=()):
        return torch.cat([rows, torch.arange(3 * rows.shape[1:].numel()).view(3, *rows.shape[1:]).to(rows.dtype)])

    monkeypatch.setattr("ccr_dist.methods.nrccr.network.gather_rows", gathered)
    ctx = context(3)
    ctx.gather = gathered
    empty = (
        {"visual": torch.zeros(0, 0, 6), "visual_mask": torch.zeros(0, 0, dtype=torch.bool)}
        if visual == "frames"
        else {}
    )
    built, rows = make(model, encoder, norm=norm, visual=visual, frame_width=6), data(0, **empty)
    outputs = built.outputs("train", rows)
    losses = built.losses("train", rows, outputs, ctx)
    torch.stack(list(losses.values())).sum().backward()
    assert all(len(value) == 0 for value in outputs.values()) and all(
        float(loss.detach()) == 0 for loss in losses.values()
    )
    assert all(p.grad is not None for name, p in built.net.named_parameters() if not name.startswith("running."))
    detached = {name: value.detach() for name, value in outputs.items()}
    built.auxiliary_losses("train", rows, detached, ctx)["discriminator"].backward()
    assert all(p.grad is not None for p in built.aux.parameters())


def test_frames_are_a_masked_mean_and_limited(model, encoder):
    built = make(model, encoder, visual="frames", frame_width=6, max_frames=5)
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


def test_frozen_picture_features_cached_or_not(model, encoder):
    built = make(model, encoder)
    built.net.eval()
    with torch.no_grad():
        cached = model.image_features(batch().visual)
    close(built.encode_visual(cached)["global"], built.encode_visual(batch().visual)["global"])
    built.net.train()
    sum(built.losses("train", data(), built.outputs("train", data()), context()).values()).backward()
    assert all(p.grad is None for p in model.parameters())


def test_steps_of_discriminator_and_encoder_leave_each_other_alone(model, encoder):
    built = make(model, encoder)
    outputs = built.outputs("train", data())
    built.auxiliary_losses("train", data(), {key: value.detach() for key, value in outputs.items()}, context())[
        "discriminator"
    ].backward()
    assert all(p.grad is None for p in built.net.parameters()) and all(
        p.grad.abs().sum() > 0 for p in built.aux.parameters()
    )
    built.aux.zero_grad()
    built.losses("train", data(), outputs, context())["adversarial"].backward()
    assert all(p.grad is None for p in built.aux.parameters())
    reached = {
        name.split(".")[0] for name, p in built.net.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0
    }
    assert reached == {"encoder"} and built.auxiliary_lr("discriminator") == 1e-3


def test_scores_are_fused_with_those_of_the_translation(model, encoder):
    built = make(model, encoder, fusion=(0.5, 0.2, 0))
    assert built.fusions() == [
        Fusion({"global": 0.5, "translated": 0.5}, minmax=True),
        Fusion({"global": 0.8, "translated": 0.2}, minmax=True),
        PLAIN,
    ]
    built.net.eval()
    text, visual = built.encode_text(SPANISH, "es", ENGLISH), built.encode_visual(batch().visual)
    parts = built.scores(text, visual)
    close(parts["global"][1, 2], dot(text["global"][1], visual["global"][2]))
    close(parts["translated"], built.encode_text(ENGLISH, "en")["global"] @ visual["global"].T)
    english = built.encode_text(ENGLISH, "en")
    assert torch.equal(english["global"], english["translated"])
    off = make(model, encoder, fusion=(0,))
    columns = DataConfig(
        train=[{"path": "t"}],
        val="v",
        queries={"en": "caption.en", "es": "caption.es"},
        translated_queries={"es": "en.mt"},
    )
    assert built.options.companions(columns) == {"es": "en.mt"} and off.options.companions(columns) == {}
    assert off.fusions() == [PLAIN] and off.text_parts == ("global",) == tuple(off.encode_text(SPANISH, "es"))


def test_languages_and_encoder_are_checked(model, encoder, tmp_path):
    for languages in ((), ("es", "en")):
        with pytest.raises(ConfigError, match=r"data\.targets: method nrccr.*translate --back"):
            method("nrccr", model, languages=languages, encoder=encoder, **SMALL)
    built = make(model, encoder)
    again = type(built)(built.options, model, built.languages, state=built.state())
    again.net.load_state_dict(built.net.state_dict())
    again.net.eval(), built.net.eval()
    close(again.encode_text(SPANISH, "es", ENGLISH), built.encode_text(SPANISH, "es", ENGLISH))
    other = tiny.tiny_encoder(tmp_path / "other", seed=5)
    changed = built.options.model_copy(update={"encoder": other})
    with pytest.raises(ConfigError, match="what is frozen of it is not what the saved weights were trained beside"):
        type(built)(changed, model, built.languages, state=built.state())


def test_long_texts_are_cut_and_counted(model, encoder):
    built = make(model, encoder)
    built.net.eval()
    built.encode_text([" ".join(["boat"] * 40)], "en")
    assert built.truncated == 1


def test_published_values_are_the_defaults():
    options = registry.options("nrccr")(name="nrccr").model_dump()
    published = {
        "margin": 0.2,
        "english": 1,
        "target": 0.6,
        "back": 0.5,
        "similarity": 0.4,
        "temperature": 0.07,
        "feature": 0.1,
        "beta": 4,
    }
    published |= {
        "adversarial": 0.001,
        "discriminator_lr": 1e-3,
        "dim": 1536,
        "image_width": 1024,
        "text_width": 768,
        "dropout": 0.2,
    }
    published |= {"encoder": "mbert", "train_from": 3, "heads": 8, "fusion": (0.5,), "norm": "batch"}
    assert {key: options[key] for key in published} == published


@pytest.mark.parametrize("what", ["bf16", "checkpointing"])
def test_autocast_and_checkpointing(model, encoder, what):
    built = make(model, encoder, dropout=0, state_dropout=0)

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


# A whole run.


def run(folder: Path, name: str, *overrides: str, test: bool = False, **sections):
    encoder = folder / "encoder"
    if not encoder.exists():
        tiny.tiny_encoder(encoder, toy.ALL_TEXTS)
    options = {
        "name": "nrccr",
        "encoder": str(encoder),
        **SMALL,
        "text_width": 24,
        "image_width": 32,
        "dim": 32,
        "dropout": 0,
    }
    stage = {"train": {"steps": 60, "batch": 10, "lr": 5e-3, "warmup": 0, "validate_every": 20}}
    sections = {"data": {"back_translations": {"es": "caption.en.toy"}}, "runtime": {"keep": 9}, **sections}
    config = load_config(toy.config(folder, options, stage, **{"name": name, **sections}), overrides)
    assert commands.train([config], test=test, world=None) in (0, 3)
    return config


def test_a_run_learns_and_says_that_its_scores_are_fused(tmp_path):
    config = run(tmp_path, "fused", test=True)
    log = [json.loads(line) for line in (config.folder / "log.jsonl").read_text().splitlines()]
    losses = [line for line in log if "loss" in line]
    assert losses[-1]["loss"] < 0.8 * losses[0]["loss"] and "aux_discriminator" in losses[0]
    result = json.loads((config.folder / "results" / "test.json").read_text())
    assert "0.5 global + 0.5 translated" in result["meta"]["score"] and "transductive" in result["meta"]["score"]
    assert result["languages"]["es"]["metrics"]["t2v_R10"] > 100 * 10 / 30


def test_a_resumed_run_has_the_running_statistics_of_an_undisturbed_one(tmp_path):
    whole = run(tmp_path, "whole", "stages.train.steps=6", "runtime.checkpoint_every=3")
    half = run(tmp_path, "halves", "stages.train.steps=6", "runtime.checkpoint_every=3")
    newest = half.folder / "checkpoints" / "step-00000006"
    for path in [*newest.iterdir(), newest]:
        path.unlink() if path.is_file() else path.rmdir()
    for name in ("model.safetensors", "best.json"):
        (half.folder / name).unlink()
    run(tmp_path, "halves", "stages.train.steps=6", "runtime.checkpoint_every=3")
    weights = [load_file(config.folder / "model.safetensors") for config in (whole, half)]
    assert any("running" in name for name in weights[0]) and weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_missing_columns_are_named_before_training(tmp_path):
    with pytest.raises(ConfigError, match=r"back_translations names no column for es.*translate --back"):
        run(tmp_path, "unbacked", data={"back_translations": {}})
    with pytest.raises(ConfigError, match=r"data\.translated_queries: no column for 'es'.*set method\.fusion to \[0\]"):
        run(tmp_path, "untranslated", data={"back_translations": {"es": "caption.en.toy"}, "translated_queries": {}})
    assert not (tmp_path / "runs" / "untranslated-s0").exists()  # refused before anything was written
