"""How fast `ccr-dist index` is, against a bare loop over the model, and how soon `ccr-dist search` answers.

    python tests/benchmarks/index.py [--model MODEL] [--pictures 256] [--side 320] [--repeat 3] [--save]

MODEL: a run, a model folder or a config; default: the demo's backbone (EfficientNet-Lite0 and MiniLM), its heads not
trained.

index: pictures a second of an index of a folder of JPEGs, everything included (listing, digests, decoding, model,
journal, commits), and of a loop that reads, decodes and encodes the same files in batches of 64, in one process, with
nothing kept. They take turns; each figure is the median. again: seconds of a second index of the same folder, in which
nothing is new. search: seconds of a whole process with one query, and of a process that imports torch.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

import ccr_dist
from ccr_dist.data.media.pictures import decode_image
from tests.benchmarks.record import noise, record

BATCH = 64
CONFIG = """
name: clip
method: {name: clip}
backbone: {kind: dual, image: efficientnet-lite0, text: minilm}
data: {train: [{path: none}], val: none, queries: {en: caption.en}}
"""


def seconds(work: Callable[[], Any]) -> float:
    """Of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def loop(retriever: Any, paths: list[Path]) -> None:
    """Reads, decodes and encodes, and keeps nothing."""
    transform = retriever.image_transform()
    for start in range(0, len(paths), BATCH):
        pixels = [transform(decode_image(path.read_bytes())).numpy() for path in paths[start : start + BATCH]]
        retriever.encode_pixels(np.stack(pixels))


def process(*words: str) -> float:
    """Seconds of a process."""
    return seconds(lambda: subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", help="what `ccr_dist.load` takes")
    parser.add_argument("--pictures", type=int, default=256)
    parser.add_argument("--side", type=int, default=320)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--save", action="store_true", help="keep the JSON in results/")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "p").mkdir()
        paths = []
        for number, data in enumerate(islice(noise(side=asked.side, seed=0), asked.pictures)):
            paths.append(folder / "p" / f"{number:06d}.jpg")
            paths[-1].write_bytes(data)
        model = asked.model or str(folder / "clip.yaml")
        (folder / "clip.yaml").write_text(CONFIG)
        retriever = ccr_dist.load(model)
        loop(retriever, paths[:BATCH])
        times: dict[str, list[float]] = {name: [] for name in ("loop", "index", "again", "search", "import_torch")}
        for turn in range(asked.repeat):

            def build(out: Path = folder / f"i{turn}") -> None:
                ccr_dist.Index.build(out, retriever, folder / "p", progress=False)

            works = (("loop", lambda: loop(retriever, paths)), ("index", build), ("again", build))
            for name, work in works if turn % 2 else (works[1], works[2], works[0]):
                times[name].append(seconds(work))
        for _ in range(asked.repeat):
            words = ("-m", "ccr_dist", "search", str(folder / "i0"), "a red boat", "--lang", "en")
            times["search"].append(process(*words, "--model", model))
            times["import_torch"].append(process("-c", "import torch"))
    middle = {name: statistics.median(some) for name, some in times.items()}
    results = {
        "model": asked.model or "EfficientNet-Lite0 and MiniLM",
        "pictures": asked.pictures,
        "side": asked.side,
        "device": str(retriever.device),
        "loop_pictures_s": round(asked.pictures / middle["loop"], 1),
        "index_pictures_s": round(asked.pictures / middle["index"], 1),
        "index_of_loop": round(middle["loop"] / middle["index"], 3),
        "again_s": round(middle["again"], 3),
        "search_s": round(middle["search"], 2),
        "import_torch_s": round(middle["import_torch"], 2),
        "search_of_import": round(middle["search"] / middle["import_torch"], 2),
        "all_s": {name: [round(each, 3) for each in some] for name, some in times.items()},
    }
    record("index", results, save=asked.save)


if __name__ == "__main__":
    main()
