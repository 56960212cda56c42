"""Texts -> the vectors that an embedding engine makes of them, as `featurise` with a backbone does."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np

from ccr_dist.data.media import text
from ccr_dist.data.table.dataset import Dataset
from ccr_dist.errors import DataError, EngineError
from ccr_dist.generate.engines.embedder import Embedder
from ccr_dist.generate.jobs.featurise import RowTexts
from ccr_dist.generate.processor import Processor, RowOutcome


class Embed(Processor):
    """n texts give (n, F), stored as float16. Rows as of `Featurise`: one of which no text says anything is a null row.

    Counted: `truncated`, texts that lost their ends.
    """

    kind = "matrix"
    extension = "npy"
    batch = 256  # the engine drains between calls

    def __init__(self, engine: Embedder, column: str) -> None:
        self.engine = engine
        self.inputs = (column,)
        self._loaded = False

    def default_column(self) -> str:
        model = re.sub(r"[^a-z0-9.]+", "-", self.engine.name.lower()).strip("-.")
        return f"feature.{model}.{self.inputs[0]}"

    def check(self, dataset: Dataset) -> None:
        column = dataset.column(self.inputs[0])
        if column.kind not in ("texts", "views"):
            raise DataError(f"{column.folder}: a {column.kind} column; embedding engines take texts or views")

    def plan(self) -> dict[str, Any]:
        return {"processor": "featurise", "engine": self.engine.identity(), "texts": text.VERSION}

    def provenance(self) -> dict[str, Any]:
        return dict(self.engine.versions())

    def load_key(self) -> str | None:
        return json.dumps(self.engine.identity(), sort_keys=True)

    def load(self) -> None:
        """Once, however many datasets follow each other."""
        if not self._loaded:
            self.engine.load()
            self._loaded = True

    def close(self) -> None:
        self._loaded = False
        self.engine.close()

    @property
    def width(self) -> int:  # type: ignore[override]
        self.load()
        return self.engine.width

    def prepare(self, key: str, values: dict[str, Any]) -> Any:
        return RowTexts(self.inputs[0])(key, values)

    def process(self, items: list[Any]) -> list[RowOutcome]:
        counts = [len(item) for item in items]
        found = self.engine.embed([text for item in items for text in item])
        if len(found.vectors) != sum(counts):
            raise EngineError(f"{self.engine.name}: {len(found.vectors)} vectors for {sum(counts)} texts")
        outcomes, at = [], 0
        for count in counts:
            numbers = range(at, at + count)
            at += count
            if wrong := [number for number in numbers if number in found.errors]:
                place = f"text {wrong[0] - numbers.start + 1} of {count}: " if count > 1 else ""
                outcomes.append(RowOutcome(error=f"{place}{found.errors[wrong[0]]}"))
                continue
            cut = sum(found.cut[number] for number in numbers)
            with np.errstate(over="ignore"):
                value = found.vectors[numbers.start : numbers.stop].astype(np.float16)
            outcomes.append(RowOutcome(value, counts={"truncated": cut} if cut else {}))
        return outcomes
