"""Calls of models: one at a time, texts of several clients together, and a bounded time of waiting."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from ccr_dist.errors import DataError
from ccr_dist.serve.limits import Limits, Refused
from ccr_dist.serve.metrics import Metrics
from ccr_dist.serve.model_queue import ModelQueue


def running(work: Callable[[ModelQueue], Awaitable[Any]], **limits: Any) -> Any:
    async def whole() -> Any:
        queue = ModelQueue(Limits(**limits), Metrics())
        queue.start()
        try:
            return await work(queue)
        finally:
            await queue.stop()

    return asyncio.run(whole())


class Model:
    """Answers when it is let go, and remembers what it was asked together."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.go = threading.Event()
        self.inside = 0

    def __call__(self, texts: Sequence[str]) -> list[str]:
        self.inside += 1
        assert self.inside == 1, "two calls at a time"
        self.go.wait(30)
        self.calls.append(list(texts))
        self.inside -= 1
        if "bad" in texts:
            raise DataError("bad is no text")
        return [text.upper() for text in texts]


async def settled() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def test_texts_that_wait_are_asked_together_and_others_in_their_order() -> None:
    model = Model()

    async def work(queue: ModelQueue) -> list[Any]:
        asked = [asyncio.create_task(queue.together("en", "first", model))]
        await settled()  # it is being answered
        for group, text in (("en", "a"), ("pt", "b"), ("en", "c"), ("pt", "d"), ("en", "e"), ("en", "f")):
            asked.append(asyncio.create_task(queue.together(group, text, model)))
        await settled()
        model.go.set()
        return await asyncio.gather(*asked)

    assert running(work, batch=3) == ["FIRST", "A", "B", "C", "D", "E", "F"]
    assert model.calls == [["first"], ["a", "c", "e"], ["b", "d"], ["f"]]


def test_a_text_that_is_refused_harms_no_other() -> None:
    model = Model()

    async def work(queue: ModelQueue) -> list[Any]:
        asked = [asyncio.create_task(queue.together("en", text, model)) for text in ("one", "a", "bad", "b")]
        await settled()
        model.go.set()
        return await asyncio.gather(*asked, return_exceptions=True)

    one, a, bad, b = running(work)
    assert (one, a, b) == ("ONE", "A", "B") and isinstance(bad, DataError)


def test_more_than_may_wait_are_refused_at_once() -> None:
    model = Model()

    async def work(queue: ModelQueue) -> list[Any]:
        asked = [asyncio.create_task(queue.together(n, str(n), model)) for n in range(1)]
        await settled()
        asked += [asyncio.create_task(queue.together(n, str(n), model)) for n in range(1, 5)]
        await settled()
        model.go.set()
        return await asyncio.gather(*asked, return_exceptions=True)

    found = running(work, waiting=2)
    refused = [each for each in found if isinstance(each, Refused)]
    assert found[:3] == ["0", "1", "2"] and len(refused) == 2
    assert refused[0].status_code == 503 and refused[0].headers == {"retry-after": "2"}


def test_nobody_waits_for_ever_and_who_has_gone_is_not_asked_for() -> None:
    model = Model()

    async def work(queue: ModelQueue) -> Any:
        first = asyncio.create_task(queue.together("en", "first", model))
        await settled()
        with pytest.raises(Refused) as refused:
            await queue.together("en", "late", model)
        assert refused.value.status_code == 503
        model.go.set()
        with pytest.raises(Refused):  # its time was over, too
            await first
        return await queue.together("en", "last", model)

    assert running(work, wait_s=0.05) == "LAST"
    assert model.calls == [["first"], ["last"]]


def test_calls_of_other_kinds_take_their_turn() -> None:
    async def work(queue: ModelQueue) -> Any:
        with pytest.raises(ZeroDivisionError):
            await queue.call(lambda: 1 / 0)
        return await queue.call(threading.current_thread), await queue.call(threading.current_thread)

    one, other = running(work)
    assert one is other and one is not threading.main_thread()


def test_what_waits_when_the_server_stops_is_refused() -> None:
    model = Model()

    async def work() -> list[Any]:
        queue = ModelQueue(Limits(), Metrics())
        queue.start()
        asked = [asyncio.create_task(queue.together(n, str(n), model)) for n in range(3)]
        await settled()
        assert queue.working
        stop = asyncio.create_task(queue.stop())
        await settled()
        model.go.set()
        await stop
        assert not queue.working
        return await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), 10)

    found = asyncio.run(work())
    assert all(isinstance(each, Refused) and each.status_code == 503 for each in found)
