"""Which split an item belongs to: by its concept, the same in every corpus, so that no concept is in two splits.

A concept is what the English caption says without case, closing marks and leading articles. Pure functions of text,
nothing else.
"""

from __future__ import annotations

import hashlib
import re

SPLITS = ("train", "val", "test")
TEST_PERCENT, VAL_PERCENT = 25, 10
_ARTICLES = re.compile(r"^(?:(?:a|an|the)\s+)+")


def concept(caption: str) -> str:
    """`"A toucan."` and `"toucan"` -> `"toucan"`: lower case, stripped of ` .!` and of leading articles, single
    spaces.
    """
    return _ARTICLES.sub("", " ".join(caption.lower().split()).strip(" .!"))


def split_of(text: str, *, test: int = TEST_PERCENT, val: int = VAL_PERCENT) -> str:
    """train, val or test from `draw`: below `test` test, the next `val` val. Corpora give the concept as text."""
    h = draw(text)
    return "test" if h < test else "val" if h < test + val else "train"


def draw(text: str) -> int:
    """A number from 0 to 99, always the same for a text: its sha1 modulo 100."""
    return int(hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest(), 16) % 100
