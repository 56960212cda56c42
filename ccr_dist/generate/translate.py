"""Texts in one language -> the same texts in another one, caption by caption."""

from __future__ import annotations

from typing import Any

from ccr_dist.data.decode import texts_of
from ccr_dist.data.table import Dataset
from ccr_dist.errors import ConfigError, DataError, EngineError
from ccr_dist.generate.engines.base import Translator
from ccr_dist.generate.processor import Outcome, Processor


def language_of(column: str) -> str:
    """The language in the name of a caption column: caption.en.apertium -> en. ConfigError for other columns."""
    parts = column.split(".")
    if parts[0] != "caption" or len(parts) < 2:
        raise ConfigError(f"column {column!r}: its name does not tell the language (caption.<lang>...); say it with --source-language")
    return parts[1]


def default_column(target: str, engine: str) -> str:
    return f"caption.{target}.{engine}"


def back_column(column: str, source: str) -> str:
    """The column of the way back: ("caption.de.opus", "en") -> "caption.en.back-de-opus"."""
    _, _, made = column.partition(".")
    return f"caption.{source}.back-{made.replace('.', '-', 1)}"


class Translate(Processor):
    """(n captions) -> (n translations). Blank captions stay "" and are not sent; null rows stay null.

    Counters: `captions`, `empty` (nothing came back), `unchanged` (the translation is the caption itself).
    """

    kind = "texts"

    def __init__(self, engine: Translator, column: str) -> None:
        self.engine = engine
        self.inputs = (column,)
        self.batch = engine.batch

    def plan(self) -> dict[str, Any]:
        return {"processor": "translate", "engine": self.engine.identity()}

    def provenance(self) -> dict[str, Any]:
        return dict(self.engine.versions())

    def check(self, dataset: Dataset) -> None:
        column = dataset.column(self.inputs[0])
        if column.kind not in ("texts", "views"):
            raise DataError(f"{column.folder}: a {column.kind} column; translate takes texts or views")

    def load(self) -> None:
        self.engine.load()

    def prepare(self, key: str, values: dict[str, Any]) -> list[str] | None:
        value = values[self.inputs[0]]
        return None if value is None else [" ".join(caption.split()) for caption in texts_of(value)]

    def process(self, items: list[list[str]]) -> list[Outcome]:
        texts = [caption for item in items for caption in item if caption]
        answers = iter(self.translate(texts))
        outcomes = []
        for item in items:
            translated = [next(answers) if caption else "" for caption in item]
            error = next((answer for answer in translated if isinstance(answer, DataError)), None)
            if error is not None:
                outcomes.append(Outcome(error=str(error)))
                continue
            pairs = [(caption, str(answer)) for caption, answer in zip(item, translated, strict=True)]
            empty = sum(1 for caption, answer in pairs if caption and not answer)
            unchanged = sum(1 for caption, answer in pairs if caption and caption == answer)
            counts = {"captions": len(pairs), "empty": empty, "unchanged": unchanged}
            outcomes.append(Outcome([answer for _, answer in pairs], counts={name: n for name, n in counts.items() if n}))
        return outcomes

    def translate(self, texts: list[str]) -> list[str | DataError]:
        answers = self.engine.translate(texts) if texts else []
        if len(answers) != len(texts):
            raise EngineError(
                f"{self.inputs[0]}: the engine gave {len(answers)} translations for {len(texts)} captions (the first: {texts[0]!r}); "
                "they cannot be told apart, so nothing of this batch was kept"
            )
        return answers
