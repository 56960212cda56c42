"""Progress of a run: with weights and optimiser state, everything that a resume needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass
class RunProgress:
    """Progress of a run; saved as `progress` in a checkpoint's state.json.

    Attributes:
        step: Completed steps of the whole run, skipped ones included.
        stage: Name of the current stage; "" before the first.
        stage_step: Completed steps of that stage.
        substituted: Broken samples that were replaced by others.
        skipped: Steps without an update, because loss or gradient were not finite.
        best: {"step", "stage", "metric", "value"} of the selected checkpoint; None before the first validation.
        unvalidated: Whether the run was stopped before this step's validation was complete.
    """

    step: int = 0
    stage: str = ""
    stage_step: int = 0
    substituted: int = 0
    skipped: int = 0
    best: dict[str, Any] | None = None
    unvalidated: bool = False
