"""Evaluates dataset argv[1] in batches of argv[3] rows with a toy model, on as many processes as were started; rank 0
writes argv[2].
"""

from __future__ import annotations

import atexit
import gc
import hashlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from ccr_dist.data.table.dataset import Dataset
from ccr_dist.evaluate import retrieval
from ccr_dist.evaluate.encoding import Encoders, Encoding, EvaluatedColumns
from ccr_dist.evaluate.evaluate import results

# a gloo thread may need the interpreter after the last collective
atexit.register(lambda: (gc.collect(), time.sleep(0.2)))
torch.set_num_threads(1)
world, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
if world > 1:
    dist.init_process_group("gloo")
encoded: list[str] = []
pictures: list[float] = []
projection = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))


def vector(text: str) -> torch.Tensor:
    """The picture's own vector, found by the item number that starts the caption, and noise from the caption."""
    item = torch.randn(8, generator=torch.Generator().manual_seed(int(text.split()[0])))
    noise = torch.randn(
        8, generator=torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little"))
    )
    return item + noise


def encode_text(texts: list[str], lang: str, companion: list[str]) -> dict[str, torch.Tensor]:
    encoded.extend(f"{lang}: {text}" for text in texts)
    return {"global": torch.stack([vector(text) for text in texts]) @ projection}


def encode_visual(features: torch.Tensor, mask: torch.Tensor | None, description: list[str]) -> dict[str, torch.Tensor]:
    pictures.extend(features[:, 0].tolist())
    return {"global": features @ projection}


found_ranks: list[list[list[int]]] = []
original = retrieval.ranks


def recorded(*args, **options):
    options["block"] = 4  # several blocks a rank
    found = original(*args, **options)
    found_ranks.append(
        [found.text_to_visual.tolist(), found.visual_to_text.tolist(), found.visual_to_text_items.tolist()]
    )
    return found


retrieval.ranks = recorded
columns = EvaluatedColumns({"de": "caption.de", "fr": "caption.fr"}, "feature.toy", group="label.concept")
encoders = Encoders(encode_text, encode_visual)
bank = Encoding(encoders, Dataset.open(sys.argv[1]), columns, batch=int(sys.argv[3])).run()
found = {
    lang: each.result for lang, each in results(bank, english_column="caption.en", examples=2, replicates=20).items()
}
own = {
    "results": {lang: result.model_dump(mode="json") for lang, result in found.items()},
    "ranks": found_ranks,
    "encoded": encoded,
    "pictures": pictures,
    "pid": os.getpid(),
}
everything: list[Any] = [None] * world
if world > 1:
    dist.all_gather_object(everything, own)
    dist.destroy_process_group()
else:
    everything = [own]
if rank == 0:
    Path(sys.argv[2]).write_text(json.dumps(everything))
