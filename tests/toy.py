"""A small corpus that can be learnt, and run configs on it: for tests of training, evaluation and the command line.

Pictures show one of a few colours in one of a few places; captions name both, in English and in a made-up translation.
"""

from __future__ import annotations

import atexit
import functools
import io
import itertools
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from ccr_dist.data.media.decode import encode
from ccr_dist.data.table.dataset import Dataset, create_column, create_dataset
from tests import tiny

COLOURS = {"red": "rojo", "green": "verde", "blue": "azul", "white": "blanco", "yellow": "amarillo", "black": "negro"}
PLACES = {"left": "izquierda", "right": "derecha", "top": "arriba", "bottom": "abajo", "middle": "centro"}
ENGLISH = [f"a {colour} spot on the {place}" for colour, place in itertools.product(COLOURS, PLACES)]
SPANISH = [f"una mancha {COLOURS[colour]} {PLACES[place]}" for colour, place in itertools.product(COLOURS, PLACES)]
ALL_TEXTS = (*ENGLISH, *SPANISH)


def picture(number: int) -> bytes:
    """PNG of concept `number`."""
    colour, place = divmod(number, len(PLACES))
    image = Image.new("RGB", (32, 32), "gray")
    x, y = {"left": (2, 12), "right": (22, 12), "top": (12, 2), "bottom": (12, 22), "middle": (12, 12)}[
        list(PLACES)[place]
    ]
    image.paste(list(COLOURS)[colour], (x, y, x + 8, y + 8))
    buffer = io.BytesIO()
    image.save(buffer, "png")
    return buffer.getvalue()


def chunks(values: list[Any], size: int) -> Iterator[list[Any]]:
    return (values[start : start + size] for start in range(0, len(values), size))


def build(root: Path, split: str, *, rows: int = 30, shard_rows: int = 5) -> Dataset:
    """ROOT/SPLIT with columns image, caption.en, caption.es, caption.es.toy, label.concept and feature.toy (a random
    projection of the pixels).
    """
    numbers = [i % len(ENGLISH) for i in range(rows)]
    keys = [f"{split}-{i:03d}" for i in range(rows)]
    dataset = create_dataset(root / split, name="toy", split=split, keys=list(chunks(keys, shard_rows)))
    values: dict[str, tuple[str, str, list[Any]]] = {
        "image": ("image", "png", [picture(n) for n in numbers]),
        "caption.en": ("texts", "json", [[ENGLISH[n]] for n in numbers]),
        "caption.es": ("texts", "json", [[SPANISH[n]] for n in numbers]),
        "caption.es.toy": ("texts", "json", [[SPANISH[n]] for n in numbers]),
        "caption.en.toy": ("texts", "json", [[ENGLISH[n]] for n in numbers]),
        "label.concept": ("label", "json", [ENGLISH[n] for n in numbers]),
    }
    for name, (kind, extension, column_values) in values.items():
        column = create_column(
            dataset, name, kind=kind, extension=extension, plan={"by": "tests/toy.py"}, provenance={"licence": "none"}
        )
        for shard, part in enumerate(chunks(column_values, shard_rows)):
            column.commit(shard, [encode(kind, value) for value in part])
    return dataset


def add_feature(dataset: Dataset, name: str, vectors: np.ndarray) -> None:
    """A matrix column; `vectors` (rows, D)."""
    column = create_column(dataset, name, kind="matrix", extension="npy", plan={"by": "tests/toy.py"}, provenance={})
    for shard, part in enumerate(chunks(list(vectors), dataset.shard_rows[0])):
        column.commit_matrix(shard, np.asarray(part, dtype=np.float16))


def corpus(root: Path) -> Path:
    """ROOT/{train,val,test}. Built once a process and copied: hundreds of tests want one, and each would wait for 700
    fsyncs.
    """
    for split in ("train", "val", "test"):
        shutil.copytree(_pattern(*ENGLISH, *SPANISH) / split, root / split)
    return root


@functools.cache
def _pattern(*texts: str) -> Path:
    """Of these captions, which a test may have changed."""
    folder, process = Path(tempfile.mkdtemp(prefix="toy-")), os.getpid()
    # not where a fork ends
    atexit.register(lambda: shutil.rmtree(folder, ignore_errors=True) if os.getpid() == process else None)
    for split in ("train", "val", "test"):
        build(folder, split)
    return folder


def config(
    folder: Path,
    method: dict[str, Any],
    stages: dict[str, Any],
    *,
    backbone: dict[str, Any] | None = None,
    **sections: Any,
) -> Path:
    """Writes FOLDER/NAME.yaml for a run on the corpus in FOLDER/data, with a tiny CLIP unless another backbone is
    given.

    Returns its path.
    """
    if backbone is None:
        kept = folder / "clip.json"
        if not kept.exists():  # saving it anew would start from the weights that are there
            kept.write_text(tiny.tiny_clip_config(folder / "clip").model_dump_json())
        backbone = json.loads(kept.read_text())
    data = folder / "data"
    if not data.exists():
        corpus(data)
    values = {
        "name": method["name"],
        "out": str(folder / "runs"),
        "backbone": backbone,
        "method": method,
        "data": {
            "train": [{"path": str(data / "train")}],
            "val": str(data / "val"),
            "test": str(data / "test"),
            "targets": {"es": "caption.es.toy"},
            "queries": {"en": "caption.en", "es": "caption.es"},
            "translated_queries": {"es": "caption.en.toy"},
            "group": "label.concept",
        },
        "stages": stages,
        "runtime": {"workers": 0, "threads": 1, "log_every": 1},
    }
    for section, changes in sections.items():
        values[section] = {**values.get(section, {}), **changes} if isinstance(changes, dict) else changes
    path = folder / f"{values['name']}.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


def dasd(folder: Path, *, cla: int = 6, cma: int = 4, **sections: Any) -> Path:
    """Config of a small DASD run: both stages, front end on a tiny multilingual BERT."""
    embeddings = folder / "mbert"
    if not embeddings.exists():
        tiny.tiny_frontend_folder(embeddings, ALL_TEXTS)
    stage = {"batch": 10, "lr": 1e-2, "warmup": 0}
    method = {"name": "dasd", "rank": 4, "frontend": {"embeddings": str(embeddings), "rows": "used"}}
    return config(folder, method, {"cla": {"steps": cla, **stage}, "cma": {"steps": cma, **stage}}, **sections)
