"""The commands `train` and `evaluate`: one or several runs on the processes that the launcher started.

Both return the exit code: DONE, or STOPPED after a stop request that was honoured.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from ccr_dist import errors
from ccr_dist.config import RunConfig
from ccr_dist.retriever import model_folder
from ccr_dist.retriever.kept_config import config_of_folder
from ccr_dist.train.loop import train_run
from ccr_dist.train.measure import measure
from ccr_dist.train.publish import model_of, publish_model
from ccr_dist.train.strategies.strategy import Strategy
from ccr_dist.train.subjects import MeasuredModel, MeasuredRun, Subject
from ccr_dist.train.watch.signals import Stopped


def train(configs: Sequence[RunConfig], *, test: bool, world: int | None, spread: str | None = None) -> int:
    """Train each config in turn; `spread` names the strategy."""
    strategy = Strategy(configs[0].runtime, world=world, name=spread)
    for config in configs:
        if not config.stages:
            raise errors.ConfigError(
                f"{config.name}: method {config.method.name!r} has nothing to train; use `ccr-dist evaluate`"
            )
        try:
            outcome = train_run(config, strategy)
            if outcome.stopped:
                return errors.STOPPED
            if strategy.main and outcome.resumed_at == outcome.step:
                print(f"{config.folder}: complete already ({outcome.step} steps), nothing to train", file=sys.stderr)
            publish_model(config, strategy)
            if test:
                measure(MeasuredRun(config), strategy, split="test", again=False)
        except Stopped as request:
            return _stopped(config.folder, strategy, request)
    strategy.close()
    return errors.DONE


def evaluate(configs: Sequence[RunConfig], *, split: str, again: bool, world: int | None) -> int:
    """Measure each run in turn."""
    return evaluate_all([MeasuredRun(config) for config in configs], split=split, again=again, world=world)


def evaluate_all(subjects: Sequence[Subject], *, split: str, again: bool, world: int | None) -> int:
    """Measure each run or model in turn."""
    strategy = Strategy(subjects[0].config.runtime, world=world)
    for subject in subjects:
        try:
            measure(subject, strategy, split=split, again=again)
            if isinstance(subject, MeasuredRun) and not subject.config.stages:
                publish_model(subject.config, strategy, fusion=subject.chosen)
        except Stopped as request:
            return _stopped(subject.place, strategy, request)
    strategy.close()
    return errors.DONE


def measured(folder: Path, overrides: Sequence[str]) -> Subject:
    """A run or model folder as a subject of `evaluate`.

    Args:
        folder: wherever it was copied to.
        overrides: of its config's sections `data` and `runtime`.

    Raises:
        ConfigError: it is neither, or an override changes what the model is.
        CheckpointError: it is damaged.
    """
    model = folder if model_folder.is_model(folder) else model_of(folder)
    return MeasuredModel(model, model_folder.read(model), config_of_folder(model, overrides), folder)


def _stopped(place: Path, strategy: Strategy, request: Stopped) -> int:
    if strategy.main:
        print(f"{place}: stopped by {request}; the same command resumes", file=sys.stderr)
    return errors.STOPPED
