"""Any server with an OpenAI-compatible chat API (`vllm serve` and others), with bounded concurrency, retries and back-off."""

from __future__ import annotations

import base64
import io
import json
import os
import queue
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from ccr_dist.errors import DataError, EngineError
from ccr_dist.generate.engines import base
from ccr_dist.generate.engines.chat import shrunk
from ccr_dist.generate.engines.generator import Answer, Generation, Generator, GeneratorOptions, Request, generators, request_seed

_NAME = "openai"
_REFUSES_ITEM = (400, 413, 422)
_REFUSES_ALL = (401, 403, 404)
_LONGEST_WAIT_S = 60.0
_MOMENT_S = 1.0  # how long `advance` waits at most: the caller has other things to do, too


class OpenAiOptions(GeneratorOptions):
    base_url: str | None = Field(None, description="e.g. http://node7:8000/v1; default: the environment's OPENAI_BASE_URL")
    concurrency: int = Field(64, ge=1, description="requests at once")
    timeout_s: float = Field(300, gt=0, description="seconds a request may take")
    retries: int = Field(5, ge=0, description="times a request is sent again after 429, 5xx, a timeout or a broken connection")
    backoff_s: float = Field(1, gt=0, description="seconds before the first retry; doubled before each next one, unless the server says")


@dataclass(frozen=True)
class Item:
    body: dict[str, Any]
    id: str


@dataclass(frozen=True)
class Render:
    options: OpenAiOptions

    def __call__(self, request: Request) -> Item:
        options = self.options
        content: list[dict[str, Any]] = [_image(_data_url(image, "png")) for image in shrunk(request.images, options.max_pixels)]
        frames = shrunk(request.frames, options.max_pixels)
        if options.video and frames:  # a list of JPEGs is how vLLM's server takes frames without a container
            jpegs = ",".join(_base64(frame, "jpeg") for frame in frames)
            content.append({"type": "video_url", "video_url": {"url": f"data:video/jpeg;base64,{jpegs}"}})
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
        if further:  # not in OpenAI's own API, but in vLLM's
            body["extra_body"] = further
        return Item(body, request.id)


def _image(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def _data_url(image: Any, kind: str) -> str:
    return f"data:image/{kind};base64,{_base64(image, kind)}"


def _base64(image: Any, kind: str) -> str:
    data = io.BytesIO()
    image.save(data, kind, compress_level=1, quality=95)  # each format takes its own
    return base64.b64encode(data.getvalue()).decode()


@generators.register(_NAME)
class OpenAi(Generator):
    """Requests in threads. What the server refuses for its content is an item error; what it refuses to everybody is an EngineError.

    A request that failed after all retries is an item error when another one was answered meanwhile, or when a tiny one is answered now:
    then the fault is the item's. Otherwise the server is gone.
    """

    Options = OpenAiOptions

    def __init__(self, options: OpenAiOptions) -> None:
        self._options = options
        with base.needs(_NAME, "pip install openai (or the extra: pip install 'ccr-dist[openai]')"):
            import openai
        self._library = openai
        self.in_flight = options.concurrency
        self._client: Any = None

    def identity(self) -> dict[str, Any]:
        options = self._options
        revision = {"revision": options.revision} if options.revision else {}
        return {"engine": _NAME, "model": options.model, **revision, "sampling": options.sampling()}

    def versions(self) -> dict[str, str]:
        return {"openai": self._library.__version__}

    def load(self) -> None:
        """Asks the server for its models. EngineError when it does not answer or does not have this one."""
        options = self._options
        key = os.environ.get("OPENAI_API_KEY", "none")  # servers of one's own want none
        self._client = self._library.OpenAI(base_url=options.base_url, api_key=key, timeout=options.timeout_s, max_retries=0)
        self._where = str(self._client.base_url)
        self._answered = 0.0
        self._pool = ThreadPoolExecutor(options.concurrency, "openai")
        self._done: queue.SimpleQueue[tuple[int, Future[Answer]]] = queue.SimpleQueue()
        self._flying = 0
        self._closed = threading.Event()
        try:
            names = [model.id for model in self._persist(self._client.models.list, self._closed).data]
        except self._library.OpenAIError as e:
            raise EngineError(f"engine 'openai': {self._where} does not answer ({_said(e)}); is the server up, and is it base_url?") from e
        if names and options.model not in names:
            raise EngineError(f"engine 'openai': {self._where} has no model {options.model!r}; it has: {', '.join(names[:20])}")

    def close(self) -> None:
        if self._client is not None:
            self._closed.set()
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._client.close()
            self._client = None

    def renderer(self) -> Render:
        return Render(self._options)

    def start(self, number: int, item: Item) -> None:
        self._flying += 1
        done = self._done  # this load's: what ends after `close` is nobody's
        self._pool.submit(self._ask, item, self._client, self._closed).add_done_callback(lambda future: done.put((number, future)))

    def advance(self) -> list[tuple[int, Answer]]:
        if not self._flying:
            return []
        done: list[tuple[int, Answer]] = []
        try:
            number, future = self._done.get(timeout=_MOMENT_S)
            while True:
                self._flying -= 1
                done.append((number, future.result()))
                number, future = self._done.get_nowait()
        except queue.Empty:
            return done

    def _ask(self, item: Item, client: Any, closed: threading.Event) -> Answer:
        """In a thread of the pool."""
        began = time.monotonic()
        try:
            answer = self._persist(lambda: client.chat.completions.create(**item.body), closed)
        except self._library.APIStatusError as e:
            if e.status_code in _REFUSES_ITEM:
                self._answered = time.monotonic()
                return DataError(f"{item.id}: the server refuses it ({_said(e)})")
            return self._blame(item, began, client, e)
        except self._library.OpenAIError as e:
            return self._blame(item, began, client, e)
        self._answered = time.monotonic()
        return self._read(item, answer)

    def _persist(self, call: Any, closed: threading.Event) -> Any:
        """call(), again after what may pass. EngineError for what will not pass; OpenAIError when it did not pass or is the item's."""
        for attempt in range(self._options.retries + 1):
            try:
                return call()
            except self._library.APIStatusError as e:
                error: Exception = e
                if e.status_code in _REFUSES_ALL:
                    raise EngineError(f"engine 'openai': {self._where} answers {_said(e)}; see model, base_url and OPENAI_API_KEY") from e
                if e.status_code != 429 and e.status_code < 500:
                    raise
                asked = e.response.headers.get("retry-after", "")
            except self._library.APIConnectionError as e:  # timeouts included
                error, asked = e, ""
            pause = float(asked) if asked.isdecimal() else self._options.backoff_s * 2**attempt
            if attempt < self._options.retries and closed.wait(min(pause, _LONGEST_WAIT_S)):
                raise EngineError("engine 'openai' was closed")
        raise error

    def _blame(self, item: Item, began: float, client: Any, error: Exception) -> DataError:
        """The item's error, if the server answers others; else EngineError."""
        tries = self._options.retries + 1
        if self._answered <= began:
            control = {"model": self._options.model, "messages": [{"role": "user", "content": "Say yes."}], "max_tokens": 1}
            try:
                client.chat.completions.create(**control)
            except self._library.OpenAIError as e:
                raise EngineError(
                    f"engine 'openai': {self._where} is gone: {item.id} failed {tries} times ({_said(error)}), and a small request, too "
                    f"({_said(e)})"
                ) from e
        return DataError(f"{item.id}: the server failed on it {tries} times, but not on others: {_said(error)}")

    def _read(self, item: Item, answer: Any) -> Answer:
        try:
            choice, usage = answer.choices[0], answer.usage
            text, finish = choice.message.content or "", choice.finish_reason
            counts = int(usage.completion_tokens), int(usage.prompt_tokens)
        except (AttributeError, IndexError, TypeError) as e:
            shown = json.dumps(answer.model_dump(mode="json"))[:300] if hasattr(answer, "model_dump") else str(answer)[:300]
            raise EngineError(f"engine 'openai': {self._where} answers nonsense ({e}): {shown}") from e
        if finish not in ("stop", "length"):
            return DataError(f"{item.id}: the server gave up on it: {finish}")
        return Generation(text.strip(), *counts, finish)


def _said(error: Exception) -> str:
    status = getattr(error, "status_code", "")
    return f"{status} {type(error).__name__}: {str(error)[:300]}".strip()
