"""What a training run needs before a model is built: config, folder, processes, datasets and orders."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ccr_dist.config import ENGLISH, RunConfig
from ccr_dist.data.media.pictures import VERSION
from ccr_dist.data.stream.fields import Fields
from ccr_dist.data.stream.loader import content_digests, sources
from ccr_dist.data.stream.order import Order, mix
from ccr_dist.data.table.dataset import Dataset
from ccr_dist.errors import ConfigError
from ccr_dist.train.assemble import check_columns, of_texts, open_datasets, train_sets
from ccr_dist.train.cached_features import all_fields, of_another_rule
from ccr_dist.train.selected import Source
from ccr_dist.train.state.run_folder import RunFolder, identity, otherwise
from ccr_dist.train.strategies.strategy import Strategy
from ccr_dist.train.validation import selection_queries
from ccr_dist.train.watch.signals import StopRequest


@dataclass(frozen=True)
class PreparedRun:
    """A run on this rank before its model is built.

    Attributes:
        config: of the run.
        strategy: the processes, and how a step is spread over them.
        folder: the run folder.
        stop: notices requests to stop.
        fields: stage -> columns that it reads.
        datasets: stage -> datasets that it reads.
        orders: stage -> order of its samples; none for a stage in closed form, which reads all rows.
        identity: what decides the numbers of the run (`run_folder.identity`).
        notes: messages for the log.
    """

    config: RunConfig
    strategy: Strategy
    folder: RunFolder
    stop: StopRequest
    fields: Mapping[str, Fields]
    datasets: Mapping[str, Sequence[Dataset]]
    orders: Mapping[str, Order]
    identity: Mapping[str, Any]
    notes: tuple[str, ...]

    @property
    def total_steps(self) -> int:
        """Steps of all stages."""
        return sum(stage.steps for stage in self.config.stages.values())

    def on_main(self, action: Callable[[], Any]) -> None:
        """Call `action` on rank 0. If it fails, all ranks raise its error. Collective."""
        self.strategy.together(action if self.strategy.main else lambda: None)

    def unless_stopped(self, action: Callable[[], None]) -> None:
        """Call `action`, which needs no other rank, unless the run was asked to stop. Collective.

        Raises:
            Stopped: on all ranks, when some rank was asked to stop.
        """
        self.strategy.together(lambda: self.stop.unless(action))
        self.stop.leave(self.strategy)


def prepare_run(config: RunConfig, strategy: Strategy) -> PreparedRun:
    """Check a config and open what the run reads. Writes nothing. Collective.

    Args:
        config: of the run.
        strategy: the processes that the launcher started.

    Raises:
        ConfigError: the config cannot be trained under this strategy.
        DataError: a dataset or column is missing or incomplete.
        Stopped: the run was asked to stop.
    """
    if strategy.in_shards and strategy.name != "fsdp2":
        raise ConfigError(
            f"{config.name}: runtime.checkpoint: sharded is written by fsdp2 only, and this is {strategy.name};"
            " leave it out here (any strategy resumes from it)"
        )
    check_columns(config)
    selection_queries(config)
    folder = RunFolder(config.folder)
    stop = StopRequest(folder.path)
    opened: list[PreparedRun] = []
    strategy.together(lambda: stop.unless(lambda: opened.append(_open(config, strategy, folder, stop))))
    stop.leave(strategy)
    [prepared] = opened
    return prepared


def _open(config: RunConfig, strategy: Strategy, folder: RunFolder, stop: StopRequest) -> PreparedRun:
    """Datasets and orders, and the identity that follows from them."""
    fields, notes = all_fields(config, config.method.training_stages(), folder)
    datasets = {name: open_datasets(train_sets(config, name)) for name in fields}
    fields = {name: of_texts(read, train_sets(config, name), datasets[name]) for name, read in fields.items()}
    closed = {name for name, stage in config.method.training_stages().items() if stage.closed_form}
    orders = {name: _order(config, name, fields[name], datasets[name]) for name in fields if name not in closed}
    digests: dict[str, str] = {}
    for name in orders:
        digests |= content_digests(datasets[name], fields[name], orders[name].languages)
    for name in closed:
        for lang in fields[name].query_features:
            digests |= content_digests(datasets[name], fields[name].of(lang), [lang])
    asked = identity(config, digests, {name: order.digest for name, order in orders.items()}, world=strategy.world)
    if any(_reads_pictures(datasets[name], fields[name]) for name in fields):
        asked["pictures"] = VERSION
    known = folder.identity()
    notes += of_another_rule(known, asked) + otherwise(known)
    return PreparedRun(config, strategy, folder, stop, fields, datasets, orders, asked, tuple(notes))


def _reads_pictures(datasets: Sequence[Dataset], fields: Fields) -> bool:
    visual = fields.visual
    pictured = [dataset for dataset in datasets if dataset.digest not in fields.texts]
    return visual is not None and any(dataset.column(visual).kind == "image" for dataset in pictured)


def _order(config: RunConfig, name: str, fields: Fields, datasets: Sequence[Dataset]) -> Order:
    """The order of the samples of a stage."""
    languages = tuple(fields.targets) or (ENGLISH,)
    weights = [entry.weight for entry in train_sets(config, name)]
    return Order(
        sources(datasets, weights, fields, languages),
        batch=config.stages[name].batch,
        seed=mix(config.seed, "order", name),
        languages={lang: 1.0 for lang in languages},
        lanes=config.runtime.lanes,
        window_rows=config.runtime.window_rows,
    )


def claim(run: PreparedRun) -> None:
    """Lock the run folder and make it this run's, or check that it is. Rank 0 writes. Collective.

    Raises:
        ConfigError: the folder holds another run.
        HeldError: another process trains this one.
    """

    def lock_and_claim() -> None:
        run.folder.lock()
        asked = dict(run.identity)
        if run.config.init_from is not None:
            started_from = run.folder.started_from()
            if not started_from:
                source = Source(Path(run.config.init_from))
                started_from = {"init_from": source.digest, "init_from_is": source.digests}
            asked["weights"] = {**asked["weights"], **started_from}
        run.folder.claim(run.config, asked)
        run.folder.clear()

    run.on_main(lock_and_claim)
