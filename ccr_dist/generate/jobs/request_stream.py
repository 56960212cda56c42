"""Streams the requests of rows, several per row, through a generation engine that never runs empty; one value per row.

`describe.py` and `llm_translate.py` decide what to ask about a row, and what its answers mean.
"""

from __future__ import annotations

import itertools
import json
import os
import time
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from ccr_dist.errors import CcrError, DataError, EngineError
from ccr_dist.generate.engines.generator import Answer, Generation, Generator, Renderer
from ccr_dist.generate.processor import Feed, Processor, RowOutcome, Ticket

YIELD_S = 1.0  # longest wait of finished rows for the journal, so that one fsync serves many

Asker = Callable[[str, dict[str, Any]], "Asked | None"]


@dataclass(frozen=True)
class Asked:
    """The requests of a row.

    Attributes:
        requests: The requests, or the engine's rendered items.
        about: Whatever else the result depends on.
    """

    requests: tuple[Any, ...]
    about: Any = None


@dataclass(frozen=True)
class Ask:
    """The preparer: makes and renders a row's requests. Picklable if `asker` and `renderer` are."""

    asker: Asker
    renderer: Renderer

    def load(self) -> None:
        """Load what the renderer needs."""
        getattr(self.renderer, "load", lambda: None)()

    def __call__(self, key: str, values: dict[str, Any]) -> Asked | None:
        asked = self.asker(key, values)
        return None if asked is None else Asked(tuple(map(self.renderer, asked.requests)), asked.about)


@dataclass
class _Row:
    ticket: Ticket
    asked: Asked
    answers: dict[int, Answer] = field(default_factory=dict)


class Generate(Processor):
    """Base of jobs with a generation engine. Counters: `requests`, `tokens`, `prompt_tokens`, and those of `outcome`.

    Args:
        engine: The engine.
        requests_a_row: Number of requests per row.
    """

    def __init__(self, engine: Generator, requests_a_row: int = 1) -> None:
        self.engine = engine
        self.batch = max(4, engine.in_flight // requests_a_row)
        self.bounded = engine.bounded
        self._numbers = itertools.count()
        self._loaded = False

    @abstractmethod
    def asker(self) -> Asker:
        """A picklable function from key and input values to the row's requests; None for a null row. It runs ahead of
        the engine, in other processes.
        """

    @abstractmethod
    def outcome(self, about: Any, answers: list[Answer]) -> RowOutcome:
        """The result of a row.

        Args:
            about: `Asked.about`.
            answers: Answers in the order of the requests; a DataError for a request that failed. At least one
                succeeded, if there were any.
        """

    def provenance(self) -> dict[str, Any]:
        return dict(self.engine.versions())

    def load_key(self) -> str | None:
        return json.dumps(self.engine.identity(), sort_keys=True)

    def load(self) -> None:
        """Load the engine, once for all datasets."""
        if not self._loaded:
            self.engine.load()
            self._loaded = True

    def close(self) -> None:
        self._loaded = False
        self.engine.close()

    def preparer(self) -> Ask:
        return Ask(self.asker(), self.engine.renderer())

    def prepare(self, key: str, values: dict[str, Any]) -> Asked | None:
        return self.preparer()(key, values)

    def process(self, items: list[Any]) -> list[RowOutcome]:
        raise TypeError("requests are streamed: use stream()")

    def stream(self, feed: Feed, batch: int) -> Iterator[list[tuple[Ticket, RowOutcome]]]:
        """Keep `in_flight` requests in the engine, across rows and shards; yields when `batch` rows are done, or after
        YIELD_S seconds.
        """
        flying: dict[int, tuple[_Row, int]] = {}
        done: list[tuple[Ticket, RowOutcome]] = []
        ended, yielded = False, time.monotonic()
        try:
            while not (ended and not flying):
                while not ended and len(flying) < self.engine.in_flight and len(done) + len(feed.settled) < batch:
                    settled = len(feed.settled)
                    taken = feed.take(1, wait=not (flying or done))
                    ended = taken is None
                    if taken:
                        done += self._start(*taken[0], flying)
                    elif len(feed.settled) == settled:
                        break  # nothing is prepared now
                for number, answer in self.engine.advance() if flying else ():
                    row, place = flying.pop(number)
                    row.answers[place] = answer
                    if len(row.answers) == len(row.asked.requests):
                        done.append((row.ticket, self._outcome(row)))
                if len(done) + len(feed.settled) >= batch or not flying or time.monotonic() - yielded >= YIELD_S:
                    yield done
                    done, yielded = [], time.monotonic()
            if done:
                yield done
        except EngineError:
            yield done  # these answers may have cost money
            raise
        finally:
            if flying:  # stopped: these answers must not reach rows of the next dataset
                self.close()

    def _start(
        self, ticket: Ticket, asked: Asked, flying: dict[int, tuple[_Row, int]]
    ) -> list[tuple[Ticket, RowOutcome]]:
        row = _Row(ticket, asked)
        if not asked.requests:
            return [(ticket, self._outcome(row))]
        for place, item in enumerate(asked.requests):
            number = next(self._numbers)
            flying[number] = (row, place)
            self.engine.start(number, item)
        return []

    def _outcome(self, row: _Row) -> RowOutcome:
        answers = [row.answers[place] for place in range(len(row.asked.requests))]
        given = [answer for answer in answers if isinstance(answer, Generation)]
        if answers and not given:
            return RowOutcome(error=str(answers[0]))
        counts = Counter(
            requests=len(answers),
            tokens=sum(a.tokens for a in given),
            prompt_tokens=sum(a.prompt_tokens for a in given),
        )
        try:
            made = self.outcome(row.asked.about, answers)
        except DataError as e:
            return RowOutcome(error=str(e))
        except (CcrError, OSError):
            raise
        except Exception as e:  # an answer that was not foreseen concerns only this row
            return RowOutcome(
                error=f"{row.ticket.key}: its answers cannot be used ({type(e).__name__}: {str(e)[:300]})"
            )
        counts.update(made.counts)
        failed = [str(answer) for answer in answers if isinstance(answer, DataError)]
        return RowOutcome(
            made.value, made.error, {name: n for name, n in counts.items() if n}, "; ".join(failed) or None
        )


def spare_cores(most: int = 8) -> int:
    """Number of preparing processes beside the one that drives the engine, at most `most`."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(most, cores - 1))
