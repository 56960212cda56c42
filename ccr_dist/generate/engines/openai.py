"""Servers with an OpenAI-compatible chat API (`vllm serve` and others).

Requests run in the event loop of one thread, as many at once as the server can take (`traffic.py`). A fault of the
server is never blamed on an item: a request is sent again as long as others are answered (`openai_client.py`).
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any

from ccr_dist.generate.engines import base
from ccr_dist.generate.engines.generator import Answer, Generator, generators
from ccr_dist.generate.engines.openai_client import OpenAiClient
from ccr_dist.generate.engines.openai_http import Server
from ccr_dist.generate.engines.openai_messages import ChatItem, ChatRenderer
from ccr_dist.generate.engines.openai_options import OpenAiOptions

_NAME = "openai"
_MOMENT_S = 1.0  # longest wait of `advance`, since the caller has other work, too
_CLOSE_S = 10.0


class _Session:
    """A client in an event loop of its own thread, and its requests in flight."""

    def __init__(self, client: OpenAiClient) -> None:
        self._client = client
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=_NAME, daemon=True)
        self._thread.start()
        self._done: queue.SimpleQueue[tuple[int, Future[Answer]]] = queue.SimpleQueue()
        self._in_flight = 0
        self._failed: BaseException | None = None

    def _run(self, work: Coroutine[Any, Any, Any]) -> Future[Any]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def greet(self) -> None:
        """As `OpenAiClient.greet`, from another thread."""
        self._run(self._client.greet()).result()

    def ask(self, number: int, item: ChatItem) -> None:
        """Send a request; `answered` returns its answer."""
        self._in_flight += 1
        self._run(self._client.ask(number, item)).add_done_callback(lambda future: self._done.put((number, future)))

    def answered(self) -> list[tuple[int, Answer]]:
        """New answers, after at most _MOMENT_S seconds. Raises the client's error once all answers before it are
        returned.
        """
        done: list[tuple[int, Answer]] = []
        try:
            while self._in_flight and self._failed is None:
                number, future = self._done.get(timeout=0 if done else _MOMENT_S)
                self._in_flight -= 1
                self._failed = future.exception()
                if self._failed is None:
                    done.append((number, future.result()))
        except queue.Empty:
            return done
        if self._failed is not None and not done:
            raise self._failed
        return done

    def close(self) -> None:
        """Cancel all requests and end the thread."""
        try:
            self._run(self._end()).result(_CLOSE_S)
        except TimeoutError:  # a daemon thread: it ends with the process
            return
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _end(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._client.close()


@generators.register(_NAME)
class OpenAi(Generator):
    """Sends requests to a server and tells bad items from a bad server.

    A request that is refused for its content is a bad item. If all requests are refused, or the server is gone, that is
    an EngineError.

    A request that an overloaded server rejects waits for its turn again. After any other failure, small requests of the
    same form follow; only if these are answered `retries` + 1 times in a row, the item is to blame. A request that
    alone takes all of `timeout_s` counts as half of these times, and is followed by as many small ones, since it would
    otherwise hold up its shard for long. If no request is answered for `patience_s`, the server is gone.
    """

    Options = OpenAiOptions
    bounded = True
    packages = ("openai",)
    local = False

    def __init__(self, options: OpenAiOptions) -> None:
        self._options = options
        with base.needs(_NAME, "pip install openai (or the extra: pip install 'ccr-dist[openai]')"):
            import openai
        self._library = openai
        self.in_flight = options.concurrency
        self._session: _Session | None = None

    def identity(self) -> dict[str, Any]:
        options = self._options
        revision = {"revision": options.revision} if options.revision else {}
        return {"engine": _NAME, "model": options.model, **revision, "sampling": options.sampling()}

    def versions(self) -> dict[str, str]:
        return {"openai": self._library.__version__}

    def load(self) -> None:
        """Ask the server for its models.

        Raises:
            ConfigError: The address or the key is malformed.
            EngineError: The server does not answer, or does not have this model.
        """
        self._session = _Session(OpenAiClient(Server(self._library, self._options), self._options))
        self._session.greet()

    def close(self) -> None:
        if self._session is not None:
            session, self._session = self._session, None
            session.close()

    def renderer(self) -> ChatRenderer:
        return ChatRenderer(self._options)

    def start(self, number: int, item: ChatItem) -> None:
        assert self._session is not None
        self._session.ask(number, item)

    def advance(self) -> list[tuple[int, Answer]]:
        assert self._session is not None
        return self._session.answered()
