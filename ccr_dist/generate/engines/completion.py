"""Reads chat completions of OpenAI-compatible servers, leniently if the meaning is clear. Pure functions, no HTTP.

Servers differ in how they name the end of an answer, what they leave out, and how they report errors.
"""

from __future__ import annotations

import json
import re
from typing import Any

from ccr_dist.errors import DataError
from ccr_dist.generate.engines.generator import Answer, Generation

WRAPPED = "answer"  # key of a value that may not be the root of a schema

_ENDED = {
    "stop",
    "eos",
    "eos_token",
    "end",
    "end_turn",
    "complete",
    "completed",
    "stop_sequence",
    "stop_token",
    "stop_word",
}
_CUT = {"length", "max_tokens", "max_output_tokens", "max_new_tokens", "model_length", "token_limit"}
_FILTERED = {
    "content_filter",
    "content_filtered",
    "safety",
    "recitation",
    "blocklist",
    "prohibited_content",
    "refusal",
    "sensitive",
}
_FAILED = {
    "abort",
    "aborted",
    "cancelled",
    "canceled",
    "error",
    "insufficient_system_resource",
    "network_error",
    "timeout",
}
_STATUSES = {str(status) for status in range(400, 600)}
_CALLS = {"function_call", "tool_calls", "tool_use"}
_WRAPPER = re.compile(rf'^\s*\{{\s*"{WRAPPED}"\s*:\s*')


class Unreadable(Exception):
    """A response that is no answer: a gateway made it, or the server was interrupted. Sending again may help."""


def parsed(data: bytes) -> dict[str, Any]:
    """The JSON object in a body. Raises Unreadable for anything else: a gateway's page, truncated or deeply nested
    text.
    """
    try:
        payload = json.loads(data)
    except (ValueError, RecursionError) as e:
        raise Unreadable(f"no JSON ({type(e).__name__}): {_shown(data)}") from None
    if not isinstance(payload, dict):
        raise Unreadable(f"no JSON object: {_shown(data)}")
    return payload


def error_in(payload: dict[str, Any]) -> tuple[int, str] | None:
    """An error that came with status 200, as proxies send them.

    Args:
        payload: The response.

    Returns:
        The status that it names (500 if none, 429 for a rate limit) and its text; or None.
    """
    error = payload.get("error")
    if payload.get("object") == "error":
        error = payload
    if not error or payload.get("choices"):
        return None
    said = _shown(error)
    named = [str(error.get(name)) for name in ("code", "status")] if isinstance(error, dict) else []
    statuses = [int(name) for name in named if name in _STATUSES]
    if statuses:
        return statuses[0], said
    return 429 if "rate_limit" in said else 500, said


def read(payload: dict[str, Any], name: str, *, max_tokens: int, wrapped: bool = False) -> Answer:
    """Read the answer in a chat completion.

    Of several choices, the first counts. Missing token counts are 0. An end without a known reason is `length` if all
    allowed tokens were used, otherwise `stop`.

    Args:
        payload: The completion.
        name: The item, for messages.
        max_tokens: Most tokens that were allowed.
        wrapped: Whether the text is a JSON object whose only value is the answer.

    Returns:
        The answer; a DataError for one that the server filtered.

    Raises:
        Unreadable: There is no answer.
    """
    choice = _choice(payload)
    message = choice.get("message")
    if not isinstance(message, dict):
        raise Unreadable(f"a choice without a message: {_shown(choice)}")
    text = _text(message.get("content"))
    if text is None:
        text = _text(message.get("refusal"))  # filters know a refusal by its words
    tokens, prompt_tokens = _count(payload, "completion_tokens"), _count(payload, "prompt_tokens")
    reason = choice.get("finish_reason")
    how = str(reason or "").lower()
    if how in _FAILED:
        raise Unreadable(f"the answer was broken off: {how}")
    if how in _FILTERED or (how in _CALLS and not text):
        return DataError(f"{name}: the server gave up on it: {reason}")
    length = how in _CUT or (how not in _ENDED and 0 < max_tokens <= tokens)
    return Generation(_unwrapped(text or "", wrapped).strip(), tokens, prompt_tokens, "length" if length else "stop")


def _choice(payload: dict[str, Any]) -> dict[str, Any]:
    choices = payload.get("choices")
    if not isinstance(choices, list) or not choices or not all(isinstance(choice, dict) for choice in choices):
        raise Unreadable(f"a chat completion without choices: {_shown(payload)}")
    return next((choice for choice in choices if choice.get("index") == 0), choices[0])


def _text(content: Any) -> str | None:
    """The text of a message's content: a string, or a list of parts as some servers send it."""
    if content is None or isinstance(content, str):
        return content
    if isinstance(content, dict):
        content = [content]
    if not isinstance(content, list):
        raise Unreadable(f"expected text, found {_shown(content)}")
    parts = [part.get("text") if isinstance(part, dict) else part for part in content]
    return "".join(part for part in parts if isinstance(part, str))


def _count(payload: dict[str, Any], name: str) -> int:
    usage = payload.get("usage")
    count = usage.get(name) if isinstance(usage, dict) else None
    return int(count) if isinstance(count, int | float) and 0 <= count < 2**53 else 0


def _unwrapped(text: str, wrapped: bool) -> str:
    """The value inside its wrapper object, complete or cut off. Other text is returned unchanged."""
    if not wrapped:
        return text
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return _WRAPPER.sub("", text)
    return (
        json.dumps(value[WRAPPED], ensure_ascii=False)
        if isinstance(value, dict) and value.keys() == {WRAPPED}
        else text
    )


def _shown(what: Any) -> str:
    """The beginning of a body or a JSON value on one line, for messages."""
    if isinstance(what, bytes):
        text = what[:600].decode(errors="replace")
    else:
        try:
            text = json.dumps(what, ensure_ascii=False)
        except (ValueError, RecursionError):
            text = "..."
    return " ".join(text.split())[:300] or "nothing"
