"""In which of a model's languages a query is written."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Sequence
from typing import Any, NamedTuple

from ccr_dist.config import ENGLISH
from ccr_dist.errors import ConfigError
from ccr_dist.extras import advice
from ccr_dist.generate.text import languages

SURE = 0.8  # probability from which on a language is taken for granted


class Detected(NamedTuple):
    """A language, and whether the identifier is sure of it."""

    lang: str
    sure: bool


def own_tag(tag: str, among: Sequence[str]) -> str | None:
    """How `among` names a language: `pt` for `pt-BR`, or None. Raises ConfigError where `tag` cannot be one."""
    if tag in among:
        return tag
    base = languages.parse(tag).language
    return next((own for own in among if languages.parse(own).language == base), None)


def detect(text: str, among: Sequence[str]) -> Detected:
    """The language of a text, of the languages `among`.

    Args:
        text: a query. Short texts are often not sure.
        among: language tags, at least one. One that the identifier does not know is never found. A single one is not
            sure where the text is clearly in another language.

    Raises:
        ConfigError: the identifier (py3langid) is not installed, and there are several languages.
    """
    if len(among) == 1:
        return Detected(among[0], not _is_another(text, languages.parse(among[0]).language))
    labels = {languages.parse(tag).language: tag for tag in reversed(among)}
    identifier = _identifier(tuple(sorted(labels)))
    if identifier is None:
        return Detected(among[0], False)
    label, probability = identifier.classify(text)
    return Detected(labels[label], bool(probability >= SURE))


def detect_any(text: str, among: Sequence[str]) -> Detected:
    """The language of a text for a model that takes others than `among`, too: the likeliest of all, so that a text in
    another language is not taken for English.

    Args:
        text: a query.
        among: the tags by which the model knows some languages.

    Raises:
        ConfigError: the identifier (py3langid) is not installed.
    """
    label, probability = _identifier(_all_labels()).classify(text)
    own = own_tag(label, among)
    likeliest = Detected(own or label, bool(probability >= SURE))
    if likeliest.sure or len(among) == 1:
        return likeliest
    near = detect(text, among)  # of two languages that are alike, rather one of the model's own
    return near if near.sure and (near.lang == own or near.lang != ENGLISH) else likeliest


@functools.lru_cache(maxsize=1)
def _all_labels() -> tuple[str, ...]:
    """All languages of the identifier, but for dialects, which it finds in short texts."""
    return tuple(label for label in _identifier(None).labels if languages.known(label))


def _is_another(text: str, language: str) -> bool:
    """Whether a text is clearly in another language; False where that cannot be known."""
    if importlib.util.find_spec("py3langid") is None:
        return False
    identifier = _identifier(None)
    label, probability = identifier.classify(text)
    return language in identifier.labels and label != language and bool(probability >= SURE)


@functools.lru_cache(maxsize=16)
def _identifier(labels: tuple[str, ...] | None) -> Any:
    """An identifier of these languages alone, or of all, with probabilities; None where it knows fewer than two."""
    try:
        from py3langid import langid
    except ModuleNotFoundError as error:
        raise ConfigError(f"the language of a query is not named, and {advice(error.name)}; or name it") from None
    identifier = langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)
    if labels is None:
        return identifier
    known = [label for label in labels if label in identifier.labels]
    if len(known) < 2:
        return None
    identifier.set_languages(known)
    return identifier
