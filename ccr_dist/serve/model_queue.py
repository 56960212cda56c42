"""The one place where a server calls its models: one call at a time, and texts of several clients in one call.

Who comes waits for a bounded time in a bounded queue, and is refused (503) where it is full or the time is over.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from ccr_dist.serve.limits import Limits, Refused
from ccr_dist.serve.metrics import Metrics

Together = Callable[[Sequence[Any]], Sequence[Any]]  # values of several clients -> their answers


@dataclass
class _Job:
    group: Hashable | None  # jobs of one group are asked together; None: alone
    value: Any
    ask: Together
    answer: asyncio.Future[Any]


class ModelQueue:
    """Calls of the models of one server.

    Args:
        limits: `waiting`, `wait_s` and `batch` of them.
        metrics: what is measured of the calls.
    """

    def __init__(self, limits: Limits, metrics: Metrics) -> None:
        self._limits, self._metrics = limits, metrics
        self._jobs: deque[_Job] = deque()  # that wait
        self._asked: list[_Job] = []  # of the call that runs
        self._more = asyncio.Event()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins to answer; inside of the event loop."""
        self._task = asyncio.get_running_loop().create_task(self._work())

    async def stop(self) -> None:
        """Refuses whoever still waits, and waits for the call that runs."""
        if self._task:
            self._task.cancel()
        for job in [*self._asked, *self._jobs]:
            _refuse(job.answer, "the server stops")
        self._jobs.clear()
        await asyncio.to_thread(self._thread.shutdown)

    @property
    def working(self) -> bool:
        """Whether calls are answered."""
        return self._task is not None and not self._task.done()

    async def call(self, ask: Callable[[], Any]) -> Any:
        """What ask() returns, in the model's thread. Raises its errors; Refused where there is no turn for it."""
        return await self._submit(_Job(None, None, lambda values: [ask()], _future()))

    async def together(self, group: Hashable, value: Any, ask: Together) -> Any:
        """The answer to `value`, of one call for all that wait with the same `group`. A value that the model rejects
        does not harm the others: each is then asked alone.
        """
        return await self._submit(_Job(group, value, ask, _future()))

    async def _submit(self, job: _Job) -> Any:
        if len(self._jobs) >= self._limits.waiting:
            self._metrics.refused.inc()
            raise _overloaded()
        self._jobs.append(job)
        self._metrics.waiting.set(len(self._jobs))
        self._more.set()
        try:
            async with asyncio.timeout(self._limits.wait_s):
                return await job.answer
        except TimeoutError:
            self._metrics.refused.inc()
            raise _overloaded() from None

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            while not self._jobs:
                self._more.clear()
                await self._more.wait()
            self._asked = batch = self._next()
            self._metrics.waiting.set(len(self._jobs))
            if not batch:
                continue
            begun = time.perf_counter()
            answers = await loop.run_in_executor(self._thread, _ask, batch[0].ask, [job.value for job in batch])
            if len(batch) > 1 and any(isinstance(answer, Exception) for answer in answers):
                answers = [(await loop.run_in_executor(self._thread, _ask, job.ask, [job.value]))[0] for job in batch]
            self._metrics.model.observe(time.perf_counter() - begun)
            self._metrics.together.observe(len(batch))
            for job, answer in zip(batch, answers, strict=True):
                if job.answer.done():
                    continue
                if isinstance(answer, Exception):
                    job.answer.set_exception(answer)
                else:
                    job.answer.set_result(answer)

    def _next(self) -> list[_Job]:
        """The oldest job that somebody still waits for, and those of its group."""
        self._jobs = deque(job for job in self._jobs if not job.answer.done())
        if not self._jobs:
            return []
        first = self._jobs.popleft()
        if first.group is None:
            return [first]
        others = [job for job in self._jobs if job.group == first.group][: self._limits.batch - 1]
        for job in others:
            self._jobs.remove(job)
        return [first, *others]


def _ask(ask: Together, values: list[Any]) -> list[Any]:
    """The answers; where the call fails, its error in place of each."""
    try:
        answers = list(ask(values))
    except Exception as error:
        return [error] * len(values)
    if len(answers) != len(values):
        return [RuntimeError(f"{len(answers)} answers to {len(values)} values")] * len(values)
    return answers


def _future() -> asyncio.Future[Any]:
    return asyncio.get_running_loop().create_future()


def _refuse(answer: asyncio.Future[Any], why: str) -> None:
    if not answer.done():
        answer.set_exception(Refused(503, why))


def _overloaded() -> Refused:
    return Refused(503, "too many requests wait for the model; try again in a moment", {"retry-after": "2"})
