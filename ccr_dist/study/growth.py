"""How SumR grows along the curves of a study: a log-linear fit of each, where it reaches another row, and how the
difference of two curves changes.

A curve's points are rows; their values are means over languages and seeds. SumR = at + slope * log10(x), by least
squares with equal weights. Intervals come from the replicates of `compare.sample`, which draw the same items and seeds
for all rows: everything is computed again in each replicate. Computed with NumPy only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ccr_dist.errors import ConfigError, DataError
from ccr_dist.study.compare import LEVEL, REPLICATES, Estimate, Sampled, over, sample
from ccr_dist.study.plan import Growth, StudyPlan
from ccr_dist.study.summary import measured


@dataclass(frozen=True)
class Point:
    """A row of a curve: its `x`, its SumR, and from how many seeds that is."""

    x: float
    value: Sampled
    seeds: int


@dataclass(frozen=True)
class Fit:
    """A line through values against log10(x).

    Attributes:
        slope: What a tenfold x adds.
        at: The value at x = 1; a means to compute others.
        misfit: The largest distance of a measured value from the line; 0 for two points, through which it goes.
        points: How many there are.
        first: The smallest x.
    """

    slope: Sampled
    at: Sampled
    misfit: float
    points: int
    first: float

    def value(self, x: float) -> Sampled:
        """On the line, at x."""
        log = np.log10(x)
        return Sampled(self.at.mean + log * self.slope.mean, self.at.draws + log * self.slope.draws)


@dataclass(frozen=True)
class Curve:
    """A curve with its complete points, in order of x; no fit with fewer than two.

    Attributes:
        crossings: Row -> the x at which the line reaches it, see `crossing`.
    """

    name: str
    points: tuple[Point, ...]
    fit: Fit | None
    crossings: dict[str, Estimate]

    def inside(self, x: float) -> bool:
        """Whether x is between measured points."""
        return self.points[0].x <= x <= self.points[-1].x


@dataclass(frozen=True)
class Difference:
    """Curve a - curve b at the x that both have; seeds of a point are those of the row with fewer."""

    claim: str
    a: str
    b: str
    points: tuple[Point, ...]
    fit: Fit | None


@dataclass(frozen=True)
class Grown:
    """Everything that a report on growth shows; `levels` are the values of rows by name."""

    growth: Growth
    title: str
    curves: tuple[Curve, ...]
    levels: dict[str, Estimate]
    labels: dict[str, str]
    differences: tuple[Difference, ...]
    missing: tuple[str, ...]


def fitted(x: Sequence[float], values: Sequence[Sampled]) -> Fit:
    """The line through two points or more.

    Args:
        x: Above 0, different.
        values: At each x.
    """
    logs = np.log10(np.asarray(x, dtype=float))
    centred = logs - logs.mean()
    weights = centred / (centred @ centred)
    means, draws = np.array([each.mean for each in values]), np.stack([each.draws for each in values], axis=-1)
    slope = Sampled(float(means @ weights), draws @ weights)
    at = Sampled(float(means.mean() - slope.mean * logs.mean()), np.asarray(draws.mean(-1) - slope.draws * logs.mean()))
    misfit = np.abs(means - (at.mean + slope.mean * logs)).max() if len(x) > 2 else 0.0
    return Fit(slope, at, float(misfit), len(x), min(x))


def crossing(fit: Fit, level: Sampled) -> Estimate:
    """The x at which a line reaches a level, with its interval. Where the line does not rise: 0 if it begins at the
    level or above, else infinite.
    """

    def reached(level: np.ndarray, at: np.ndarray, slope: np.ndarray) -> np.ndarray:
        without = np.where(at + slope * np.log10(fit.first) >= level, 0.0, np.inf)
        with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
            return np.where(slope > 0, 10.0 ** ((level - at) / slope), without)

    mean = reached(*(np.array(each.mean) for each in (level, fit.at, fit.slope)))
    draws = reached(level.draws, fit.at.draws, fit.slope.draws)
    # without interpolation, which infinite values do not bear
    low, high = np.percentile(draws, [50 - LEVEL / 2, 50 + LEVEL / 2], method="inverted_cdf")
    return Estimate(float(mean), float(low), float(high))


def grown(plan: StudyPlan, *, replicates: int = REPLICATES) -> Grown:
    """What the complete runs of a study say about growth.

    Args:
        plan: A study with `growth`.
        replicates: Number of bootstrap replicates.

    Raises:
        ConfigError: The study has no section `growth`, or a result belongs to another config.
        DataError: No run of a curve is complete, or runs were evaluated on different queries.
    """
    study = plan.study
    if study.growth is None:
        raise ConfigError(
            f"the study {study.name!r} has no section `growth`, and its rows no `curve` and `x`: docs/studies.md"
        )
    outcomes, missing = measured(plan)
    runs = [outcome.result for each in outcomes.values() for outcome in each]
    source = runs[0].source_language
    drawn = sample(outcomes, replicates=replicates)

    def value(name: str) -> Sampled:
        languages = [lang for lang in drawn[name] if lang != source] or list(drawn[name])
        return over(drawn[name], languages)

    spoken = {name: set(languages) for name, languages in drawn.items()}
    if different := [name for name, languages in spoken.items() if languages != next(iter(spoken.values()))]:
        raise DataError(
            f"{study.out}: rows {next(iter(spoken))!r} and {different[0]!r} were measured in different languages, so"
            " they are no points of one picture"
        )
    points: dict[str, list[Point]] = {}
    for row in study.rows:
        if row.curve is not None and row.x is not None and row.name in drawn:
            points.setdefault(row.curve, []).append(Point(row.x, value(row.name), len(outcomes[row.name])))
    if not points:
        raise DataError(f"{study.out}: no run of a curve of the study {study.name!r} is complete")
    levels = {name: value(name) for name in study.growth.levels if name in drawn}
    curves = tuple(_curve(name, each, levels) for name, each in points.items())
    of = {curve.name: curve for curve in curves}
    differences = [
        _difference(each.claim, of[each.a], of[each.b])
        for each in study.growth.differences
        if each.a in of and each.b in of
    ]
    return Grown(
        study.growth,
        study.title,
        curves,
        {name: each.estimate() for name, each in levels.items()},
        {row.name: row.shown for row in study.rows},
        tuple(each for each in differences if each.points),
        tuple(name if why == "no result" else f"{name} ({why})" for name, why in missing.items()),
    )


def _fit_of(points: Sequence[Point]) -> Fit | None:
    return fitted([each.x for each in points], [each.value for each in points]) if len(points) > 1 else None


def _curve(name: str, points: Sequence[Point], levels: Mapping[str, Sampled]) -> Curve:
    ordered = tuple(sorted(points, key=lambda each: each.x))
    fit = _fit_of(ordered)
    return Curve(name, ordered, fit, {row: crossing(fit, level) for row, level in levels.items()} if fit else {})


def _difference(claim: str, a: Curve, b: Curve) -> Difference:
    other = {each.x: each for each in b.points}
    pairs = [(each, other[each.x]) for each in a.points if each.x in other]
    points = tuple(Point(left.x, left.value - right.value, min(left.seeds, right.seeds)) for left, right in pairs)
    return Difference(claim, a.name, b.name, points, _fit_of(points))
