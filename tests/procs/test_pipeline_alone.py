"""`ccr-dist run`: a pipeline without SLURM, with its decisions: stopped, gone on with, failed, retried."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from ccr_dist.data.table.dataset import Dataset
from tests import jobs

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.procs


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    process = subprocess.Popen([sys.executable, str(ROOT / "tests" / "chat_server.py"), str(tmp_path)])
    try:
        await_file(tmp_path / "port", process)
        yield f"http://127.0.0.1:{(tmp_path / 'port').read_text()}/v1"
    finally:
        process.kill()
        process.wait()


def await_file(path: Path, maker: subprocess.Popen) -> None:
    end = time.monotonic() + 120
    while not list(path.parent.glob(path.name)):
        assert maker.poll() is None and time.monotonic() < end, path
        time.sleep(0.05)


def start(pipeline: Path) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "ccr_dist", "run", str(pipeline)]
    return subprocess.Popen(words, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_stopped_and_gone_on_with(tmp_path: Path, server: str) -> None:
    data = jobs.captions(tmp_path / "data", rows=(6, 6, 6))
    (tmp_path / "prompt.yaml").write_text(
        yaml.safe_dump({"views": {"translation": {"text": "{text}", "max_tokens": 9}}, "filters": {"min_words": 1}})
    )
    options = (
        f"--engine openai --model toy --set base_url={server} --set concurrency=1 --batch 1 --to xx --column caption.xx"
        " --quiet"
    )
    steps = {
        "translate": {"command": f"translate {data.root} --prompt {tmp_path}/prompt.yaml {options}", "tasks": 2},
        "wrong": {"command": f"replay {data.root} {tmp_path}/none.jsonl --column caption.more"},
    }
    (tmp_path / "none.jsonl").write_text("no JSON")
    (tmp_path / "none.jsonl").write_text("")
    pipeline = tmp_path / "pipeline.yaml"
    pipeline.write_text(yaml.safe_dump({"name": "alone", "folder": str(tmp_path / "runs"), "steps": steps}))
    (tmp_path / "delay").write_text("2")  # the second command below starts meanwhile, on a busy machine too

    running = start(pipeline)
    await_file(data.root / "caption.xx" / "*.journal.*", running)
    second = start(pipeline)
    said = second.communicate(timeout=120)[1]
    assert "another process submits or runs this pipeline" in said and second.returncode == 14, said
    running.send_signal(signal.SIGTERM)
    said = running.communicate(timeout=120)[1]
    assert running.returncode == 75 and "the same command resumes it" in said, said

    (tmp_path / "delay").unlink()
    running = start(pipeline)
    said = running.communicate(timeout=300)[1]
    assert "translate task 1" in said and "wrong: failed: " in said and running.returncode == 3, said
    data.column("caption.xx").require_complete()

    (tmp_path / "none.jsonl").write_text("".join(json.dumps({"key": key, "value": "x"}) + "\n" for key in keys(data)))
    running = start(pipeline)
    said = running.communicate(timeout=300)[1]
    assert running.returncode == 0 and "translate: done already" in said, said
    tried = (tmp_path / "runs" / "alone" / "steps" / "translate" / "attempts" / "0.jsonl").read_text().splitlines()
    assert [json.loads(line)["code"] for line in tried if '"end"' in line] == [75, 0]


def keys(data: Dataset) -> list[str]:
    return [key for shard in range(len(data.shards)) for key in data.keys(shard)]
