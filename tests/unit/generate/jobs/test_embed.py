"""Embedding texts by an engine: rows, what is cut, what has no vector, what two columns have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ccr_dist.data.table.dataset import Dataset, create_column, create_dataset
from ccr_dist.errors import ConfigError, DataBudgetError, DataError, EngineError
from ccr_dist.generate.declared import featurising, require_engine_alone
from ccr_dist.generate.engines.embedder import Embedded, Embedder, embedders, make_embedder
from ccr_dist.generate.jobs.embed import Embed
from ccr_dist.generate.runner import Budget, run

LONGEST = 12


class Letters(Embedder):
    """[length, first letter] of at most LONGEST letters; nothing of an empty text."""

    name = "Some/Letters v2"

    def __init__(self, options: Any = None, scale: float = 1.0) -> None:
        self.scale, self.loads, self.closed = scale, 0, False

    def identity(self) -> dict[str, Any]:
        return {"engine": "letters", "scale": self.scale}

    def load(self) -> None:
        self.loads += 1

    def close(self) -> None:
        self.closed = True

    @property
    def width(self) -> int:
        assert self.loads
        return 2

    def embed(self, texts: list[str]) -> Embedded:
        read = [text[:LONGEST] for text in texts]
        rows = [[len(text), ord(text[0])] if text else [np.nan] * 2 for text in read]
        errors = {number: "nothing there" for number, text in enumerate(texts) if not text}
        return Embedded(np.array(rows, np.float32) * self.scale, [len(t) > LONGEST for t in texts], errors)


def dataset(root: Path, shards: list[list[list[str] | None]], kind: str = "texts") -> Dataset:
    keys = [[f"{s}-{i}" for i in range(len(rows))] for s, rows in enumerate(shards)]
    made = create_dataset(root, name="toy", split="train", keys=keys)
    column = create_column(made, "caption.en", kind=kind, extension="json", plan={}, provenance={})
    for shard, rows in enumerate(shards):
        column.commit(shard, [None if value is None else column.encode(value) for value in rows])
    return made


def test_rows_are_as_of_featurise(tmp_path: Path) -> None:
    made = dataset(tmp_path, [[["a dog", "b"], None, ["  "], ["x" * 30]], [None]])
    engine = Letters()
    processor = Embed(engine, "caption.en")
    name = processor.default_column()
    summary = run(made, processor, name, progress=False)
    column = made.column(name)
    assert (name, summary.done, summary.bad, engine.loads) == ("feature.some-letters-v2.caption.en", 2, 0, 1)
    assert column.value(0, 0).tolist() == [[5, 97], [1, 98]] and column.value(0, 0).dtype == np.float16
    assert column.value(0, 1) is None and column.value(0, 2) is None and column.value(1, 0) is None
    assert column.value(0, 3).tolist() == [[12, 120]]
    assert column.plan["processor"] == "featurise" and column.plan["engine"] == {"engine": "letters", "scale": 1.0}
    assert summary.counts["truncated"] == 1
    processor.close()
    assert engine.closed


def test_a_text_without_a_vector_is_a_bad_item(tmp_path: Path) -> None:
    made = dataset(tmp_path, [[["a", ""], ["b"]]])
    with pytest.raises(DataBudgetError, match="text 2 of 2: nothing there"):
        run(made, Embed(Letters(), "caption.en"), "feature.x.caption.en", budget=Budget(0, 0), progress=False)
    summary = run(made, Embed(Letters(), "caption.en"), "feature.x.caption.en", budget=Budget(1, 1), progress=False)
    assert summary.bad == 1 and made.column("feature.x.caption.en").value(0, 1).tolist() == [[1, 98]]


def test_vectors_that_float16_cannot_hold_and_an_engine_that_answers_nonsense(tmp_path: Path) -> None:
    made = dataset(tmp_path, [[["a"]]])
    with pytest.raises(DataBudgetError):
        run(made, Embed(Letters(scale=1e6), "caption.en"), "feature.y.caption.en", budget=Budget(0, 0), progress=False)

    class Short(Letters):
        def embed(self, texts: list[str]) -> Embedded:
            return Embedded(super().embed(texts).vectors[:-1], [], {})

    with pytest.raises(EngineError, match="0 vectors for 1 texts"):
        run(made, Embed(Short(), "caption.en"), "feature.z.caption.en", progress=False)


def test_another_model_is_another_column(tmp_path: Path) -> None:
    made = dataset(tmp_path, [[["a"]]])
    run(made, Embed(Letters(), "caption.en"), "feature.x.caption.en", progress=False)
    with pytest.raises(DataError, match="scale"):
        run(made, Embed(Letters(scale=2.0), "caption.en"), "feature.x.caption.en", progress=False)
    pictures = create_dataset(tmp_path / "pictures", name="toy", split="train", keys=[["a"]])
    create_column(pictures, "image", kind="image", extension="png", plan={}, provenance={}).commit(0, [None])
    with pytest.raises(DataError, match="embedding engines take texts"):
        run(pictures, Embed(Letters(), "image"), "feature.x.image", progress=False)


def test_what_belongs_to_backbones_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--engine and --config, --tokens do not go together"):
        require_engine_alone(Path("run.yaml"), None, {"--tokens": True, "--grid": False})
    require_engine_alone(None, None, {"--tokens": False})
    data = tmp_path / "data"
    common: dict[str, Any] = {"config": None, "backbone": None, "options": None, "source": "caption.en"}
    common |= {
        "encoder": "backbone",
        "device": "auto",
        "share": "0/1",
        "column": "feature.m.caption.en",
        "overrides": ["dtype=float32"],
    }
    (tmp_path / "model").mkdir()
    uses = featurising(data, engine="vllm", model=str(tmp_path / "model"), **common)
    assert [str(item.path) for item in uses.reads] == [str(data), str(tmp_path / "model")]
    assert uses.packages == ("vllm",)
    with pytest.raises(ConfigError, match="unknown engine 'vlm'; did you mean 'vllm'"):
        featurising(data, engine="vlm", model="m", **common)
    with pytest.raises(ConfigError, match=r"engine 'vllm': .*poolin.*Its options: model"):
        featurising(data, engine="vllm", model="m", **{**common, "overrides": ["poolin=CLS"]})


def test_engines_are_found_by_name() -> None:
    assert embedders.names() == ["vllm"]
    with pytest.raises(ConfigError, match="unknown embedding engine 'vlm'; did you mean 'vllm'"):
        make_embedder("vlm", {})
