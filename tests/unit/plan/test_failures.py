"""Failures of planned trainings: rates of nodes of one size, for nodes of another."""

from __future__ import annotations

import pytest

from ccr_dist.plan.failures import rates_of
from ccr_dist.simulate.advise import advise


def mtbf(failures: str, per_node: int, gpus: int = 64) -> float:
    return advise(rates_of(failures, per_node), gpus=gpus, per_node=per_node, stall=10, restart="10m").mtbf_s


@pytest.mark.parametrize("per_node", [1, 2, 4, 16])
def test_published_rates_do_not_depend_on_the_size_of_nodes(per_node: int) -> None:
    assert mtbf("llama3", per_node) == pytest.approx(mtbf("llama3", 8))


def test_hours_are_those_of_the_planned_node() -> None:
    assert mtbf("24", 4) == pytest.approx(24 * 3600 / 16) and mtbf("24", 8) == pytest.approx(24 * 3600 / 8)
