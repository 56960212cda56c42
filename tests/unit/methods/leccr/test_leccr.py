"""LECCR's sizes and shapes as published, and what its parts do and do not depend on."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from ccr_dist.methods import registry
from ccr_dist.methods.leccr.network import EnrichedVisual
from ccr_dist.methods.params import count
from tests.leccr import DESCRIPTIONS, clips, data, video
from tests.nearness import apart, close
from tests.small import unsettle


def active(built):
    trained = tuple(built.trainable("train"))
    return sum(p.numel() for name, p in built.named_parameters().items() if name.startswith(trained))


@pytest.fixture
def published(monkeypatch):
    """A method with the published sizes, on the meta device: nothing is allocated but shapes."""
    from transformers import BertConfig, BertModel

    from ccr_dist.methods.leccr import method
    from ccr_dist.models.text_encoder import TextEncoder

    def mbert(source, **options):
        assert source == "mbert"
        return TextEncoder(None, BertModel(BertConfig(vocab_size=119_547)), **options)

    monkeypatch.setattr(method, "build_text_encoder", mbert)

    def build(clip, **options):
        with torch.device("meta"):
            kind = registry.method("leccr")
            return kind(kind.Options(name="leccr", **options), clip, ("fr",))

    return build


def test_image_model_has_the_published_number_of_parameters(published):
    """277,604,353 receive gradients. The release holds 342,817,540, of which never any get some: CLIP's text tower and
    temperature (63,428,097), a matching head 768-1536-2 with its norm (1,187,330), BERT's pooler (590,592) and a second
    norm in 7 blocks (7,168).
    """
    import open_clip

    from ccr_dist.models.backbones.backbone import Backbone

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
    options = registry.options("leccr")
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
