"""The typed report of a training step: what the loop logs and acts on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class StepReport:
    """Result of one step; the same on every rank, times aside.

    Attributes:
        stage: Name of the stage.
        lang: Target language of the batch.
        loss: Loss of the global batch: the sum of the method's terms.
        lr: Learning rate.
        grad_norm: Norm of the whole gradient before clipping.
        terms: Loss terms of the method and its auxiliary networks, by name.
        logged: Whether this step is logged; only then are `norms` and `speed` measured.
        stopping: Whether any rank was asked to stop.
        norms: Gradient norm of each group of parameters before clipping.
        speed: Numbers of `record/speed.py`.
        data_s: Seconds spent waiting for the batch.
        step_s: Seconds spent in the step.
        samples_per_s: Samples of the global batch per second, waiting included.
    """

    stage: str
    lang: str
    loss: float
    lr: float
    grad_norm: float
    terms: Mapping[str, float]
    logged: bool
    stopping: bool
    norms: Mapping[str, float] = field(default_factory=dict)
    speed: Mapping[str, Any] = field(default_factory=dict)
    data_s: float = 0.0
    step_s: float = 0.0
    samples_per_s: float = 0.0

    def numbers(self) -> dict[str, Any]:
        """Stage, language, loss, learning rate, gradient norm and terms, as one flat object; no times."""
        facts = {"stage": self.stage, "lang": self.lang}
        return {**facts, "loss": self.loss, "lr": self.lr, "grad_norm": self.grad_norm, **self.terms}

    def values(self) -> dict[str, Any]:
        """The values of one line of the log."""
        values = self.numbers()
        if self.logged:
            values |= {"norms": dict(self.norms), "speed": dict(self.speed)}
        return values | {"data_s": self.data_s, "step_s": self.step_s, "samples_per_s": self.samples_per_s}
