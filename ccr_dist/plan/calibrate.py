"""The calibration that a command asks for: measured now, read from a file, or none."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import torch

from ccr_dist.config import RunConfig
from ccr_dist.plan.calibration import Calibration, read, write
from ccr_dist.plan.operators import Kind
from ccr_dist.plan.predict import Traces, stages_of

MOST = 24  # shapes of a run that are measured, those with most FLOPs


def calibrated(
    config: RunConfig,
    traces: Traces,
    *,
    measure: bool,
    path: Path | None,
    precisions: Sequence[str],
    processes: int,
) -> Calibration | None:
    """The calibration to plan with.

    Args:
        config: of the run: its own shapes are measured, and its folder is where the file goes by default.
        traces: of its stages.
        measure: measure this machine now, and keep the result.
        path: the file; None: OUT/calibrations/NAME.json if something is measured.
        precisions: that are measured.
        processes: the largest number of ranks that is planned.

    Returns:
        None: neither measured nor named.

    Raises:
        ConfigError: the file cannot be read.
    """
    if not measure:
        return None if path is None else read(path)
    from ccr_dist.plan.measure import measure as measured

    local = min(processes, torch.cuda.device_count() if torch.cuda.is_available() else 4)
    kinds = shapes(traces, list(stages_of(config)), local)
    found = measured(processes=local, precisions=precisions, kinds=kinds, threads=config.runtime.threads)
    where = path or Path(config.out) / "calibrations" / f"{re.sub('[^A-Za-z0-9.]+', '-', found.name)}-{local}.json"
    where.parent.mkdir(parents=True, exist_ok=True)
    write(found, where)
    return found


def shapes(traces: Traces, stages: Sequence[str], world: int) -> list[Kind]:
    """The operators of a run that compute most, the most expensive first."""
    total: dict[Kind, float] = {}
    for stage in stages:
        for kinds in traces.of(stage, world).operators.values():
            for kind, count in kinds.items():
                if kind.flops:
                    total[kind] = total.get(kind, 0.0) + kind.flops * count
    return sorted(total, key=lambda kind: -total[kind])[:MOST]
