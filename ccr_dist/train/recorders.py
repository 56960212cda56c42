"""What writes beside the steps of a run: its log, checkpoints, profile, and the watch over a rank that hangs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from ccr_dist.train.prepared import PreparedRun
from ccr_dist.train.record.phases import Phases
from ccr_dist.train.record.profiler import ProfiledSteps
from ccr_dist.train.record.telemetry import Telemetry
from ccr_dist.train.state import checkpoint
from ccr_dist.train.watch.watchdog import Watchdog


@dataclass(frozen=True)
class Recorders:
    """What writes beside the training.

    Attributes:
        phases: what this rank does now.
        log: lines of the run's log.
        writer: of checkpoints.
        profiler: of the steps that runtime.profile names.
        watchdog: ends a rank that gives no sign of life.
    """

    phases: Phases
    log: Telemetry
    writer: checkpoint.Writer
    profiler: ProfiledSteps
    watchdog: Watchdog


@contextmanager
def recording(run: PreparedRun, resumed_step: int) -> Iterator[Recorders]:
    """Open while the run trains; the log begins behind `resumed_step`. Collective."""
    strategy, runtime, folder = run.strategy, run.config.runtime, run.folder
    phases = Phases(strategy.device)
    logs: list[Telemetry] = []

    def open_log() -> None:
        log = Telemetry(
            folder.path,
            active=strategy.main,
            resumed_step=resumed_step,
            total_steps=run.total_steps,
            title=f"{run.config.name}-s{run.config.seed}",
            config=run.config,
        )
        logs.append(log)

    strategy.together(open_log)
    [log] = logs
    beside = strategy.beside() if strategy.in_shards else None
    writer = checkpoint.Writer(folder.checkpoints, beside, folder.require_held)
    profiler = ProfiledSteps(runtime.profile if strategy.main else None, folder.path / "profile", strategy.device)
    watchdog = Watchdog(phases, silence_s=runtime.hang, rank=strategy.rank, run=folder.path)
    try:
        yield Recorders(phases, log, writer, profiler, watchdog)
    finally:
        profiler.close()
        writer.close()
        log.close()
