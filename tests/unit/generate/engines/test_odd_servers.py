"""The engine `openai` against servers, proxies and gateways of all manners, over real sockets: nothing is lost, nothing
is a traceback.
"""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from collections.abc import Callable
from email.utils import formatdate
from typing import Any

import pytest
from PIL import Image

from tests.chat_server import Odd, completion, lists_models, serving

pytest.importorskip("openai")

from ccr_dist.errors import ConfigError, DataError, EngineError
from ccr_dist.generate.engines.generator import Answer, Generation, Request, make_generator
from ccr_dist.generate.engines.traffic import retry_after

Behave = Callable[[Odd, dict[str, Any], int], None]
QUICK = {"backoff_s": 0.01, "retries": 2, "patience_s": 20, "timeout_s": 20}


def fine(handler: Odd) -> None:
    handler.answer(completion(handler.text.upper()))


def asked(
    behave: Behave, *texts: str | Request, models: Any = lists_models, suffix: str = "", **options: Any
) -> tuple[list[Answer], Any]:
    """(answers in the order of the texts, the server as it was left)."""
    with serving(behave, models) as server:
        engine = make_generator("openai", {"model": "toy", "base_url": server.url + suffix, **QUICK, **options})
        try:
            engine.load()
            render, found = engine.renderer(), dict[int, Answer]()
            for number, text in enumerate(texts):
                engine.start(
                    number,
                    render(text if isinstance(text, Request) else Request(f"row{number}/v", text, max_tokens=50)),
                )
            while len(found) < len(texts):
                found |= engine.advance()
        finally:
            engine.close()
    return [found[number] for number in range(len(texts))], server


def said(answer: Answer) -> str:
    assert isinstance(answer, Generation), answer
    return answer.text


# -- ends of answers, and what is left out


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
    assert answer == Generation("a", tokens, 0, expected)  # type: ignore[arg-type]


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


# -- what passes


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


ERROR = {"error": {"message": "try again"}}
PASSES: dict[str, Callable[[Odd], None]] = {
    **{
        str(status): lambda h, status=status: h.answer(ERROR, status)
        for status in (408, 409, 425, 429, 500, 502, 503, 504, 520, 529)
    },  # type: ignore[misc]
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


# -- overload


def test_a_storm_of_refusals_loses_nothing_and_shrinks_the_window() -> None:
    at_once, most, late = 0, 0, 0
    guard = threading.Lock()

    def crowded(handler: Odd, body: dict[str, Any], number: int) -> None:
        """At most three at once; all others are sent away."""
        nonlocal at_once, most, late
        with guard:
            at_once += 1
            most, crowd = max(most, at_once), at_once
            late += number > 60 and crowd > 3
        time.sleep(0.005)
        try:
            handler.answer(ERROR, 429) if crowd > 3 else fine(handler)
        finally:
            with guard:
                at_once -= 1

    texts = [f"text {i}" for i in range(150)]
    answers, server = asked(crowded, *texts, concurrency=32)
    assert [said(answer) for answer in answers] == [text.upper() for text in texts]
    assert most > 3 and len(server.posts) < 400, "it kept on sending as many at once"


@pytest.mark.parametrize("concurrency", [1, 8])
@pytest.mark.parametrize("replicas", [2, 3])
@pytest.mark.parametrize("status", [500, 503])
def test_one_replica_of_several_that_works_answers_everybody(status: int, replicas: int, concurrency: int) -> None:
    texts = [f"text {i}" for i in range(8)]

    def in_turn(handler: Odd, body: dict[str, Any], number: int) -> None:
        handler.answer(ERROR, status) if number % replicas else fine(handler)

    answers, _ = asked(in_turn, *texts, concurrency=concurrency, retries=4, backoff_s=0.001)
    assert [said(answer) for answer in answers] == [text.upper() for text in texts]


def test_an_outage_of_a_while_is_waited_for() -> None:
    answers, _ = asked(lambda h, body, n: h.answer(ERROR, 503) if n < 12 else fine(h), *"abcdef", concurrency=4)
    assert list(map(said, answers)) == list("ABCDEF")


@pytest.mark.parametrize("how", ["seconds", "date"])
def test_the_server_says_how_long_to_wait(how: str) -> None:
    times: list[float] = []

    def limited(handler: Odd, body: dict[str, Any], number: int) -> None:
        times.append(time.monotonic())
        if number > 1:
            return fine(handler)
        handler.answer(ERROR, 429, Retry_After="1" if how == "seconds" else formatdate(time.time() + 2, usegmt=True))

    answers, _ = asked(limited, "a", concurrency=1)
    assert said(answers[0]) == "A" and times[1] - times[0] >= 0.9


def test_waits_of_every_spelling() -> None:
    now, later = "Wed, 21 Oct 2026 07:28:00 GMT", "Wed, 21 Oct 2026 07:28:30 GMT"
    assert (
        retry_after(later, now) == 30
        and retry_after(now, later) == 0
        and retry_after("1.5") == 1.5
        and retry_after("-3") == 0
    )
    assert [retry_after(value) for value in (None, "", "soon", "nan", "inf", "Wed, 99 Oct 2026")] == [None] * 6


def test_a_wait_beyond_patience_is_a_sentence() -> None:
    with pytest.raises(EngineError, match=r"asks to wait 3600 s, longer than patience_s 20.*what was answered is kept"):
        asked(lambda h, body, n: h.answer(ERROR, 429, Retry_After="3600"), "a")


def test_an_item_that_alone_has_no_room_is_given_up_in_the_end() -> None:
    """As of a limit of tokens a minute that is smaller than the request."""
    answers, _ = asked(
        lambda h, body, n: h.answer(ERROR, 429) if h.text == "large" else fine(h), "a", "large", *"bcdef", concurrency=2
    )
    assert list(map(said, answers[:1] + answers[2:])) == list("ABCDEF")
    assert isinstance(
        answers[1], DataError
    ) and "row1/v: the server failed on it 6 times, but not on others: 429" in str(answers[1])


def test_what_was_answered_before_the_server_went_comes_back() -> None:
    with serving(lambda h, body, n: fine(h) if n <= 3 else h.answer(ERROR, 401)) as server:
        engine = make_generator("openai", {"model": "toy", "base_url": server.url, **QUICK, "concurrency": 1})
        engine.load()
        for number in range(6):
            engine.start(number, engine.renderer()(Request(str(number), "x")))
        found: list[Any] = []
        with pytest.raises(EngineError, match="401"):
            while True:
                time.sleep(0.1)  # answers and the error lie there together
                found += engine.advance()
        engine.close()
    assert sorted(number for number, _ in found) == [0, 1, 2]


# -- what is refused


def test_a_refusal_of_one_is_told_from_a_refusal_of_all() -> None:
    def picky(handler: Odd, body: dict[str, Any], number: int) -> None:
        handler.answer({"error": {"message": "no swearing"}}, 400) if handler.text == "damn" else fine(handler)

    answers, _ = asked(picky, "a", "damn")
    assert (
        said(answers[0]) == "A"
        and "row1/v: the server refuses it (400" in str(answers[1])
        and "no swearing" in str(answers[1])
    )
    with pytest.raises(
        EngineError, match=r"refuses row0/v \(.*temperature.*and a small request of the same form, too.*--set omit=NAME"
    ):
        asked(lambda h, body, n: h.answer({"error": {"message": "temperature 0 is not supported"}}, 400), "a")


@pytest.mark.parametrize("status", [401, 402])
def test_a_wrong_key_or_no_money_ends_the_job_at_once(status: int) -> None:
    with pytest.raises(EngineError, match=f"answers {status}"):
        asked(lambda h, body, n: h.answer(ERROR, status), "a", patience_s=1000)
    with pytest.raises(EngineError, match="insufficient_quota"):
        asked(
            lambda h, body, n: h.answer({"error": {"message": "pay", "code": "insufficient_quota"}}, 429),
            "a",
            patience_s=1000,
        )


def test_a_server_that_wants_max_completion_tokens() -> None:
    def newer(handler: Odd, body: dict[str, Any], number: int) -> None:
        if "max_tokens" in body:
            message = (
                "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens'"
                " instead."
            )
            return handler.answer({"error": {"message": message, "code": "unsupported_parameter"}}, 400)
        assert body["max_completion_tokens"] == 50
        fine(handler)

    answers, server = asked(newer, "a", "b", "c", concurrency=1)
    assert list(map(said, answers)) == ["A", "B", "C"] and len(server.posts) == 4  # it is found out once


def test_a_prompt_that_is_too_long_does_not_lift_the_limit_of_tokens() -> None:
    message = (
        "'max_tokens' or 'max_completion_tokens' is too large: 50. This model's maximum context length is 40 tokens"
    )

    def lax(handler: Odd, body: dict[str, Any], number: int) -> None:
        long = handler.text == "long" and "max_tokens" in body
        handler.answer({"error": {"message": message}}, 400) if long else fine(handler)

    answers, server = asked(lax, "long", "b")
    assert isinstance(answers[0], DataError) and all("max_tokens" in body for *_, body in server.posts)


LIST = {"type": "array", "items": {"type": "string"}}


@pytest.mark.parametrize(
    ("text", "finish", "expected"),
    [
        ('{"answer": ["a", "b"]}', "stop", '["a", "b"]'),
        ('{"answer": ["a", "b', "length", '["a", "b'),
        ("Prose.", "stop", "Prose."),
    ],
)
def test_a_server_whose_schemas_have_objects_at_their_root(text: str, finish: str, expected: str) -> None:
    def strict(handler: Odd, body: dict[str, Any], number: int) -> None:
        schema = body["response_format"]["json_schema"]["schema"] if "response_format" in body else {"type": "object"}
        if schema["type"] != "object":
            return handler.answer(
                {"error": {"message": "Invalid schema for response_format: must be an object, got array"}}, 400
            )
        assert "properties" not in schema or schema["properties"] == {"answer": LIST}
        handler.answer(completion(text if "properties" in schema else "plain", finish))

    answers, server = asked(strict, Request("a", "x", schema=LIST), Request("b", "y"), concurrency=1)
    assert list(map(said, answers)) == [expected, "plain"] and len(server.posts) == 3


def test_parameters_are_left_out_on_demand_and_the_identity_says_so() -> None:
    options = {"omit": "seed, temperature,response_format", "temperature": 1}
    _, server = asked(lambda h, body, n: fine(h), Request("a", "x", schema=LIST), **options)
    assert not {"seed", "temperature", "response_format"} & server.posts[0][2].keys() and "top_p" in server.posts[0][2]
    with_all, without = ({"model": "toy", **more} for more in ({}, {"omit": ["temperature"]}))
    assert "omit" not in make_generator("openai", with_all).identity()["sampling"]
    assert make_generator("openai", without).identity()["sampling"]["omit"] == ["temperature"]
    with pytest.raises(ConfigError, match="omit"):
        make_generator("openai", {"model": "toy", "omit": "messages"})


def test_what_the_chat_template_is_told_reaches_the_server() -> None:
    _, server = asked(lambda h, body, n: fine(h), "a", chat_template_kwargs={"enable_thinking": False})
    assert server.posts[0][2]["chat_template_kwargs"] == {"enable_thinking": False}


def test_a_control_has_as_many_media_as_its_item() -> None:
    def blind(handler: Odd, body: dict[str, Any], number: int) -> None:
        media = [] if isinstance(body["messages"][-1]["content"], str) else body["messages"][-1]["content"][:-1]
        handler.answer({"error": {"message": "at most 1 image"}}, 400) if len(media) > 1 else fine(handler)

    grey = Image.new("RGB", (200, 100))
    with pytest.raises(EngineError, match="at most 1 image"):
        asked(blind, Request("a", "x", images=(grey, grey)))
    with pytest.raises(EngineError, match="at most 1 image"):
        asked(lambda h, body, n: blind(h, body, n), Request("a", "x", frames=(grey, grey)))


# -- addresses


@pytest.mark.parametrize("status", [404, 405, 403, 400, 501])
def test_a_server_need_not_list_its_models(status: int) -> None:
    answers, server = asked(lambda h, body, n: fine(h), "a", models=lambda h: h.answer(ERROR, status))
    assert said(answers[0]) == "A" and len(server.posts) == 2
    with pytest.raises(EngineError, match=r"/v1/ refuses first .*404.*small request"):
        asked(lambda h, body, n: h.answer(ERROR, 404), "a", models=lambda h: h.answer(ERROR, status))


@pytest.mark.parametrize(
    "body", [b"<html>welcome</html>", b"{}", b'{"data": 3}', b'{"data": [1, {"id": "toy"}]}', b'{"data": []}']
)
def test_lists_of_models_that_are_none(body: bytes) -> None:
    answers, _ = asked(lambda h, b, n: fine(h), "a", models=lambda h: h.answer(body))
    assert said(answers[0]) == "A"


def test_a_model_that_is_not_listed_is_refused_unless_one_insists() -> None:
    with pytest.raises(EngineError, match=r"has no model 'other'; it has: toy.*check_model=false"):
        asked(lambda h, body, n: fine(h), "a", model="other")
    assert said(asked(lambda h, body, n: fine(h), "a", model="other", check_model=False)[0][0]) == "A"


@pytest.mark.parametrize("status", [301, 302, 303])
def test_a_redirect_that_drops_the_question_names_the_address(status: int) -> None:
    with pytest.raises(
        EngineError, match=r"sends requests on to http://127.0.0.1:\d+/v1/new; give the address behind it as base_url"
    ):
        asked(lambda h, body, n: h.answer(b"", status, Location="/v1/new"), "a")


def test_a_redirect_that_keeps_the_question_is_followed() -> None:
    def elsewhere(handler: Odd, body: dict[str, Any], number: int) -> None:
        fine(handler) if handler.path == "/v2" else handler.answer(b"", 307, Location="/v2")

    assert said(asked(elsewhere, "a")[0][0]) == "A"


def test_redirects_in_a_circle_end() -> None:
    with pytest.raises(EngineError, match="is gone, or takes no more"):
        asked(lambda h, body, n: h.answer(b"", 307, Location=h.path), "a", patience_s=0.05)


def test_secrets_of_the_address_reach_the_server_and_no_message() -> None:
    with serving(lambda h, body, n: h.answer({"error": {"message": "wrong: pa55word, qu3ry-key"}}, 401)) as server:
        url = server.url.replace("http://", "http://me:pa55word@") + "?api_key=qu3ry-key"
        engine = make_generator("openai", {"model": "toy", "base_url": url, **QUICK})
        engine.load()
        engine.start(0, engine.renderer()(Request("a", "x")))
        with pytest.raises(EngineError, match="401") as caught:
            while True:
                engine.advance()
        engine.close()
    path, headers, _ = server.posts[0]
    assert path == "/v1/chat/completions?api_key=qu3ry-key" and headers["Authorization"].startswith("Basic ")
    assert not any(secret in str(caught.value) for secret in ("pa55word", "qu3ry", "me:"))
    assert not any(secret in json.dumps(engine.identity()) for secret in ("pa55word", "qu3ry", "me:"))


def test_addresses_and_keys_that_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    for url in ("node7:8000/v1", "ftp://node7/v1", "http://", "node7"):
        with pytest.raises(ConfigError, match=r"base_url.*expected http://HOST:PORT/v1"):
            make_generator("openai", {"model": "toy", "base_url": url})
    for key in ("sk-1\nsk-2", "schlüssel"):
        monkeypatch.setenv("OPENAI_API_KEY", key)
        with pytest.raises(ConfigError, match="OPENAI_API_KEY: holds characters that no key has") as caught:
            asked(lambda h, body, n: fine(h), "a")
        assert "sk-" not in str(caught.value)
