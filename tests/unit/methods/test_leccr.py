"""LECCR as a whole: sizes and shapes as published, what its parts do and do not depend on, and a run through training
and evaluation.
"""

from __future__ import annotations

import json

import pytest
import torch
from torch.nn import functional as F

from ccr_dist.config import load_config
from ccr_dist.errors import ConfigError
from ccr_dist.evaluate.retrieval import Fusion, ranks
from ccr_dist.methods import base
from ccr_dist.methods.params import count
from ccr_dist.models.enriched import EnrichedVisual
from tests import toy
from tests.nearness import apart, close
from tests.small import backbone, batch, context, method, unsettle
from tests.tiny import TEXTS, tiny_encoder

DESCRIPTIONS = [f"{text} and {text}" for text in TEXTS[:4]]
FRAMES = 8  # width of frame features


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return backbone(tmp_path_factory.mktemp("clip"), "clip")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return tiny_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture
def make(clip, encoder):
    yield lambda **options: method("leccr", clip, **{"text_encoder": encoder, "dim": 12, "heads": 2, **options})
    clip.trainable_parameters("none")
    clip.zero_grad()


def video(**options):
    return {"visual": "video", "frame_width": FRAMES, **options}


def data(rows=4, **changes):
    return batch(rows, **{"description": DESCRIPTIONS[:rows], **changes})


def clips(lengths=(3, 5, 1, 4)):
    mask = torch.arange(max(lengths, default=0)) < torch.tensor(lengths, dtype=torch.int64)[:, None]
    frames = torch.randn(*mask.shape, FRAMES, generator=torch.Generator().manual_seed(1)) * mask.unsqueeze(-1)
    return data(len(lengths), visual=frames, visual_mask=mask)


def total(built, given, outputs=None):
    outputs = outputs or built.outputs("train", given)
    return torch.stack(list(built.losses("train", given, outputs, context(len(given))).values())).sum()


def gradients(built):
    trained = tuple(built.trainable("train"))
    return {name: p.grad for name, p in built.named_parameters().items() if name.startswith(trained)}


# Sizes.


def active(built):
    trained = tuple(built.trainable("train"))
    return sum(p.numel() for name, p in built.named_parameters().items() if name.startswith(trained))


@pytest.fixture
def published(monkeypatch):
    """A method with the published sizes, on the meta device: nothing is allocated but shapes."""
    from transformers import BertConfig, BertModel

    from ccr_dist.models import text_encoder
    from ccr_dist.models.text_encoder import TextEncoder

    def mbert(source, **options):
        assert source == "mbert"
        return TextEncoder(None, BertModel(BertConfig(vocab_size=119_547)), **options)

    monkeypatch.setattr(text_encoder, "build_text_encoder", mbert)

    def build(clip, **options):
        with torch.device("meta"):
            kind = base.get("leccr")
            return kind(kind.Options(name="leccr", **options), clip, ("fr",))

    return build


def test_image_model_has_the_published_number_of_parameters(published):
    """277,604,353 receive gradients. The release holds 342,817,540, of which never any get some: CLIP's text tower and
    temperature (63,428,097), a matching head 768-1536-2 with its norm (1,187,330), BERT's pooler (590,592) and a second
    norm in 7 blocks (7,168).
    """
    import open_clip

    from ccr_dist.models.backbones import Backbone

    class Clip(Backbone):
        token_width, name = 512, "ViT-B-32"

        def __init__(self):
            super().__init__()
            self.model = open_clip.create_model(
                "ViT-B-32", device="meta", force_image_size=384, nonscalar_logit_scale=True
            )

        def part_of(self, tensor):
            return "image" if tensor.startswith("model.visual.") else "text"

    with torch.device("meta"):
        clip = Clip()
    built = published(clip)
    assert active(built) == 277_604_353
    assert sum(p.numel() for name, p in clip.named_parameters() if clip.part_of(name) == "image") == 87_922_176
    sizes = count(built)
    assert sizes["text"] == 177_262_848 and sizes["visual"] + sizes["text_head"] + sizes["temperature"] == 12_419_329
    text_tower = sum(p.numel() for name, p in clip.named_parameters() if clip.part_of(name) == "text")
    assert active(built) + text_tower + 1_187_330 + 590_592 + 7 * 2 * 512 == 342_817_540
    assert active(published(clip, train_image=False)) == 277_604_353 - 87_922_176


def test_video_model_has_the_published_number_of_parameters(published, clip):
    """922,985,731 with a matching head, BERT's pooler and a second norm in each of 7 blocks, which nothing uses."""
    built = published(clip, visual="video", frame_width=4096, slots=2, slot_blocks=2)
    assert active(built) == 922_985_731 - 1_187_330 - 590_592 - 7 * 2 * 4096
    blocks = [part for name, part in built.visual.named_modules() if type(part).__name__ == "CrossBlock"]
    assert len(blocks) == 7 and sum(p.numel() for p in blocks[0].parameters()) == 100_704_256 - 2 * 4096
    narrow = published(clip, visual="video", frame_width=4096, slots=2, slot_blocks=2, width=1024)
    assert (
        sum(p.numel() for name, p in narrow.visual.named_parameters() if ".attention." in name or "block" in name)
        < 45_000_000
    )


# Shapes and dependence.


def test_shapes(make):
    built = make()
    outputs = built.outputs("train", data())
    assert {name: tuple(value.shape) for name, value in outputs.items()} == {
        "english": (4, 12),
        "target": (4, 12),
        "visual": (4, 12),
        "scale": (1,),
        "slots": (4, 4, 16),
        "local": (4, 4, 12),
        "slot_mean": (4, 16),
        "token_mean": (4, 16),
    }
    for name in ("english", "target", "visual"):
        close(outputs[name].norm(dim=1), torch.ones(4))
    assert (outputs["local"].norm(dim=-1) - 1).abs().max() > 0.01
    close(outputs["scale"], torch.tensor([1 / 0.07]))


def test_visual_side_by_its_formulas():
    """A picture and a video, each read through the same blocks by hand."""
    torch.manual_seed(0)
    for blocks_in_time in (0, 1):
        visual = EnrichedVisual(8, 6, 5, temporal_blocks=blocks_in_time, slots=3, slot_blocks=2, heads=2).eval()
        unsettle(visual)
        tokens, states = torch.randn(2, 4, 8), torch.randn(2, 7, 6)
        mask, states_mask = (
            torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]).bool(),
            torch.arange(7) < torch.tensor([[7], [3]]),
        )
        found = visual(tokens, mask, states, states_mask)
        for i in range(2):
            v0 = tokens[i : i + 1, : int(mask[i].sum())]
            for block in visual.temporal:
                v0 = block(v0)
            s0 = visual.slots.queries[None]
            memory = visual.slots.linear(states[i : i + 1, : int(states_mask[i].sum())])
            for block in visual.slots.stack.blocks:
                s0 = block(s0, memory)
            v1, s1 = v0, s0
            for block in visual.interaction.visual.blocks:
                v1 = block(v1, s0)
            for block in visual.interaction.slots.blocks:
                s1 = block(s1, v0)
            pooled = v1.mean(1) if blocks_in_time else v1[:, 0]
            close(found["global"][i], F.normalize(visual.to_global(pooled), dim=-1)[0])
            close(found["local"][i], visual.to_local(s1)[0])
            close(found["slots"][i], s0[0])


@pytest.mark.parametrize("mode", ["released", "intended"])
def test_padding_changes_nothing(make, mode):
    built = make(mode=mode, **video())
    unsettle(built.net)
    built.net.eval()
    given = clips()
    whole, outputs = (
        built.encode_visual(given.visual, given.visual_mask, given.description),
        built.outputs("train", given),
    )
    longer = F.pad(given.visual, (0, 0, 0, 2), value=7.0)
    padded = data(visual=longer, visual_mask=F.pad(given.visual_mask, (0, 2)))
    for name, value in built.outputs("train", padded).items():
        close(value, outputs[name], msg=name)
    for i in range(4):  # an item alone: neither its frames nor its description are padded
        n = int(given.visual_mask[i].sum())
        alone = built.encode_visual(
            given.visual[i : i + 1, :n], given.visual_mask[i : i + 1, :n], given.description[i : i + 1]
        )
        for name, value in alone.items():
            close(value[0], whole[name][i], msg=name)
        means = built.outputs(
            "train", data(1, visual=given.visual[i : i + 1, :n], visual_mask=None, description=[DESCRIPTIONS[i]])
        )
        close(means["token_mean"][0], outputs["token_mean"][i])


def test_what_a_description_reaches(make):
    built = make()
    built.net.eval()
    given = data()
    whole = built.encode_visual(given.visual, None, given.description)
    other = built.encode_visual(given.visual, None, [*given.description[:3], "dos perros"])
    for name in ("global", "local"):
        close(other[name][:3], whole[name][:3])
        assert apart(other[name][3], whole[name][3], least=1e-3), name
    separate = make(interaction=False)
    separate.net.eval()
    pictures = [
        separate.encode_visual(given.visual, None, words) for words in (given.description, given.description[::-1])
    ]
    assert torch.equal(pictures[0]["global"], pictures[1]["global"]) and apart(
        pictures[0]["local"], pictures[1]["local"]
    )


@pytest.mark.parametrize("which", ["shared", "frozen", "clip"])
def test_no_gradient_flows_from_descriptions_into_the_text_encoder(make, clip, which):
    built = make(description_encoder=which)
    built.encode_visual(data().visual, None, DESCRIPTIONS)["local"].sum().backward()
    assert all(p.grad is None for p in built.text.parameters())
    assert all(p.grad is None for name, p in clip.named_parameters() if "visual" not in name)
    assert all(p.grad is not None for p in built.visual.slots.parameters())


def test_description_encoders(make, clip):
    shared, frozen, other = (make(description_encoder=which) for which in ("shared", "frozen", "clip"))
    for built in (shared, frozen, other):
        built.net.eval()
    x, mask = shared._states(DESCRIPTIONS)
    close(frozen._states(DESCRIPTIONS)[0], x)
    for built in (shared, frozen):
        unsettle(built.text)
    assert apart(shared._states(DESCRIPTIONS)[0], x)
    close(frozen._states(DESCRIPTIONS)[0], x)
    assert not any("describer" in name for name in frozen.named_parameters())
    states, mask = other._states(DESCRIPTIONS)
    ends = mask.sum(1) - 1
    close(states[torch.arange(4), ends], clip.encode_text(DESCRIPTIONS))  # the projected state of the end token
    assert states.shape[-1] == clip.dim and other.visual.slots.linear.in_features == clip.dim


def test_slots_that_begin_at_zero_coincide_and_others_do_not(make):
    for start, alike in (("zero", True), ("normal", False)):
        built = make(slot_start=start)
        built.net.eval()
        slots = built.outputs("train", data())["slots"]
        assert apart(slots[:, 0], slots[:, 1], least=1e-3) is not alike
        built.net.train()
        slots = built.outputs("train", data())["slots"]
        assert apart(slots[:, 0], slots[:, 1])


def test_modes_set_switches_and_each_can_be_set_by_itself():
    options = base.get("leccr").Options
    released, intended = options(name="leccr"), options(name="leccr", mode="intended")
    switches = ("soft_temperature", "teacher", "vision_axis", "slot_start", "local_labels")
    assert [getattr(released, key) for key in switches] == [1.0, "mixed", "tokens", "zero", "diagonal"]
    assert [getattr(intended, key) for key in switches] == [0.05, "aligned", "features", "normal", "group"]
    assert options(name="leccr", mode="intended", teacher="mixed").teacher == "mixed"
    assert options(**intended.model_dump()) == intended
    assert (released.alpha, released.minmax) == (1.0, False)
    moving = options(name="leccr", **video())
    assert (moving.alpha, moving.minmax) == (0.9, True)
    assert (
        options(name="leccr", **video(local=0)).alpha == options(name="leccr", **video(descriptions=False)).alpha == 1
    )
    for wrong in (
        {"mode": "paper"},
        {"alpha": 0.9, "local": 0},
        {"alpha": 1.5},
        {"visual": "video"},
        {"frame_width": 3},
    ):
        with pytest.raises(ValueError, match=r"mode|alpha|frame_width"):
            options(name="leccr", **wrong)


# Captions.


def test_captions_are_prepared_alike_and_cut_with_a_count(make):
    built = make(caption_words=4)
    built.net.eval()
    texts = ["A yellow/Lemon, on-a table!", "two dogs"]
    assert built._prepared(texts) == ["a yellow lemon on", "two dogs"] and built.truncated == 1
    plain = built.encode_text(["a yellow lemon on"], "en")["global"]
    close(built.encode_text(texts, "es")["global"][:1], plain)  # the language makes no difference
    assert make(caption_clean=False, caption_words=None)._prepared(texts)[0] == "A yellow/Lemon, on-a table!"


def test_long_descriptions_are_cut_with_a_count(make):
    long = ["lemon " * 300] * 4
    for which, cut in (("shared", 4), ("frozen", 4), ("clip", 4)):
        built = make(description_encoder=which, description_tokens=20)
        built.net.eval()
        first = built.encode_visual(data().visual, None, long)
        assert built.truncated == cut, which
        close(first, built.encode_visual(data().visual, None, [text[:1500] for text in long]))
    assert not make().encode_text(["lemon"], "en")["global"].isnan().any()


# Training.


@pytest.mark.parametrize(
    "options",
    [{}, {"mode": "intended"}, {"descriptions": False}, {"interaction": False}, {"local": 0}, {"vision": 0},
    {"train_image": False},
     {"description_encoder": "clip"}, {"width": 8}, video(), video(descriptions=False), video(width=6,
     temporal_blocks=2)],
    ids=str,
)  # fmt: skip
def test_what_is_trained_gets_gradients_on_any_rank(make, clip, options):
    """Everything that is trained, and nothing else; on a rank without rows, too."""
    built = make(**options)
    moving = options.get("visual") == "video"
    nothing = data(0, visual=torch.zeros(0, 0, FRAMES), visual_mask=torch.zeros(0, 0).bool())
    for given in (clips(), nothing) if moving else (data(), data(0)):
        built.net.zero_grad()
        clip.zero_grad()
        outputs = built.outputs("train", given)
        (total(built, given, outputs) if len(given) else sum(value.sum() for value in outputs.values())).backward()
        missing = [name for name, grad in gradients(built).items() if grad is None]
        assert not missing, (len(given), missing)
        frozen = set(built.named_parameters()) - set(gradients(built))
        assert all(built.named_parameters()[name].grad is None for name in frozen)
        if not len(given):
            assert all(len(value) == 0 for name, value in outputs.items() if name != "scale")
    image = {name for name in gradients(built) if name.startswith("backbone.")}
    expected = (
        set()
        if moving or options.get("train_image") is False
        else {n for n, _ in clip.named_parameters() if "visual" in n}
    )
    assert image == {f"backbone.{name}" for name in expected}


def test_the_temperature_is_learnt(make):
    built = make()
    built.net.eval()
    double = {name: value.detach().double() for name, value in built.outputs("train", data()).items()}

    def loss(tau):
        return total(built, data(), {**double, "scale": 1 / tau})

    tau = torch.tensor([0.07], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(loss(tau), tau)
    up, down = (loss(torch.tensor([0.07 + d], dtype=torch.float64)) for d in (1e-6, -1e-6))
    assert abs(float(slope)) > 0.1 and float(slope) == pytest.approx(float((up - down) / 2e-6), rel=1e-4)
    total(built, data()).backward()
    assert float(built.temperature["tau"].grad) == pytest.approx(float(slope), rel=1e-3)


@pytest.mark.parametrize("options", [{"mode": "intended"}, video()], ids=["image", "video"])
def test_recomputing_activations_changes_nothing(make, options):
    built = make(dropout=0.0, **options)
    unsettle(built.net)
    given = clips() if options.get("visual") else data()
    found = []
    for again in (False, True):
        built.net.zero_grad()
        built.backbone.zero_grad()
        built.gradient_checkpointing = again
        loss = total(built, given)
        loss.backward()
        found.append((loss.detach(), {name: grad.clone() for name, grad in gradients(built).items()}))
    close(found[0], found[1])


def test_packed_texts_change_nothing(make):
    found = []
    for pad in ("longest", "packed"):
        torch.manual_seed(0)
        built = make(dropout=0.0, mode="intended", train_image=False, text_pad=pad)
        loss = total(built, data())
        loss.backward()
        found.append((loss.detach(), {name: grad for name, grad in gradients(built).items() if grad is not None}))
    close(found[1], found[0])


def test_bf16_is_close_to_float32(make):
    built = make(dropout=0.0, mode="intended")
    expected = float(total(built, data()).detach())
    with torch.autocast("cpu", torch.bfloat16):
        outputs = built.outputs("train", data())
        loss = total(built, data(), outputs)
        assert all(value.dtype == torch.float32 for value in outputs.values()) and loss.dtype == torch.float32
    assert float(loss.detach()) == pytest.approx(expected, rel=0.05)
    loss.backward()
    assert all(grad.isfinite().all() for grad in gradients(built).values())


def test_cached_tokens_are_the_computed_ones(make, clip):
    built = make(train_image=False)
    built.net.eval()
    pictures = built.outputs("train", data())
    with torch.no_grad():
        tokens = clip.image_tokens(data().visual)
    cached = built.outputs("train", data(visual=tokens, visual_mask=torch.ones(tokens.shape[:2], dtype=torch.bool)))
    for name, value in pictures.items():
        close(cached[name], value, msg=name)
    with pytest.raises(ConfigError, match="width 3; this model was made for 16"):
        built.encode_visual(torch.zeros(2, 4, 3), None, ["", ""])
    with pytest.raises(ConfigError, match="name the column of pictures"):
        make().encode_visual(tokens, None, DESCRIPTIONS)
    with pytest.raises(ConfigError, match="column of pictures, but `visual: video`"):
        make(**video()).encode_visual(data().visual, None, DESCRIPTIONS)
    with pytest.raises(ConfigError, match=r"3 heads do not divide tokens of width 16.*method\.width"):
        make(heads=3)


def test_another_frozen_part_is_refused(make, encoder, tmp_path, clip):
    state = make(text_train_from=1).state()
    kind = base.get("leccr")
    options = {"name": "leccr", "dim": 12, "heads": 2, "text_train_from": 1}
    kind(kind.Options(text_encoder=encoder, **options), clip, ("es",), state=json.loads(json.dumps(state)))
    with pytest.raises(ConfigError, match="text encoder"):
        kind(kind.Options(text_encoder=tiny_encoder(tmp_path, seed=5), **options), clip, ("es",), state=state)


# Scores.


def test_fused_scores_for_any_number_of_captions(make):
    built = make(alpha=0.8)
    unsettle(built.net)
    built.net.eval()
    given = data()
    with torch.no_grad():
        text, visual = built.encode_text(TEXTS, "es"), built.encode_visual(given.visual, None, given.description)
        parts = built.scores(text, visual)
    assert built.visual_parts == ("global", "local") and built.text_parts == ("global",)
    assert {name: tuple(part.shape) for name, part in parts.items()} == {"global": (7, 4), "local": (7, 4)}
    for j in range(7):
        for i in range(4):
            x, g, local = text["global"][j], visual["global"][i], visual["local"][i]
            close(parts["global"][j, i], x @ g)
            close(parts["local"][j, i], max(x @ slot for slot in local))
    (fusion,) = built.fusions()
    assert fusion == Fusion({"global": 0.8, "local": 0.2})
    item = torch.tensor([0, 1, 2, 3, 0, 1, 3])
    found = ranks(text, visual, item, torch.arange(4), built.scores, fusion=fusion)
    scores = 0.8 * parts["global"] + 0.2 * parts["local"]
    assert found.text_to_visual.tolist() == [1 + int((scores[j] > scores[j, item[j]]).sum()) for j in range(7)]
    permuted = {"global": visual["global"], "local": visual["local"].flip(1)}
    assert torch.equal(built.scores(text, permuted)["local"], parts["local"])


def test_how_scores_are_fused(make):
    assert make().fusions() == [Fusion()] and make().visual_parts == ("global",)
    assert make(**video()).fusions() == [Fusion({"global": 0.9, "local": 0.1}, minmax=True)]
    candidates = make(alpha="validation").fusions()
    assert [fusion.weights["global"] for fusion in candidates] == [1.0, 0.9, 0.8, 0.7, 0.6, 0.5] and candidates[
        0
    ] == Fusion()
    assert all(sum(fusion.weights.values()) == pytest.approx(1) for fusion in candidates)


def test_pictures_vary_in_training_alone_and_only_where_their_encoder_learns(make):
    built = make()
    assert built.trains_image and built.image_transform().random and not built.backbone.image_transform().random
    for still in ({"train_image": False}, {"least_part": None}):
        assert not make(**still).image_transform().random


# A run.


def test_a_run_learns_and_its_fusion_is_chosen_on_validation(tmp_path):
    from ccr_dist.train import commands

    encoder = tiny_encoder(tmp_path / "encoder", toy.ALL_TEXTS)
    options = {
        "name": "leccr",
        "mode": "intended",
        "text_encoder": encoder,
        "dim": 16,
        "heads": 2,
        "alpha": "validation",
        "dropout": 0.0,
        "least_part": None,
    }
    stage = {"train": {"steps": 30, "batch": 15, "lr": 5e-3, "warmup": 0.1}}
    config = load_config(toy.config(tmp_path, options, stage, data={"description": "caption.en"}))
    assert commands.train([config], test=True, world=None) == 0
    result = json.loads((config.folder / "results" / "test.json").read_text())
    lines = [json.loads(line) for line in (config.folder / "log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert sum(losses[-3:]) < 0.7 * sum(losses[:3])
    assert set(result["languages"]) == {"en", "es"} and "global" in result["meta"]["score"]
    assert result["languages"]["es"]["counts"]["items_without_description"] == 0
    assert result["languages"]["es"]["metrics"]["mR"] > 40  # 30 items: by chance 18
