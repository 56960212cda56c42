"""Translates texts with a dedicated translation system, caption by caption."""

from __future__ import annotations

from collections import Counter
from typing import Any

from ccr_dist.data.media.text import has_text, texts_of
from ccr_dist.data.table.dataset import Dataset
from ccr_dist.errors import ConfigError, DataError, EngineError
from ccr_dist.generate.engines.base import Cut, Translator
from ccr_dist.generate.processor import Processor, RowOutcome
from ccr_dist.generate.text import languages
from ccr_dist.generate.text.chat_marks import without_specials
from ccr_dist.generate.text.filters import VERSION, Filters, is_long, judge, tally

FILTERS = Filters(refusals=(), min_words=1)  # for dedicated systems, which never refuse


def language_of(column: str) -> str:
    """The language in the name of a caption column, such as en in caption.en.apertium. Raises ConfigError for
    others.
    """
    parts = column.split(".")
    if parts[0] != "caption" or len(parts) < 2:
        raise ConfigError(
            f"column {column!r}: its name does not say the language (caption.<lang>...); give it with --source-language"
        )
    return parts[1]


def check_direction(source: str, target: str) -> None:
    """Raise ConfigError if a language is not a tag, or both are the same."""
    if languages.normal(source) == languages.normal(target):
        raise ConfigError(
            f"from {source!r} into {target!r}: the same language; is --to, or --source-language, another one?"
        )


def captions_of(key: str, value: Any, longest: int) -> list[str] | None:
    """The captions of a row, each on one line.

    Args:
        key: The row's key, for messages.
        value: Its value.
        longest: Most characters of a caption.

    Returns:
        The captions, "" for blank ones; None for a null row.

    Raises:
        DataError: A caption is too long.
    """
    if value is None:
        return None
    captions = [" ".join(caption.split()) if has_text(caption) else "" for caption in texts_of(value)]
    for number, caption in enumerate(captions):
        if len(caption) > longest:
            raise DataError(
                f"{key}: caption {number} has {len(caption)} characters, and this engine is given {longest} at most; is"
                f" it a caption? It begins {caption[:60]!r}"
            )
    return captions


def default_column(target: str, engine: str) -> str:
    """The name of the column by default."""
    return f"caption.{target}.{engine}"


def back_column(column: str, source: str) -> str:
    """The column of a back-translation: "caption.en.back-de-opus" for "caption.de.opus" back into "en"."""
    _, _, made = column.partition(".")
    return f"caption.{source}.back-{made.replace('.', '-', 1)}"


class Translate(Processor):
    """Turns n captions into n translations. Blank captions stay "" and are not sent; null rows stay null.

    Counters: `captions`; `empty` (the translation is ""); `unchanged` (it equals the caption); `long` (it is several
    times as long); `special` (it had special tokens); `cut` (it was truncated to whole sentences); and of dropped
    translations, which become "": `repeated` (a loop), `short` (cut off before the end of a sentence).

    Args:
        engine: A translation engine.
        column: Column of captions.
    """

    kind = "texts"

    def __init__(self, engine: Translator, column: str) -> None:
        self.engine = engine
        self.inputs = (column,)
        self.batch = engine.batch

    def plan(self) -> dict[str, Any]:
        return {"processor": "translate", "engine": self.engine.identity(), "filters": VERSION}

    def provenance(self) -> dict[str, Any]:
        return dict(self.engine.versions())

    def check(self, dataset: Dataset) -> None:
        dataset.column(self.inputs[0]).require_kind(("texts", "views"), "translate")

    def load(self) -> None:
        self.engine.load()

    def prepare(self, key: str, values: dict[str, Any]) -> list[str] | None:
        return captions_of(key, values[self.inputs[0]], self.engine.longest)

    def process(self, items: list[list[str]]) -> list[RowOutcome]:
        texts = [caption for item in items for caption in item if caption]
        answers = iter(self.translate(texts))
        outcomes = []
        for item in items:
            translated = [next(answers) if caption else "" for caption in item]
            error = next((answer for answer in translated if isinstance(answer, DataError)), None)
            if error is not None:
                outcomes.append(RowOutcome(error=str(error)))
                continue
            counts: Counter[str] = Counter(captions=len(item))
            kept = [
                _kept(caption, answer, counts) if caption else ""
                for caption, answer in zip(item, translated, strict=True)
            ]
            outcomes.append(RowOutcome(kept, counts=dict(counts)))
        return outcomes

    def translate(self, texts: list[str]) -> list[str | DataError]:
        """As `Translator.translate`; raises EngineError if the number of translations differs."""
        answers = self.engine.translate(texts) if texts else []
        if len(answers) != len(texts):
            raise EngineError(
                f"{self.inputs[0]}: the engine gave {len(answers)} translations for {len(texts)} captions (the first:"
                f" {texts[0]!r}); they cannot be distinguished, so nothing of this batch was kept"
            )
        return answers


def _kept(caption: str, answer: str | DataError, counts: Counter[str]) -> str:
    """The part of a translation to keep; updates `counts`."""
    text, special = without_specials(str(answer), caption)
    finish, kept = "length" if isinstance(answer, Cut) else "stop", text or None
    if kept is not None:
        kept, how = judge(text, finish, FILTERS, source=caption)
        counts += tally(["special"] if special else [], kept, how)
    kept = " ".join((kept or "").split())
    counts += Counter(empty=not kept, unchanged=kept == caption, long=is_long(kept, caption))
    return kept
