"""What the planner says of the points of a study, to be held against what was measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ccr_dist.config import RunConfig
from ccr_dist.devices import named
from ccr_dist.errors import ConfigError
from ccr_dist.plan.cost import calibration as calibrations
from ccr_dist.plan.predict import predict
from ccr_dist.scaling.plan import ScalingStudy, Settings


def planned(
    study: ScalingStudy, settings: Settings, config: RunConfig, per_node: int
) -> tuple[dict[str, dict[str, Any]], str | None]:
    """The planner's numbers for a point.

    Args:
        study: Names the device, or a file of measured speeds.
        settings: Of the point.
        config: Of its runs.
        per_node: Its processes on a node.

    Returns:
        By stage: "seconds" of a step, "peak_bytes" of a rank, "sent_bytes"; and why there is nothing, or None.
    """
    if study.device is None and study.calibration is None:
        return {}, "the study names no `device` and no `calibration`, so that nothing is planned"
    strategy = "single" if settings.world == 1 and settings.strategy == "ddp" else settings.strategy
    try:
        known = None if study.calibration is None else calibrations.read(Path(study.calibration))
        device = None if study.device is None else named(study.device)
        found = predict(
            config, gpus=settings.world, per_node=per_node, device=device, strategy=strategy, calibration=known
        )
    except ConfigError as error:
        return {}, str(error)
    except Exception as error:  # a fault of the planner must not keep what was measured from being reported
        return {}, f"the planner failed: {type(error).__name__}: {error}"
    return {
        each.stage: {
            "seconds": each.seconds["step"],
            "peak_bytes": each.peak_bytes,
            "sent_bytes": sum(each.sent.values()),
        }
        for each in found
    }, None
