"""How long the commands that look at a dataset take on a big one: inspect, verify --fast, jobs status. Prints a JSON of
seconds.

    python tests/benchmarks/big_table.py [--rows 100000] [--shards 1000] [--folder DIR] [--repeat 5] [--save]

The dataset has five columns (pictures, captions, a translation, vectors, descriptions), and a sixth one in the making:
half of its shards are done, one has bad rows, four are leased by this process and another one by a process that is
gone. Each command is a process of its own, start of Python included (`start` is that of a command that does nothing).
--folder keeps the dataset, and uses the one that is there; otherwise it is made in a temporary folder. The file cache
is warm.
"""

from __future__ import annotations

import argparse
import fcntl
import io
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ccr_dist.data.table.dataset import Column, Dataset, create_column, create_dataset
from tests.benchmarks.record import record

ROOT = Path(__file__).parents[2]
MAKING = "caption.de.slow"
UNFINISHED = 3  # exit code of verify, which finds the column in the making incomplete
COMMANDS = {
    "start": ["--version"],
    "inspect": ["shards", "inspect", "DATASET"],
    "verify --fast": ["shards", "verify", "DATASET", "--fast", "--quiet"],
    "status": ["jobs", "status", "DATASET"],
    "status --json": ["jobs", "status", "DATASET", "--json"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--shards", type=int, default=1000)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--save", action="store_true", help="keep the JSON in results/")
    asked = parser.parse_args()
    with ExitStack() as stack:
        folder = asked.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        dataset = build(folder / "train", asked.rows, asked.shards)
        lease(dataset, stack)
        seconds = {name: measure(arguments, dataset.root, asked.repeat) for name, arguments in COMMANDS.items()}
    about = {"rows": dataset.rows, "shards": len(dataset.shards), "columns": 6, "repeat": asked.repeat}
    record("big_table", {**about, "seconds": seconds}, save=asked.save)


def measure(arguments: list[str], root: Path, repeat: int) -> dict[str, float]:
    """Seconds of a command, after one run that is not counted: median, smallest and largest by the wall clock, median
    of CPU time.
    """
    command = [sys.executable, "-m", "ccr_dist", *(str(root) if part == "DATASET" else part for part in arguments)]
    wall, busy = [], []
    for _ in range(repeat + 1):
        started, before = time.perf_counter(), os.times()
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        wall.append(time.perf_counter() - started)
        after = os.times()
        busy.append(after.children_user + after.children_system - before.children_user - before.children_system)
        assert done.returncode == (UNFINISHED if "verify" in arguments else 0), done.stderr.decode()
    figures = {
        "median": statistics.median(wall[1:]),
        "min": min(wall[1:]),
        "max": max(wall[1:]),
        "cpu": statistics.median(busy[1:]),
    }
    return {name: round(seconds, 2) for name, seconds in figures.items()}


def build(root: Path, rows: int, shards: int) -> Dataset:
    """Finished columns, and one of a job that is half done."""
    keys = [[f"{number:07d}" for number in part] for part in np.array_split(np.arange(rows), shards)]
    dataset = create_dataset(root, name="big", split="train", keys=keys)
    picture = io.BytesIO()
    Image.new("RGB", (16, 16), "red").save(picture, "jpeg")
    text = {"kind": "texts", "extension": "json", "provenance": {"licence": "CC0-1.0"}}
    image = create_column(dataset, "image", kind="image", extension="jpg", plan={"recipe": "big"}, provenance={})
    english = create_column(dataset, "caption.en", plan={"recipe": "big"}, **text)
    german = create_column(dataset, "caption.de.opus", plan=job("translate", english), **text)
    views = create_column(dataset, "description.vlm", plan=job("describe", image), **{**text, "kind": "views"})
    vectors = create_column(
        dataset, "feature.v", kind="matrix", extension="npy", plan=job("featurise", image), provenance={}
    )
    making = create_column(dataset, MAKING, plan=job("translate", english), **text)
    for shard, names in enumerate(keys):
        n = len(names)
        fill(image, shard, [picture.getvalue()] * n)
        fill(english, shard, [english.encode([f"a red thing, number {name}", "it is red"]) for name in names])
        fill(german, shard, [german.encode([f"ein rotes Ding, Nummer {name}", "es ist rot"]) for name in names])
        fill(
            views, shard, [views.encode({"views": {"detail": f"A plain red square, number {name}."}}) for name in names]
        )
        if not vectors.path(shard, "record").exists():
            vectors.commit_matrix(shard, np.ones((n, 32), np.float16))
        if shard < shards // 2:
            fill(making, shard, [making.encode([f"ein rotes Ding, Nummer {name}", "es ist rot"]) for name in names])
    (making.folder / "000000.errors.jsonl").write_text(
        '{"key": "0000000", "error": "a text of 900 tokens; the model takes 512"}\n'
    )
    return dataset


def job(processor: str, source: Column) -> dict[str, Any]:
    return {"processor": processor, "engine": {"engine": "big"}, "inputs": {source.name: "of no digest"}}


def fill(column: Column, shard: int, values: list[bytes]) -> None:
    if column.path(shard, "record").exists():
        return
    column.commit(shard, values)
    rows, began = len(values), 1.8e9 + 10 * shard
    stats = {"began": began, "ended": began + 10, "seconds": 10.0, "rows": rows, "resumed": 0, "nulls": 0, "bad": 0}
    column.write_stats(
        shard, {**stats, "counts": {"tokens": 30 * rows}, "host": "node1", "worker": "node1:1:a", "waited_s": 0.1}
    )


def lease(dataset: Dataset, stack: ExitStack) -> None:
    """Four leases that this process holds, and one of a process that is gone."""
    folder = dataset.root / MAKING
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    for path in folder.glob("*.lease.*"):
        path.unlink()
    for number, shard in enumerate(range(len(dataset.shards) // 2, len(dataset.shards))[:5]):
        held, rows = number < 4, dataset.shard_rows[shard]
        worker = {
            "worker": f"{socket.gethostname()}:{os.getpid()}:{'held' if held else 'gone'}",
            "host": socket.gethostname(),
        }
        first = {**worker, "pid": os.getpid(), "boot": boot, "since": time.time() - 30, "stuck": 0}
        beat = json.dumps({"beat": 3, "rows": rows // 3, "of": rows, "tokens": 10 * rows}).ljust(120)
        path = folder / f"{dataset.shards[shard]}.lease.1"
        path.write_bytes(json.dumps(first).encode() + f"\n{beat}\n".encode())
        if held:
            file = stack.enter_context(path.open("rb+"))
            fcntl.flock(file, fcntl.LOCK_EX)


if __name__ == "__main__":
    main()
