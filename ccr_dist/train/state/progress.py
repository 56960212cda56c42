"""How far a run is: with weights and optimiser state it is all that a resume needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass
class RunProgress:
    """What a run has done so far; saved as `progress` in a checkpoint's state.json.

    Attributes:
        step: steps of the whole run that were done, skipped ones included.
        stage: name of the current stage; "" before the first one.
        stage_step: steps of that stage that were done.
        substituted: broken samples that others stood in for.
        skipped: steps without an update, because loss or gradient were not finite.
        best: {"step", "stage", "metric", "value"} of the selected checkpoint; None before the first validation.
        unvalidated: a stop request came before this step's validation was complete.
    """

    step: int = 0
    stage: str = ""
    stage_step: int = 0
    substituted: int = 0
    skipped: int = 0
    best: dict[str, Any] | None = None
    unvalidated: bool = False
