"""The answer inside what a model said: without its thinking, special tokens, code fences, preambles, notes and
quotation marks.

Pure functions. What is wrong with the answer that is left is `filters.py`. VERSION is part of every plan: what is
removed here decides a column's bytes, so a change of the rules is a new version, and columns of two versions do not
mix.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence

from ccr_dist.generate.text.phrases import ANSWERS, BEHIND, BEHIND_TRANSLATIONS, DESCRIPTIONS, HERE, NOTE, QUOTES, SURE
from ccr_dist.generate.text.sentences import TERMINALS

VERSION = 1
REMOVED = {
    "thinking": "a part in which the model thinks",
    "special": "special tokens, and what a model says after its turn",
    "fence": "marks of Markdown around the answer",
    "preamble": "words that announce the answer, or name it",
    "note": "words about the answer, behind it",
    "quotes": "quotation marks around the answer",
}

# -- thinking

_THINKS = r"(?:\w+:)?(?:think\w*|thoughts?|reason(?:ing)?|reflection|scratchpad|inner_monologue|analysis)"
OPENS = re.compile(
    rf"<{_THINKS}(?:\s[^<>]*)?>|<\|?{_THINKS}\|?>|\[{_THINKS}\]|◁{_THINKS}▷|<\|begin_of_thought\|>|<\|START_THINKING\|>|<\|inner_prefix\|>|"
    r"<unused94>|<\|channel>\s*thought\b|<\|channel\|>\s*(?:analysis|commentary)\b[^<]*(?:<\|message\|>)?|"
    r"^\s*here (?:is|are) my (?:thought process|thoughts|reasoning)\s*:",
    re.IGNORECASE,
)
CLOSES = re.compile(
    rf"</{_THINKS}\s*>|<\|?/{_THINKS}\|?>|\[/{_THINKS}\]|◁/{_THINKS}▷|<\|end_of_thought\|>|<\|END_THINKING\|>|<\|inner_suffix\|>|"
    r"<unused95>|<channel\|>|<\|channel\|>\s*final\b[^<]*<\|message\|>|^[ \t]*here (?:is|are) my"
    r" (?:response|answer)\s*:",
    re.IGNORECASE | re.MULTILINE,
)
_LABELLED = re.compile(
    r"\A[*#\s]*(?:thoughts?|thinking|reasoning|analysis)[*\s]*:.*?\n[*#\s]*"
    r"(?:final )?(?:answer|response|description|caption|translation)[*\s]*:[*\s]*",
    re.IGNORECASE | re.DOTALL,
)
# gpt-oss, its special tokens left out
_HARMONY = re.compile(r"\Aanalysis(?=[A-Z\W])(?:.*?assistantfinal|.*\Z)", re.DOTALL)


def _without_thinking(text: str, source: str) -> str:
    """A part that is not closed extends to the end; a part that was not opened began at the start."""
    text = _HARMONY.sub("", text, count=1) if not source.startswith("analysis") else text
    text = _LABELLED.sub("", text, count=1) if ":" not in source else text
    opened, first = OPENS.search(text), CLOSES.search(text)
    if any(mark is not None and mark.group().strip() in source for mark in (opened, first)) and source:
        return text
    if first is not None and (opened is None or first.start() < opened.start()):
        return text[first.end() :]
    if opened is None:
        return text
    closed = CLOSES.search(text, opened.end())
    return text[: opened.start()] + (text[closed.end() :] if closed else "")


# -- special tokens

_TURN = re.compile(
    r"<\|(?:im_end|eot_id|eom_id|end|endoftext|end_of_text|return|call|END_OF_TURN_TOKEN|im_start|start|start_header_id|user|assistant|system|"
    r"START_OF_TURN_TOKEN|end_of_turn|eos)\|>|</s>|<eos>|<end_of_turn>|<start_of_turn>|<turn\|>|<\|turn>|<end_of_utterance>|"
    r"<｜(?:end▁of▁sentence|User|Assistant)｜>|\[/?INST\]"
)
_HEADER = re.compile(
    r"\A\s*(?:<\|im_start\|>|<\|start_header_id\|>|<start_of_turn>|<\|turn>|<\|start\|>)\s*(?:assistant|model)\s*"
    r"(?:<\|end_header_id\|>)?(?=\s|<|\Z)|\A\s*(?:assistant|model)\s*\n\s*"
)
_SPECIAL = re.compile(
    r"<\|[^<>|\n]{1,40}\|?>|<[^<>|\n]{1,40}\|>|<｜[^<>｜\n]{1,40}｜>|</?(?:s|bos|eos|pad|unk|mask|image|img|video|cls|sep)>|"
    r"<(?:extra_id_|unused|loc_?|seg_?|quad_?)\d+>|<0x[0-9A-F]{2}>|<</?SYS>>|\[(?:CLS|SEP|PAD|UNK|MASK|BOS|EOS)\]|"
    r"[\ud800-\udfff]|\ufffd|\x00"
)
_ANSWER = re.compile(
    r"<(answer|final_answer|translation|response|output|result|caption|description)>(.*?)(?:</\1>|\Z)",
    re.IGNORECASE | re.DOTALL,
)
_STRAY = re.compile(
    r"</?(?:answer|final_answer|translation|response|output|result|caption|description)>", re.IGNORECASE
)
_NEXT_TURN = re.compile(
    r"(?:\n\s*|(?=###))(?:###\s*)?(?:human|user|USER|Human|User)\s*:.*\Z|\s*###\s*(?:Human|User|Instruction)\b.*\Z",
    re.DOTALL,
)
_TURN_BEFORE = re.compile(
    r"\A(?:system\n.*?\n)?user\n.*?\nassistant\n|\A\s*(?:###\s*)?(?:assistant|ASSISTANT|Assistant)\s*:\s*", re.DOTALL
)
_INVISIBLE = re.compile("\\A[\u200b\ufeff\u2060]+|[\u200b\ufeff\u2060]+\\Z")
_BOXED = re.compile(r"\A\$*\\boxed\{(?:\\text\{)?([^{}]*)\}?\}\$*\Z", re.DOTALL)


def _without_specials(text: str, source: str) -> str:
    text = _INVISIBLE.sub("", _HEADER.sub("", text))
    if not _TURN_BEFORE.match(source):
        text = _TURN_BEFORE.sub("", text)
    if (
        (following := _NEXT_TURN.search(text)) is not None
        and text[: following.start()].strip()
        and not _NEXT_TURN.search(source)
    ):
        text = text[: following.start()]
    turn = _TURN.search(text)
    while turn is not None and turn.group() not in source:
        if text[: turn.start()].strip():
            text = text[: turn.start()]
            break
        text = text[turn.end() :]
        turn = _TURN.search(text)
    if (tagged := _ANSWER.search(text)) is not None and tagged.group(1) not in source:
        text = tagged.group(2)
    if (boxed := _BOXED.search(text)) is not None:
        text = boxed.group(1)
    if not _STRAY.search(source):
        text = _STRAY.sub("", text)
    return _SPECIAL.sub(lambda match: match.group() if match.group() in source else "", text)


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
    """The one value of a JSON object."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    (only,) = value.values() if isinstance(value, dict) and len(value) == 1 else (None,)
    return only if isinstance(only, str) and len(only) < len(text) else None


# -- preambles and labels

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


def _without_preamble(text: str, source: str, names: Sequence[str]) -> str:
    """A head of the source that looks like one is the text's own, and so are all of its likes."""
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
    """Length of a head such as "Here is the translation:"; 0 without one."""
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


def _without_note(text: str, source: str) -> str:
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


# -- quotation marks

_CLOSING = frozenset("".join(QUOTES.values()))


def _without_quotes(text: str, source: str, *, cut: bool) -> str:
    """Of a translation: where its source is not in quotation marks as a whole. Of another text: around whole sentences
    only, since a phrase in them may be what can be read in a picture.
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
    """Whether the first and the last character are one pair of quotation marks, and not those of two quotations."""
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


# -- all of it


def clean(text: str, *, source: str = "", names: Sequence[str] = (), cut: bool = False) -> tuple[str, tuple[str, ...]]:
    """The answer in a model's text. Cleaning a clean text changes nothing.

    Args:
        text: What the model said.
        source: The text that was translated (its own marks, labels and notes are kept); "" where the text is no
            translation.
        names: Names of the target language, as labels use them.
        cut: Whether the text ended at the token limit, so that a closing mark may be missing.

    Returns:
        The answer alone ("" for a text that holds only thinking), and what was removed around it: keys of REMOVED.
    """
    text, source, removed = text.strip(), source.strip(), []
    steps: dict[str, Callable[[str], str]] = {
        "thinking": lambda said: _without_thinking(said, source),
        "special": lambda said: _without_specials(said, source),
        "fence": lambda said: _without_fence(said, source),
        "preamble": lambda said: _without_preamble(said, source, names),
        "note": lambda said: _without_note(said, source),
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


def is_mark_of_thinking(token: str) -> bool:
    """Whether a special token of a tokenizer must stay in the text, because it separates thinking from the answer."""
    return bool(OPENS.search(token) or CLOSES.search(token)) or token in (
        "<|channel|>",
        "<|message|>",
        "<|channel>",
        "<channel|>",
    )


def without_specials(text: str, source: str) -> tuple[str, bool]:
    """Cleans the output of a dedicated translation system, which neither thinks nor comments.

    Returns:
        The text without special tokens, and whether there were any.
    """
    left = _SPECIAL.sub(lambda match: match.group() if match.group() in source else "", text).strip()
    return left, left != text.strip()
