"""Small models in model folders, for tests of exports: any method on the tiny models of `tiny.py`, with weights as
after some training, and the toy corpus to check on.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ccr_dist.methods.build import build_method
from ccr_dist.methods.run_config import load_config
from ccr_dist.models.backbones.transformers.options import TransformersConfig
from ccr_dist.retriever.load import load_model, save_model
from ccr_dist.retriever.retriever import Retriever
from tests import query_side, tiny, toy
from tests.dual_encoders import dual_folder
from tests.small import unsettle

STAGE = {"steps": 2, "batch": 10, "lr": 1e-2}
STAGES = {"clip": (), "leccr": ("train",), "nrccr": ("train",), "english": ("english",)}
QUERY_SIDE = ("map", "kernel")
DATA = {"licence": "CC BY 4.0", "key": "source", "origin": "people"}


def backbone(folder: Path, kind: str) -> dict[str, Any]:
    """Section of a backbone: "dual", a tiny open_clip model with that text side, or "hf-" and a kind of
    `dual_encoders.py`.
    """
    place = folder / f"backbone-{kind}"
    known = place.with_suffix(".json")
    if not known.exists():
        made: Any = (
            TransformersConfig(kind="transformers", model=str(dual_folder(place, kind.removeprefix("hf-"))))
            if kind.startswith("hf-")
            else tiny.tiny_dual_config(place, toy.ALL_TEXTS)
            if kind == "dual"
            else tiny.tiny_clip_config(place, text=kind, texts=toy.ALL_TEXTS)
        )
        known.write_text(made.model_dump_json(exclude={"weights"}))
    found: dict[str, Any] = json.loads(known.read_text())
    return found


def model(
    folder: Path,
    method: str,
    kind: str = "clip",
    *,
    languages: Sequence[str] = ("es",),
    section: Any = None,
    **options: Any,
) -> Path:
    """A model folder below `folder`, made once, of a method whose added weights are moved away from their start."""
    spelt = hashlib.sha256(repr((languages, section, options)).encode()).hexdigest()[:8]
    place = folder / "models" / f"{method}-{kind}-{spelt}"
    if place.exists():
        return place
    values: dict[str, Any] = {"name": method, **options}
    if method in ("leccr", "nrccr"):
        word = "text_encoder" if method == "leccr" else "encoder"
        values[word] = encoder(folder)
    elif method in QUERY_SIDE:
        values["query"] = {"text": query_side.encoder(folder)}
    elif method not in ("clip", "english"):
        values["frontend"] = {"embeddings": front_end(folder), "start": "scaled", "pad": "context"}
    stages: dict[str, Any] = {name: STAGE for name in STAGES.get(method, ("cla", "cma"))}
    features: dict[str, Any] = {}
    if method in QUERY_SIDE:
        stages = {"fit": {}}
        features = {"query_features": dict.fromkeys(("en", *languages), "feature.q"), "source_feature": "feature.en"}
    captions = {lang: "caption.es.toy" for lang in languages}
    queries = {"en": "caption.en", **dict.fromkeys(languages, "caption.es")}
    path = toy.config(
        folder, values, stages, backbone={**backbone(folder, kind), **(section or {})},
        data={"targets": captions, "queries": queries, "translated_queries": {}, "description": None} | features,
    )  # fmt: skip
    config = load_config(path)
    torch.manual_seed(0)
    built = build_method(config, state={} if method == "clip" else None)
    unsettle(built.net)
    if method == "kernel":
        kernel: Any = built.net["kernel"]
        kernel["gamma"].data.fill_(0.5)
    trained = list(built.named_parameters()) if method != "clip" else []
    facts = {"data": [{"dataset": "toy", "split": "train", "rows": 30, "columns": {"caption.en": DATA}}]}
    fusion = {"weights": {"global": 1.0}, "minmax": False, "ranges": {}}
    save_model(place, config, built, trained=trained, given=(), fusion=fusion, facts=facts)
    return place


def encoder(folder: Path) -> str:
    return _once(folder / "encoder", lambda place: tiny.tiny_encoder(place, toy.ALL_TEXTS, width=32, seed=5))


def front_end(folder: Path) -> str:
    return _once(folder / "mbert", lambda place: tiny.tiny_frontend_folder(place, toy.ALL_TEXTS))


def _once(place: Path, make: Any) -> str:
    if not place.exists():
        make(place)
    return str(place)


def loaded(place: Path) -> Retriever:
    return load_model(place, device="cpu")


def elsewhere(place: Path, jobs: Sequence[Any], *, forbidden: Sequence[str], imports: str | None = None) -> list[Any]:
    """What `foreign.py` makes of jobs, in a process in which modules of the names `forbidden` cannot be imported."""
    file = place / "jobs.json"
    file.write_text(json.dumps({"forbidden": forbidden, "import": imports, "jobs": list(jobs)}))
    done = subprocess.run(
        [sys.executable, str(Path(__file__).parent / "foreign.py"), str(file)],
        capture_output=True,
        text=True,
        timeout=400,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: list[Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found
