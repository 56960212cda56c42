"""Sends a request until it is answered, or until it is clear which is to blame: the request or the server.

Everything here runs in the thread of one event loop. `openai_http.py` sends a single request; `traffic.py` limits how
many are sent at once.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
from typing import get_args

from ccr_dist.errors import DataError, EngineError
from ccr_dist.generate.engines.generator import Answer
from ccr_dist.generate.engines.openai_http import Fault, RequestRefused, Server
from ccr_dist.generate.engines.openai_messages import ChatItem, ChatRenderer, control_body, first_question
from ccr_dist.generate.engines.openai_options import Omitted, OpenAiOptions
from ccr_dist.generate.engines.traffic import Traffic

_SILENT_S = 5.0  # seconds without any answer until the first message
_SAID_EVERY_S = 30.0


class OpenAiClient:
    """Sends requests, repeatedly if that may help; see `OpenAi` for the rules.

    Args:
        server: The server.
        options: The engine's options.
    """

    def __init__(self, server: Server, options: OpenAiOptions) -> None:
        self._server, self._options = server, options
        self._traffic = Traffic(options.concurrency, options.backoff_s)
        self._failing_since: float | None = None  # since when requests have failed and none was answered
        self._said_at = 0.0
        self._late: list[tuple[int, float]] = []  # the last two requests that timed out, and when

    async def close(self) -> None:
        """Close the connections."""
        await self._server.close()

    async def greet(self) -> None:
        """Ask the server for its models.

        Raises:
            EngineError: The server does not answer, or does not have this model.
        """
        server, options = self._server, self._options
        for attempt in range(options.retries + 1):
            try:
                if options.check_model and (names := await server.models()) and options.model not in names:
                    raise EngineError(
                        f"engine 'openai': {server.where} has no model {options.model!r}; it has:"
                        f" {', '.join(names[:20])}. If it knows more than it lists, give check_model=false"
                    )
                return
            except RequestRefused as e:
                await self._ask_first_question(str(e))
                return
            except Fault as e:
                fault = e
            if attempt < options.retries:
                self._traffic.setback(asyncio.get_running_loop().time(), jam=False)
                await self._pause(fault)
        raise EngineError(
            f"engine 'openai': {server.where} does not answer ({fault}); is the server up, and is it base_url?"
        )

    async def _ask_first_question(self, why: str) -> None:
        """Test a server that does not list its models by a first question."""
        answer = await self.ask(-1, ChatRenderer(self._options)(first_question()))
        if isinstance(answer, DataError):
            raise EngineError(
                f"engine 'openai': {self._server.where} does not list its models ({why}), and to a first question it"
                f" says: {answer}"
            )

    async def ask(self, number: int, item: ChatItem) -> Answer:
        """Send a request until it is answered.

        Args:
            number: Requests with lower numbers are sent first.
            item: The request.

        Returns:
            The answer; a DataError if the request is to blame.

        Raises:
            EngineError: The server refuses all requests of this form, or has answered none for `patience_s`.
        """
        options, tries, blamed, began = self._options, 0, 0, 0.0
        # Whether small requests failed as well. Then a coin decides whether the next failure is followed by small ones:
        # otherwise request and small ones could alternate in step with the broken replica of a server.
        unsure = False
        while True:
            late = tries > options.retries  # it has had its turns; others go first
            async with self._traffic.turn(late, number) as sent:
                began = began or sent
                try:
                    answer = await self._server.ask(item.body, item.id)
                    self._answered()
                    return answer
                except RequestRefused as e:
                    fault = await self._control(item)
                    if fault is None:
                        return DataError(f"{item.id}: the server refuses it ({e})")
                    if isinstance(fault, RequestRefused):
                        raise self._refuses_all(item, e, fault) from None
                except Fault as e:
                    fault = e
                tries += 1
                self._failed(fault, sent)
                if (not fault.no_room or late) and not (unsure and random.random() < 0.5):
                    weight = self._weight(number, began) if fault.late else 1
                    unsure = not await self._answers_others(item, blamed + weight)
                    blamed = 0 if unsure else blamed + weight
                    if blamed > options.retries:
                        return DataError(
                            f"{item.id}: the server failed on it {tries} times, but not on others: {fault}"
                        )
                    if unsure:
                        self._traffic.shrink(sent)
            if not fault.no_room:
                await self._pause(fault)

    async def _pause(self, fault: Fault) -> None:
        await asyncio.sleep(self._traffic.pause() if fault.wait_s is None else fault.wait_s)

    def _weight(self, number: int, began: float) -> int:
        """As how many failures a timeout counts.

        If other requests timed out as well, part of the server may hang, for example one of several replicas that small
        requests do not reach; then it counts as one.

        Args:
            number: The request.
            began: Loop time in seconds at which it was first sent.
        """
        others = [each for each in self._late if each[0] != number]
        self._late = [(number, asyncio.get_running_loop().time()), *others][:2]
        alone = all(other == number or when < began for other, when in self._late)
        return self._options.retries // 2 + 1 if alone else 1

    async def _answers_others(self, item: ChatItem, times: int) -> bool:
        """Whether `times` small requests are all answered.

        The caller sends more and more of them, since one of several replicas, which take turns, may be broken.
        """
        for _ in range(times):
            if await self._control(item) is not None:
                return False
        return True

    async def _control(self, item: ChatItem) -> RequestRefused | Fault | None:
        """Send a small request of the same form: None if it is answered, otherwise how it failed."""
        try:
            await self._server.ask(control_body(item.body), item.id)
        except (RequestRefused, Fault) as e:
            return e
        self._answered()
        return None

    def _answered(self) -> None:
        self._failing_since = None
        self._traffic.answered()

    def _failed(self, fault: Fault, sent: float) -> None:
        """Count a failure. Raises EngineError if no request has been answered for `patience_s`."""
        self._traffic.setback(sent, jam=fault.no_room, wait_s=fault.wait_s)
        now = time.monotonic()
        if self._failing_since is None:
            self._failing_since = now
        seconds, where = now - self._failing_since, f"engine 'openai': {self._server.where}"
        if seconds >= self._options.patience_s:
            raise EngineError(
                f"{where} is gone, or takes no more requests: nobody was answered for {seconds:.0f} s (patience_s"
                f" {self._options.patience_s:g}); at last: {fault}. Start the same command again when it is back: what"
                " was answered is kept"
            )
        if seconds > _SILENT_S and now - self._said_at > _SAID_EVERY_S:
            self._said_at = now
            print(
                f"{where} has answered nobody for {seconds:.0f} s ({fault}); it is asked again",
                file=sys.stderr,
                flush=True,
            )

    def _refuses_all(self, item: ChatItem, refused: RequestRefused, control: RequestRefused) -> EngineError:
        sent = item.body.keys() | item.body.get("extra_body", {}).keys()
        names = ", ".join(sorted(sent & set(get_args(Omitted))))
        return EngineError(
            f"engine 'openai': {self._server.where} refuses {item.id} ({refused}), and a small request of the same"
            f" form, too ({control}). See model, base_url and OPENAI_API_KEY; omit=NAME leaves out a parameter"
            f" that it does not take ({names})"
        )
