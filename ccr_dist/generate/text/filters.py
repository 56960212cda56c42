"""Finds what is wrong with a generated text: refusals, loops, too little said, cut off in the middle.

Pure functions. The thresholds are in the prompt's file (`filters:`) and so part of a column's plan. `answer.py` has
already removed what surrounds the answer.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, Field

from ccr_dist.generate.text import answer
from ccr_dist.generate.text.answer import clean
from ccr_dist.generate.text.sentences import unspaced, whole

VERSION = f"2.{answer.VERSION}"  # of the rules here and in answer.py; a column's plan names it
DROPPED = {
    "refused": "the model declined",
    "repeated": "a loop",
    "short": "too little text, or no whole sentence before the token limit",
    "malformed": "not the list that was asked for",
    "unanswered": "only thinking, no answer",
    "failed": "the engine gave no answer to one of the row's requests",
}
# what jobs count of their answers, in the order shown
COUNTED = (*DROPPED, "cut", *answer.REMOVED, "empty", "unchanged", "long")
_HEAD = 160  # characters, about two sentences: a refusal comes first, and later "I can't" may be said in a picture
_PERIOD = 24  # longest loop, in words or characters
_LONG, _ALLOWED = 3.0, 40  # a translation longer than _LONG times its source plus _ALLOWED characters is counted
_REFUSALS = (
    *("i'm sorry", "i am sorry", "i cannot", "i can't", "i'm unable", "i am unable", "i'm not able", "i am not able"),
    *(
        "sorry, i can",
        "sorry, but i",
        "i apologize",
        "i apologise",
        "my apologies",
        "unfortunately, i",
        "i'm afraid i",
        "i won't",
    ),
    *("as an ai", "as a language model", "can't assist", "cannot assist", "don't see an image", "do not see an image"),
    *(
        "no image was provided",
        "no image provided",
        "no image attached",
        "no video was provided",
        "please upload",
        "please provide",
    ),
    *("es tut mir leid, aber ich", "lo siento, pero no puedo", "je suis désolé, mais je", "mi dispiace, ma non posso"),
    *(
        "desculpe, mas não posso",
        "извините, но я не могу",
        "抱歉，我无法",
        "很抱歉，我",
        "对不起，我无法",
        "申し訳ありませんが",
        "죄송합니다만",
    ),
    *("عذراً، لا أستطيع", "क्षमा करें, मैं", "माफ़ कीजिए, मैं"),
)
# These refuse only at the beginning of a sentence; elsewhere they are said by somebody in the picture.
_FIRST_PERSON = re.compile(r"(?:i|i'm|sorry|my|please|unfortunately)\b")
_BEGINS = (
    r"(?:^|[.!?…。！？\n]\s*|^(?:oh|well|hi|hello|sorry|unfortunately|thank you[^.!?\n]{0,40})\s*[,.!]?\s*(?:but\s+)?)"
)
_QUOTED = re.compile(r"“[^“”]*”|„[^„“”]*[“”]|«[^«»]*»|「[^「」]*」|\"[^\"]*\"|(?<!\w)'[^\n]*?'(?!\w)")


class Filters(BaseModel):
    """Thresholds; the defaults suit descriptions in English of a sentence or more."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    refusals: tuple[str, ...] = Field(
        _REFUSALS, description="phrases, lower case; an answer with one of them in its first sentences is a refusal"
    )
    repeats: int = Field(
        4, ge=2, description="the same words this many times in a row, or the same line this often, are a loop"
    )
    min_words: int = Field(3, ge=1, description="an answer with fewer words is too short")


def judge(
    text: str, finish: str, filters: Filters, *, max_words: int | None = None, source: str = ""
) -> tuple[str | None, str]:
    """Decide whether to keep a text.

    A text that ended at the token limit, or has more than `max_words` words, is truncated after its last whole
    sentence, in any script; a text without one is too short. In scripts without spaces, words cannot be counted: only
    blank texts are too short.

    Args:
        text: The text.
        finish: Why it ended: `stop` or `length`.
        filters: Thresholds.
        max_words: At most this many words; None disables.
        source: The text that was translated; a fault that the source has as well is no fault.

    Returns:
        The text to keep and why it ended, or None and `refused`, `repeated` or `short`.
    """
    if _refuses(text, filters.refusals) and not _refuses(source, filters.refusals):
        return None, "refused"
    if repeats(text, filters.repeats) and not repeats(source, filters.repeats):
        return None, "repeated"
    words = text.split()
    if max_words is not None and len(words) > max_words:
        text, finish = " ".join(words[:max_words]), "length"
    if finish == "length":
        text = whole(text)
    words = text.split()
    if not words or (len(words) < filters.min_words and not unspaced(text)):
        return None, "short"
    return text, finish


def kept_of(
    said: str,
    finish: str,
    filters: Filters,
    *,
    max_words: int | None = None,
    listed: bool = False,
    source: str = "",
    names: Sequence[str] = (),
) -> tuple[str | None, str, list[str]]:
    """Clean a model's answer and decide whether to keep it.

    Args:
        said: The answer.
        finish: Why it ended: `stop` or `length`.
        filters: Thresholds.
        max_words: At most this many words; None disables.
        listed: Whether a JSON array was asked for.
        source: The text that was translated; see `clean`.
        names: Names of the target language; see `clean`.

    Returns:
        The text to keep, or None; why it ended, or a key of DROPPED; and what was removed around it.
    """
    text, removed = clean(said, source=source, names=names, cut=finish == "length")
    if not text and "thinking" in removed:
        return None, "unanswered", []
    if not listed:
        return *judge(text, finish, filters, max_words=max_words, source=source), list(removed)
    entries = list_of(text, finish)
    if entries is None:
        how = "refused" if _refuses(text, filters.refusals) else "malformed"
        return None, how, list(removed)
    kept, how = judge(entries, "stop", filters.model_copy(update={"min_words": 1}))
    return kept, finish if how == "stop" else how, list(removed)


def tally(removed: Sequence[str], kept: str | None, how: str) -> Counter[str]:
    """Counts for one answer: what was removed, `cut` if it was truncated, and why it was dropped."""
    counts = Counter(removed)
    if kept is None:
        counts[how] += 1
    elif how == "length":
        counts["cut"] += 1
    return counts


def list_of(answer: str, finish: str) -> str | None:
    """Turn a JSON array of strings into one text.

    The array may be the only value of a JSON object, or surrounded by other words. Of an array that was cut off at the
    token limit, complete entries count.

    Args:
        answer: The answer.
        finish: Why it ended: `stop` or `length`.

    Returns:
        The entries joined by ", ", without blank and repeated ones; None if there is no such array.
    """
    entries = _array(answer)
    if entries is None:
        first, last = answer.find("["), answer.rfind("]")
        entries = _array(answer[first : last + 1]) if 0 <= first < last else None
    if entries is None and finish == "length" and "[" in answer:
        whole_ones = re.findall(r'"(?:[^"\\]|\\.)*"(?=\s*[,\]])', answer[answer.find("[") :], re.DOTALL)
        entries = [value for entry in whole_ones for value in _array(f"[{entry}]") or ()]  # an escape may be none
    if entries is None or not all(isinstance(entry, str) for entry in entries):
        return None
    return ", ".join(dict.fromkeys(" ".join(str(entry).split()) for entry in entries if str(entry).strip()))


def _array(text: str) -> list[object] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if isinstance(value, dict) and len(value) == 1:
        (value,) = value.values()
    return value if isinstance(value, list) else None


def repeats(text: str, times: int) -> bool:
    """Whether the text is a loop: the same words in a row, or the same line, `times` times.

    In scripts without spaces, characters are compared instead of words, over a longer stretch.
    """
    lines = Counter(line.strip().casefold() for line in text.splitlines() if line.strip())
    if max(lines.values(), default=0) >= times:
        return True
    words = text.casefold().split()
    if unspaced(text):
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


def _refuses(text: str, phrases: Sequence[str]) -> bool:
    """Whether the text begins with a refusal; words in quotation marks do not count."""
    head = _QUOTED.sub(" ", text[: 2 * _HEAD].replace("’", "'"))[:_HEAD].casefold()
    for phrase in phrases:
        begins = _BEGINS if _FIRST_PERSON.match(phrase) else r"(?<!\w)"
        if re.search(
            rf"{begins}{re.escape(phrase)}(?![\w-])" if phrase[-1:].isascii() else rf"{begins}{re.escape(phrase)}", head
        ):
            return True
    return False


def is_long(translation: str, source: str) -> bool:
    """Whether a translation is several times as long as its source, both in characters and in UTF-8 bytes."""
    return all(
        b > _LONG * a + _ALLOWED
        for a, b in ((len(source), len(translation)), (len(source.encode()), len(translation.encode())))
    )
