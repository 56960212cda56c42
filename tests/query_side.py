"""A run of a method with a query encoder on the toy corpus: a tiny random multilingual BERT asks, a tiny dual encoder
answers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ccr_dist.config import QueryEncoderConfig
from ccr_dist.data.table.dataset import Dataset
from ccr_dist.generate.jobs.featurise import Featurise
from ccr_dist.generate.runner import run
from ccr_dist.models.backbones.build import build_backbone
from ccr_dist.models.query_encoder import build_query_encoder
from tests import tiny, toy

QUERY = {"en": "feature.q.en", "es": "feature.q.es"}
CAPTIONS = {"en": "caption.en", "es": "caption.es.toy"}


def encoder(folder: Path) -> str:
    """The folder of the query encoder."""
    place = folder / "query"
    if not place.exists():
        tiny.tiny_frontend_folder(place, toy.ALL_TEXTS)
    return str(place)


def features(root: Path, query: str, backbone: Any) -> None:
    """Columns of query features and English features beside the captions of a dataset."""
    dataset = Dataset.open(root)
    for lang, column in QUERY.items():
        job = Featurise(lambda: build_query_encoder(QueryEncoderConfig(text=query)), CAPTIONS[lang])
        run(dataset, job, column, progress=False)
    for source, column in (("caption.en", "feature.en"), ("image", "feature.image")):
        run(dataset, Featurise(lambda: build_backbone(backbone), source), column, progress=False)


def config(folder: Path, name: str = "map", stages: dict[str, Any] | None = None, **method: Any) -> Path:
    """FOLDER/NAME.yaml of a run whose features are cached."""
    backbone = tiny.tiny_dual_config(folder / "dual", toy.ALL_TEXTS)
    query = encoder(folder)
    data = folder / "data"
    if not data.exists():
        toy.corpus(data)
        features(data / "train", query, backbone)
    sections = {"targets": {"es": "caption.es.toy"}, "source_feature": "feature.en", "query_features": QUERY}
    options = {"name": name, "query": {"text": query}, **method}
    return toy.config(
        folder,
        options,
        stages if stages is not None else {"fit": {}},
        backbone=backbone.model_dump(mode="json"),
        data=sections,
    )
