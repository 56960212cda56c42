"""Objects that the queue of rows, the results and the engine loop share while a job runs."""

from __future__ import annotations

from dataclasses import dataclass

from ccr_dist.data.table.dataset import Column
from ccr_dist.generate.bad_items import BadItems
from ccr_dist.generate.open_shards import OpenShards
from ccr_dist.generate.processor import EngineWait
from ccr_dist.generate.shard_work import Bench
from ccr_dist.generate.stop_request import StopRequest
from ccr_dist.generate.summary import JobReport


@dataclass(frozen=True)
class JobParts:
    """The parts of one worker's run.

    Attributes:
        target: The column that is made.
        bench: Takes and commits its shards.
        open_shards: The shards that this worker holds.
        bad_items: Rows that failed, and their budget.
        report: Figures, events, progress.
        stop: Whether the run was asked to stop.
        engine_wait: How long the engine has waited for prepared rows.
    """

    target: Column
    bench: Bench
    open_shards: OpenShards
    bad_items: BadItems
    report: JobReport
    stop: StopRequest
    engine_wait: EngineWait
