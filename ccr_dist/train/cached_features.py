"""Columns of cached features that stand in for what a frozen encoder would compute again in every step
(`runtime.cached_features`).

A column stands in where a stage reads its input as features of the frozen backbone alone (`Stage.frozen`,
"source_feature", "back_feature"), and where the column's plan says that this very encoder (preprocessing, digest of the
weights) made it of this very content, by today's rule for pictures, at this run's precision or in fp32. Features are
stored as float16, so a run that reads them has slightly other numbers; which columns a run reads is part of its
identity, and a run that has begun keeps those it began with, whatever was made since.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from ccr_dist.config import ENGLISH, RunConfig, Stage
from ccr_dist.data.media.pictures import VERSION
from ccr_dist.data.stream.loader import Fields
from ccr_dist.data.table.column import Column
from ccr_dist.data.table.dataset import Dataset
from ccr_dist.errors import ConfigError
from ccr_dist.methods.base import Method
from ccr_dist.models.backbones.backbone import Backbone
from ccr_dist.models.backbones.build import build_backbone
from ccr_dist.train.assemble import fields_for, of_texts, open_datasets, train_sets
from ccr_dist.train.state.run_folder import RunFolder


def all_fields(
    config: RunConfig, stages: Mapping[str, Stage], folder: RunFolder
) -> tuple[dict[str, Fields], list[str]]:
    """The columns that each stage reads, cached features in them where there are such, and a line about each of those
    for people.
    """
    fields = {name: fields_for(config, stage) for name, stage in stages.items()}
    if not config.runtime.cached_features:
        return fields, []
    begun = folder.identity()
    finder = _Finder(config, set(begun.get("datasets", ())) if begun is not None else None)
    found = {}
    for name, stage in stages.items():
        datasets = open_datasets(train_sets(config, name))
        found[name] = finder.stand_in(stage, of_texts(fields[name], train_sets(config, name), datasets), datasets)
    return found, list(dict.fromkeys(finder.lines))


def of_another_rule(known: Mapping[str, Any] | None, asked: Mapping[str, Any]) -> list[str]:
    """A line for people where a run that reads pictures began (`known`: its identity then) before their rule was part
    of what it is.
    """
    if known is None or "pictures" not in asked or "pictures" in known:
        return []
    return [
        f"this run began when pictures were read by rule 0, and from here on they are read by rule {VERSION} (turned by"
        " EXIF, 16-bit grey, ...: ccr_dist/data/media/pictures.py): where there are such pictures in its data, its"
        " numbers are of both"
    ]


def read_pictures(known: Mapping[str, Any] | None, datasets: Sequence[Dataset], visual: str) -> bool:
    """Whether a run (`known`: its identity) was trained on the pictures of a column, not on features in their place."""
    pictures = {f"{each.name}/{each.split}/{visual}" for each in datasets if each.column(visual).kind == "image"}
    return known is not None and not pictures.isdisjoint(known.get("datasets", ()))


def require_encoders(method: Method, fields: Fields, datasets: Sequence[Dataset]) -> None:
    """Check that features which the config names were made by the encoders that the run has, of the captions that it
    reads beside them.

    Features that no job of `featurise` made on a backbone say nothing of their encoder, and are taken as they are.

    Args:
        method: as the run begins: its backbone is not yet trained.
        fields: of a stage.
        datasets: of the stage.

    Raises:
        ConfigError: a column was made by another encoder, or of other captions; names both.
    """
    for dataset in datasets:
        _require_encoders(method, fields.texts.get(dataset.digest, fields), dataset)


def _require_encoders(method: Method, fields: Fields, dataset: Dataset) -> None:
    english, query = {"data.source_feature": fields.source_feature}, fields.query_features
    english |= {f"data.back_features.{lang}": column for lang, column in fields.back_features.items()}
    wanted: list[tuple[str, str, dict[str, Any] | None]] = []
    wanted += [(key, name, method.backbone.feature_identity("text")) for key, name in english.items() if name]
    wanted += [(f"data.query_features.{lang}", name, method.query_identity()) for lang, name in query.items()]
    captions = {"data.source_feature": ("data.source", fields.source)}
    captions |= {f"data.query_features.{lang}": ("data.source", fields.source) for lang in query if lang == ENGLISH}
    captions |= {
        f"data.query_features.{lang}": (f"data.targets.{lang}", column) for lang, column in fields.targets.items()
    }
    for key, name, identity in wanted:
        plan = dataset.column(name).plan if name in dataset.columns() else {}
        made = plan.get("backbone")
        if identity is not None and made is not None and _decisive(made) != _decisive(identity):
            raise ConfigError(
                f"{key}: {dataset.place}/{name} was made by another encoder than this run's: by"
                f" {_encoder(made)}, and {_encoder(identity)} is expected; name a column that `ccr-dist featurise`"
                f"{' --encoder query' if key.startswith('data.query') else ''} makes with this config"
            )
        beside, texts = captions.get(key, ("", None))
        if texts and plan.get("processor") == "featurise" and texts not in plan.get("inputs", {texts: None}):
            raise ConfigError(
                f"{key}: {dataset.place}/{name} was made of {', '.join(plan['inputs'])}, and {beside} names"
                f" {texts}: vectors belong to captions one by one, so both have to be of the same column"
            )


def _decisive(identity: Mapping[str, Any]) -> dict[str, Any]:
    """What decides the vectors: the weights, and of a text encoder its prompt, pooling and layers."""
    return {key: identity.get(key) for key in ("digest", "sentence", "layers")}


def _encoder(identity: Mapping[str, Any]) -> str:
    said = dict(identity.get("sentence", {}))
    prompt = f" with the prompt {said['prompt']!r}" if said.get("prompt") else ""
    pooled = f", pooled by {' and '.join(said['pooling'])}" if said.get("pooling") else ""
    layers = f", layers {identity['layers']}" if identity.get("layers") else ""
    named = identity.get("text") or identity.get("model") or identity.get("kind")
    return f"{named} ({identity['side']}, {identity['digest'][:12]}{pooled}{layers}){prompt}"


class _Finder:
    def __init__(self, config: RunConfig, known: set[str] | None) -> None:
        """`known`: the columns that the run reads, as its identity names them; None: it has not begun."""
        self._config, self._known = config, known
        self._backbone: Backbone | None = None
        self.lines: list[str] = []

    def stand_in(self, stage: Stage, fields: Fields, datasets: Sequence[Dataset]) -> Fields:
        """The fields of a stage, with cached features where they are the same thing."""
        if fields.visual and {"visual", "tokens"} & stage.frozen:
            pictured = [dataset for dataset in datasets if dataset.digest not in fields.texts]
            visual = self._find(pictured, fields.visual, "image", tokens=fields.many)
            fields = dataclasses.replace(fields, visual=visual or fields.visual)
        if fields.source and "source_feature" in stage.needs and not fields.source_feature:
            fields = dataclasses.replace(fields, source_feature=self._find(datasets, fields.source, "text"))
        if fields.backs and "back_text" not in stage.needs:
            found = {lang: self._find(datasets, column, "text") for lang, column in fields.backs.items()}
            features = {lang: column for lang, column in found.items() if column}
            if features.keys() == fields.backs.keys():
                fields = dataclasses.replace(fields, backs={}, back_features=features)
        return fields

    def _find(
        self, datasets: Sequence[Dataset], source: str, side: Literal["image", "text"], *, tokens: bool = False
    ) -> str | None:
        """The first column by name that every dataset has, complete, made of `source`; the backbone is only built where
        there is one.
        """
        for name in sorted(datasets[0].columns()):
            if not all(
                name in dataset.columns() and self._alike(dataset, name, source, tokens) for dataset in datasets
            ):
                continue
            wanted = self._identity(side)
            plans = [dataset.column(name).plan for dataset in datasets]
            if any(plan["backbone"] != wanted for plan in plans):
                continue
            if side == "image" and self._known is None and any(plan.get("pictures", 0) != VERSION for plan in plans):
                self.lines.append(
                    f"does not read {name} in place of {source}: it was made when pictures were read by another rule"
                    f" (not {VERSION}: ccr_dist/data/media/pictures.py); `ccr-dist featurise --column NAME` makes such"
                    " features again"
                )
            else:
                self.lines.append(
                    f"reads cached features, {name}, in place of {source}; with runtime.cached_features=false they are"
                    " computed"
                )
                return name
        return None

    def _alike(self, dataset: Dataset, name: str, source: str, tokens: bool) -> bool:
        """What can be said of a column without its encoder."""
        column = dataset.column(name)
        plan: dict[str, Any] = column.plan
        return (
            plan.get("processor") == "featurise"
            and plan.get("tokens") == ({"grid": None} if tokens else None)
            and plan.get("precision") in ("fp32", self._config.runtime.precision)
            and (self._known is None or f"{dataset.name}/{dataset.split}/{name}" in self._known)
            and not column.missing()
            and source in dataset.columns()
            and dataset.column(source).kind != "video"  # of which features are of some frames, put together in some way
            and _content(dataset.column(source)) == plan.get("inputs")
        )

    def _identity(self, side: Literal["image", "text"]) -> dict[str, Any]:
        self._backbone = self._backbone or build_backbone(self._config.backbone)
        return self._backbone.feature_identity(side)


def _content(column: Column) -> dict[str, str] | None:
    """As the plan of a column made of this one has it; None while shards are missing."""
    return None if column.missing() else {column.name: column.digest}
