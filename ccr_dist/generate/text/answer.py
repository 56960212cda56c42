"""The answer inside what a model said: without thinking, special tokens, code fences, preambles, notes and quotation
marks.

Pure functions; `filters.py` judges the answer that is left. VERSION is part of every plan, since these rules decide a
column's bytes: any change of a rule needs a new version, so that a column never mixes two of them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence

from ccr_dist.generate.text.chat_marks import without_chat_marks, without_thinking
from ccr_dist.generate.text.phrases import QUOTES
from ccr_dist.generate.text.remarks import without_note, without_preamble
from ccr_dist.generate.text.sentences import TERMINALS

VERSION = 1  # of the rules here, in chat_marks.py, remarks.py and phrases.py
REMOVED = {
    "thinking": "a part in which the model thinks",
    "special": "special tokens, and what a model says after its turn",
    "fence": "Markdown around the answer",
    "preamble": "words that announce the answer, or name it",
    "note": "words about the answer, after it",
    "quotes": "quotation marks around the answer",
}

# -- fences and emphasis

_FENCE = re.compile(r"\A(?P<fence>```+|~~~+)[\w+-]*[ \t]*\n?(?P<inside>.*?)\n?[ \t]*(?:(?P=fence).*|\Z)", re.DOTALL)
_EMPHASIS = re.compile(r"\A(\*\*\*|\*\*|\*|___|__|_|`)(?![\s*_`])([^*_`]+)(?<!\s)\1\Z", re.DOTALL)


_TAGGED = re.compile(r"\A<(b|i|p|em|strong|span|div|u)>(.*)</\1>\Z", re.IGNORECASE | re.DOTALL)
_BULLET = re.compile(r"\A[-*>•–]\s+(?=[^\n]+\Z)")


def _without_fence(text: str, source: str) -> str:
    if source and source[:1] in "*_`~<{->•–":
        return text
    if text[:1] == "{" and (value := _only_text(text)) is not None:
        return value
    if (tagged := _TAGGED.match(text)) is not None:
        return tagged[2]
    if source and (bullet := _BULLET.match(text)) is not None:
        return text[bullet.end() :]
    if (fence := _FENCE.match(text)) is not None:
        return fence["inside"]
    if (emphasis := _EMPHASIS.match(text)) is not None:
        return emphasis[2]
    return text


def _only_text(text: str) -> str | None:
    """The value of a JSON object that has only one, a string; otherwise None."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    (only,) = value.values() if isinstance(value, dict) and len(value) == 1 else (None,)
    return only if isinstance(only, str) and len(only) < len(text) else None


# -- quotation marks

_CLOSING = frozenset("".join(QUOTES.values()))


def _without_quotes(text: str, source: str, *, cut: bool) -> str:
    """The text without quotation marks around it.

    A translation keeps them if its whole source is quoted. A description keeps them around a short phrase, which may be
    words that can be read in the picture.

    Args:
        text: What the model said.
        source: The text that was translated; "" for a description.
        cut: Whether the text ended at the token limit, so that a closing mark may be missing.
    """
    if len(text) < 2 or text[0] not in QUOTES or (source and _quoted(source)):
        return text
    if source and text[-1] in ".。" and _quoted(text[:-1]) and source[-2:-1] not in _CLOSING:
        return text[:-1]
    if _quoted(text):
        inside = text[1:-1].strip()
        return inside if source or inside[-1:] in TERMINALS or len(inside.split()) > 8 else text
    if cut and source[:1] not in QUOTES and not any(mark in text[1:] for mark in QUOTES[text[0]]):
        return text[1:].lstrip()
    return text


def _quoted(text: str) -> bool:
    """Whether one pair of quotation marks encloses the whole text (and not two quotations begin and end it)."""
    text = text.strip()
    if len(text) < 2 or text[0] not in QUOTES or text[-1] not in QUOTES[text[0]]:
        return False
    opening, closings, depth = text[0], QUOTES[text[0]], 1
    for i, mark in enumerate(text[1:-1], 1):
        if mark in "'’‘" and text[i - 1].isalnum() and text[i + 1].isalnum():
            continue  # an apostrophe
        if mark in closings:
            depth -= 1
            if not depth:
                return False
        elif mark == opening:
            depth += 1
    return depth == 1


def clean(text: str, *, source: str = "", names: Sequence[str] = (), cut: bool = False) -> tuple[str, tuple[str, ...]]:
    """Find the answer in what a model said. Cleaning a clean text changes nothing.

    Args:
        text: What the model said.
        source: The text that was translated (its own marks, labels and notes are kept); "" for a description.
        names: Names of the target language, as labels use them.
        cut: Whether the text ended at the token limit, so that a closing mark may be missing.

    Returns:
        The answer ("" if there was only thinking), and what was removed around it: keys of REMOVED.
    """
    text, source, removed = text.strip(), source.strip(), []
    steps: dict[str, Callable[[str], str]] = {
        "thinking": lambda said: without_thinking(said, source),
        "special": lambda said: without_chat_marks(said, source),
        "fence": lambda said: _without_fence(said, source),
        "preamble": lambda said: without_preamble(said, source, names),
        "note": lambda said: without_note(said, source),
        "quotes": lambda said: _without_quotes(said, source, cut=cut),
    }
    changed = True
    while changed:
        changed = False
        for what, step in steps.items():
            if (left := step(text).strip()) != text:
                text, changed = left, True
                removed.append(what)
    return text, tuple(dict.fromkeys(removed))
