"""What a model says about its answer, before it ("Here is the translation:") and after it ("Note: ...").

The words are in `phrases.py`; the rules are part of `answer.VERSION`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from ccr_dist.generate.text.phrases import ANSWERS, BEHIND, BEHIND_TRANSLATIONS, DESCRIPTIONS, HERE, NOTE, SURE

_LABEL = (
    r"(?:final |image |picture |video |photo |detailed"
    r" )*(?:translations?|captions?|descriptions?|answers?|responses?|output)"
)
_LABELS = (  # of translations
    rf"{_LABEL}|(?:the )?[\w-]+ (?:translation|version|caption|text)|translated \w+|result|text|"
    rf"translat\w* (?:in|into|to) [\w -]+?|{ANSWERS}"
)
_COLON = r"[ \t]*[*_]{0,3}[:：][*_]{0,3}[ \t]*"
_SAID_SURE = re.compile(rf"\A(?:{SURE})(?P<mark>[!！.。,，、]+)\s*", re.IGNORECASE)
_ANNOUNCED = re.compile(rf"\A(?:{HERE})(?P<about>[^\n:：]{{0,140}}){_COLON}(?P<line>\n?)\s*", re.IGNORECASE)
_ABOUT = re.compile(rf"(?<!\w)(?:{ANSWERS})|(?:翻译|翻譯|译文|譯文|翻訳|訳|描述|説明|번역|설명)", re.IGNORECASE)
_NAMED = re.compile(rf"\A[*_#\s]{{0,6}}(?:{_LABEL}|{DESCRIPTIONS}){_COLON}\s*", re.IGNORECASE)
_HERE_YOU_GO = re.compile(
    r"\A(?:here (?:you go|it is)|there you go|as requested|(?:it|this|that) translates to|bitte(?: schön|"
    r" sehr)?|voilà)[ \t]*[:：]\s*",
    re.IGNORECASE,
)
_ARROW = re.compile(r"\s*(?:->|→|=>|=|:|：|–|—|\n)\s*(?=\S)")
_NAMED_TRANSLATION = re.compile(
    rf"\A[*_#\s]{{0,6}}(?:{_LABELS})(?:[ \t]*[(（][^()（）\n]{{1,40}}[)）])?{_COLON}\s*", re.IGNORECASE
)
_LINE = re.compile(rf"\A[^\n]{{1,200}}?{_COLON}\n+\s*(?=\S)")
_LAUTET = re.compile(
    rf"\A(?:(?:the|die|der|das|la|le|el|il|a|o|de|de[nt]) )?(?:{ANSWERS})[^\n:：]{{0,100}}"
    rf"\b(?:is|are|lautet|wäre|ist|est|es|é|è|sería|seria|would be|luidt){_COLON}\s*",
    re.IGNORECASE,
)
_THE_IS = re.compile(
    r"\A(?:the |a |an )?(?:[\w-]+ )?translation\b[^\n]{0,300}?\bis[ \t]*[:：]?[ \t\n]*(?=[\"“«„「'‘*`])", re.IGNORECASE
)
_HEADING = re.compile(r"\A#{1,6}[ \t][^\n]{1,80}\n+(?=\S)")
_COLONS = re.compile(r"[:：]")


def without_preamble(text: str, source: str, names: Sequence[str]) -> str:
    """The text without words that announce or name the answer.

    Where the source begins in the same way ("Note:", "Translation:"), that beginning belongs to the text.

    Args:
        text: What the model said.
        source: The text that was translated; "" for a description.
        names: Names of the target language, as labels use them.
    """
    own = source[:60]
    if _HEADING.match(text) and not source.startswith("#"):
        return _HEADING.sub("", text)
    if (sure := _SAID_SURE.match(text)) is not None and not re.search(r"[!！.。,，、:]", source[:25]):
        rest = text[sure.end() :]
        if (
            sure["mark"] not in (",", "，", "、", ".", "。")
            or "\n" in sure.group()
            or _announced(rest)
            or (sure["mark"] in ".。" and not source)
        ):
            return rest
    if source and text[: len(source)].casefold() == source.casefold() and (arrow := _ARROW.match(text, len(source))):
        return text[arrow.end() :]  # the source is said again, and then its translation
    if _COLONS.search(own):
        return text
    if (said := _HERE_YOU_GO.match(text)) is not None:
        return text[said.end() :]
    if announced := _announced(text):
        return text[announced:]
    if "translation" not in source.lower() and (said := _THE_IS.match(text)) is not None:
        return text[said.end() :]
    if (line := _LINE.match(text)) is not None and _ABOUT.search(line.group()) and (source or _SAID_SURE.match(text)):
        return text[line.end() :]
    for pattern in (_NAMED_TRANSLATION, _LAUTET) if source else (_NAMED,):
        if (named := pattern.match(text)) is not None:
            return text[named.end() :]
    for name in names:
        later = (
            list(re.finditer(rf"\n[*_#\s]{{0,6}}{re.escape(name)}(?: translation)?{_COLON}", text, re.IGNORECASE))
            if source
            else []
        )
        if later:
            return text[later[-1].end() :]
        language = re.match(
            rf"\A[*_#\s]{{0,6}}(?:in )?{re.escape(name)}(?:[ \t]*[(（][^()（）\n]{{1,40}}[)）])?{_COLON}\s*",
            text,
            re.IGNORECASE,
        )
        if language is not None:
            return text[language.end() :]
    return text


def _announced(text: str) -> int:
    """Length of a beginning such as "Here is the translation:", or 0."""
    head = _ANNOUNCED.match(text)
    if head is None or not (head["line"] or _ABOUT.search(head["about"]) or _ABOUT.search(head.group())):
        return 0
    return head.end()


# -- notes

_MARKS = r"[*_]{0,3}"
_INSIDE = r"[^()\[\]（）【】［］\n]*"
_BRACKETED = re.compile(
    rf"{_MARKS}[(\[（【［]{_MARKS}\s*(?:{NOTE})(?!\w)(?:\s*[:：\-–—]|\s+that\b|[^()（）\n]{{0,40}}[:：])"
    rf"{_INSIDE}(?:[(（\[]{_INSIDE}[)）\]]{_INSIDE})*(?:[)\]）】］]{_MARKS}|\Z)\s*\Z",
    re.IGNORECASE,
)
_LINE_NOTE = re.compile(
    rf"\n[ \t]*(?:[-*_•>#]+\s*)?[(\[（【]?{_MARKS}"
    rf"(?:(?:{NOTE}){_MARKS}\s*(?:\([^()\n]*\)\s*)?[:：]|(?:alternatively|literally),).*\Z",
    re.IGNORECASE | re.DOTALL,
)
_LINE_BEHIND = re.compile(rf"\n[ \t]*{_MARKS}[(\[]?(?:{BEHIND}).*\Z", re.IGNORECASE | re.DOTALL)
_LINE_BEHIND_TRANSLATION = re.compile(
    rf"\n[ \t]*{_MARKS}[(\[]?(?:{BEHIND_TRANSLATIONS}).*\Z", re.IGNORECASE | re.DOTALL
)
_SENTENCE_BEHIND = re.compile(
    r"(?<=[.!?。！？])\s+(?:i hope (?:this|that|it)(?: \w+){0,4} helps?|hope this helps|let me know if|please let me"
    r" know|feel free to ask|"
    r"would you like me to|is there anything else|if you (?:need|have|want) (?:any|more|further))\b[^\n]*\Z",
    re.IGNORECASE,
)


_ALTERNATIVES = re.compile(r"\A1[.)]\s+(?P<first>[^\n]+)\n+\s*2[.)]\s.*\Z", re.DOTALL)
_OR = re.compile(
    r"\n\s*[(*_]{0,3}(?:or|oder|ou|o|u|или|або|または|或|或者|또는|atau|veya|eller|lub|nebo)[)*_]{0,3}[:,]?\s*\n.*\Z",
    re.IGNORECASE | re.DOTALL,
)


def without_note(text: str, source: str) -> str:
    """The text without words about the answer that follow it: notes, alternatives, offers to help.

    Args:
        text: What the model said.
        source: The text that was translated; "" for a description. Its own notes are kept.
    """
    if source and (several := _ALTERNATIVES.match(text)) is not None:
        text = several["first"]
    if source and (other := _OR.search(text)) is not None and text[: other.start()].strip():
        text = text[: other.start()]
    if not _BRACKETED.search(source):
        text = _BRACKETED.sub("", text)
    patterns = [_LINE_NOTE, _LINE_BEHIND, _SENTENCE_BEHIND]
    if source:
        patterns.append(_LINE_BEHIND_TRANSLATION)
    for pattern in patterns:
        if (found := pattern.search(text)) is not None and text[: found.start()].strip() and not pattern.search(source):
            text = text[: found.start()]
    return text
