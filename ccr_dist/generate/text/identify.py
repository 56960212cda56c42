"""Checks by a sample whether a column's texts are in their language, with a statistical identifier (py3langid). For
warnings only.
"""

from __future__ import annotations

import functools
import importlib.util
from collections import Counter
from typing import Any

from ccr_dist.data.media.text import has_text
from ccr_dist.generate.text import languages

SAMPLE = 256  # pieces of text at most
LETTERS = 80  # bytes of a piece at least: captions are joined, since the language of a short one is uncertain
FEW = 4  # with fewer pieces nothing is reported
SURE = 0.7  # at least this share of the pieces must be in the column's language
_LOOK_ALIKE = (
    frozenset({"no", "nb", "nn"}),
    frozenset({"hr", "bs", "sr"}),
    frozenset({"id", "ms"}),
    frozenset({"zh", "yue"}),
)


class Sample:
    """At most SAMPLE pieces of text, evenly spaced over all that were added. Deterministic."""

    def __init__(self) -> None:
        self.pieces: list[str] = []
        self._every, self._count, self._open = 1, 0, ""

    def add(self, text: str) -> None:
        """Add a caption; blank ones are ignored."""
        if not has_text(text):
            return
        self._open = f"{self._open} {text}".strip()
        if len(self._open.encode()) < LETTERS:
            return
        if self._count % self._every == 0:
            self.pieces.append(self._open)
        self._count, self._open = self._count + 1, ""
        if len(self.pieces) == SAMPLE:
            self.pieces, self._every = self.pieces[::2], 2 * self._every


def installed() -> bool:
    """Whether py3langid is installed."""
    return importlib.util.find_spec("py3langid") is not None


@functools.cache
def _identifier() -> tuple[Any, dict[str, str]]:
    """The identifier and the language of each of its labels, restricted to the languages of `language_table.py`:
    without dialects, which it finds in short texts.
    """
    from py3langid import langid

    identifier = langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE)
    known = {label: languages.parse(label).language for label in identifier.labels if languages.known(label)}
    identifier.set_languages(known)
    return identifier, known


def about(sample: Sample, tag: str) -> dict[str, Any]:
    """Compare a sample with the language that it should be in.

    Args:
        sample: Pieces of the column's texts.
        tag: The language of the column.

    Returns:
        `language`: share of the pieces in that language, rounded to three digits; None without py3langid, with fewer
        than FEW pieces, or for a language that it does not know. `language_seen`: shares of the five most frequent
        languages. `language_pieces`: number of pieces.
    """
    nothing: dict[str, Any] = {"language": None, "language_seen": {}, "language_pieces": len(sample.pieces)}
    if len(sample.pieces) < FEW or not installed():
        return nothing
    identifier, known = _identifier()
    wanted = languages.parse(tag).language
    if wanted not in known.values():
        return nothing
    seen = Counter(known[identifier.classify(piece)[0]] for piece in sample.pieces)
    alike = next((group for group in _LOOK_ALIKE if wanted in group), {wanted})
    count = seen.total()
    return {
        "language": round(sum(n for language, n in seen.items() if language in alike) / count, 3),
        "language_seen": {language: round(n / count, 3) for language, n in seen.most_common(5)},
        "language_pieces": count,
    }
