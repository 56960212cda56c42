"""Peak memory of a job over 10, 100 and 1,000 shards of the same size; flat is the claim.

    python tests/benchmarks/jobs_memory.py [--rows 100] [--shards 10 100 1000] [--save]

Every job is a process of its own (VmHWM of Linux, its peak resident memory; `mb_before`: of the libraries alone. Not
`ru_maxrss`, which a child inherits from its parent). The engine turns captions round, so that all memory is the job's
own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from ccr_dist.data.table.dataset import Dataset
from ccr_dist.errors import DataError
from ccr_dist.generate.engines import base
from ccr_dist.generate.jobs.translate import Translate
from ccr_dist.generate.runner import run
from tests.benchmarks.record import captions, record


class Round(base.Translator):
    def __init__(self) -> None:
        pass

    def identity(self) -> dict[str, Any]:
        return {"engine": "round"}

    def translate(self, texts: list[str]) -> list[str | DataError]:
        return [text[::-1] for text in texts]


def peak_kb() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0])


def one(root: str) -> None:
    before = peak_kb()
    started = time.perf_counter()
    assert run(Dataset(root), Translate(Round(), "caption.en"), "caption.xx.round", progress=False).complete
    after = peak_kb()
    seconds = round(time.perf_counter() - started, 1)
    print(json.dumps({"mb": round(after / 1024, 1), "mb_before": round(before / 1024, 1), "s": seconds}))


def measure(rows: int, shards: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        captions(
            Path(folder),
            [[f"a thing of the kind {i}", f"the same thing, number {i}"] for i in range(rows * shards)],
            shards=shards,
        )
        done = subprocess.run([sys.executable, __file__, "--one", folder], capture_output=True, check=True)
        return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=100, help="a shard")
    parser.add_argument("--shards", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--save", action="store_true")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        one(asked.one)
        return
    found = {n: measure(asked.rows, n) for n in asked.shards}
    ratio = round(found[asked.shards[-1]]["mb"] / found[asked.shards[0]]["mb"], 3)
    record("jobs_memory", {"rows_a_shard": asked.rows, "by_shards": found, "last_to_first": ratio}, save=asked.save)


if __name__ == "__main__":
    main()
