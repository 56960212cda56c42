"""Captions as LECCR prepares them: lower case, punctuation as spaces."""

from __future__ import annotations

import re
import string
from typing import Literal

PUNCTUATION = str.maketrans(dict.fromkeys(string.punctuation, " "))
RELEASED_MARKS = str.maketrans(dict.fromkeys(",.'!?\"()*#:;~-/", " "))


def words_of(caption: str, marks: Literal["released", "ascii"]) -> list[str]:
    """The words of a caption in lower case, without punctuation.

    The released code separates words by single spaces: a single other white space character stays inside of a word, and
    two or more count as a space.

    Args:
        caption: as it is in the column.
        marks: which punctuation counts: the marks of the released code, or all of ASCII.
    """
    if marks == "ascii":
        return caption.lower().translate(PUNCTUATION).split()
    plain = re.sub(r"\s{2,}", " ", caption.lower().translate(RELEASED_MARKS).replace("<person>", "person"))
    return [word for word in plain.rstrip("\n").strip(" ").split(" ") if word]
