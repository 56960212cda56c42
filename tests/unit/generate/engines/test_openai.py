"""The engine `openai` against a real HTTP server that behaves. Servers of other manners: test_odd_servers.py."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ccr_dist.errors import DataError, EngineError
from ccr_dist.generate.engines.generator import (
    Generation,
    Generator,
    Request,
    make_generator,
    request_seed,
)
from tests.generators import answers, picture, rendered

TESTS = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("server")
    process = subprocess.Popen([sys.executable, str(TESTS / "chat_server.py"), str(folder)])
    try:
        deadline = time.monotonic() + 30
        while not (folder / "port").exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        yield folder
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def served(folder: Path) -> Iterator[Any]:
    engines = []

    def make(**options: Any) -> Generator:
        url = f"http://127.0.0.1:{(folder / 'port').read_text()}/v1"
        engine = make_generator("openai", {"model": "toy", "base_url": url, "backoff_s": 0.05, "retries": 2, **options})
        engine.load()
        engines.append(engine)
        return engine

    (folder / "log.jsonl").write_text("")
    yield make
    (folder / "down").unlink(missing_ok=True)
    for engine in engines:
        engine.close()
        engine.close()


def asked(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_openai_sends_pictures_settings_and_schemas(folder: Path, served: Any) -> None:
    images, frames = (picture(width=90, height=10), picture(width=20, height=20)), (picture(width=30, height=10),) * 2
    engine = served(max_pixels=400, temperature=0.5, top_k=3, repetition_penalty=1.5, stop=["."], seed=1)
    request = Request(
        "a/detail", "describe", system="S", images=images, frames=frames, max_tokens=9, schema={"type": "array"}
    )
    assert answers(engine, [request]) == [Generation("60x6 20x20 30x10 30x10", 4, 7, "stop")]
    assert answers(served(video=True), [request]) == [Generation("90x10 20x20 30x10 30x10", 4, 7, "stop")]
    assert answers(engine, [Request("b", "echo long")]) == [Generation("ECHO LONG", 2, 7, "length")]
    body = asked(folder)[0]["body"]
    assert body["messages"] == 2 and body["max_tokens"] == 9 and body["temperature"] == 0.5 and body["stop"] == ["."]
    assert body["top_k"] == 3 and body["repetition_penalty"] == 1.5 and body["seed"] == request_seed(1, "a/detail")
    assert body["response_format"]["json_schema"]["schema"] == {"type": "array"}
    assert "127.0.0.1" not in json.dumps(engine.identity())


def test_openai_retries_what_passes_and_gives_up_on_items_not_on_jobs(folder: Path, served: Any) -> None:
    texts = ["echo a", "once 503 b", "500", "once 429 c", "413", "400", "filter", "echo d"]
    found = answers(served(concurrency=3), [Request(f"{i}/v", text) for i, text in enumerate(texts)])
    kinds = ["" if isinstance(answer, Generation) else str(answer) for answer in found]
    assert [found[i].text for i in (0, 1, 3, 7)] == ["ECHO A", "ONCE 503 B", "ONCE 429 C", "ECHO D"]
    assert "2/v: the server failed on it 3 times, but not on others: 500" in kinds[2]
    assert "4/v: the server refuses it (413" in kinds[4] and "5/v: the server refuses it (400" in kinds[5]
    assert "6/v: the server gave up on it: content_filter" in kinds[6]
    tries = [entry["text"] for entry in asked(folder)]
    assert tries.count("500") == 3 and tries.count("413") == 1 and tries.count("once 429 c") == 2


def test_openai_one_bad_item_alone_is_told_from_a_server_that_is_gone(folder: Path, served: Any) -> None:
    lone = answers(served(), [Request("a", "500")])
    assert isinstance(lone[0], DataError)
    assert asked(folder)[-1]["text"] == "Say yes."
    engine = served(patience_s=0.2)
    (folder / "down").touch()
    with pytest.raises(
        EngineError, match=r"/v1/ is gone, or takes no more requests: nobody was answered for .*at last: 500 "
    ):
        answers(engine, [Request("a", "echo")])


def test_openai_hanging_requests_time_out(folder: Path, served: Any) -> None:
    engine = served(timeout_s=2, retries=1)
    found = answers(engine, [Request("a", "hang"), Request("b", "echo b")])
    # on a busy machine other requests may be late, too, and one more has to tell
    assert isinstance(found[0], DataError)
    assert re.search(
        r"a: the server failed on it \d+ times, but not on others: no whole answer within timeout_s 2", str(found[0])
    )
    assert isinstance(found[1], Generation)
    patient = served(timeout_s=50)
    patient.start(0, rendered(patient, [Request("a", "hang")])[0])
    assert patient.advance() == []  # it does not wait for ever
    started = time.monotonic()
    patient.close()
    assert time.monotonic() - started < 20
    patient.load()  # as a job does that was asked to stop, for the next dataset: nothing of before comes back
    assert answers(patient, [Request("c", "echo c")]) == [Generation("ECHO C", 2, 7, "stop")]


def test_openai_wrong_keys_models_and_addresses_end_the_job_at_once(folder: Path, served: Any) -> None:
    with pytest.raises(EngineError, match=r"answers 401 .*see base_url, OPENAI_API_KEY and your account"):
        answers(served(), [Request("a", "401")])
    assert len(asked(folder)) == 1
    nonsense = answers(served(), [Request("a", "nonsense"), Request("b", "echo b")])
    assert isinstance(nonsense[0], DataError) and "a chat completion without choices" in str(nonsense[0])
    with pytest.raises(EngineError, match="has no model 'other'; it has: toy"):
        served(model="other")
    with pytest.raises(
        EngineError, match=r"http://127.0.0.1:9/v1/ does not answer .APIConnectionError.*; is the server up"
    ):
        served(base_url="http://127.0.0.1:9/v1")
