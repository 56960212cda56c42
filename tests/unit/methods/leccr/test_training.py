"""LECCR trained and measured: gradients, precision, cached features, fused scores, a whole run."""

from __future__ import annotations

import json

import pytest
import torch

from ccr_dist.errors import ConfigError
from ccr_dist.evaluate.retrieval import Fusion, ranks
from ccr_dist.methods import registry
from ccr_dist.methods.run_config import load_config
from tests import toy
from tests.leccr import DESCRIPTIONS, FRAMES, clips, data, gradients, total, video
from tests.nearness import close
from tests.small import unsettle
from tests.tiny import TEXTS, tiny_encoder

pytestmark = pytest.mark.long


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
    kind = registry.method("leccr")
    options = {"name": "leccr", "dim": 12, "heads": 2, "text_train_from": 1}
    kind(kind.Options(text_encoder=encoder, **options), clip, ("es",), state=json.loads(json.dumps(state)))
    with pytest.raises(ConfigError, match="text encoder"):
        kind(kind.Options(text_encoder=tiny_encoder(tmp_path, seed=5), **options), clip, ("es",), state=state)


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
