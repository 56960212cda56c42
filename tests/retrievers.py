"""Retrievers on tiny models with random weights, built in the process, and datasets for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ccr_dist.config import as_dict
from ccr_dist.data.media.decode import encode
from ccr_dist.data.table.dataset import Dataset, create_column, create_dataset
from ccr_dist.methods.build import build_method, learnt_languages
from ccr_dist.methods.run_config import load_config
from ccr_dist.retriever.model_folder import Record
from ccr_dist.retriever.retriever import Retriever, query_languages
from tests import toy
from tests.small import unsettle
from tests.tiny import tiny_frontend_folder


def retriever(path: Path, texts: Sequence[str] = (), *, fusion: Mapping[str, float] | None = None) -> Retriever:
    """The method of a run config, not trained: every weight of its own is random."""
    config = load_config(path, [])
    method = build_method(config, texts=texts)
    unsettle(method.net)
    languages = query_languages(config, learnt_languages(config))
    weights = {"weights": dict(fusion or {"global": 1.0}), "minmax": False, "ranges": {}}
    record = Record(f"{config.name}-s0", as_dict(config), method.state(), languages, weights, "", {}, {})
    return Retriever(record, config, method, folder=None, device="cpu")


def clip(folder: Path) -> Retriever:
    """The tiny CLIP as it is, English only. It gives other languages rows, too."""
    return retriever(toy.config(folder, {"name": "clip"}, {}))


def hybrid(folder: Path) -> Retriever:
    """A method whose score has two parts, in English and Spanish."""
    embeddings = folder / "mbert"
    tiny_frontend_folder(embeddings, toy.ALL_TEXTS)
    method: dict[str, Any] = {"name": "hybrid", "rank": 4, "blocks": 1, "slots": 2, "slot_blocks": 1, "heads": 2}
    method["frontend"] = {"embeddings": str(embeddings), "rows": "used"}
    stage = {"steps": 2, "batch": 10, "lr": 1e-2, "warmup": 0}
    data = {"description": "caption.en.toy"}
    path = toy.config(folder, method, {"cla": stage, "cma": stage}, data=data)
    return retriever(path, toy.SPANISH, fusion={"global": 0.6, "local": 0.4})


def dataset(root: Path, columns: Mapping[str, Sequence[Any]], *, name: str = "small", split: str = "test") -> Dataset:
    """ROOT with items item-0, item-1 ... of columns by name: image, video or caption.LANG; None is a null row."""
    rows = len(next(iter(columns.values())))
    made = create_dataset(root, name=name, split=split, keys=[[f"item-{i}" for i in range(rows)]])
    for column, values in columns.items():
        kind, extension = {"image": ("image", "png"), "video": ("video", "mp4")}.get(column, ("texts", "json"))
        plan, provenance = {"by": "tests/retrievers.py"}, {"licence": "none"}
        added = create_column(made, column, kind=kind, extension=extension, plan=plan, provenance=provenance)
        added.commit(0, [encode(kind, value) for value in values])
    return made
