"""English of a query, by one of the translation engines that are installed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ccr_dist.data.media.text import has_text
from ccr_dist.errors import CcrError, ConfigError, DataError, EngineError
from ccr_dist.generate.engines.base import Translator, make_translator, translators
from ccr_dist.search.searcher import ENGLISH, Translate


def english_by(name: str | None, options: Mapping[str, Any]) -> Translate:
    """What makes English of queries. Each language's engine is loaded when it is first asked.

    Args:
        name: of an engine (`ccr-dist translate --engine`); None: the first that is installed and has the direction.
        options: of the engine.

    Raises:
        ConfigError: no engine has this name.
    """
    if name is not None:
        translators.get(name)
    loaded: dict[str, Translator] = {}

    def english(texts: list[str], lang: str) -> list[str]:
        if lang not in loaded:
            loaded[lang] = _engine(name, lang, options)
            loaded[lang].load()
        answers = loaded[lang].translate([" ".join(text.split()) for text in texts])
        for text, answer in zip(texts, answers, strict=True):
            if isinstance(answer, DataError):
                raise answer
            if not has_text(answer):
                raise DataError(f"{text!r}: the translation into English is empty")
        return [str(answer) for answer in answers]

    return english


def known(languages: Sequence[str], name: str | None, options: Mapping[str, Any]) -> list[str]:
    """The languages of which `english_by(name, options)` makes English. Nothing is loaded.

    Raises:
        ConfigError: no engine has this name, or these options.
    """
    if name is not None:
        translators.get(name)
    found = []
    for lang in languages:
        if lang == ENGLISH:
            continue
        try:
            _engine(name, lang, options)
        except (EngineError, ImportError):
            continue
        found.append(lang)
    return found


def _engine(name: str | None, lang: str, options: Mapping[str, Any]) -> Translator:
    if name is not None:
        return make_translator(name, lang, ENGLISH, dict(options))
    why = []
    for each in translators.names():
        try:
            return make_translator(each, lang, ENGLISH, dict(options))
        except (CcrError, ImportError) as error:
            why.append(f"\n  {each}: {error}")
    raise EngineError(
        f"no translation engine for {lang} -> {ENGLISH} is ready; name one with --engine and its options. Tried:"
        f"{''.join(why)}"
    )


def require_engine(name: str | None, via: str | None, options: list[str]) -> None:
    """Raises ConfigError for an engine, or options of one, that nothing asks for."""
    if via is None and (name is not None or options):
        raise ConfigError("--engine and --set are for --via-english: add it")
