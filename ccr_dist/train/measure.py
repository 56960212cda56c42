"""Measuring a run or a model on a split: the results file.

Selection is on validation (`validation.py`). The test split is read by `measure` alone, which counts how often it did.
"""

from __future__ import annotations

import io
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from ccr_dist.config import RunConfig, as_dict
from ccr_dist.data.media.pictures import VERSION
from ccr_dist.data.storage.store import replace_atomic, sha256_file
from ccr_dist.data.table.dataset import Dataset
from ccr_dist.data.table.inspect import origin_of
from ccr_dist.environment import environment
from ccr_dist.errors import CheckpointError, ConfigError, DataError, require_writable
from ccr_dist.evaluate.evaluate import results
from ccr_dist.evaluate.retrieval import Fusion
from ccr_dist.evaluate.schema import RunResult, read_result, written
from ccr_dist.methods.base import Method
from ccr_dist.methods.build import build_method
from ccr_dist.methods.params import count
from ccr_dist.models import tensorfile
from ccr_dist.retriever.load import built
from ccr_dist.retriever.model_folder import IN_RUN, RESULTS, Record, is_model, keep_result
from ccr_dist.train.assemble import check_columns, open_datasets
from ccr_dist.train.cached_features import of_another_rule, read_pictures
from ccr_dist.train.inputs import asked, measured_on
from ccr_dist.train.state.checkpoint import restore_weights
from ccr_dist.train.state.run_folder import RunFolder
from ccr_dist.train.strategies.strategy import Step, Strategy
from ccr_dist.train.validation import blank, chosen_fusion, encoded, total
from ccr_dist.train.watch.signals import StopRequest


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


class MeasuredRun(Subject):
    """A run in its folder, or a method that has nothing to train."""

    def __init__(self, config: RunConfig) -> None:
        self.folder = RunFolder(config.folder)
        super().__init__(config, self.folder.path, self.folder.results)

    def weights(self) -> str | None:
        there = self.folder.path / "model.safetensors"
        if not self.config.stages or not there.exists():
            return None
        self.folder.require_same(self.config)  # a result of another config is no answer, either
        return sha256_file(there)

    def check(self, split: str) -> None:
        check_columns(self.config)

    def build(self, *, tell: bool) -> Method:
        return trained_method(self.config, self.folder, tell=tell)[0]

    def fusion(self, method: Method, wrapped: nn.Module, strategy: Strategy, before: Callable[[str], None]) -> Fusion:
        return chosen_fusion(self.config, method, wrapped, strategy, before=before)

    def notes(self) -> list[str]:
        known = self.folder.identity()
        if not read_pictures(known, self._trained_on(), self.config.data.visual):
            return []
        return [f"{self.folder.path}: {line}" for line in of_another_rule(known, {"pictures": VERSION})]

    def provenance(self, dataset: Dataset, columns: Sequence[str]) -> dict[str, str]:
        sets = [*open_datasets(self.config.data.train), dataset]
        found = [(name, each.column(name)) for each in sets for name in columns if name in each.columns()]
        return {name: origin_of(column.plan, column.provenance) for name, column in found}

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


def measure(subject: Subject, strategy: Strategy, *, split: str, again: bool) -> Path:
    """Measures a run or a model on a split, and writes RESULTS/SPLIT.json. Collective.

    An existing result is kept unless `again`, or other weights or another dataset were measured; the file says how
    often the split was read.

    Args:
        subject: what is measured.
        strategy: the processes.
        split: "val" or "test".
        again: measure although there is a result.

    Returns:
        The results file.

    Raises:
        ConfigError: the run is not complete or another one than its config, or no dataset is named.
        DataError: a dataset or column is missing or damaged.
        Stopped: a stop request came before the split was read to its end.
    """
    config, path = subject.config, subject.results / f"{split}.json"
    stop = StopRequest(subject.place)

    def leave(what: str) -> None:
        stop.leave(strategy)

    location = config.data.test if split == "test" else config.data.val
    if location is None:
        raise ConfigError(f"{config.name}: data.test names no dataset")
    dataset = Dataset.open(location)
    found_before: list[tuple[RunResult | None, str | None]] = []

    def look() -> None:
        weights = subject.weights()
        try:
            found_before.append((read_result(path) if path.exists() else None, weights))
        except DataError:
            if not again:
                raise
            found_before.append((None, weights))

    strategy.together(look if strategy.main else lambda: None)
    known, weights = strategy.agree(found_before[0] if strategy.main else None)
    if known is not None and not again and _still_holds(subject, dataset, known, weights, path, tell=strategy.main):
        return path
    strategy.together((lambda: require_writable(subject.results)) if strategy.main else lambda: None)
    subject.check(split)
    made: list[Method] = []
    strategy.together(lambda: made.append(subject.build(tell=strategy.main)))
    [method] = made
    if strategy.main:
        for line in subject.notes():
            print(line, file=sys.stderr)
    wrapped = Step(method).to(strategy.device)
    queries = config.method.query_columns(config.data)
    shown = {lang: config.data.queries[lang] for lang in queries}
    fusion = subject.fusion(method, wrapped, strategy, leave)
    before = method.truncated
    test = encoded(config, method, wrapped, strategy, dataset, queries, before=leave)
    truncated = total(strategy, method.truncated - before)
    measured = results(test, score=method.scores, fusion=fusion, shown=shown, english_column=config.data.source)
    found = {lang: each.result for lang, each in measured.items()}

    def write() -> None:
        columns, rules = measured_on(config, dataset)
        counts = next(iter(found.values())).counts
        used = [*queries.values(), *config.data.targets.values()]
        result = RunResult(
            name=f"{config.name}-s{config.seed}",
            label=config.row,
            method=config.method.name,
            seed=config.seed,
            dataset=dataset.name,
            split=dataset.split,
            dataset_digest=dataset.digest,
            items=counts["items"],
            groups=counts["groups"],
            languages=found,
            test_reads=((known.test_reads or 0) if known else 0) + 1,
            selection=f"{config.select} on {config.data.val}" if config.stages else None,
            columns=columns,
            rules=rules,
            provenance=subject.provenance(dataset, used),
            attribution=_attribution(dataset),
            config=as_dict(config),
            meta={
                "score": str(fusion),
                "truncated": truncated,
                "parameters": count(method),
                **({"weights": weights} if weights else {}),
                **strategy.facts,
                **environment(),
            },
        )
        subject.results.mkdir(parents=True, exist_ok=True)
        ranks = subject.results / f"{split}.ranks.npz"
        keep_ranks(ranks, {lang: each.ranks for lang, each in measured.items()})
        replace_atomic(path, written(result.model_copy(update={"meta": {**result.meta, "ranks": sha256_file(ranks)}})))
        if is_model(subject.place / IN_RUN):
            keep_result(subject.place / IN_RUN, path)
        cut = f"; {truncated} texts were longer than the model reads, and cut" if truncated else ""
        print(
            f"{path}: written{cut}{blank({lang: each.counts['captions_blank'] for lang, each in found.items()})}",
            flush=True,
        )

    strategy.together(write if strategy.main else lambda: None)
    return path


def _still_holds(
    subject: Subject, dataset: Dataset, known: RunResult, weights: str | None, path: Path, *, tell: bool
) -> bool:
    """Whether a result is of these weights and data; says which it is."""
    columns, rules = _read_now(subject.config, dataset, known.columns) if known.columns else (None, None)
    compared = (
        ("weights", known.meta.get("weights"), weights),
        ("dataset", known.dataset_digest, dataset.digest),
        ("content of columns", known.columns or None, columns),
        ("rule for pictures", known.rules or None, rules),
    )
    changed = [what for what, there, now in compared if there is not None and now is not None and there != now]
    if tell and changed:
        print(f"{path}: was measured with another {' and '.join(changed)}; measuring again", flush=True)
    elif tell:
        print(f"{path}: measured already; --again measures again and counts it", flush=True)
    return not changed


def _read_now(
    config: RunConfig, dataset: Dataset, known: Mapping[str, str]
) -> tuple[dict[str, str] | None, dict[str, int] | None]:
    """`measured_on`; nothing where a column is gone: a result that is there stays what it is, unless other columns
    than the `known` ones are asked for.
    """
    try:
        return measured_on(config, dataset)
    except DataError:
        if any(column not in known for _, column in asked(config)):
            raise
        return None, None


def keep_ranks(path: Path, ranks: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """RUN/results/SPLIT.ranks.npz: `<language>/<array>` of `evaluate.Found.ranks`, for paired comparisons of runs."""
    arrays: dict[str, Any] = {
        f"{lang}/{name}": array.astype(np.int32) for lang, found in ranks.items() for name, array in found.items()
    }
    data = io.BytesIO()
    np.savez_compressed(data, **arrays)
    replace_atomic(path, data.getvalue())


def trained_method(config: RunConfig, folder: RunFolder, *, tell: bool = True) -> tuple[Method, Step]:
    """A run's method with its selected weights (`model.safetensors`); an untrained method as it is built.

    tell: say it where the weights carry no digest (one rank of several does).
    """
    if not config.stages:
        method = build_method(config, state={})
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


def _attribution(dataset: Dataset) -> tuple[str, ...]:
    """Author and licence of everything that is shown, as the columns' provenance has them."""
    lines = []
    for name in dataset.columns():
        made = dataset.column(name).provenance
        if "licence" in made:
            lines.append(", ".join(str(made[key]) for key in ("author", "licence", "url") if key in made))
    return tuple(dict.fromkeys(lines))
