"""Our loader beside webdataset and beside reading the same tars from end to end, with and without decoding, page cache
warm and cold.

    python tests/benchmarks/loader.py [--rows 8192] [--decode-rows 1024] [--workers 0,1,2] [--repeat 5] [--folder DIR]
    [--save]

Two layouts of the same rows, JPEGs of --side pixels and captions: `joined`, tars with picture and caption of a row side
by side, as img2dataset writes them (we read them through `shards index`), and `columns`, our own, a tar for the
pictures and one for the captions (webdataset reads both and zips them). Both loaders read the same files, with the same
number of worker processes, and give the same: key, a tensor and the caption, in batches. Decoded: PIL, RGB, 224 x 224,
float. Not decoded (`bytes`): the tensor is the length of the bytes, which were read. webdataset does not shuffle, which
is its fastest way; ours always does. `raw` is one process that reads all bytes of the files in order, 1 MiB at a time.

Cold: the kernel is told to forget the pages of all files before each run (POSIX_FADV_DONTNEED); what lies below this
machine may still cache. Each run is a process of its own; its time goes from asking for the first batch to having the
last one, start of workers, indexes and keys included; what is done once before (opening datasets, finding eligible
rows, the order) is `start_s`. The runs alternate; shown are medians, of rows/s, of CPU time a row (worker processes
included), and of the ratios of times of runs next to each other. --decode-rows: rows of the smaller dataset that is
decoded.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset
from PIL import Image

from ccr_dist.data.corpora.index import index
from ccr_dist.data.storage.tar import TarWriter
from ccr_dist.data.stream import loader as ours
from ccr_dist.data.stream import rows
from ccr_dist.data.stream.order import Order
from ccr_dist.data.table.dataset import Dataset, create_column, create_dataset
from tests.benchmarks.record import record

FIELDS = ours.Fields(visual="image", source="caption.en")
POOL = 256  # different pictures; their bytes lie at as many places as there are rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=8192)
    parser.add_argument("--decode-rows", type=int, default=1024)
    parser.add_argument("--shards", type=int, default=16)
    parser.add_argument("--side", type=int, default=256, help="pixels of the JPEGs")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--workers", default="0,1,2")
    parser.add_argument("--layouts", default="joined,columns")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="keeps the data, and uses what is there")
    parser.add_argument("--save", action="store_true", help="keep the JSON in results/")
    asked = parser.parse_args()
    lines = []
    with ExitStack() as stack:
        folder = asked.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for decoded, rows in ((False, asked.rows), (True, asked.decode_rows)):
            data = build(folder / f"{rows}-{asked.shards}-{asked.side}", rows, asked.shards, asked.side)
            variants = itertools.product(asked.layouts.split(","), (False, True), map(int, asked.workers.split(",")))
            for layout, cold, workers in variants:
                lines.append(compare(data, layout, decoded, cold, workers, asked.batch, asked.repeat))
                print(shown(lines[-1]), file=sys.stderr)
    about = {name: value for name, value in vars(asked).items() if name not in ("save", "folder")}
    record("loader", {**about, "lines": lines}, save=asked.save)


def shown(line: dict[str, Any]) -> str:
    what = f"{'decoded' if line['decoded'] else 'bytes':8}{line['cache']:5}{line['layout']:8} {line['workers']} workers"
    rates = "  ".join(f"{name} {line[name]['rows_per_s']:8.0f}/s" for name in ("ours", "webdataset", "raw"))
    return (
        f"{what}  {rates}  ours/webdataset {line['ours/webdataset']:.2f}  ours/raw {line['ours/raw']:.2f}  start"
        f" {line['start_s']:.2f} s"
    )


def compare(
    data: Path, layout: str, decoded: bool, cold: bool, workers: int, batch: int, repeat: int
) -> dict[str, Any]:
    systems: dict[str, Callable[[], tuple[Iterator[int], float]]] = {
        "ours": lambda: run_ours(data / layout, decoded, workers, batch),
        "webdataset": lambda: run_webdataset(data / layout, decoded, workers, batch),
        "raw": lambda: (read_all(data / layout), 0.0),
    }
    seconds: dict[str, list[float]] = {name: [] for name in systems}
    busy: dict[str, list[float]] = {name: [] for name in systems}
    starts, rows = [], 0
    for turn in range(repeat):
        for name in list(systems)[:: 1 if turn % 2 else -1]:
            touch(data, cold)
            got, took, cpu, start = apart(systems[name])
            seconds[name].append(took)
            busy[name].append(cpu)
            if name == "ours":
                starts.append(start)
                rows = got
            assert name == "raw" or got == rows or not rows, f"{name} gave {got} rows, not {rows}"
    size = sum(path.stat().st_size for path in tars(data / layout))
    line: dict[str, Any] = {
        "decoded": decoded,
        "cache": "cold" if cold else "warm",
        "layout": layout,
        "workers": workers,
        "rows": rows,
    }
    for name, times in seconds.items():
        middle = statistics.median(times)
        line[name] = {
            "rows_per_s": round(rows / middle, 1),
            "mb_per_s": round(size / middle / 1e6, 1),
            "cpu_us_per_row": round(statistics.median(busy[name]) / rows * 1e6, 1),
            "seconds": [round(t, 3) for t in times],
        }
    for other in ("webdataset", "raw"):
        pairs = zip(seconds["ours"], seconds[other], strict=True)
        line[f"ours/{other}"] = round(statistics.median(theirs / mine for mine, theirs in pairs), 3)
    line["cpu webdataset/ours"] = round(line["webdataset"]["cpu_us_per_row"] / line["ours"]["cpu_us_per_row"], 3)
    return {**line, "start_s": round(statistics.median(starts), 3)}


def apart(system: Callable[[], tuple[Iterator[int], float]]) -> tuple[int, float, float, float]:
    """(rows, seconds, CPU seconds of all its processes, seconds of the start) of a system in a process of its own, with
    empty caches.
    """

    def work(pipe: Any) -> None:
        torch.set_num_threads(1)
        batches, start = system()
        began, before = time.perf_counter(), sum(os.times()[:4])
        rows = sum(batches)
        took = time.perf_counter() - began
        # workers are waited for when they have no more to do
        pipe.send((rows, took, sum(os.times()[:4]) - before, start))

    context = multiprocessing.get_context("fork")
    mine, theirs = context.Pipe()
    process = context.Process(target=work, args=(theirs,))
    process.start()
    theirs.close()
    found = mine.recv()
    process.join()
    return found


def tensor_of(picture: Image.Image) -> torch.Tensor:
    """(3, 224, 224) float32, in [0, 1]."""
    pixels = np.asarray(picture.resize((224, 224), Image.Resampling.BICUBIC), dtype=np.float32)
    return torch.from_numpy(pixels).permute(2, 0, 1) / 255


def length_of(data: bytes) -> torch.Tensor:
    return torch.tensor(float(len(data)))


def run_ours(root: Path, decoded: bool, workers: int, batch: int) -> tuple[Iterator[int], float]:
    if not decoded:
        rows.decode_image = lambda data, what: data  # type: ignore[assignment]  # in this process only
    began = time.perf_counter()
    dataset = Dataset.open(root)
    order = Order(ours.sources([dataset], [1.0], FIELDS, ["en"]), batch=batch, seed=1, languages={"en": 1.0})
    transform: Callable[..., torch.Tensor] = tensor_of if decoded else length_of
    steps = dataset.rows // batch
    loader = ours.make_loader(
        order, [dataset], FIELDS, world=1, rank=0, first=0, last=steps, workers=workers, transform=transform
    )
    return (len(found.items) for found in loader), time.perf_counter() - began


def run_webdataset(root: Path, decoded: bool, workers: int, batch: int) -> tuple[Iterator[int], float]:
    transform = tensor_of if decoded else length_of

    def stream(folder: Path) -> Any:
        urls = [str(path) for path in sorted(folder.glob("*.tar"))]
        made = webdataset.WebDataset(urls, shardshuffle=False, empty_check=False)
        return made.decode("pilrgb") if decoded else made.decode(webdataset.handle_extension("json", json.loads))

    def row(sample: dict[str, Any]) -> tuple[str, torch.Tensor, str]:
        texts = sample["json"]
        return sample["__key__"], transform(sample["jpg"]), texts["caption"] if isinstance(texts, dict) else texts[0]

    if root.name == "joined":
        samples = stream(root / "tars")
    else:
        samples = Zipped(stream(root / "image"), stream(root / "caption.en"))
    batches = webdataset.DataPipeline(samples, webdataset.map(row), webdataset.batched(batch))
    loader = webdataset.WebLoader(batches, batch_size=None, num_workers=workers)
    return (len(keys) for keys, *_ in loader), 0.0


class Zipped(torch.utils.data.IterableDataset):
    """The samples of two streams with the same keys in the same order, put together."""

    def __init__(self, first: Any, second: Any) -> None:
        self.first, self.second = first, second

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for a, b in zip(self.first, self.second, strict=True):
            assert a["__key__"] == b["__key__"]
            yield {**b, **a}


def tars(root: Path) -> list[Path]:
    return sorted([*root.glob("tars/*.tar"), *root.glob("image/*.tar"), *root.glob("caption.en/*.tar")])


def read_all(root: Path) -> Iterator[int]:
    for path in tars(root):
        with path.open("rb", buffering=0) as file:
            while file.read(1 << 20):
                pass
        yield 0


def touch(folder: Path, cold: bool) -> None:
    """Every file of the folder out of the page cache, or into it."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb", buffering=0) as file:
                if cold:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                else:
                    while file.read(1 << 20):
                        pass


def build(folder: Path, rows: int, shards: int, side: int) -> Path:
    if (folder / "done").exists():
        return folder
    dice = np.random.default_rng(0)
    pictures = []
    for _ in range(min(POOL, rows)):
        file = io.BytesIO()
        noise = Image.fromarray(dice.integers(0, 256, (side // 8, side // 8, 3), dtype=np.uint8))
        noise.resize((side, side), resample=3).save(file, "jpeg", quality=90)
        pictures.append(file.getvalue())
    keys = [[f"{number:09d}" for number in part] for part in np.array_split(np.arange(rows), shards)]
    dataset = create_dataset(folder / "columns", name="bench", split="train", keys=keys)
    image = create_column(dataset, "image", kind="image", extension="jpg", plan={}, provenance={})
    caption = create_column(dataset, "caption.en", kind="texts", extension="json", plan={}, provenance={})
    (folder / "joined/tars").mkdir(parents=True)
    for shard, names in enumerate(keys):
        media = [pictures[int(name) % len(pictures)] for name in names]
        texts = [f"picture number {name}, of coloured noise, with nothing that could be recognised" for name in names]
        image.commit(shard, media)
        caption.commit(shard, [caption.encode([text]) for text in texts])
        with TarWriter(folder / f"joined/tars/{shard:06d}.tar") as tar:
            for name, picture, text in zip(names, media, texts, strict=True):
                tar.add(f"{name}.jpg", picture)
                tar.add(f"{name}.json", json.dumps({"caption": text}).encode())
    index([str(folder / "joined/tars/*.tar")], folder / "joined", captions={"en": "json:caption"}, progress=False)
    os.sync()  # pages that are not written yet cannot be dropped
    (folder / "done").touch()
    return folder


if __name__ == "__main__":
    main()
