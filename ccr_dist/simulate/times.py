"""Durations: fixed, or drawn from a distribution. In YAML a number of seconds, a text such as `10m`, or a mapping."""

from __future__ import annotations

import math
import re
from statistics import NormalDist
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from ccr_dist.errors import ConfigError

UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


class Frozen(BaseModel):
    """Base of every section: immutable, unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def seconds(text: str | float, what: str) -> float:
    """Seconds of a duration as people write it.

    Args:
        text: A number of seconds, or a number with a unit: `90`, `90s`, `15m`, `1.5h`, `2d`.
        what: What it is, for the message.

    Returns:
        Seconds, 0 or more.

    Raises:
        ConfigError: It is no such duration.
    """
    found = re.fullmatch(r"\s*([0-9]*\.?[0-9]+(?:e[+-]?[0-9]+)?)\s*([smhd]?)\s*", str(text), re.IGNORECASE)
    if found is None or not np.isfinite(value := float(found[1]) * UNITS[found[2].lower() or "s"]):
        raise ConfigError(f"{what}: {str(text)!r} is no duration; expected seconds, or a number with s, m, h or d")
    return value


def _as_seconds(value: object) -> object:
    if isinstance(value, str):
        try:
            return seconds(value, "duration")
        except ConfigError as error:
            raise ValueError(str(error).removeprefix("duration: ")) from None
    return value


Seconds = Annotated[float, BeforeValidator(_as_seconds), Field(ge=0)]
PositiveSeconds = Annotated[float, BeforeValidator(_as_seconds), Field(gt=0)]


class Times(Frozen):
    """How long something takes. A number or a text is a fixed duration."""

    kind: Literal["fixed", "exponential", "lognormal", "uniform"] = Field("fixed", description="the distribution")
    mean: Seconds | None = Field(None, description="seconds; not of uniform, which has low and high")
    spread: float | None = Field(None, gt=0, description="of lognormal: standard deviation divided by the mean")
    low: Seconds | None = Field(None, description="of uniform: the shortest")
    high: Seconds | None = Field(None, description="of uniform: the longest")

    @model_validator(mode="before")
    @classmethod
    def _plain(cls, value: Any) -> Any:
        return {"mean": value} if isinstance(value, int | float | str) and not isinstance(value, bool) else value

    @model_validator(mode="after")
    def _whole(self) -> Self:
        wanted = {"lognormal": {"mean", "spread"}, "uniform": {"low", "high"}}.get(self.kind, {"mean"})
        given = {name for name in ("mean", "spread", "low", "high") if getattr(self, name) is not None}
        if wanted != given:
            raise ValueError(f"{self.kind} takes {' and '.join(sorted(wanted))}, and nothing else")
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(f"low ({self.low:g} s) is more than high ({self.high:g} s)")
        return self

    @property
    def average(self) -> float:
        """The mean, in seconds."""
        if self.low is not None and self.high is not None:
            return (self.low + self.high) / 2
        assert self.mean is not None
        return self.mean

    def draw(self, dice: np.random.Generator, count: int) -> np.ndarray:
        """Seconds, float64 of shape (count,)."""
        mean = self.average
        if self.kind == "exponential":
            return dice.exponential(mean, count)
        if self.low is not None and self.high is not None:
            return dice.uniform(self.low, self.high, count)
        if self.kind == "lognormal" and mean > 0:
            return dice.lognormal(*self._normal, count)
        return np.full(count, mean)

    def survives(self, rate: float) -> float:
        """E[exp(-rate T)]: the probability that nothing fails meanwhile.

        Args:
            rate: Failures a second.

        Returns:
            A probability; of lognormal by 4,096 quantiles.
        """
        if self.kind == "exponential":
            return 1 / (1 + rate * self.average)
        if self.low is not None and self.high is not None:
            width = rate * (self.high - self.low)
            return math.exp(-rate * self.low) * (-math.expm1(-width) / width if width else 1.0)
        if self.kind == "lognormal" and self.average > 0:
            middle, sigma = self._normal
            places = [NormalDist(middle, sigma).inv_cdf((k + 0.5) / 4096) for k in range(4096)]
            return float(np.mean(np.exp(-rate * np.exp(places))))
        return math.exp(-rate * self.average)

    @property
    def _normal(self) -> tuple[float, float]:
        """Mean and standard deviation of the logarithm, of lognormal."""
        assert self.spread is not None
        sigma = math.sqrt(math.log1p(self.spread**2))
        return math.log(self.average) - sigma**2 / 2, sigma
