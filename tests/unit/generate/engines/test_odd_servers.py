"""The engine `openai` against servers, proxies and gateways of all manners, over real sockets: how answers end and what
passes.
"""

from __future__ import annotations

import json
import socket
import struct
import threading
from collections.abc import Callable
from typing import Any

import pytest

from tests.chat_server import Odd, completion

pytest.importorskip("openai")

from ccr_dist.errors import DataError, EngineError
from ccr_dist.generate.engines.generator import Generation
from tests.asking import ERROR, asked, fine, said


@pytest.mark.parametrize(
    ("finish", "tokens", "expected"),
    [
        *(
            (word, 3, "stop")
            for word in ("eos", "eos_token", "EOS", "end_turn", "stop_sequence", "complete", None, "", "who knows")
        ),
        *((word, 3, "length") for word in ("length", "MAX_TOKENS", "model_length")),
        *((word, 50, "length") for word in (None, "who knows")),  # all that were allowed
        ("eos_token", 50, "stop"),
    ],
)
def test_why_an_answer_ended(finish: str | None, tokens: int, expected: str) -> None:
    (answer,), _ = asked(lambda h, body, n: h.answer(completion("a", finish, usage={"completion_tokens": tokens})), "x")
    assert answer == Generation("a", tokens, 0, expected)


@pytest.mark.parametrize("finish", ["content_filter", "SAFETY", "refusal"])
def test_what_the_server_filtered_is_a_bad_item(finish: str) -> None:
    (answer,), server = asked(lambda h, body, n: h.answer(completion(None, finish)), "x")
    assert (
        isinstance(answer, DataError)
        and f"row0/v: the server gave up on it: {finish}" in str(answer)
        and len(server.posts) == 1
    )


USAGES: list[Any] = [
    {},
    {"usage": None},
    {"usage": {}},
    {"usage": {"completion_tokens": None, "prompt_tokens": "many"}},
    {"usage": 3},
]


@pytest.mark.parametrize("more", USAGES)
def test_token_counts_may_be_missing(more: dict[str, Any]) -> None:
    whole = {name: value for name, value in completion("a").items() if name != "usage"}
    (answer,), _ = asked(lambda h, body, n: h.answer(whole | more), "x")
    assert answer == Generation("a", 0, 0, "stop")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ([{"type": "text", "text": "a "}, {"type": "text", "text": "b"}], "a b"),
        ([{"type": "thinking", "thinking": "hm"}, "a", {"type": "text", "text": None}], "a"),
        ({"type": "text", "text": "a"}, "a"),
        (None, ""),
        ("\ufeff a\n", "\ufeff a"),
    ],
)
def test_content_as_parts_or_none(content: Any, expected: str) -> None:
    (answer,), _ = asked(lambda h, body, n: h.answer(completion(content)), "x")
    assert said(answer) == expected


def test_a_refusal_in_a_field_of_its_own_is_the_text() -> None:
    message = {"role": "assistant", "content": None, "refusal": "I'm sorry."}
    (answer,), _ = asked(lambda h, body, n: h.answer(completion(None) | {"choices": [{"message": message}]}), "x")
    assert said(answer) == "I'm sorry."


def test_of_several_choices_the_first_counts() -> None:
    second, first = ({**completion(text)["choices"][0], "index": index} for text, index in (("b", 1), ("a", 0)))
    (answer,), _ = asked(lambda h, body, n: h.answer(completion("") | {"choices": [second, first]}), "x")
    assert said(answer) == "a"


def test_an_answer_under_a_wrong_content_type_is_an_answer() -> None:
    (answer,), _ = asked(lambda h, body, n: h.answer(completion("a"), kind="text/plain"), "x")
    assert said(answer) == "a"


def _cut(handler: Odd) -> None:
    handler.answer(json.dumps(completion("a")).encode()[:-9])


def _short(handler: Odd) -> None:
    """Fewer bytes than announced, then the end of the connection."""
    handler.send_response(200)
    handler.send_header("Content-Length", "999")
    handler.end_headers()
    handler.wfile.write(b'{"id":')
    handler.close_connection = True


def _chunks(handler: Odd) -> None:
    """A chunked answer whose connection is reset in the middle."""
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    handler.wfile.write(b'6\r\n{"id":\r\n')
    handler.wfile.flush()
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()
    handler.close_connection = True


def _nothing(handler: Odd) -> None:
    handler.connection.close()
    handler.close_connection = True


def _garbage(handler: Odd) -> None:
    handler.wfile.write(b"\x16\x03\x01 no HTTP\r\n\r\n")
    handler.close_connection = True


def _bad_gzip(handler: Odd) -> None:
    handler.answer(b"no gzip", Content_Encoding="gzip")


PASSES: dict[str, Callable[[Odd], None]] = {
    **{
        str(status): lambda h, status=status: h.answer(ERROR, status)
        for status in (408, 409, 425, 429, 500, 502, 503, 504, 520, 529)
    },
    "html": lambda h: h.answer(b"<html>bad gateway</html>", kind="text/html"),
    "html as json": lambda h: h.answer(b"<html>bad gateway</html>"),
    "html 502": lambda h: h.answer(b"<html>bad gateway</html>", 502, kind="text/html"),
    "empty": lambda h: h.answer(b""),
    "no object": lambda h: h.answer([completion("a")]),
    "no utf-8": lambda h: h.answer(b'{"a": "\xff"}'),
    "deep": lambda h: h.answer(b'{"choices":' + b"[" * 100_000),
    "deep error": lambda h: h.answer(b"[" * 100_000, 500),
    "huge number": lambda h: h.answer(b'{"choices": ' + b"9" * 9999 + b"}"),
    "no choices": lambda h: h.answer(completion("") | {"choices": []}),
    "null choices": lambda h: h.answer(completion("") | {"choices": None}),
    "no message": lambda h: h.answer(completion("") | {"choices": [{"index": 0, "finish_reason": "stop"}]}),
    "number as content": lambda h: h.answer(completion(3)),
    "aborted": lambda h: h.answer(completion("half an ans", "abort")),
    "error with 200": lambda h: h.answer({"error": {"message": "overloaded", "code": 503}}),
    "error as text with 200": lambda h: h.answer({"error": "overloaded"}),
    "old vllm": lambda h: h.answer({"object": "error", "message": "engine busy", "code": 500}),
    "events": lambda h: h.answer(b"data: {}\n\ndata: [DONE]\n", kind="text/event-stream"),
    "cut": _cut,
    "short": _short,
    "chunks": _chunks,
    "nothing": _nothing,
    "garbage": _garbage,
    "bad gzip": _bad_gzip,
}


@pytest.mark.parametrize("name", PASSES)
def test_a_fault_on_the_way_is_asked_again(name: str) -> None:
    answers, server = asked(lambda h, body, n: PASSES[name](h) if n == 2 else fine(h), "a", "b", "c", concurrency=1)
    assert list(map(said, answers)) == ["A", "B", "C"]
    assert len([body for *_, body in server.posts if body["messages"][-1]["content"] == "b"]) == 2


@pytest.mark.parametrize(
    "name", ["429", "503", "500", "html", "deep", "deep error", "no choices", "events", "chunks", "nothing"]
)
def test_one_that_lasts_ends_the_job_with_a_sentence(name: str) -> None:
    with pytest.raises(
        EngineError, match=r"is gone, or takes no more requests: nobody was answered for .*what was answered is kept"
    ):
        asked(lambda h, body, n: PASSES[name](h), "a", "b", patience_s=0.05)


def test_a_body_that_drips_is_bounded_as_a_whole() -> None:
    ended = threading.Event()

    def drip(handler: Odd, body: dict[str, Any], number: int) -> None:
        if handler.text != "slow":
            return fine(handler)
        handler.send_response(200)
        handler.send_header("Content-Length", "100000")
        handler.end_headers()
        while not ended.wait(0.05):  # a byte now and then: no single wait is long
            handler.wfile.write(b" ")
            handler.wfile.flush()

    try:
        answers, _ = asked(drip, "slow", "b", timeout_s=2, retries=1)
    finally:
        ended.set()
    assert said(answers[1]) == "B"
    assert isinstance(answers[0], DataError) and "no whole answer within timeout_s 2" in str(answers[0])


def test_a_request_that_alone_hangs_is_given_up_after_two_times() -> None:
    ended = threading.Event()
    try:
        answers, server = asked(
            lambda h, body, n: ended.wait() if h.text == "poison" else fine(h),
            "a",
            "poison",
            "b",
            timeout_s=2,
            retries=5,
            concurrency=2,
        )
    finally:
        ended.set()
    assert list(map(said, answers[::2])) == ["A", "B"]
    assert isinstance(
        answers[1], DataError
    ) and "row1/v: the server failed on it 2 times, but not on others: no whole" in str(answers[1])
    contents = [body["messages"][-1]["content"] for *_, body in server.posts]
    assert contents.count("poison") == 2 and contents.count("Say yes.") >= 3 + 6


def test_requests_that_hang_together_are_not_blamed_like_one_alone() -> None:
    """As of a replica that hangs, which small requests happen not to be sent to."""
    ended, hung = threading.Event(), dict.fromkeys(("one", "two", "three"), 0)

    def behave(handler: Odd, body: dict[str, Any], number: int) -> None:
        if hung.get(handler.text, 9) < 2:
            hung[handler.text] += 1
            ended.wait()
        else:
            fine(handler)

    try:
        answers, _ = asked(behave, *hung, timeout_s=2, retries=5)
    finally:
        ended.set()
    assert list(map(said, answers)) == ["ONE", "TWO", "THREE"]
