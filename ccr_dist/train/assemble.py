"""From a run config to live objects: datasets, backbone, method. Shared by training, evaluation and (later) export."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from ..config import RunConfig, TrainSet
from ..data.loader import Fields
from ..data.order import mix
from ..data.table import Dataset
from ..errors import ConfigError, DataError
from ..methods import base
from ..methods.base import Method, Stage
from ..models.backbones import build_backbone


def seed_all(*parts: int | str) -> None:
    """Set torch's generators (CPU and accelerator) to a pure function of `parts`: random state is arithmetic, never saved."""
    torch.manual_seed(mix(*parts) & (2**63 - 1))


def learnt_languages(config: RunConfig) -> tuple[str, ...]:
    """The target languages that some stage of the method trains on."""
    stages = base.get(config.method.name).stages(config.method)
    return tuple(config.data.targets) if any("target_text" in stage.needs for stage in stages.values()) else ()


def train_sets(config: RunConfig, stage: str) -> tuple[TrainSet, ...]:
    return config.stages[stage].train or config.data.train


def open_datasets(sets: Iterable[TrainSet]) -> list[Dataset]:
    return [Dataset.open(entry.path) for entry in sets]


def fields_for(config: RunConfig, stage: Stage) -> Fields:
    """The columns that a stage reads; what it does not need is not read."""
    data = config.data
    if "target_text" in stage.needs and not data.targets:
        raise ConfigError(
            f"{config.name}: data.targets is empty, but method {config.method.name!r} learns from translated captions: name a column for "
            "each language that `ccr-dist translate --to LANG` makes"
        )
    if "description" in stage.needs and data.description is None:
        raise ConfigError(
            f"{config.name}: data.description is not set, but method {config.method.name!r} reads descriptions: name a column that "
            "`ccr-dist describe` makes with a multimodal LLM, or `ccr-dist replay` from a file"
        )
    backs: dict[str, str] = {}
    back_features: dict[str, str] = {}
    if {"back_text", "back_feature"} & stage.needs:
        cached_backs = "back_text" not in stage.needs and bool(data.back_features)
        chosen = data.back_features if cached_backs else data.back_translations
        missing = sorted(data.targets.keys() - chosen.keys())
        if missing:
            key = "back_features" if cached_backs else "back_translations"
            made = "`ccr-dist featurise --from caption.en.back-...`" if cached_backs else "`ccr-dist translate --back`"
            raise ConfigError(
                f"{config.name}: data.{key} names no column for {', '.join(missing)}, but method {config.method.name!r} reads "
                f"back-translations: {made} makes such columns"
            )
        columns = {lang: chosen[lang] for lang in data.targets}
        backs, back_features = ({}, columns) if cached_backs else (columns, {})
    cached = "source_feature" in stage.needs and data.source_feature is not None
    media = {"visual", "tokens"} & stage.needs
    captions = {"source_text", "source_feature", "target_text", "back_text", "back_feature"} & stage.needs
    return Fields(
        visual=data.visual if media else None,
        many="tokens" in stage.needs,
        source=data.source if captions else None,
        targets=dict(data.targets) if "target_text" in stage.needs else {},
        source_feature=data.source_feature if cached else None,
        backs=backs,
        back_features=back_features,
        description=data.description if "description" in stage.needs else None,
        group=data.group if media else None,
    )


def build_method(config: RunConfig, *, texts: Iterable[str] | None = None, state: Mapping[str, Any] | None = None) -> Method:
    """Backbone and method of a run, with the start that its seed fixes.

    Args:
        texts: target-language training texts, for methods that size themselves by their vocabulary; not needed with `state`.
        state: `method.state()` of an earlier start of the same run.
    """
    seed_all(config.seed, "build")
    backbone = build_backbone(config.backbone)
    kind = base.get(config.method.name)
    return kind(config.method, backbone, learnt_languages(config), texts=texts, state=dict(state) if state is not None else None)


def training_texts(config: RunConfig) -> Iterator[str]:
    """Every target-language caption that any stage trains on, in a fixed order."""
    kind = base.get(config.method.name)
    seen: set[tuple[Path, str]] = set()
    for name, stage in kind.stages(config.method).items():
        if "target_text" not in stage.needs:
            continue
        for entry, column in itertools.product(train_sets(config, name), config.data.targets.values()):
            dataset = Dataset.open(entry.path)
            if (dataset.root, column) in seen:
                continue
            seen.add((dataset.root, column))
            captions = dataset.column(column)
            captions.require_complete()
            for shard, rows in enumerate(dataset.shard_rows):
                for row in range(rows):
                    for text in captions.value(shard, row) or ():
                        if text:
                            yield text


def check_columns(config: RunConfig) -> None:
    """Say early, with the key that names it and the command that makes it, which dataset or column is missing. Reads metadata only."""
    kind, data = base.get(config.method.name), config.data
    wanted: dict[tuple[str, str], str] = {}  # (dataset, column): key

    def want(path: str, columns: Mapping[str, str | None]) -> None:
        for key, column in columns.items():
            if column is not None:
                wanted.setdefault((path, column), f"data.{key}")

    for name, stage in kind.stages(config.method).items():
        fields = fields_for(config, stage)
        single = {key: getattr(fields, key) for key in ("visual", "source", "source_feature", "description", "group")}
        each = {"targets": fields.targets, "back_translations": fields.backs, "back_features": fields.back_features}
        for entry in train_sets(config, name):
            want(entry.path, single)
            want(entry.path, {f"{key}.{lang}": column for key, columns in each.items() for lang, column in columns.items()})
    described = "description" in kind.gallery(config.method)
    asked = [*kind.query_columns(data).items(), *kind.companions(data, config.method).items()]
    for path in filter(None, (data.val, data.test)):
        want(path, {"visual": data.visual, "group": data.group, "description": data.description if described else None})
        for lang, column in asked:
            want(path, {f"{'queries' if column == data.queries.get(lang) else 'translated_queries'}.{lang}": column})
    for (path, column), key in wanted.items():
        try:
            Dataset.open(path).column(column).require_complete()
        except DataError as error:
            raise type(error)(f"{config.name}: {key}: {error}") from None
