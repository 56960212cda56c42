"""The engine `openai` asked once, with a server that lives as long as the question."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.chat_server import Odd, completion, lists_models, serving

pytest.importorskip("openai")

from ccr_dist.generate.engines.generator import Answer, Generation, Request, make_generator

Behave = Callable[[Odd, dict[str, Any], int], None]


ERROR = {"error": {"message": "try again"}}
QUICK = {"backoff_s": 0.01, "retries": 2, "patience_s": 20, "timeout_s": 20}


def fine(handler: Odd) -> None:
    handler.answer(completion(handler.text.upper()))


def asked(
    behave: Behave, *texts: str | Request, models: Any = lists_models, suffix: str = "", **options: Any
) -> tuple[list[Answer], Any]:
    """(answers in the order of the texts, the server as it was left)."""
    with serving(behave, models) as server:
        engine = make_generator("openai", {"model": "toy", "base_url": server.url + suffix, **QUICK, **options})
        try:
            engine.load()
            render, found = engine.renderer(), dict[int, Answer]()
            for number, text in enumerate(texts):
                engine.start(
                    number,
                    render(text if isinstance(text, Request) else Request(f"row{number}/v", text, max_tokens=50)),
                )
            while len(found) < len(texts):
                found |= engine.advance()
        finally:
            engine.close()
    return [found[number] for number in range(len(texts))], server


def said(answer: Answer) -> str:
    assert isinstance(answer, Generation), answer
    return answer.text
