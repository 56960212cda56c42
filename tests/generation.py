"""A generation engine without a model, and videos, for tests.

Parrot      the engine `parrot`: it keeps up to `in_flight` requests and finishes them in a shuffled order; what it
answers is a rule video       the bytes of a film whose frame i is grey of brightness 10 * i
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from typing import Any

from pydantic import Field

from ccr_dist.errors import DataError, EngineError
from ccr_dist.generate.engines import base
from ccr_dist.generate.engines.generator import Answer, Generation, Generator, Request, generators


class ParrotOptions(base.EngineOptions):
    model: str = "toys/Parrot-1B"
    answers: Mapping[str, str] = Field({}, description="answer by request id; otherwise what was asked is said again")
    at_once: int = 4
    dies_at: int = 0  # the number of a request at which the engine is gone; 0: never
    endless: tuple[str, ...] = ()  # ids that are cut at the token limit
    bad: tuple[str, ...] = ()  # ids that the engine refuses


def render(request: Request) -> dict[str, Any]:
    """JSON: what came in, media by size and brightness."""
    seen = [[*image.size, image.getpixel((0, 0))[0]] for image in (*request.images, *request.frames)]
    about = {
        "id": request.id,
        "text": request.text,
        "system": request.system,
        "seen": seen,
        "list": request.schema is not None,
    }
    return {**about, "max_tokens": request.max_tokens}


@generators.register("parrot")
class Parrot(Generator):
    Options = ParrotOptions

    def __init__(self, options: ParrotOptions = ParrotOptions()) -> None:
        self.options, self.in_flight = options, options.at_once
        self.loads = self.closes = 0
        self.most = 0  # requests at once
        self.started: list[dict[str, Any]] = []
        self.idle = 0  # times it was asked to advance with fewer requests than it could take
        self._waiting: list[tuple[int, dict[str, Any]]] = []

    def identity(self) -> dict[str, Any]:
        return {"engine": "parrot", "model": self.options.model}

    def load(self) -> None:
        self.loads += 1

    def close(self) -> None:
        self.closes += 1
        self._waiting.clear()

    def renderer(self) -> Any:
        return render

    def start(self, number: int, item: dict[str, Any]) -> None:
        assert number not in dict(self._waiting)
        self._waiting.append((number, item))
        self.started.append(item)
        self.most = max(self.most, len(self._waiting))
        if len(self.started) == self.options.dies_at:
            raise EngineError("the parrot is gone")

    def advance(self) -> list[tuple[int, Answer]]:
        assert self._waiting, "nothing to do"
        self.idle += len(self._waiting) < self.in_flight
        number, item = self._waiting.pop(len(self._waiting) * 2 // 3)  # not the oldest, not the newest
        return [(number, self._answer(item))]

    def _answer(self, item: dict[str, Any]) -> Answer:
        if item["id"] in self.options.bad:
            return DataError(f"{item['id']}: the parrot dislikes it")
        text = self.options.answers.get(item["id"])
        if text is None:
            text = (
                json.dumps(["one thing", "another"])
                if item["list"]
                else f"It says {item['text']} and sees {item['seen']}."
            )
        return Generation(text, len(text.split()), 7, "length" if item["id"] in self.options.endless else "stop")


def video(frames: int = 20, *, size: tuple[int, int] = (64, 48), fps: int = 10, container: str = "mp4") -> bytes:
    import av
    import numpy as np

    codec = {"mp4": "libx264", "webm": "libvpx", "matroska": "libx264", "mov": "mpeg4", "gif": "gif", "avi": "mpeg4"}[
        container
    ]
    data = io.BytesIO()
    with av.open(data, "w", format=container) as out:
        stream = out.add_stream(codec, rate=fps)
        stream.width, stream.height = size
        stream.pix_fmt = "gray" if container == "gif" else "yuv420p"
        for number in range(frames):
            grey = np.full((size[1], size[0], 3), number * 10, np.uint8)
            for packet in stream.encode(av.VideoFrame.from_ndarray(grey, "rgb24")):
                out.mux(packet)
        for packet in stream.encode():
            out.mux(packet)
    return data.getvalue()
