"""Collectives against their closed forms."""

from __future__ import annotations

import math

import pytest

from ccr_dist.errors import ConfigError
from ccr_dist.plan.cost.collectives import TREE, Ranks, Wire

INSIDE, BETWEEN = Wire(3e-6, 300e9), Wire(10e-6, 200e9)
MB = 1e6


def ranks(nodes: int, per_node: int, inside: Wire = INSIDE, between: Wire = BETWEEN) -> Ranks:
    return Ranks(nodes, per_node, inside, between)


def test_one_rank_sends_nothing() -> None:
    alone = ranks(1, 1)
    for kind in ("all_reduce", "all_gather", "reduce_scatter"):
        assert alone.seconds(kind, 100 * MB) == 0 and alone.sent(kind, 100 * MB) == 0
    assert alone.hierarchical(100 * MB) == alone.tree(100 * MB) == 0


@pytest.mark.parametrize("n", [2, 4, 8])
def test_rings_inside_a_node(n: int) -> None:
    """By hand: n - 1 steps, in each of which a rank passes on the n-th part."""
    size, here = 64 * MB, ranks(1, n)
    step = 3e-6 + size / n / 300e9
    assert here.all_gather(size) == here.reduce_scatter(size) == pytest.approx((n - 1) * step)
    assert here.ring(size) == pytest.approx(2 * (n - 1) * step)
    assert here.sent("all_reduce", size) == pytest.approx(2 * (n - 1) * size / n)


def test_rings_between_nodes_cross_the_network_once_a_node() -> None:
    nodes, per = 4, 8
    size, n = 512 * MB, 32
    latency = (n - 1 - 3) * 3e-6 + 3 * 10e-6
    assert ranks(nodes, per).all_gather(size) == pytest.approx(latency + (n - 1) / n * size / 200e9)
    assert ranks(nodes, per).ring(size) == pytest.approx(2 * latency + 2 * (n - 1) / n * size / 200e9)
    # one GPU a node: all bytes and all steps cross the network, the link inside plays no part
    alone = ranks(nodes, 1, inside=Wire(1, 1))
    assert alone.ring(size) == pytest.approx(6 * 10e-6 + 6 / 4 * size / 200e9)
    # a fast network does not make the link inside faster
    assert ranks(nodes, per, between=Wire(0, 1e15)).rate == 300e9


def test_trees_for_few_bytes_rings_for_many() -> None:
    big = ranks(64, 8)
    tree = 2 * (7 * 3e-6 + 6 * 10e-6)
    assert big.tree(0) == pytest.approx(tree) and big.tree(8 * MB) == pytest.approx(tree + 16 * MB / (TREE * 200e9))
    assert ranks(1, 8).tree(0) == pytest.approx(2 * 3 * 3e-6)
    assert big.all_reduce(1000) == big.tree(1000) < big.ring(1000)
    assert big.all_reduce(1e12) == big.ring(1e12) < big.tree(1e12)


def test_hierarchical_is_two_levels_of_rings() -> None:
    nodes, per, size = 4, 8, 256 * MB
    within = 2 * (7 * 3e-6 + 7 / 8 * size / 300e9)
    across = 6 * 10e-6 + 6 / 4 * (size / 8) / (200e9 / 8)
    assert ranks(nodes, per).hierarchical(size) == pytest.approx(within + across)
    assert ranks(1, per).hierarchical(size) == pytest.approx(ranks(1, per).ring(size))


def test_more_ranks_never_take_less_and_each_rank_sends_more() -> None:
    for kind in ("all_reduce", "all_gather"):
        times = [ranks(max(1, n // 8), min(n, 8)).seconds(kind, 300 * MB) for n in (2, 4, 8, 16, 64, 512)]
        assert times == sorted(times)
        assert math.isclose(ranks(64, 8).sent(kind, 1), 2 if kind == "all_reduce" else 1, rel_tol=0.01)


def test_what_was_measured_of_gathers_counts_for_gathers_alone() -> None:
    own = Ranks(1, 4, INSIDE, BETWEEN, gathers=Wire(1e-3, 1e9))
    assert own.all_gather(8 * MB) == pytest.approx(3e-3 + 6 * MB / 1e9)
    assert own.ring(8 * MB) == ranks(1, 4).ring(8 * MB)


@pytest.mark.parametrize("rate", [0, -1, math.nan, math.inf])
def test_a_link_of_no_speed_is_refused(rate: float) -> None:
    with pytest.raises(ConfigError, match="expected a speed above 0"):
        Wire(1e-6, rate)
