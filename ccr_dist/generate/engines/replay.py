"""Replays answers that were made elsewhere, from a JSONL file: they pass the same filters and end in the same kind of
column.
"""

from __future__ import annotations

import json
from collections import deque
from pathlib import Path
from typing import Any

from pydantic import Field

from ccr_dist.data.storage import store
from ccr_dist.errors import ConfigError, DataError
from ccr_dist.generate.engines import base
from ccr_dist.generate.engines.generator import Answer, Generation, Generator, Renderer, Request, generators


class ReplayOptions(base.EngineOptions):
    """Options of the engine `replay`."""

    path: str = Field(
        description=(
            'JSONL: {"key": item, "view": its view, "text": the answer, "tokens"?: n, "finish"?: stop or length};'
            " required"
        )
    )
    model: str | None = Field(None, description="what made the answers, for the plan")


def _id(request: Request) -> str:
    return request.id


@generators.register("replay")
class ReplayAnswers(Generator):
    """Answers requests from a file, by their id `key/view`. A request without an answer in the file is a bad item.
    Token counts that the file lacks are 0.
    """

    Options = ReplayOptions
    in_flight = 256

    def __init__(self, options: ReplayOptions) -> None:
        self._options, self._path = options, Path(options.path)
        if not self._path.is_file():
            raise ConfigError(f"engine 'replay': path: there is no file {self._path}")
        self._done: deque[tuple[int, Answer]] = deque()

    def identity(self) -> dict[str, Any]:
        named = {"model": self._options.model} if self._options.model else {}
        return {"engine": "replay", "answers": store.sha256_file(self._path), **named}

    def load(self) -> None:
        """Read the file.

        Raises:
            DataError: An answer is malformed, or the second one to a request; names the line.
        """
        self._answers: dict[str, Generation] = {}
        with self._path.open(encoding="utf-8") as lines:
            for i, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                try:
                    entry = json.loads(line)
                    name = f"{entry['key']}/{entry['view']}"
                    answer = Generation(
                        str(entry["text"]).strip(), int(entry.get("tokens", 0)), 0, entry.get("finish", "stop")
                    )
                    if answer.finish not in ("stop", "length"):
                        raise ValueError(f"finish {answer.finish!r}; expected stop or length")
                except (ValueError, TypeError, KeyError) as e:
                    raise DataError(
                        f'{self._path}, line {i}: expected {{"key", "view", "text"}}: {type(e).__name__}: {e}'
                    ) from e
                if name in self._answers:
                    raise DataError(f"{self._path}, line {i}: a second answer for {name}")
                self._answers[name] = answer

    def renderer(self) -> Renderer:
        return _id

    def start(self, number: int, item: str) -> None:
        missing = DataError(f"{item}: no answer in {self._path.name}")
        self._done.append((number, self._answers.get(item, missing)))

    def advance(self) -> list[tuple[int, Answer]]:
        done, self._done = list(self._done), deque()
        return done
