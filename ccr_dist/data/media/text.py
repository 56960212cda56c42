"""What counts as text: the one definition by which texts are read, counted, drawn, asked as queries, checked and
measured.

Belongs here: whether a text says anything, and which texts of a value do. Does not belong here: bytes (`decode.py`),
cleaning for a tokenizer (a method's business).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

# of this rule, a part of the plans of features of texts. Raise it, and `generate/filters.VERSION`, when the rule
# changes
VERSION = 1

# Anything but: white space, control characters, and what has no ink of its own (Unicode's Default_Ignorable_Code_Point
# with BOM, soft hyphen, zero-width and direction marks, variation selectors, fillers; the marks of interlinear
# annotation; the empty Braille cell).
_INK = re.compile(
    "[^\\s\x00-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202e\u2060-\u206f\u2800\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)


def is_unicode(text: str) -> bool:
    """Whether a string is valid Unicode: half of a surrogate pair, which JSON can write, is a character in no
    encoding.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def has_text(text: Any) -> bool:
    """Whether a value is a text that says something: a string, of valid Unicode, with at least one character that is
    seen.
    """
    return isinstance(text, str) and _INK.search(text) is not None and is_unicode(text)


def texts_of(value: Sequence[str] | Mapping[str, Any] | str | None) -> list[str]:
    """The texts of a decoded `texts`, `views` or `label` value, views by name, blank ones included; none of a null
    one.
    """
    if isinstance(value, str):
        return [value]
    return (
        [value["views"][name] for name in sorted(value["views"])] if isinstance(value, Mapping) else list(value or ())
    )


def with_text(*aligned: Iterable[str]) -> list[int]:
    """The numbers, ascending, at which every one of the aligned lists has a text that says something: [0, 2] for ["a",
    "", "b"].
    """
    return [number for number, texts in enumerate(zip(*aligned, strict=True)) if all(map(has_text, texts))]
