"""Which split an item belongs to: decided by its concept, alike in every corpus, so that no concept is in two splits.

A concept is the English caption without case, closing punctuation and leading articles. Only pure functions of text.
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
    """Draws a split for a text; corpora pass the concept.

    Args:
        text: what decides.
        test: percent of the texts that go to test.
        val: percent that go to val.

    Returns:
        train, val or test.
    """
    number = draw(text)
    if number < test:
        return "test"
    return "val" if number < test + val else "train"


def draw(text: str) -> int:
    """A number from 0 to 99 that depends only on the text: its sha1 modulo 100."""
    return int(hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest(), 16) % 100
