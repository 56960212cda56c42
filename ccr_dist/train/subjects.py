"""What is measured: a run in its folder, or a model folder; each with its weights, its fusion and its provenance."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from ccr_dist.config import RunConfig
from ccr_dist.data.media.pictures import VERSION
from ccr_dist.data.storage.store import sha256_file
from ccr_dist.data.table.dataset import Dataset
from ccr_dist.data.table.inspect import origin_of
from ccr_dist.data.table.overlap import occurring
from ccr_dist.errors import CheckpointError, ConfigError
from ccr_dist.evaluate.retrieval import Fusion
from ccr_dist.methods.base import Method
from ccr_dist.methods.build import build_method
from ccr_dist.models import tensorfile
from ccr_dist.retriever.load import built
from ccr_dist.retriever.model_folder import RESULTS, Record
from ccr_dist.train.assemble import check_columns, open_datasets
from ccr_dist.train.borrowed import files_without_stages, untrained_method, weights_without_stages
from ccr_dist.train.cached_features import of_another_rule, read_pictures
from ccr_dist.train.inputs import validation_columns
from ccr_dist.train.state.base_weights import files_of
from ccr_dist.train.state.checkpoint import restore_weights
from ccr_dist.train.state.run_folder import RunFolder
from ccr_dist.train.strategies.strategy import Step, Strategy
from ccr_dist.train.validation import chosen_fusion


class Subject(ABC):
    """What is measured: the selected weights of a run, or a model folder.

    Attributes:
        config: with the data that is measured on.
        place: the run or model folder: messages name it, and a stop file may lie in it.
        results: the folder of the results files.
    """

    def __init__(self, config: RunConfig, place: Path, results: Path) -> None:
        self.config, self.place, self.results = config, place, results

    @abstractmethod
    def weights(self) -> str | None:
        """Digest of the weights; None for a method without any. ConfigError where they are of another config."""

    @abstractmethod
    def files(self) -> dict[str, str]:
        """Key of the config -> digest of the local files of base weights there (`base_weights.files_of`)."""

    @abstractmethod
    def selected_on(self) -> dict[str, str]:
        """Column -> digest of the validation data that weights or a fusion were selected on; empty where they are gone,
        or of no concern.
        """

    @abstractmethod
    def check(self, split: str) -> None:
        """ConfigError or DataError where columns are missing, or are none that can be measured on."""

    @abstractmethod
    def build(self, *, tell: bool) -> Method:
        """The method with its weights. tell: say it where they carry no digest."""

    @abstractmethod
    def fusion(self, method: Method, wrapped: nn.Module, strategy: Strategy, before: Callable[[str], None]) -> Fusion:
        """How parts of a score become one."""

    @abstractmethod
    def notes(self) -> list[str]:
        """Lines for people about differences between training and measuring."""

    @abstractmethod
    def provenance(self, dataset: Dataset, columns: Sequence[str]) -> dict[str, str]:
        """Column -> who made it, in words."""

    @abstractmethod
    def texts_read(self, dataset: Dataset) -> dict[str, Any]:
        """Of texts without pictures that were trained on: how many of the concepts of `dataset` occur in them. Empty
        where there are none.
        """


class MeasuredRun(Subject):
    """A run in its folder, or a method that has nothing to train.

    Attributes:
        chosen: the fusion that validation has chosen, once it was asked.
    """

    chosen: Fusion | None = None

    def __init__(self, config: RunConfig) -> None:
        self.folder = RunFolder(config.folder)
        super().__init__(config, self.folder.path, self.folder.results)

    def weights(self) -> str | None:
        if not self.config.stages:
            return weights_without_stages(self.config)
        there = self.folder.path / "model.safetensors"
        if not there.exists():
            return None
        self.folder.require_same(self.config)  # a result of another config is no answer, either
        return sha256_file(there)

    def files(self) -> dict[str, str]:
        return files_of(self.config) if self.config.stages else files_without_stages(self.config)

    def selected_on(self) -> dict[str, str]:
        return validation_columns(self.config)

    def check(self, split: str) -> None:
        check_columns(self.config)

    def build(self, *, tell: bool) -> Method:
        return trained_method(self.config, self.folder, tell=tell)[0]

    def fusion(self, method: Method, wrapped: nn.Module, strategy: Strategy, before: Callable[[str], None]) -> Fusion:
        self.chosen = chosen_fusion(self.config, method, wrapped, strategy, before=before)
        return self.chosen

    def notes(self) -> list[str]:
        known = self.folder.identity()
        if not read_pictures(known, self._trained_on(), self.config.data.visual):
            return []
        return [f"{self.folder.path}: {line}" for line in of_another_rule(known, {"pictures": VERSION})]

    def provenance(self, dataset: Dataset, columns: Sequence[str]) -> dict[str, str]:
        data = self.config.data
        sets = [*open_datasets([*data.train, *data.texts]), dataset]
        found = [(name, each.column(name)) for each in sets for name in columns if name in each.columns()]
        return {name: origin_of(column.plan, column.provenance) for name, column in found}

    def texts_read(self, dataset: Dataset) -> dict[str, Any]:
        data = self.config.data
        if not data.texts:
            return {}
        texts, column = open_datasets(data.texts), data.group or data.source
        [counted] = occurring(texts, [dataset], column=column, among=data.source)
        counts = {key: counted[key] for key in ("concepts", "whole", "within")}
        return {"rows": sum(each.rows for each in texts), **counts}

    def _trained_on(self) -> list[Dataset]:
        of_stages = (each for stage in self.config.stages.values() for each in stage.train or ())
        return open_datasets([*self.config.data.train, *of_stages])


class MeasuredModel(Subject):
    """A model folder, wherever it lies. Nothing of its training data is needed.

    Args:
        folder: the model folder.
        record: what `model_folder.read` found there.
        config: the folder's, with the data and runtime of this measurement.
        place: the run folder that it is the model of, or itself: below it the results are written.
    """

    def __init__(self, folder: Path, record: Record, config: RunConfig, place: Path) -> None:
        super().__init__(config, place, place / RESULTS)
        self.folder, self.record = folder, record

    def weights(self) -> str | None:
        return self.record.facts.get("weights")

    def files(self) -> dict[str, str]:
        return {}  # the folder's own copies, which its record has digests of

    def selected_on(self) -> dict[str, str]:
        return {}

    def check(self, split: str) -> None:
        check_columns(self.config, split)

    def build(self, *, tell: bool) -> Method:
        return built(self.folder, self.record, self.config)[1]

    def fusion(self, method: Method, wrapped: nn.Module, strategy: Strategy, before: Callable[[str], None]) -> Fusion:
        return Fusion(self.record.fusion["weights"], self.record.fusion["minmax"])

    def notes(self) -> list[str]:
        return []

    def provenance(self, dataset: Dataset, columns: Sequence[str]) -> dict[str, str]:
        recorded = [each.get("columns", {}).items() for each in self.record.facts.get("data", ())]
        found = {name: about["origin"] for each in recorded for name, about in each if name in columns}
        own = {name: dataset.column(name) for name in columns if name in dataset.columns()}
        return {**found, **{name: origin_of(column.plan, column.provenance) for name, column in own.items()}}

    def texts_read(self, dataset: Dataset) -> dict[str, Any]:
        return {}


def trained_method(config: RunConfig, folder: RunFolder, *, tell: bool = True) -> tuple[Method, Step]:
    """A run's method with its selected weights (`model.safetensors`); an untrained method as it is built.

    tell: say it where the weights carry no digest (one rank of several does).
    """
    if not config.stages:
        method = untrained_method(config)
        return method, Step(method)
    if not (folder.path / "model.safetensors").exists():
        raise ConfigError(
            f"{folder.path} is not a complete run (no model.safetensors); train it first, with the same config and seed"
        )
    folder.require_same(config)
    total_steps = sum(stage.steps for stage in config.stages.values())
    weights, facts = tensorfile.read(folder.path / "model.safetensors")
    if facts is None:
        if tell:
            print(f"{folder.path}/model.safetensors: it has no digest (an earlier version wrote it)", file=sys.stderr)
    elif facts.get("step") != total_steps:
        raise ConfigError(
            f"{folder.path}/model.safetensors holds the weights of step {facts.get('step')}, and the config trains"
            f" {total_steps} steps; train it first, with the same config and seed"
        )
    state = folder.method_state()
    if state is None:
        raise CheckpointError(f"{folder.path}/method.json is missing; training with the same command makes it again")
    method = build_method(config, state=state)
    step = Step(method)
    own = {n: p for n, p in step.named_parameters() if n.startswith("net.") or n in weights}
    restore_weights(own, weights, str(folder.path / "model.safetensors"))
    return method, step
