"""Many clients at once on the API of the page: answers a second, and how long one takes.

    python tests/benchmarks/serve.py INDEX [--clients 100] [--seconds 20] [--save]

The server is `ccr-dist serve INDEX`, a process of its own; the clients share this one. They ask with the captions of
the index, or with the words of `record.py`, in random order; each asks again as soon as it has its answer.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np

import ccr_dist
from ccr_dist.search.index import Index
from ccr_dist.search.searcher import Searcher
from tests.benchmarks.record import ENGLISH_WORDS, record

KINDS = ("search", "similar", "picture", "embeddings")


class Server:
    def __init__(self, index: Path) -> None:
        command = [sys.executable, "-m", "ccr_dist", "serve", str(index), "--port", "0", "--quiet", "--device", "cpu"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        address = next(line.split()[2] for line in self.process.stdout if line.startswith("Serving at"))
        self.port = int(address.rstrip("/").rpartition(":")[2])

    def memory(self) -> int:
        """Bytes."""
        return 4096 * int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])

    def close(self) -> None:
        self.process.terminate()
        self.process.wait()


async def answered(reader: asyncio.StreamReader) -> int:
    """Reads an answer; returns its status."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
    await reader.readexactly(int(length.split(b":")[1]))
    return int(head.split()[1])


async def client(port: int, asks: list[bytes], until: float, times: list[float], statuses: Counter[int]) -> None:
    dice = random.Random(len(times))
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    while time.perf_counter() < until:
        begun = time.perf_counter()
        writer.write(dice.choice(asks))
        statuses[await answered(reader)] += 1
        times.append(time.perf_counter() - begun)
    writer.close()


async def load(port: int, asks: list[bytes], clients: int, seconds: float) -> dict[str, Any]:
    times: list[float] = []
    statuses: Counter[int] = Counter()
    begun = time.perf_counter()
    await asyncio.gather(*(client(port, asks, begun + seconds, times, statuses) for _ in range(clients)))
    took = time.perf_counter() - begun
    return {
        "requests": len(times),
        "requests_a_second": round(len(times) / took, 1),
        "ms": {f"p{p}": round(1000 * float(np.percentile(times, p)), 1) for p in (50, 90, 95, 99, 100)},
        "statuses": {str(status): count for status, count in sorted(statuses.items())},
    }


def queries(index: Index) -> list[str]:
    """Captions of the index; words without any."""
    dice = random.Random(0)
    numbers = index.numbers().tolist()
    captions = [text for number in dice.sample(numbers, min(200, len(numbers)))
                for texts in index.item(number).captions.values() for text in texts]  # fmt: skip
    return captions or [" ".join(dice.sample(ENGLISH_WORDS, 4)) for _ in range(200)]


def requests(kind: str, index: Index) -> list[bytes]:
    """Requests of a kind, as bytes."""
    texts, numbers = queries(index), index.numbers().tolist()
    if kind == "search":
        return [get(f"/api/search?{urlencode({'text': text, 'k': 30})}") for text in texts]
    if kind == "similar":
        return [get(f"/api/items/{number}/similar") for number in numbers]
    if kind == "picture":
        return [get(f"/api/items/{number}/picture") for number in numbers]
    return [post("/v1/embeddings", {"model": index.model["name"], "input": text}) for text in texts]


def alone(index: Index, texts: list[str], seconds: float) -> dict[str, float]:
    """Texts a second of the searcher by itself, in one thread: one at a time, and 32 together."""
    import torch

    torch.set_num_threads(1)
    searcher = Searcher(index, ccr_dist.load(index.model["path"], device="cpu"))
    searcher.texts(texts[:1], k=30)
    found = {}
    for together in (1, 32):
        done, begun = 0, time.perf_counter()
        while time.perf_counter() < begun + seconds:
            searcher.texts([texts[(done + at) % len(texts)] for at in range(together)], k=30)
            done += together
        found[str(together)] = round(done / (time.perf_counter() - begun), 1)
    return found


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()


def post(path: str, values: dict[str, Any]) -> bytes:
    body = json.dumps(values).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    return f"{head}\r\n\r\n".encode() + body


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("index", type=Path)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 100])
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--save", action="store_true")
    options = parser.parse_args()
    index = Index.open(options.index)
    bare = alone(index, queries(index), options.seconds)
    server = Server(options.index)
    try:
        before = server.memory()
        found = {
            kind: {
                str(clients): asyncio.run(load(server.port, requests(kind, index), clients, options.seconds))
                for clients in options.clients
            }
            for kind in KINDS
        }
        results = {
            "items": index.items,
            "model": index.model["name"],
            "searcher_texts_a_second": bare,
            "clients": found,
            "server_mb": {"before": round(before / 1e6), "after": round(server.memory() / 1e6)},
        }
    finally:
        server.close()
    record("serve", results, save=options.save)


if __name__ == "__main__":
    main()
