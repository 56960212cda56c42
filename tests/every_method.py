"""Every method on the tiny models of `small.py`, with a batch that has all that any stage reads: for tests of what
holds for all of them.
"""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ccr_dist.data.stream.batch import Batch
from ccr_dist.methods import registry
from ccr_dist.methods.base import Method
from ccr_dist.models.backbones.backbone import Backbone
from tests import nrccr, small
from tests.leccr import DESCRIPTIONS
from tests.tiny import tiny_clip_config, tiny_encoder

SLOTS = {"slots": 3, "slot_blocks": 1, "heads": 2}
QUERY_WIDTH = 20  # of the query encoder's features
# Options beyond the models, of every method.
OPTIONS: dict[str, dict[str, Any]] = {
    "clip": {},
    "dasd": {"rank": 4},
    "described": {"rank": 4, **SLOTS},
    "distill": {"stages": ["text", "pictures"], "blocks": 1, "source": 0.5},
    "dynamic": {"rank": 6, "pairs": "translations", "pictures": 0.5},
    "english": {"train": "all"},
    "full": {"keep_english": True},
    "fusion": {"of": {"name": "dasd", "rank": 4}},
    "hybrid": {"rank": 4, "blocks": 1, **SLOTS},
    "kernel": {"landmarks": 4},
    "leccr": {"text_rows": "all", "dim": 12, "blocks": 1, **SLOTS},
    "lora": {"rank": 2, "alpha": 2},
    "map": {"space": "shared", "ranks": [None, 3], "pictures": [0.0, 0.5]},
    "nrccr": nrccr.SMALL,
    "projection": {"hidden": 24, "pictures": 0.5},
    "static": {"hidden": 4},
    "translate_test": {},
    "weighted": {"rank": 4},
}


def build(folder: Path, name: str, *, kind: str = "clip", pad: str = "longest", **options: Any) -> Method:
    """A method on a tiny backbone of a kind, its models below `folder`; options above those of `OPTIONS`."""
    return small.method(
        name, copy.deepcopy(_backbone(folder / kind, kind)), **options_of(folder, name, pad=pad, **options)
    )


def options_of(folder: Path, name: str, *, pad: str = "longest", **options: Any) -> dict[str, Any]:
    """A method's options, with the models that it needs beside its backbone, which are made below `folder`."""
    fields, given = registry.options(name).model_fields, {**OPTIONS[name], **options}
    front_end = {"embeddings": str(folder / "front"), "rows": "all", "start": "scaled", "pad": pad}
    for part, width in (("front", 20), ("query", QUERY_WIDTH), ("encoder", 24)):
        if not (folder / part).exists():
            tiny_encoder(folder / part, width=width)
    if "query" in fields:
        given["query"] = {"text": str(folder / "query")}
    for key in ("encoder", "text_encoder"):
        if key in fields:
            given[key] = str(folder / "encoder")
    if "of" in fields:
        given["of"] = registry.options(given["of"]["name"])(**given["of"] | {"frontend": front_end})
    if "frontend" in fields:
        given["frontend"] = front_end
    return given


def config(folder: Path, name: str) -> dict[str, Any]:
    """A run config, as plain values, that trains a method in all its stages, on data that is not there."""
    given = {"name": name, **options_of(folder, name)}
    if not (folder / "clip").exists():
        tiny_clip_config(folder / "clip")
    stages = registry.options(name)(**given).training_stages()
    if "of" in given:
        given["of"] = given["of"].model_dump(mode="json")
    step = {"steps": 2, "batch": 6, "lr": 1e-3}
    return {
        "name": f"tiny-{name}",
        "backbone": {"kind": "open_clip", "model": f"local-dir:{folder / 'clip'}"},
        "method": given,
        "data": {
            "train": [{"path": "nowhere"}],
            "val": "nowhere",
            "targets": {"es": "caption.es"},
            "queries": {"en": "caption.en"},
            "back_translations": {"es": "caption.en.back-es"},
            "source_feature": "feature.en",
            "query_features": {"en": "feature.q.en", "es": "feature.q.es"},
            "description": "description.mllm",
        },
        "stages": {stage: {} if about.closed_form else step for stage, about in stages.items()},
    }


@functools.cache
def _backbone(folder: Path, kind: str) -> Backbone:
    return small.backbone(folder, kind)


def batch(method: Method, stage: str = "", *, rows: int = 4, **changes: Any) -> Batch:
    """Rows with everything that the stage may read: pictures, captions, features, descriptions."""
    backbone = method.backbone
    with torch.no_grad():
        english = backbone.text_features(list(small.ENGLISH[:rows]))
    needs = method.options.training_stages()[stage].needs if stage else frozenset()
    dice = torch.Generator().manual_seed(0)
    picture = backbone.image_transform()(Image.new("RGB", (32, 32)))
    given: dict[str, Any] = {
        "visual": torch.randn(rows, *picture.shape, generator=dice),
        "source_feature": english,
        "back_text": [f"{text} again" for text in small.ENGLISH[:rows]],
        "back_feature": english.flip(0),
        "description": DESCRIPTIONS[:rows],
    }
    if "query_feature" in needs:
        given["query_feature"] = torch.randn(rows, QUERY_WIDTH, generator=dice)
    return small.batch(rows, group=[0, 0, *range(2, rows)][:rows], **(given | changes))
