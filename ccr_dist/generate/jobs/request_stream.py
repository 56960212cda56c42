"""Rows -> several requests each -> a generation engine that never drains -> one value a row.

`describe.py` and `llm_translate.py` decide what is asked of a row and what becomes of the answers.
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

YIELD_S = 1.0  # at most so long finished rows wait for the journal, so that an fsync serves many of them

Asker = Callable[[str, dict[str, Any]], "Asked | None"]


@dataclass(frozen=True)
class Asked:
    """What is asked about a row: requests, and whatever else the outcome depends on. Rendered: an engine's items in
    their place.
    """

    requests: tuple[Any, ...]
    about: Any = None


@dataclass(frozen=True)
class Ask:
    """The preparer: picklable when asker and renderer are."""

    asker: Asker
    renderer: Renderer

    def load(self) -> None:
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
    """Base of the jobs that ask. Counters: `requests`, `tokens`, `prompt_tokens`, and what `outcome` adds."""

    def __init__(self, engine: Generator, requests_a_row: int = 1) -> None:
        self.engine = engine
        self.batch = max(4, engine.in_flight // requests_a_row)
        self.bounded = engine.bounded
        self._numbers = itertools.count()
        self._loaded = False

    @abstractmethod
    def asker(self) -> Asker:
        """A picklable function (key, input values) -> what to ask, None for a null row. It runs ahead of the engine, in
        other processes.
        """

    @abstractmethod
    def outcome(self, about: Any, answers: list[Answer]) -> RowOutcome:
        """The row's value from its answers, in the order of its requests; a DataError in the place of one that failed,
        but not of all.
        """

    def provenance(self) -> dict[str, Any]:
        return dict(self.engine.versions())

    def load_key(self) -> str | None:
        return json.dumps(self.engine.identity(), sort_keys=True)

    def load(self) -> None:
        """Once, however many datasets follow each other."""
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
        """Keeps `in_flight` requests in the engine, across rows and shards; yields when `batch` rows are done, or a
        moment has passed.
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
            yield done  # these are paid for
            raise
        finally:
            if flying:  # asked to stop: the engine must not bring these to the next dataset's rows
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
        except Exception as e:  # whatever a model can say that nobody thought of: it concerns this row alone
            return RowOutcome(
                error=f"{row.ticket.key}: its answers cannot be used ({type(e).__name__}: {str(e)[:300]})"
            )
        counts.update(made.counts)
        failed = [str(answer) for answer in answers if isinstance(answer, DataError)]
        return RowOutcome(
            made.value, made.error, {name: n for name, n in counts.items() if n}, "; ".join(failed) or None
        )


def spare_cores(most: int = 8) -> int:
    """Processes that may prepare rows beside the one that drives the engine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(most, cores - 1))
