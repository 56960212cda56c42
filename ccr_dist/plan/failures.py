"""How often a planned training should save on machines that fail, and how long it takes then."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ccr_dist.errors import ConfigError
from ccr_dist.plan.recommend import Option
from ccr_dist.simulate.advise import Advice, advise
from ccr_dist.simulate.schema import Cause, Rates, load_rates
from ccr_dist.simulate.times import seconds

WRITES = 1e9  # bytes/s at which one process writes a checkpoint, where nothing else is said


@dataclass(frozen=True)
class Interrupted:
    """A planned training on machines that fail.

    Attributes:
        gpus: number of GPUs.
        advice: how often to save.
        stall_s: seconds of a save.
        total_s: seconds of all its steps, with what saves and failures cost.
    """

    gpus: int
    advice: Advice
    stall_s: float
    total_s: float

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        values = {"gpus": self.gpus, "stall_s": self.stall_s, "total_s": self.total_s}
        return {**values, "advice": self.advice.to_json()}


def rates_of(text: str, per_node: int) -> Rates:
    """Published rates by name, a YAML file of them, or hours between failures of one node.

    Rates of nodes of another size are taken by the GPU: half a node fails half as often.

    Args:
        text: what names them.
        per_node: GPUs of the planned nodes.

    Raises:
        ConfigError: no such rates, or no number above 0.
    """
    if not re.fullmatch(r"[0-9.]+", text):
        return _by_gpu(load_rates(text), per_node)
    try:
        hours = float(text)
    except ValueError:
        hours = 0.0
    if hours <= 0:
        raise ConfigError(f"--failures {text}: expected hours above 0 between failures of a node, or the name of rates")
    source = f"a node fails every {hours:g} h"
    causes = {"failures": Cause(scope="node", per_day=24 / hours)}
    return Rates(title=source, source=source, per_node=per_node, causes=causes)


def _by_gpu(rates: Rates, per_node: int) -> Rates:
    share = per_node / rates.per_node
    causes = {
        name: cause.model_copy(update={"per_day": cause.per_day * share})
        if cause.per_day is not None and cause.scope in ("node", "group")
        else cause
        for name, cause in rates.causes.items()
    }
    return rates.model_copy(update={"per_node": per_node, "causes": causes})


def interrupted(
    option: Option, rates: Rates, *, per_node: int, stall: str | None, restart: str, state_bytes: Sequence[int]
) -> Interrupted:
    """The training of an option, interrupted.

    Args:
        option: that fits.
        rates: of failures.
        per_node: GPUs of a node.
        stall: how long a save takes, such as 30s; None: weights and moments at 1 GB/s.
        restart: from a failure until training goes on, such as 10m.
        state_bytes: of the checkpoints of its stages.

    Raises:
        ConfigError: a time that cannot be.
    """
    longest = max(option.stages, key=lambda each: each.total_s)
    save = max(state_bytes) / WRITES if stall is None else seconds(stall, "--stall")
    advice = advise(
        rates, gpus=option.gpus, per_node=min(per_node, option.gpus), stall=save, restart=restart,
        step=longest.seconds["step"],
    )  # fmt: skip
    whole = option.total_s / max(advice.ettr, 1e-9)
    return Interrupted(option.gpus, advice, save, whole)
