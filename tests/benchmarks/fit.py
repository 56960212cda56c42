"""A stage in closed form beside a bare loop of NumPy over the same memory-mapped columns, in one run.

    OMP_NUM_THREADS=1 python tests/benchmarks/fit.py [--rows 1000000] [--width 384] [--block 8192] [--rounds 3]
        [--folder DIR] [--save]

Two float16 columns, one vector a row each, in a temporary folder (1.5 GB for a million rows of 384), and the sums that
`map` needs of them: products of queries with queries and with English features, and sums of both. The loop converts
the same blocks of rows to float64 and adds the same products up, and does nothing else: it looks at no other column,
checks no value, and knows no captions. Both take turns; the median over rounds of seconds of CPU time and of the ratio
in the same round. Memory: the most that a process of its own holds beyond what it held before it summed up, for half of
the blocks and for all (pages of the files, which the kernel may drop at any time, are not counted); that is measured
first, and so the files are in the page cache when time is.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import statistics
import tempfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from ccr_dist.data.stream.fields import Fields
from ccr_dist.data.stream.matrices import Matrices
from ccr_dist.data.table.dataset import Dataset, create_column, create_dataset
from ccr_dist.methods.map.method import Map
from ccr_dist.methods.map.options import MapOptions
from tests.benchmarks.record import record

SHARD = 50_000
NAMES = ("feature.q", "feature.en")
FIELDS = Fields(source="caption.en", source_feature=NAMES[1], query_features={"en": NAMES[0]})


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--block", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--save", action="store_true", help="keep the JSON in results/")
    asked = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    with tempfile.TemporaryDirectory(dir=asked.folder) as place:
        dataset = made(Path(place), asked.rows, asked.width)
        memory = {f"{part:.0%}": peak(dataset.root, asked.block, part) for part in (0.5, 1.0)}
        results = paired(dataset, asked.block, asked.rounds)
    about = {"rows": asked.rows, "width": asked.width, "block": asked.block, "threads": torch.get_num_threads()}
    record("fit", {**about, **results, "peak_bytes": memory}, save=asked.save)


def made(root: Path, rows: int, width: int) -> Dataset:
    """A dataset of both columns, and of captions that are all the same, in shards."""
    cuts = [*range(0, rows, SHARD), rows]
    keys = [[f"{i}" for i in range(a, b)] for a, b in itertools.pairwise(cuts)]
    dataset = create_dataset(root, name="bench", split="train", keys=keys)
    dice = np.random.default_rng(0)
    captions = create_column(dataset, "caption.en", kind="texts", extension="json", plan={"by": "bench"}, provenance={})
    columns = [
        create_column(dataset, name, kind="matrix", extension="npy", plan={"by": "bench"}, provenance={})
        for name in NAMES
    ]
    values = [dice.standard_normal((min(rows, SHARD), width), np.float32).astype(np.float16) for _ in columns]
    for shard, count in enumerate(dataset.shard_rows):
        captions.commit(shard, [b'["a"]'] * count)
        for column, part in zip(columns, values, strict=True):
            column.commit_matrix(shard, np.roll(part[:count], shard, axis=1))
    return dataset


def bare(dataset: Dataset, block: int) -> dict[str, np.ndarray]:
    width = dataset.column(NAMES[0]).matrix(0)[0].shape[1]
    xx, xy, x, y = np.zeros((width, width)), np.zeros((width, width)), np.zeros(width), np.zeros(width)
    for shard in range(len(dataset.shard_rows)):
        both = [dataset.column(name).matrix(shard)[0] for name in NAMES]
        for first in range(0, len(both[0]), block):
            queries, english = (part[first : first + block].astype(np.float64) for part in both)
            xx += queries.T @ queries
            xy += queries.T @ english
            x += queries.sum(0)
            y += english.sum(0)
    return {"xx": xx, "xy": xy, "x/en": x, "y/en": y}


def ours(dataset: Dataset, block: int, part: float = 1.0) -> dict[str, torch.Tensor]:
    """What `FitStage` does of a rank's blocks; of the first `part` of them."""
    matrices = Matrices([dataset], FIELDS, rows=block)
    method: Any = SimpleNamespace(options=MapOptions(name="map"))
    sums: dict[str, torch.Tensor] = {}
    for each in matrices.blocks[: round(part * len(matrices.blocks))]:
        rows = {name: torch.from_numpy(values) for name, values in matrices.read(each).items() if name != "draw"}
        for name, tensor in Map.statistics(method, "fit", each.lang, rows).items():
            sums[name] = sums[name] + tensor if name in sums else tensor
    return sums


def paired(dataset: Dataset, block: int, rounds: int) -> dict[str, Any]:
    taken: dict[str, list[float]] = {"numpy": [], "fit": []}
    wall: dict[str, list[float]] = {"numpy": [], "fit": []}
    for _ in range(rounds):
        found: dict[str, Any] = {}
        for name, sum_up in (("numpy", bare), ("fit", ours)):
            began, started = time.perf_counter(), time.process_time()
            found[name] = sum_up(dataset, block)
            taken[name].append(time.process_time() - started)
            wall[name].append(time.perf_counter() - began)
        for key, values in found["numpy"].items():
            np.testing.assert_allclose(found["fit"][key].numpy(), values, rtol=1e-9, atol=1e-6 * np.abs(values).max())
    ratios = [a / b for a, b in zip(taken["fit"], taken["numpy"], strict=True)]
    return {
        name: {"cpu_s": round(statistics.median(taken[name]), 2), "wall_s": round(statistics.median(wall[name]), 2)}
        for name in taken
    } | {"times_numpy": round(statistics.median(ratios), 3)}


def peak(root: Path, block: int, part: float) -> int:
    """Bytes; in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found: int = pool.apply(_peak, (root, block, part))
        return found


def _peak(root: Path, block: int, part: float) -> int:
    torch.set_num_threads(1)
    dataset = Dataset.open(root)
    before, most, done = _held(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.01):
            most[0] = max(most[0], _held())

    watcher = threading.Thread(target=watch)
    watcher.start()
    ours(dataset, block, part)
    done.set()
    watcher.join()
    return most[0] - before


def _held() -> int:
    """Anonymous memory of this process, bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no RssAnon in /proc/self/status")


if __name__ == "__main__":
    main()
