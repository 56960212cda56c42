"""What all benchmarks share: the record around their numbers, a toy dataset to work on, and words for its captions."""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ccr_dist.data.table.dataset import Dataset, create_column, create_dataset
from ccr_dist.environment import environment

RESULTS = Path(__file__).parent / "results"
ENGLISH_WORDS = [
    "a",
    "the",
    "small",
    "old",
    "red",
    "boat",
    "dog",
    "woman",
    "man",
    "child",
    "tree",
    "river",
    "house",
    "walks",
    "near",
    "two",
]


def record(name: str, results: dict[str, Any], *, save: bool) -> None:
    """Prints the results with command, commit, hardware and versions; `save` keeps them in `results/NAME.json`."""
    text = json.dumps({"benchmark": name, **environment(), "results": results}, indent=1)
    print(text)
    if save:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{name}.json").write_text(text + "\n")


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that something did not fit; not every error that speaks of memory does."""
    import torch

    words = ("out of memory", "allocate memory", "bad_alloc", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(each in str(error) for each in words)


def pictures(root: Path, rows: int, *, shards: int, side: int, seed: int) -> Dataset:
    """A dataset of `noise`."""
    return dataset(root, "image", "image", "jpg", noise(side=side, seed=seed), rows, shards)


def noise(*, side: int, seed: int) -> Iterator[bytes]:
    """JPEGs of coloured noise, all different, without end: nothing can be cached."""
    import numpy as np
    from PIL import Image

    dice = np.random.default_rng(seed)
    while True:
        coarse = dice.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(coarse).resize((side, side), resample=3).save(file, "jpeg", quality=90)
        yield file.getvalue()


def captions(root: Path, texts: list[list[str]], *, shards: int) -> Dataset:
    """A dataset with the column caption.en."""
    encoded = (json.dumps(row, ensure_ascii=False).encode() for row in texts)
    return dataset(root, "caption.en", "texts", "json", encoded, len(texts), shards)


def dataset(
    root: Path, column: str, kind: str, extension: str, values: Iterable[bytes], rows: int, shards: int
) -> Dataset:
    """`rows` rows in `shards` shards of nearly equal size, with one column."""
    cuts = [rows * i // shards for i in range(shards + 1)]
    made = create_dataset(
        root, name="bench", split="train", keys=[[f"{i:07d}" for i in range(*cut)] for cut in itertools.pairwise(cuts)]
    )
    target = create_column(made, column, kind=kind, extension=extension, plan={"recipe": "bench"}, provenance={})
    rest = iter(values)
    for shard, count in enumerate(made.shard_rows):
        target.commit(shard, [next(rest) for _ in range(count)])
    return made
