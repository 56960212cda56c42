"""Generation engines driven as a job drives them: rendered in another process, advanced until all is answered."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
from PIL import Image

from ccr_dist.generate.engines.generator import (
    Answer,
    Generator,
    Request,
)


def picture(seed: int = 0, width: int = 80, height: int = 60) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8))


def rendered(engine: Generator, requests: list[Request]) -> list[Any]:
    """As worker processes do it: renderer, requests and items go through a pickle."""
    render = pickle.loads(pickle.dumps(engine.renderer()))
    return [pickle.loads(pickle.dumps(render(pickle.loads(pickle.dumps(request))))) for request in requests]


def answers(engine: Generator, requests: list[Request]) -> list[Answer]:
    found: dict[int, Answer] = {}
    for number, item in enumerate(rendered(engine, requests)):
        engine.start(number, item)
    while len(found) < len(requests):
        done = dict(engine.advance())
        assert not found.keys() & done.keys()
        found |= done
    assert engine.advance() == []
    return [found[number] for number in range(len(requests))]
