"""Marks of chat templates and of thinking models in what a model said: thinking, special tokens, turns, answer tags.

The rules are part of `answer.VERSION`.
"""

from __future__ import annotations

import re

# -- thinking

_THINKS = r"(?:\w+:)?(?:think\w*|thoughts?|reason(?:ing)?|reflection|scratchpad|inner_monologue|analysis)"
_OPENS = re.compile(
    rf"<{_THINKS}(?:\s[^<>]*)?>|<\|?{_THINKS}\|?>|\[{_THINKS}\]|◁{_THINKS}▷|<\|begin_of_thought\|>|<\|START_THINKING\|>|<\|inner_prefix\|>|"
    r"<unused94>|<\|channel>\s*thought\b|<\|channel\|>\s*(?:analysis|commentary)\b[^<]*(?:<\|message\|>)?|"
    r"^\s*here (?:is|are) my (?:thought process|thoughts|reasoning)\s*:",
    re.IGNORECASE,
)
_CLOSES = re.compile(
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


def without_thinking(text: str, source: str) -> str:
    """The text without the part in which the model thinks.

    A part that is not closed extends to the end; one that is only closed began at the start.

    Args:
        text: What the model said.
        source: The text that was translated; its own marks are kept.
    """
    text = _HARMONY.sub("", text, count=1) if not source.startswith("analysis") else text
    text = _LABELLED.sub("", text, count=1) if ":" not in source else text
    opened, first = _OPENS.search(text), _CLOSES.search(text)
    if any(mark is not None and mark.group().strip() in source for mark in (opened, first)) and source:
        return text
    if first is not None and (opened is None or first.start() < opened.start()):
        return text[first.end() :]
    if opened is None:
        return text
    closed = _CLOSES.search(text, opened.end())
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


def without_chat_marks(text: str, source: str) -> str:
    """The text of the model's own turn, without special tokens and tags around the answer.

    Args:
        text: What the model said.
        source: The text that was translated; its own marks are kept.
    """
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


def is_mark_of_thinking(token: str) -> bool:
    """Whether a special token must stay in the decoded text, because it separates thinking from the answer."""
    return bool(_OPENS.search(token) or _CLOSES.search(token)) or token in (
        "<|channel|>",
        "<|message|>",
        "<|channel>",
        "<channel|>",
    )


def without_specials(text: str, source: str) -> tuple[str, bool]:
    """Clean the output of a dedicated translation system, which neither thinks nor comments.

    Args:
        text: The output.
        source: The text that was translated; its own marks are kept.

    Returns:
        The text without special tokens, and whether there were any.
    """
    left = _SPECIAL.sub(lambda match: match.group() if match.group() in source else "", text).strip()
    return left, left != text.strip()
