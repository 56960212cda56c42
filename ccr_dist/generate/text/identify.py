"""Which language a column's texts are in, as far as a statistical identifier (py3langid) can tell: from a sample, to
warn.
"""

from __future__ import annotations

import functools
import importlib.util
from collections import Counter
from typing import Any

from ccr_dist.data.media.text import has_text
from ccr_dist.generate.text import languages

SAMPLE = 256  # pieces of text at most
LETTERS = 80  # of a piece: captions are joined until they have so many, since a short one tells little
FEW = 4  # pieces, from which on anything is said
SURE = 0.7  # share of the pieces that have to be in the column's language
_LOOK_ALIKE = (
    frozenset({"no", "nb", "nn"}),
    frozenset({"hr", "bs", "sr"}),
    frozenset({"id", "ms"}),
    frozenset({"zh", "yue"}),
)


class Sample:
    """Pieces of texts, evenly spread over all that were added; the same for the same texts."""

    def __init__(self) -> None:
        self.pieces: list[str] = []
        self._every, self._count, self._open = 1, 0, ""

    def add(self, text: str) -> None:
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
    return importlib.util.find_spec("py3langid") is not None


@functools.cache
def _identifier() -> tuple[Any, dict[str, str]]:
    """(the identifier, its labels -> languages), for the languages that are known here: not for dialects, which short
    texts fall into.
    """
    from py3langid import langid

    identifier = langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE)
    known = {label: languages.parse(label).language for label in identifier.labels if languages.known(label)}
    identifier.set_languages(known)
    return identifier, known


def about(sample: Sample, tag: str) -> dict[str, Any]:
    """{"language": share of the pieces in the language of the tag, "language_seen": {language: share},
    "language_pieces": n}.

    The share is None where nothing can be said: without the library, with too few pieces, for a language that it does
    not know.
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
