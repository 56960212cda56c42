"""How soon training starts anywhere in a dataset of 100 million rows: seconds from opening the dataset to the first
batch at a random step.

    python tests/benchmarks/loader_start.py [--shards 10000] [--shard-rows 10000] [--repeat 5] [--folder DIR] [--save]

The dataset has pictures, English captions and a translation with null rows in every hundredth shard. Its dataset.json
and commit records are whole. Keys, indexes and payloads are there only for the shards, and of payloads only the rows
(the rest is a hole in the file), that the measured batches draw: that training starts shows that nothing else is read.
`sealed`: after `ccr-dist shards seal`, whose files are made here in the same way. Each figure is the median of
processes that have imported everything and then do what a run does: open the dataset, find the eligible rows, digest
the contents, make order and loader, take the batch (without worker processes, which would do the same; the pictures are
tiny, so that decoding does not count). One rank of `world` is measured. Cold: the kernel is told to forget the files'
pages; names and inodes stay cached.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ccr_dist.data.storage import store
from ccr_dist.data.stream.fields import Fields, content_digests, sources
from ccr_dist.data.stream.loader import make_loader
from ccr_dist.data.stream.order import Order, rank_slots
from ccr_dist.data.table.dataset import Dataset
from ccr_dist.data.table.keys import keys_digest
from tests.benchmarks.record import record

FIELDS = Fields(visual="image", source="caption.en", targets={"de": "caption.de.x"})
ROW_BYTES = {"image": 22_000, "caption.en": 120, "caption.de.x": 140}
NULLS_EVERY = 100  # shards
CASES = ((1024, 64), (256, 1), (1024, 1))  # global batch, ranks; the first one also without a seal


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shards", type=int, default=10_000)
    parser.add_argument("--shard-rows", type=int, default=10_000)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="an empty folder; default: a temporary one")
    parser.add_argument("--save", action="store_true", help="keep the JSON in results/")
    asked = parser.parse_args()
    with ExitStack() as stack:
        folder = asked.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        began = time.perf_counter()
        made = Synthetic(folder / "train", asked.shards, asked.shard_rows)
        steps = {case: 1 + int(np.random.default_rng(case).integers(10**6)) for case in CASES}
        drawn: dict[int, set[int]] = defaultdict(set)
        for (batch, world), k in steps.items():
            order = make_order(made.dataset, batch)
            for slot in order.batch(k, rank_slots(batch, order.lanes, world, world // 2)).slots:
                drawn[slot.shard].add(slot.row)
            if (batch, world) == CASES[0]:
                made.index(drawn)
        made.fill(drawn)
        print(f"made in {time.perf_counter() - began:.0f} s; {len(drawn)} shards are drawn from", file=sys.stderr)
        lines = []
        for sealed in (False, True):
            if sealed:
                made.seal()
            for batch, world in CASES if sealed else CASES[:1]:
                for cold in (False, True):
                    lines.append(
                        median(made.root, batch, world, steps[batch, world], cold, asked.repeat) | {"sealed": sealed}
                    )
                    print(lines[-1], file=sys.stderr)
    about = {
        "rows": asked.shards * asked.shard_rows,
        "shards": asked.shards,
        "columns": len(ROW_BYTES),
        "repeat": asked.repeat,
    }
    record("loader_start", {**about, "lines": lines}, save=asked.save)


def make_order(dataset: Dataset, batch: int) -> Order:
    return Order(sources([dataset], [1.0], FIELDS, ["de"]), batch=batch, seed=1, languages={"de": 1.0})


def median(root: Path, batch: int, world: int, k: int, cold: bool, repeat: int) -> dict[str, Any]:
    found = []
    for _ in range(repeat):
        for path in root.rglob("*") if cold else ():
            if path.is_file():
                with path.open("rb") as file:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        found.append(apart(root, batch, world, k))
    seconds = {name: round(statistics.median(one[name] for one in found), 3) for name in found[0]}
    return {"batch": batch, "world": world, "k": k, "cache": "cold" if cold else "warm", "seconds": seconds}


def apart(root: Path, batch: int, world: int, k: int) -> dict[str, float]:
    """`start` in a process of its own."""
    context = multiprocessing.get_context("fork")
    mine, theirs = context.Pipe()
    process = context.Process(target=lambda: theirs.send(start(root, batch, world, k)))
    process.start()
    theirs.close()
    found = mine.recv()
    process.join()
    return found


def start(root: Path, batch: int, world: int, k: int) -> dict[str, float]:
    times = {"": time.perf_counter()}
    dataset = Dataset.open(root)
    times["open"] = time.perf_counter()
    order = make_order(dataset, batch)
    times["eligible rows, order"] = time.perf_counter()
    content_digests([dataset], FIELDS, ["de"])
    times["digests"] = time.perf_counter()
    options: dict[str, Any] = {"world": world, "rank": world // 2, "first": k, "last": k + 1000, "workers": 0}
    loader = make_loader(order, [dataset], FIELDS, transform=lambda picture: torch.zeros(1), **options)
    times["loader"] = time.perf_counter()
    got = next(iter(loader))
    times["first batch"] = time.perf_counter()
    assert got.k == k and len(got) == len(range(world // 2, batch, world)) and not got.substituted, got.substituted[:1]
    stamps = list(times.values())
    parts = {name: after - before for name, before, after in zip(list(times)[1:], stamps, stamps[1:], strict=False)}
    return {**parts, "all": stamps[-1] - stamps[0]}


class Synthetic:
    """A dataset of which only what will be read is made, with the bytes that the real code writes."""

    def __init__(self, root: Path, shards: int, rows: int) -> None:
        self.root, self.rows, self.names = root, rows, [f"{shard:06d}" for shard in range(shards)]
        numbers = np.arange(rows)
        self._digits = np.full((rows, 12), ord("\n"), np.uint8)  # key: six digits of the shard, five of the row
        for place in range(5):
            self._digits[:, 10 - place] = ord("0") + numbers // 10**place % 10
        self.nulls = list(range(0, rows, 50))
        self.digests = [keys_digest([self._keys(shard)[:-1].decode()]) for shard in range(shards)]
        meta = {"format": 1, "name": "synthetic", "split": "train"}
        meta["shards"] = [
            {"id": name, "rows": rows, "keys": keys} for name, keys in zip(self.names, self.digests, strict=True)
        ]
        (root / "keys").mkdir(parents=True)
        (root / "dataset.json").write_bytes(store.pretty_json({**meta, "digest": store.digest_json(meta)}))
        for column in ROW_BYTES:
            kind, extension = ("image", "jpg") if column == "image" else ("texts", "json")
            (root / column).mkdir()
            about = {"kind": kind, "extension": extension, "plan": {}, "provenance": {}}
            (root / column / "column.json").write_bytes(store.pretty_json(about))
            plan = store.digest_json({})
            for shard, name in enumerate(self.names):
                fields = {
                    "rows": rows,
                    "bytes": self._bytes(column),
                    "sha256": f"{column}{name}".rjust(64, "0"),
                    "plan": plan,
                }
                nulls = len(self.nulls) if self._has_nulls(column, shard) else 0
                record_bytes = store.pretty_json({**fields, "keys": self.digests[shard], "nulls": nulls})
                (root / column / f"{name}.json").write_bytes(record_bytes)
                if nulls:
                    self._index(column, shard)

    @property
    def dataset(self) -> Dataset:
        return Dataset.open(self.root)

    def _keys(self, shard: int) -> bytes:
        for place in range(6):
            self._digits[:, 5 - place] = ord("0") + shard // 10**place % 10
        return self._digits.tobytes()

    def _has_nulls(self, column: str, shard: int) -> bool:
        return column == "caption.de.x" and shard % NULLS_EVERY == 0

    def _stride(self, column: str) -> int:
        return 512 + -(-ROW_BYTES[column] // 512) * 512

    def _bytes(self, column: str) -> int:
        return self.rows * self._stride(column) + 10240

    def _offsets(self, column: str) -> np.ndarray:
        return 512 + np.arange(self.rows, dtype=np.int64) * self._stride(column)

    def _index(self, column: str, shard: int) -> None:
        members = {"offsets": self._offsets(column).tolist(), "sizes": [ROW_BYTES[column]] * self.rows}
        nulls = self.nulls if self._has_nulls(column, shard) else []
        keys = self._keys(shard).decode().split("\n")[:-1]
        index = {
            "keys": keys,
            "members": {"jpg" if column == "image" else "json": members},
            "ignored": 0,
            "nulls": nulls,
        }
        (self.root / column / f"{self.names[shard]}.index.json").write_bytes(store.canonical_json(index))

    def index(self, shards: Iterable[int]) -> None:
        for shard in shards:
            for column in ROW_BYTES:
                self._index(column, shard)

    def fill(self, drawn: dict[int, set[int]]) -> None:
        """Keys and the given rows of the given shards."""
        picture = io.BytesIO()
        Image.new("RGB", (16, 16), "red").save(picture, "jpeg")
        text = json.dumps(["a caption"]).encode()
        self.filled = sorted(drawn)
        for shard, rows in drawn.items():
            (self.root / "keys" / f"{self.names[shard]}.txt").write_bytes(self._keys(shard))
            for column, size in ROW_BYTES.items():
                offsets = self._offsets(column)
                value = picture.getvalue().ljust(size, b"\0") if column == "image" else text.ljust(size)
                with (self.root / column / f"{self.names[shard]}.tar").open("wb") as file:
                    file.truncate(self._bytes(column))
                    for row in rows:
                        os.pwrite(file.fileno(), value, int(offsets[row]))

    def seal(self) -> None:
        """What `seal.seal` writes, with holes where no shard is drawn from."""
        for column in ROW_BYTES:
            folder, rows, total = self.root / column, self.rows, self.rows * len(self.names)
            present = np.ones((len(self.names), rows), bool)
            present[[shard for shard in range(len(self.names)) if self._has_nulls(column, shard)], :: self.nulls[1]] = (
                False
            )
            pairs = np.stack([self._offsets(column), np.full(rows, ROW_BYTES[column])], axis=1).tobytes()
            with (folder / "sealed.npy").open("wb") as file:
                np.save(file, np.packbits(present, axis=1).ravel() if not present.all() else np.zeros(0, np.uint8))
                np.lib.format.write_array_header_1_0(
                    file, {"descr": "<i8", "fortran_order": False, "shape": (total, 2)}
                )
                first = file.tell()
                file.truncate(first + 16 * total)
                for shard in self.filled:
                    os.pwrite(file.fileno(), pairs, first + 16 * rows * shard)
            records = [store.read_json(folder / f"{name}.json") for name in self.names]
            shards = [{key: one[key] for key in ("bytes", "sha256", "nulls")} for one in records]
            about = {"format": 1, "dataset": self.dataset.digest, "plan": store.digest_json({}), "width": 0}
            places = {"bytes": (folder / "sealed.npy").stat().st_size, "sha256": "0" * 64}
            (folder / "sealed.json").write_bytes(store.canonical_json({**about, "places": places, "shards": shards}))


if __name__ == "__main__":
    main()
