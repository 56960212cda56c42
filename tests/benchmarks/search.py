"""Exact search of a million rows beside faiss's flat index, in one run: float32, float16 and int8.

    OMP_NUM_THREADS=1 python tests/benchmarks/search.py [--rows 1000000] [--width 512] [--queries 1 32 512]
        [--rounds 3] [--folder DIR] [--save]

Rows are unit vectors around a thousand centres, so that the best are near each other, as those of pictures are. The
float32 rows lie in a memory-mapped file of a temporary folder (2 GB for a million of 512), and are read through by the
first search, which is not counted. In each round, faiss and the three kinds of rows take turns. Reported: the median
over rounds of seconds of CPU time (the machine may do other things), and the median of the ratios to faiss of the same
round. `identical`: the share of queries whose 10 numbers are those of float32, in order.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from ccr_dist.scoring.gallery import Gallery, Segment, reduce
from ccr_dist.scoring.topk import top_k
from tests.benchmarks.record import record

PART = 1 << 15
CENTRES = 1000
K = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--queries", type=int, nargs="+", default=[1, 32, 512])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--save", action="store_true", help="keep the JSON in results/")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        results = measured(Path(folder), asked.rows, asked.width, asked.queries, asked.rounds)
    threads = os.environ.get("OMP_NUM_THREADS", "all")
    about = {"rows": asked.rows, "width": asked.width, "k": K, "threads": threads, "faiss": faiss.__version__}
    record("search", {**about, **results}, save=asked.save)


def measured(folder: Path, rows: int, width: int, counts: list[int], rounds: int) -> dict[str, Any]:
    dice = np.random.default_rng(0)
    centres = dice.standard_normal((CENTRES, width), dtype=np.float32)
    matrix = np.lib.format.open_memmap(folder / "rows.npy", mode="w+", dtype=np.float32, shape=(rows, width))
    stored: dict[str, list[Segment]] = {"float32": [], "float16": [], "int8": []}
    flat = faiss.IndexFlatIP(width)
    for start in range(0, rows, PART):
        part = matrix[start : start + PART]
        part[:] = unit(dice, centres, len(part))
        flat.add(np.ascontiguousarray(part))
    matrix.flush()
    exact = np.load(folder / "rows.npy", mmap_mode="r")
    for start in range(0, rows, PART):
        part = exact[start : start + PART]
        stored["float32"].append(Segment(part, longest=1 + 1e-6))
        for dtype in ("float16", "int8"):
            values, scales, errors = reduce(np.asarray(part), dtype)
            stored[dtype].append(Segment(values, scales, part, errors, longest=1 + 1e-6))
    galleries = {dtype: Gallery(segments) for dtype, segments in stored.items()}
    memory = {
        dtype: sum(s.values.nbytes + sum(a.nbytes for a in (s.scales, s.errors) if a is not None) for s in segments)
        for dtype, segments in stored.items()
    }
    seconds = {}
    for count in counts:
        queries = unit(dice, centres, count)
        searches: dict[str, Callable[[], np.ndarray]] = {"faiss": partial(found_by_faiss, flat, queries)}
        for dtype, gallery in galleries.items():
            searches[dtype] = partial(found_by_us, gallery, queries)
        seconds[str(count)] = paired(searches, rounds)
    return {"bytes": memory, "queries": seconds}


def found_by_faiss(flat: faiss.IndexFlatIP, queries: np.ndarray) -> np.ndarray:
    return np.asarray(flat.search(queries, K)[1])


def found_by_us(gallery: Gallery, queries: np.ndarray) -> np.ndarray:
    return top_k(queries, gallery, K)[0]


def unit(dice: np.random.Generator, centres: np.ndarray, count: int) -> np.ndarray:
    rows = centres[dice.integers(0, len(centres), count)] + dice.standard_normal((count, centres.shape[1]), np.float32)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def paired(searches: dict[str, Callable[[], np.ndarray]], rounds: int) -> dict[str, Any]:
    """CPU seconds, ratios to faiss, and how many answers are those of float32."""
    taken: dict[str, list[float]] = {name: [] for name in searches}
    found = {}
    for turn in range(rounds + 1):
        for name, search in searches.items():
            started = time.process_time()
            found[name] = search()
            if turn:  # the first one reads the file
                taken[name].append(time.process_time() - started)
    return {
        name: {
            "cpu_s": round(statistics.median(times), 4),
            "times_faiss": round(statistics.median(a / b for a, b in zip(times, taken["faiss"], strict=True)), 3),
            "identical": float((found[name] == found["float32"]).all(axis=1).mean()),
        }
        for name, times in taken.items()
    }


if __name__ == "__main__":
    main()
