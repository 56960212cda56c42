"""Defines what counts as text, for reading, counting, sampling, querying, checking and measuring texts.

Belongs here: whether a text is blank, and which texts of a value are not. Does not belong here: bytes (`decode.py`),
and cleaning for a tokenizer (which methods do).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

# The version of this rule, part of the plans of text features. Raise it, and `generate/text/filters.VERSION`, when the
# rule changes.
VERSION = 1

# Anything but: white space, control characters, and what has no ink of its own (Unicode's Default_Ignorable_Code_Point
# with BOM, soft hyphen, zero-width and direction marks, variation selectors, fillers; the marks of interlinear
# annotation; the empty Braille cell).
_INK = re.compile(
    "[^\\s\x00-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202e\u2060-\u206f\u2800\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)


def is_unicode(text: str) -> bool:
    """Whether a string is valid Unicode. JSON can write half of a surrogate pair, which no encoding has."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def has_text(text: Any) -> bool:
    """Whether a value is a text that is not blank: a valid Unicode string with at least one visible character."""
    return isinstance(text, str) and _INK.search(text) is not None and is_unicode(text)


def texts_of(value: Sequence[str] | Mapping[str, Any] | str | None) -> list[str]:
    """The texts of a decoded `texts`, `views` or `label` value, views ordered by name, blank texts included.

    Returns:
        The texts; an empty list for None.
    """
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        return [value["views"][name] for name in sorted(value["views"])]
    return list(value or ())


def with_text(*aligned: Iterable[str]) -> list[int]:
    """The ascending positions at which all of the aligned lists have a text that is not blank.

    Args:
        aligned: Lists of equal length.

    Returns:
        Positions counted from 0: [0, 2] for ["a", "", "b"].
    """
    return [number for number, texts in enumerate(zip(*aligned, strict=True)) if all(map(has_text, texts))]
