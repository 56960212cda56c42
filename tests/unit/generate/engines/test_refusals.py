"""What servers refuse, of one item or of all; their addresses, keys and lists of models."""

from __future__ import annotations

import json
from typing import Any

import pytest
from PIL import Image

from tests.chat_server import Odd, completion, serving

pytest.importorskip("openai")

from ccr_dist.errors import ConfigError, DataError, EngineError
from ccr_dist.generate.engines.generator import Request, make_generator
from tests.asking import ERROR, QUICK, asked, fine, said


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
        EngineError, match=r"refuses row0/v \(.*temperature.*and a small request of the same form, too.*; omit=NAME"
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
