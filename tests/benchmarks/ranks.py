"""Ranks of right answers by cosine, in both directions: beside the bare float32 product, and in how much memory.

    OMP_NUM_THREADS=1 python tests/benchmarks/ranks.py [--width 512] [--rounds 3] [--pairs 20000] [--captions 100000]
        [--items 25000] [--save]

Two tasks, each in a process of its own: `pairs` captions and as many items, and `captions` of `items`, several each. In
each round the ranks and the bare product of the same size (one block of it, repeated) take turns. Seconds are CPU time
(the machine may do other things), medians over the rounds; `times_product` is the median of the ratios within a round.
`peak_mb` is the peak memory of the process less that before the ranks, features excluded.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

import numpy as np

from ccr_dist.scoring.ranks import BLOCK, Rows, ranks
from tests.benchmarks.record import record


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pairs", type=int, default=20_000)
    parser.add_argument("--captions", type=int, default=100_000)
    parser.add_argument("--items", type=int, default=25_000)
    parser.add_argument("--task", type=int, nargs=2, metavar=("CAPTIONS", "ITEMS"), help=argparse.SUPPRESS)
    parser.add_argument("--save", action="store_true", help="keep the JSON in results/")
    asked = parser.parse_args()
    if asked.task:
        captions, items = asked.task
        print(json.dumps(measured(captions, items, asked.width, asked.rounds)))
        return
    tasks = {}
    for captions, items in ((asked.pairs, asked.pairs), (asked.captions, asked.items)):
        command = [sys.executable, "-m", "tests.benchmarks.ranks", "--task", str(captions), str(items)]
        command += ["--width", str(asked.width), "--rounds", str(asked.rounds)]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
        tasks[f"{captions} captions, {items} items"] = json.loads(done.stdout)
    record(
        "ranks", {"width": asked.width, "threads": os.environ.get("OMP_NUM_THREADS", "all"), **tasks}, save=asked.save
    )


def measured(captions: int, items: int, width: int, rounds: int) -> dict[str, Any]:
    dice = np.random.default_rng(0)
    text_item = np.arange(captions) * items // captions
    visual = dice.standard_normal((items, width), dtype=np.float32)
    text = dice.standard_normal((captions, width), dtype=np.float32)
    text *= 3
    for start in range(0, captions, BLOCK):
        text[start : start + BLOCK] += visual[text_item[start : start + BLOCK]]
    group = np.arange(items)
    before = peak()
    taken = []
    for _ in range(rounds):
        started = time.process_time()
        found = ranks(Rows(text), Rows(visual), text_item, group)
        taken.append((time.process_time() - started, product(text, visual)))
    return {
        "ranks_s": round(statistics.median(ours for ours, _ in taken), 2),
        "product_s": round(statistics.median(bare for _, bare in taken), 2),
        "times_product": round(statistics.median(ours / bare for ours, bare in taken), 2),
        "peak_mb": round(peak() - before),
        "features_mb": round((text.nbytes + visual.nbytes) / 2**20),
        "t2v_R1": float((found.text_to_visual == 1).mean()),
    }


def product(text: np.ndarray, visual: np.ndarray) -> float:
    """Seconds of all products in blocks, from 40 of them."""
    left, right = text[:BLOCK], visual[:BLOCK].T
    into = np.empty((len(left), right.shape[1]), np.float32)
    started = time.process_time()
    for _ in range(40):
        np.matmul(left, right, out=into)
    return (time.process_time() - started) / 40 * len(text) * len(visual) / into.size


def peak() -> float:
    """MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
