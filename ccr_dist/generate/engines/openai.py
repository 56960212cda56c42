"""Any server with an OpenAI-compatible chat API (`vllm serve` and others).

Requests run in one thread's event loop, as many at once as the server can bear (`traffic.py`). What a single one comes
to is told in `openai_http.py`, what an answer says in `completion.py`. Nothing that is the server's fault becomes an
item's: a request is sent again for as long as anybody gets answers.
"""

from __future__ import annotations

import asyncio
import base64
import io
import queue
import random
import sys
import threading
import time
from collections.abc import Coroutine
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from ccr_dist.errors import DataError, EngineError
from ccr_dist.generate.engines import base
from ccr_dist.generate.engines.chat import shrunk
from ccr_dist.generate.engines.generator import Answer, Generator, Request, generators, request_seed
from ccr_dist.generate.engines.openai_http import Fault, Refused, Server
from ccr_dist.generate.engines.openai_options import Omitted, OpenAiOptions
from ccr_dist.generate.engines.traffic import Traffic

_NAME = "openai"
_MOMENT_S = 1.0  # how long `advance` waits at most: the caller has other things to do, too
_SAID_EVERY_S = 30.0


@dataclass(frozen=True)
class Item:
    body: dict[str, Any]
    id: str


@dataclass(frozen=True)
class Render:
    options: OpenAiOptions

    def __call__(self, request: Request) -> Item:
        options = self.options
        content: list[dict[str, Any]] = [
            _image(_data_url(image, "png")) for image in shrunk(request.images, options.max_pixels)
        ]
        frames = shrunk(request.frames, options.max_pixels)
        if options.video and frames:
            content.append(_video(_base64(frame, "jpeg") for frame in frames))
        else:
            content += [_image(_data_url(frame, "png")) for frame in frames]
        system = [{"role": "system", "content": request.system}] if request.system else []
        asked = [*content, {"type": "text", "text": request.text}] if content else request.text
        body: dict[str, Any] = {
            "model": options.model,
            "messages": [*system, {"role": "user", "content": asked}],
            "max_tokens": request.max_tokens,
            "temperature": options.temperature,
        }
        if options.temperature:
            body |= {"top_p": options.top_p, "seed": request_seed(options.seed, request.id)}
        if options.stop:
            body["stop"] = list(options.stop)
        if request.schema:
            schema = {"name": "answer", "schema": request.schema, "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        further: dict[str, Any] = {"top_k": options.top_k} if options.temperature and options.top_k else {}
        if options.repetition_penalty != 1:
            further["repetition_penalty"] = options.repetition_penalty
        if options.chat_template_kwargs:
            further["chat_template_kwargs"] = options.chat_template_kwargs
        body, further = ({key: part[key] for key in part if key not in options.omit} for part in (body, further))
        if further:  # not in OpenAI's own API, but in vLLM's
            body["extra_body"] = further
        return Item(body, request.id)


def _image(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def _video(jpegs: Any) -> dict[str, Any]:
    """A list of JPEGs is how vLLM's server takes frames without a container."""
    return {"type": "video_url", "video_url": {"url": f"data:video/jpeg;base64,{','.join(jpegs)}"}}


def _data_url(image: Any, kind: str) -> str:
    return f"data:image/{kind};base64,{_base64(image, kind)}"


def _base64(image: Any, kind: str) -> str:
    data = io.BytesIO()
    image.save(data, kind, compress_level=1, quality=95)  # each format takes its own
    return base64.b64encode(data.getvalue()).decode()


def _small(body: dict[str, Any]) -> dict[str, Any]:
    """A request that any server answers that takes requests of this form: the same settings, as many media, nothing to
    do.
    """
    from PIL import Image

    grey, asked = Image.new("RGB", (64, 64), "grey"), body["messages"][-1]["content"]
    content: Any = "Say yes."
    if not isinstance(asked, str):
        media = [part for part in asked if part["type"] != "text"]
        content = [
            _image(_data_url(grey, "png")) if part["type"] == "image_url" else _video([_base64(grey, "jpeg")])
            for part in media
        ]
        content.append({"type": "text", "text": "Say yes."})
    return {**body, "messages": [{"role": "user", "content": content}]}


@generators.register(_NAME)
class OpenAi(Generator):
    """What the server refuses for its content is an item error; what it refuses to everybody, or when it is gone, an
    EngineError.

    A request that the server has no room for waits for its turn again. One that fails in another way is followed by
    small ones of the same form: only when those are answered, `retries` + 1 times in a row, the fault is the item's.
    One that takes all of `timeout_s`, while no other request does, counts as half of these times, and is followed by as
    many more small ones: it would hold its shard up for long. When nobody is answered for `patience_s`, the server is
    gone.
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
        self._loop: asyncio.AbstractEventLoop | None = None

    def identity(self) -> dict[str, Any]:
        options = self._options
        revision = {"revision": options.revision} if options.revision else {}
        return {"engine": _NAME, "model": options.model, **revision, "sampling": options.sampling()}

    def versions(self) -> dict[str, str]:
        return {"openai": self._library.__version__}

    def load(self) -> None:
        """Asks the server for its models. EngineError when it does not answer or does not have this one, ConfigError
        for its address.
        """
        self._server = Server(self._library, self._options)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=_NAME, daemon=True)
        self._thread.start()
        self._done: queue.SimpleQueue[tuple[int, Future[Answer]]] = queue.SimpleQueue()
        self._flying = 0
        self._failed: BaseException | None = None
        self._fruitless: float | None = None  # since when requests fail and none is answered
        self._said_at = 0.0
        self._late: list[tuple[int, float]] = []  # the last two requests that took all of their time, and when that was
        self._traffic = Traffic(self._options.concurrency, self._options.backoff_s)
        self._run(self._greet()).result()

    def close(self) -> None:
        if (loop := self._loop) is None:
            return
        self._loop = None
        self._done = queue.SimpleQueue()  # what ends from now on is nobody's

        async def end() -> None:
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
            await self._server.close()

        try:
            asyncio.run_coroutine_threadsafe(end(), loop).result(10)
        except TimeoutError:  # a daemon thread: it ends with the process
            return
        loop.call_soon_threadsafe(loop.stop)
        self._thread.join()
        loop.close()

    def renderer(self) -> Render:
        return Render(self._options)

    def _run(self, work: Coroutine[Any, Any, Any]) -> Future[Any]:
        assert self._loop is not None
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def start(self, number: int, item: Item) -> None:
        self._flying += 1
        done = self._done
        self._run(self._ask(number, item)).add_done_callback(lambda future: done.put((number, future)))

    def advance(self) -> list[tuple[int, Answer]]:
        """What was answered before the server was found to be gone comes back first."""
        done: list[tuple[int, Answer]] = []
        try:
            while self._flying and self._failed is None:
                number, future = self._done.get(timeout=0 if done else _MOMENT_S)
                self._flying -= 1
                self._failed = future.exception()
                if self._failed is None:
                    done.append((number, future.result()))
        except queue.Empty:
            return done
        if self._failed is not None and not done:
            raise self._failed
        return done

    # -- in the thread of the event loop

    async def _greet(self) -> None:
        server, options = self._server, self._options
        for attempt in range(options.retries + 1):
            try:
                if options.check_model and (names := await server.models()) and options.model not in names:
                    raise EngineError(
                        f"engine 'openai': {server.where} has no model {options.model!r}; it has:"
                        f" {', '.join(names[:20])}. If it knows more than it lists, give --set check_model=false"
                    )
                return
            except Refused as e:
                await self._try_out(str(e))
                return
            except Fault as e:
                fault = e
            if attempt < options.retries:
                self._traffic.setback(asyncio.get_running_loop().time(), jam=False)
                await asyncio.sleep(fault.wait_s if fault.wait_s is not None else self._traffic.pause())
        raise EngineError(
            f"engine 'openai': {server.where} does not answer ({fault}); is the server up, and is it base_url?"
        )

    async def _try_out(self, why: str) -> None:
        """A first question to a server that does not tell its models."""
        item = Render(self._options)(Request("first", "Say yes.", max_tokens=16))
        answer = await self._ask(-1, item)
        if isinstance(answer, DataError):
            raise EngineError(
                f"engine 'openai': {self._server.where} does not tell its models ({why}), and of a first question:"
                f" {answer}"
            )

    async def _ask(self, number: int, item: Item) -> Answer:
        options, tries, blamed, began = self._options, 0, 0, 0.0
        # others were not answered either; a coin then keeps item and control from taking turns with a broken replica
        unsure = False
        while True:
            late = tries > options.retries  # it had its turns before those that came later
            async with self._traffic.turn(late, number) as sent:
                began = began or sent
                try:
                    answer = await self._server.ask(item.body, item.id)
                    self._answered()
                    return answer
                except Refused as e:
                    fault = await self._control(item)
                    if fault is None:
                        return DataError(f"{item.id}: the server refuses it ({e})")
                    if isinstance(fault, Refused):
                        raise self._refuses_all(item, e, fault) from None
                except Fault as e:
                    fault = e
                tries += 1
                self._failing(fault, sent)
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
                await asyncio.sleep(fault.wait_s if fault.wait_s is not None else self._traffic.pause())

    def _weight(self, number: int, began: float) -> int:
        """How many failures it counts as that request `number`, which was first sent at `began`, took all of its time.

        Where others did so, too, part of the server may hang: of several replicas one, that small requests are not sent
        to.
        """
        self._late = [(number, asyncio.get_running_loop().time()), *(each for each in self._late if each[0] != number)][
            :2
        ]
        alone = all(other == number or when < began for other, when in self._late)
        return self._options.retries // 2 + 1 if alone else 1

    async def _answers_others(self, item: Item, times: int) -> bool:
        """More and more of them, for there may be several replicas, one of them broken, that take turns."""
        for _ in range(times):
            if await self._control(item) is not None:
                return False
        return True

    async def _control(self, item: Item) -> Refused | Fault | None:
        """None when a small request of the same form is answered now."""
        try:
            await self._server.ask(_small(item.body), item.id)
        except (Refused, Fault) as e:
            return e
        self._answered()
        return None

    def _answered(self) -> None:
        self._fruitless = None
        self._traffic.answered()

    def _failing(self, fault: Fault, sent: float) -> None:
        """EngineError when nobody has been answered for too long."""
        self._traffic.setback(sent, jam=fault.no_room, wait_s=fault.wait_s)
        now = time.monotonic()
        if self._fruitless is None:
            self._fruitless = now
        seconds, where = now - self._fruitless, f"engine 'openai': {self._server.where}"
        if seconds >= self._options.patience_s:
            raise EngineError(
                f"{where} is gone, or takes no more requests: nobody was answered for {seconds:.0f} s (patience_s"
                f" {self._options.patience_s:g}); at last: {fault}. Start the same command again when it is back: what"
                " was answered is kept"
            )
        if seconds > 5 and now - self._said_at > _SAID_EVERY_S:
            self._said_at = now
            print(
                f"{where} has answered nobody for {seconds:.0f} s ({fault}); it is asked again",
                file=sys.stderr,
                flush=True,
            )

    def _refuses_all(self, item: Item, refused: Refused, control: Refused) -> EngineError:
        sent = sorted((item.body.keys() | item.body.get("extra_body", {}).keys()) & set(Omitted.__args__))  # type: ignore[attr-defined]
        return EngineError(
            f"engine 'openai': {self._server.where} refuses {item.id} ({refused}) and a small request of the same form,"
            f" too ({control}). See model, base_url and OPENAI_API_KEY; a parameter that it does not take is left out"
            f" by --set omit=NAME ({', '.join(sent)})"
        )
