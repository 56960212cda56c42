"""What is wrong with a generated text: refusals, loops, nothing said, cut off in the middle. Pure functions of the text.

Thresholds stand in the prompt's file (`filters:`), so that they are part of a column's plan.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, Field

_HEAD = 160  # characters, the first sentences: a refusal says so at once, and people in pictures say "I can't" too
_PERIOD = 24  # longest loop that is looked for, in words or characters
_UNSPACED = 16  # more characters a word than this: a script without spaces
_SENTENCE_END = re.compile(r"""[.!?…]["'”’)\]]*(?=\s|$)|[。！？]["'”’」』）]*""")
_REFUSALS = (
    *("i'm sorry", "i am sorry", "i cannot", "i can't", "i'm unable", "i am unable", "i'm not able", "i am not able"),
    *("as an ai", "as a language model", "can't assist", "cannot assist", "don't see an image", "do not see an image"),
    *("no image was provided", "no image provided", "no image attached", "no video was provided", "please upload", "please provide"),
)


class Filters(BaseModel):
    """Thresholds; the defaults suit descriptions in English of a sentence or more."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    refusals: tuple[str, ...] = Field(_REFUSALS, description="phrases, lower case: an answer that has one in its first sentences refuses")
    repeats: int = Field(4, ge=2, description="the same words so many times in a row, or the same line so often: a loop")
    min_words: int = Field(3, ge=1, description="an answer with fewer words says too little")


def judge(text: str, finish: str, filters: Filters, *, max_words: int | None = None) -> tuple[str | None, str]:
    """(the text to keep, why it ended), or (None, `refused`, `repeated` or `short`).

    A text that ended at the token limit (`length`) or has more than max_words is cut back to the end of its last whole sentence;
    one without such an end is too short. Scripts without spaces have no words to count: there only blank texts are too short.
    """
    if _refuses(text, filters.refusals):
        return None, "refused"
    if repeats(text, filters.repeats):
        return None, "repeated"
    words = text.split()
    if max_words is not None and len(words) > max_words:
        text, finish = " ".join(words[:max_words]), "length"
    if finish == "length":
        ends = list(_SENTENCE_END.finditer(text))
        text = text[: ends[-1].end()] if ends else ""
    words = text.split()
    if not words or (len(words) < filters.min_words and not _unspaced(text, words)):
        return None, "short"
    return text, finish


def list_of(answer: str, finish: str) -> str | None:
    """A JSON array of strings as one text, joined by ", ", without blanks and repetitions; None when it is no such array.

    Of one that was cut off at the token limit, the entries that are whole.
    """
    try:
        entries = json.loads(answer)
    except ValueError:
        if finish != "length":
            return None
        entries = [json.loads(entry) for entry in re.findall(r'"(?:[^"\\]|\\.)*"(?=\s*[,\]])', answer, re.DOTALL)]
    if not isinstance(entries, list) or not all(isinstance(entry, str) for entry in entries):
        return None
    return ", ".join(dict.fromkeys(" ".join(entry.split()) for entry in entries if entry.strip()))


def repeats(text: str, times: int) -> bool:
    """Whether some words follow each other `times` times, or a line occurs as often; in scripts without spaces characters are looked at,
    over a longer stretch.
    """
    lines = Counter(line.strip().casefold() for line in text.splitlines() if line.strip())
    if max(lines.values(), default=0) >= times:
        return True
    words = text.casefold().split()
    if _unspaced(text, words):
        return _loops("".join(words), times, least=16)
    return _loops(words, times, least=1)


def _loops(units: Sequence[str], times: int, least: int) -> bool:
    for period in range(1, min(_PERIOD, len(units) // times) + 1):
        same = 0
        for i in range(period, len(units)):
            same = same + 1 if units[i] == units[i - period] else 0
            if same >= max(period * (times - 1), least):
                return True
    return False


def _unspaced(text: str, words: Sequence[str]) -> bool:
    return len(text) > _UNSPACED * len(words) or any("\u3040" <= c <= "\u30ff" or "\u4e00" <= c <= "\u9fff" for c in text)


def _refuses(text: str, phrases: Sequence[str]) -> bool:
    head = text[:_HEAD].casefold().replace("’", "'")
    return any(phrase in head for phrase in phrases)
