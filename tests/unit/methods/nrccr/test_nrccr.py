"""NRCCR as a method: its options, the fusion of scores, what it refuses, and whole runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ccr_dist.config import DataConfig
from ccr_dist.errors import ConfigError
from ccr_dist.evaluate.retrieval import PLAIN, Fusion
from ccr_dist.methods import registry
from ccr_dist.methods.run_config import load_config
from ccr_dist.train import commands
from tests import tiny, toy
from tests.nearness import close
from tests.nrccr import SMALL, dot, make
from tests.small import ENGLISH, SPANISH, batch, method

pytestmark = pytest.mark.long


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


def test_scores_are_fused_with_those_of_the_translation(clip, encoder):
    built = make(clip, encoder, fusion=(0.5, 0.2, 0))
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
    off = make(clip, encoder, fusion=(0,))
    columns = DataConfig(
        train=[{"path": "t"}],
        val="v",
        queries={"en": "caption.en", "es": "caption.es"},
        translated_queries={"es": "en.mt"},
    )
    assert built.options.companions(columns) == {"es": "en.mt"} and off.options.companions(columns) == {}
    assert off.fusions() == [PLAIN] and off.text_parts == ("global",) == tuple(off.encode_text(SPANISH, "es"))


def test_languages_and_encoder_are_checked(clip, encoder, tmp_path):
    for languages in ((), ("es", "en")):
        with pytest.raises(ConfigError, match=r"data\.targets: method nrccr.*translate --back"):
            method("nrccr", clip, languages=languages, encoder=encoder, **SMALL)
    built = make(clip, encoder)
    again = type(built)(built.options, clip, built.languages, state=built.state())
    again.net.load_state_dict(built.net.state_dict())
    again.net.eval(), built.net.eval()
    close(again.encode_text(SPANISH, "es", ENGLISH), built.encode_text(SPANISH, "es", ENGLISH))
    other = tiny.tiny_encoder(tmp_path / "other", seed=5)
    changed = built.options.model_copy(update={"encoder": other})
    with pytest.raises(ConfigError, match="what is frozen of it is not what the saved weights were trained beside"):
        type(built)(changed, clip, built.languages, state=built.state())


def test_long_texts_are_cut_and_counted(clip, encoder):
    built = make(clip, encoder)
    built.net.eval()
    built.encode_text([" ".join(["boat"] * 40)], "en")
    assert built.truncated == 1


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
