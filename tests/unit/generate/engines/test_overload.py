"""The engine `openai` against servers without room: refusals, replicas, outages, waits."""

from __future__ import annotations

import threading
import time
from email.utils import formatdate
from typing import Any

import pytest

from tests.chat_server import Odd, serving

pytest.importorskip("openai")

from ccr_dist.errors import DataError, EngineError
from ccr_dist.generate.engines.generator import Request, make_generator
from ccr_dist.generate.engines.traffic import retry_after
from tests.asking import ERROR, QUICK, asked, fine, said


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
