"""Draws the split of an item by its concept, the same in every corpus, so that no concept is in two splits.

A concept is the English caption without case, closing punctuation and leading articles. Only pure functions of text.
"""

from __future__ import annotations

import hashlib
import re

SPLITS = ("train", "val", "test")
TEST_PERCENT, VAL_PERCENT = 25, 10
_ARTICLES = re.compile(r"^(?:(?:a|an|the)\s+)+")


def concept(caption: str) -> str:
    """The concept of a caption: lower case, single spaces, without leading articles and ` .!` around it.

    Both "A toucan." and "toucan" are "toucan".
    """
    return _ARTICLES.sub("", " ".join(caption.lower().split()).strip(" .!"))


def split_of(text: str, *, test: int = TEST_PERCENT, val: int = VAL_PERCENT) -> str:
    """Draw a split that depends only on the text.

    Args:
        text: The text, usually a concept.
        test: Percentage of texts that go to test.
        val: Percentage that go to val.

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
