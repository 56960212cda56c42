"""A query encoder whose vector is made of several layers: against the encoder's own states, its columns, and runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize
from typer.testing import CliRunner

import ccr_dist
from ccr_dist.cli import app
from ccr_dist.config import QueryEncoderConfig
from ccr_dist.data.table.dataset import Dataset
from ccr_dist.errors import ConfigError
from ccr_dist.methods.distill.options import DistillOptions
from ccr_dist.methods.run_config import load_config
from ccr_dist.models.query_encoder import build_query_encoder
from ccr_dist.train.loop import train_run
from ccr_dist.train.strategies.strategy import Strategy
from tests import query_side
from tests.nearness import close
from tests.short_runs import train

TEXTS = ["una mancha verde", "a green spot on the left", "verde"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("layers")


@torch.no_grad()
def test_a_vector_is_the_layers_beside_each_other(folder: Path) -> None:
    from transformers import AutoModel, AutoTokenizer

    text = query_side.encoder(folder)
    last = build_query_encoder(QueryEncoderConfig(text=text))
    count = last.text.config.num_hidden_layers
    encoder = build_query_encoder(QueryEncoderConfig(text=text, layers=(0, count)))
    model, tokenizer = AutoModel.from_pretrained(text).eval(), AutoTokenizer.from_pretrained(text)
    for row, one in zip(encoder.text_features(TEXTS), TEXTS, strict=True):
        states = model(**tokenizer([one], return_tensors="pt"), output_hidden_states=True).hidden_states
        assert len(states) == count + 1
        expected = [normalize(states[layer][0].mean(0), dim=-1) for layer in (0, count)]
        close(row, torch.cat(expected), tolerance=1e-5)
    width = encoder.dim // 2
    assert encoder.text_features([]).shape == (0, encoder.dim) and width == last.dim
    close(encoder.text_features(TEXTS)[:, width:], normalize(last.text_features(TEXTS), dim=-1), tolerance=1e-6)
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    assert encoder.name == f"{last.name}-layers-0-{count}"
    theirs, ours = (each.feature_identity("text") for each in (last, encoder))
    assert "layers" not in theirs and ours["layers"] == [0, count] and ours["digest"] == theirs["digest"]


@pytest.mark.parametrize(
    ("layers", "said"), [((0, 99), r"layers: 99, but the query encoder '.*' has the layers 0 \(embeddings\) to \d"),
                         ((1, 1), "each layer once"), ((), "at least 1"), ((-1,), "greater than or equal to 0")]
)  # fmt: skip
def test_layers_that_are_not_there_are_refused(folder: Path, layers: tuple[int, ...], said: str) -> None:
    with pytest.raises((ConfigError, ValueError), match=said):
        build_query_encoder(QueryEncoderConfig(text=query_side.encoder(folder), layers=layers))


def test_an_encoder_that_is_trained_has_no_layers() -> None:
    with pytest.raises(ValueError, match=r"query\.layers: an encoder that is trained"):
        DistillOptions(name="distill", query={"layers": [0, 2]})


def test_columns_and_starts_of_other_layers_or_prompts_are_refused(tmp_path: Path) -> None:
    path = query_side.config(tmp_path, "map", penalties=[1e-2])
    train(path)  # by the last layer alone
    both, wrong = (("method.query.layers=[0,1]", f"name={name}") for name in ("both", "wrong"))
    asked = ("method.query.prompt=now ", "name=asked")
    for other, said in ((wrong, r"layers \[0, 1\]"), (asked, "with the prompt 'now '")):
        config = load_config(path, other)
        with pytest.raises(ConfigError, match=f"query_features.en: .* was made by another encoder .*{said}"):
            train_run(config, Strategy(config.runtime))
    for lang, caption in query_side.CAPTIONS.items():
        words = ["--encoder", "query", "--from", caption, "--column", f"feature.both.{lang}", "layers=[0,1]", "--quiet"]
        done = CliRunner().invoke(app, ["featurise", str(tmp_path / "data/train"), "--config", str(path), *words])
        assert done.exit_code == 0, (done.output, done.exception)
    plan = Dataset.open(tmp_path / "data/train").column("feature.both.en").plan["backbone"]
    assert plan["layers"] == [0, 1]
    columns = "data.query_features={en: feature.both.en, es: feature.both.es}"
    config = train(path, *both, columns)
    model = ccr_dist.load(config.folder)
    rows = model.encode_text(TEXTS, lang="es")
    assert rows.shape == (3, model.text_width) and not np.allclose(rows[0], rows[1])
    # a residual that reads other layers than the map it starts from, as many of them
    stages = {"align": {"steps": 2, "batch": 10, "lr": 1e-30}}
    residual = query_side.config(tmp_path, "dynamic", stages, pairs="translations", rank=4)
    start = (f"init_from={config.folder}", columns)
    train(residual, *start, "method.query.layers=[0,1]")
    for layers in ("[1,0]", "null"):
        changes = (*start, f"method.query.layers={layers}", f"name=other-{len(layers)}", "data.query_features={}")
        still = load_config(residual, changes)
        with pytest.raises(ConfigError, match="its weights mean something else in this run"):
            train_run(still, Strategy(still.runtime))
    words = ["method.query.layers=[0,1]", "method.query.prompt=now ", "name=other", "data.query_features={}"]
    prompted = load_config(residual, [*start[:1], *words])
    with pytest.raises(ConfigError, match="queries began with '' there, and begin with 'now ' here"):
        train_run(prompted, Strategy(prompted.runtime))
    done = CliRunner().invoke(app, ["export", str(config.folder), "--to", "onnx", "--out", str(tmp_path / "out")])
    assert done.exit_code == 2 and "pooled beside each other" in done.output
