"""The serial fraction against laws that rates follow exactly, and against noise of a known size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import pytest

from ccr_dist.scaling.fit import fit, student

WORLDS = [1, 2, 4, 8]


def amdahl(s: float, n: float) -> float:
    return 1 / (s + (1 - s) / n)


def gustafson(s: float, n: float) -> float:
    return s + (1 - s) * n


@pytest.mark.parametrize("serial", [0.0, 0.05, 0.3, 1.0])
@pytest.mark.parametrize(("kind", "law"), [("strong", amdahl), ("weak", gustafson)])
def test_exact_rates_give_the_fraction_that_made_them(
    kind: Literal["strong", "weak"], law: Callable[[float, float], float], serial: float
) -> None:
    rates = [250 * law(serial, n) for n in WORLDS]
    found = fit(kind, WORLDS, rates)
    assert found is not None and found.law == ("Amdahl" if kind == "strong" else "Gustafson")
    assert found.serial == pytest.approx(serial, abs=1e-4) and found.rate == pytest.approx(250, rel=1e-3)
    assert found.high - found.low < 1e-3 and found.deviation < 1e-3
    assert found.rate_at(16) == pytest.approx(250 * law(serial, 16), rel=1e-2)


def test_the_fraction_does_not_need_a_single_process() -> None:
    found = fit("strong", [8, 16, 64], [100 * amdahl(0.02, n) for n in (8, 16, 64)])
    assert found is not None and found.serial == pytest.approx(0.02, abs=1e-4)


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    random, hits = np.random.default_rng(0), 0
    worlds = WORLDS * 3
    for _ in range(100):
        rates = [amdahl(0.1, n) * np.exp(random.normal(0, 0.05)) for n in worlds]
        found = fit("strong", worlds, rates)
        assert found is not None
        hits += found.low <= 0.1 <= found.high
    assert 88 <= hits <= 100


def test_a_law_that_does_not_hold_is_seen_in_the_deviation() -> None:
    found = fit("strong", WORLDS, [100, 180, 150, 90])  # two cores under eight processes
    assert found is not None and found.deviation > 0.2


@pytest.mark.parametrize(("worlds", "rates"), [([1, 2], [1.0, 2.0]), ([2, 2, 2], [1.0, 1.1, 1.0]), ([], [])])
def test_too_little_is_not_fitted(worlds: list[int], rates: list[float]) -> None:
    assert fit("strong", worlds, rates) is None


def test_students_t_goes_on_smoothly() -> None:
    values = [student(n) for n in range(1, 60)]
    assert values == sorted(values, reverse=True) and student(31) == pytest.approx(2.0395, abs=2e-3)
    assert student(10**6) == pytest.approx(1.96, abs=1e-3)
