"""Bounds on trained parameters: a temperature that starts at or beyond its bound learns, and does not leave it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from ccr_dist.methods.english.method import English
from ccr_dist.methods.run_config import load_config
from ccr_dist.models import tensorfile
from ccr_dist.models.backbones.dual.backbone import Heads
from ccr_dist.train import commands
from tests import tiny, toy

pytestmark = pytest.mark.long


class Sizes:
    hidden, dim, dropout = 8, 4, 0.0


@pytest.mark.parametrize("start", [math.log(100), math.log(117), 0.0])
def test_a_scale_has_a_gradient_wherever_it_starts(start: float) -> None:
    heads = Heads(4, 4, Sizes)
    with torch.no_grad():
        heads.logit_scale.fill_(start)
    heads.scale().sum().backward()
    assert heads.logit_scale.grad is not None and heads.logit_scale.grad.item() == pytest.approx(
        math.exp(start), rel=1e-6
    )


@pytest.mark.parametrize("start", [math.log(100), math.log(117)])
def test_training_brings_a_scale_back_and_keeps_it_bounded(
    folder: Path, monkeypatch: pytest.MonkeyPatch, start: float
) -> None:
    """Untrained features are wrong about most pairs, so that a lower scale is better."""
    built = Heads.__init__

    def hot(self: Heads, *arguments: object) -> None:
        built(self, *arguments)
        torch.nn.init.constant_(self.logit_scale, start)

    monkeypatch.setattr(Heads, "__init__", hot)
    stage = {"english": {"steps": 3, "batch": 10, "lr": 1e-2, "warmup": 0, "schedule": "constant"}}
    backbone = tiny.tiny_dual_config(folder / "dual", toy.ALL_TEXTS).model_dump()
    path = toy.config(
        folder, {"name": "english"}, stage, backbone=backbone, data={"targets": {}, "source_feature": None}
    )
    config = load_config(path, [f"name=scale-{start:.2f}", "runtime.trace=gradients"])
    assert commands.train([config], test=False, world=None) == 0
    weights, _ = tensorfile.read(config.folder / "model.safetensors")
    learnt = weights["backbone.heads.logit_scale"].item()
    assert math.log(100) - 0.031 < learnt < math.log(100) - 0.005, (
        "three steps of Adam at a rate of 0.01, from the bound"
    )
    gradients, _ = tensorfile.read(config.folder / "trace" / "gradients-00000000.safetensors")
    assert gradients["backbone.heads.logit_scale"].item() > 0


def test_a_checkpoint_of_before_whose_scale_lies_beyond_its_limit_is_told(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stage = {"english": {"steps": 3, "batch": 10, "lr": 1e-2, "warmup": 0, "schedule": "constant"}}
    backbone = tiny.tiny_dual_config(folder / "dual", toy.ALL_TEXTS).model_dump()
    path = toy.config(
        folder, {"name": "english"}, stage, backbone=backbone, data={"targets": {}, "source_feature": None}
    )
    overrides = ["name=scale-before", "runtime.checkpoint_every=1"]
    with monkeypatch.context() as before:
        before.setattr(English, "limits", lambda self, stage: {})
        built = Heads.__init__

        def hot(self: Heads, *arguments: object) -> None:
            built(self, *arguments)
            torch.nn.init.constant_(self.logit_scale, math.log(150))

        before.setattr(Heads, "__init__", hot)
        assert commands.train([load_config(path, overrides)], test=False, world=None) == 0
    assert "earlier version" not in capsys.readouterr().err
    longer = load_config(path, [*overrides, "stages.english.steps=5"])
    assert commands.train([longer], test=False, world=None) == 0
    said = capsys.readouterr().err
    assert (
        said.count("an earlier version let it leave its limits (0 to 4.6052)") == 1
        and "backbone.heads.logit_scale is 4.9" in said
    )
    longest = load_config(path, [*overrides, "stages.english.steps=6"])
    assert commands.train([longest], test=False, world=None) == 0
    assert "earlier version" not in capsys.readouterr().err
