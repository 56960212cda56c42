"""The commands `train` and `evaluate`: one or several runs on the processes that the launcher started.

Both return the exit code: DONE, or STOPPED after a stop request that was honoured.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ccr_dist import errors
from ccr_dist.config import RunConfig
from ccr_dist.train.loop import train_run
from ccr_dist.train.strategies.strategy import Strategy
from ccr_dist.train.validation import measure_run
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
            if test:
                measure_run(config, strategy, split="test", again=False)
        except Stopped as request:
            return _stopped(config, strategy, request)
    strategy.close()
    return errors.DONE


def evaluate(configs: Sequence[RunConfig], *, split: str, again: bool, world: int | None) -> int:
    strategy = Strategy(configs[0].runtime, world=world)
    for config in configs:
        try:
            measure_run(config, strategy, split=split, again=again)
        except Stopped as request:
            return _stopped(config, strategy, request)
    strategy.close()
    return errors.DONE


def _stopped(config: RunConfig, strategy: Strategy, request: Stopped) -> int:
    if strategy.main:
        print(f"{config.folder}: stopped by {request}; the same command resumes", file=sys.stderr)
    return errors.STOPPED
