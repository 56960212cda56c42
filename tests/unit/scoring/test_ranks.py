"""Ranks by the kernel against their definition, on scores of all pairs."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ccr_dist.scoring import bounds, ranks
from ccr_dist.scoring.ranks import Rows

SMALL = {"FEW_PAIRS": 3, "PAIRS_AT_ONCE": 5}
EXACT = {"CROWDED": 10**9}  # every block with a pair in doubt is scored exactly
NEVER = {"CROWDED": 1}


def definition(text, visual, text_item, group):
    """1 + the wrong candidates that score no less than the best right one, from the table of all scores."""
    text, visual = (Rows(rows).exact(slice(None)) for rows in (text, visual))
    table = np.stack([bounds.scores(np.broadcast_to(row, visual.shape), visual) for row in text])
    of_text = group[text_item]

    def rank(scores, right):
        best = np.where(right, scores, -np.inf).max()
        return int(1 + ((scores >= best) & ~right).sum()) if right.any() else 0

    owners = np.unique(text_item)
    merged = np.stack([table[text_item == owner].max(axis=0) for owner in owners])
    return (
        [rank(table[t], group == of_text[t]) for t in range(len(text))],
        [rank(table[:, v], of_text == group[v]) for v in range(len(visual))],
        [rank(merged[:, v], group[owners] == group[v]) for v in range(len(visual))],
    )


def together(world, work):
    """Runs `work(share, merge)` on so many threads; `merge` sums what all of them hand in."""
    barrier, handed = threading.Barrier(world), [None] * world

    def one(rank):
        def merge(values):
            handed[rank] = values
            barrier.wait(timeout=60)
            total = sum(handed[1:], handed[0])
            barrier.wait(timeout=60)
            return total

        return work((rank, world), merge)

    with ThreadPoolExecutor(world) as pool:
        return list(pool.map(one, range(world)))


def features(kind, dice, n, width):
    if kind == "random":
        return dice.standard_normal((n, width)).astype(np.float32)
    if kind == "tied":
        return dice.integers(-1, 2, (n, width)).astype(np.float32)  # zero rows, too
    if kind == "near":  # scores differ by less than float32 products do
        return (1 + 1e-6 * dice.standard_normal((n, width))).astype(np.float32)
    if kind == "lengths":
        return (dice.standard_normal((n, width)) * 10.0 ** dice.integers(-20, 10, (n, 1))).astype(np.float32)
    return np.tile(np.linspace(-1, 1, width, dtype=np.float32), (n, 1)) * dice.integers(1, 4, (n, 1)).astype(np.float32)


@pytest.mark.parametrize("kind", ["random", "tied", "near", "lengths", "collapsed"])
@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    sizes=st.tuples(st.integers(1, 30), st.integers(1, 12), st.integers(1, 24)),
    groups=st.integers(1, 14),
    world=st.integers(1, 4),
    block=st.integers(1, 40),
    constants=st.sampled_from([{}, SMALL, EXACT, NEVER, SMALL | EXACT]),
)
def test_ranks_are_those_of_the_definition(kind, seed, sizes, groups, world, block, constants):
    dice = np.random.default_rng(seed)
    captions, items, width = sizes
    rows = features(kind, dice, captions + items, width)
    text, visual = rows[:captions], rows[captions:]
    text_item, group = dice.integers(0, items, captions), dice.integers(0, groups, items)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in constants.items():
            patch.setattr(ranks, name, value)
        found = together(
            world,
            lambda share, merge: ranks.ranks(
                Rows(text), Rows(visual), text_item, group, share=share, merge=merge, block=block
            ),
        )
    expected = definition(text, visual, text_item, group)
    for each in found:
        assert (each.text_to_visual.tolist(), each.visual_to_text.tolist(), each.by_item.tolist()) == expected


def test_a_block_ends_where_an_item_ends():
    """Five captions of one item, then one each: blocks of two are stretched, none is cut."""
    text_item = np.array([0, 0, 0, 0, 0, 1, 2, 3])
    rows = Rows(np.ones((8, 2), np.float32))
    ranking = ranks._Ranking(rows, Rows(np.ones((4, 2), np.float32)), text_item, np.arange(4), (0, 1), lambda x: x, 2)
    assert [(unit.start, unit.stop) for unit in ranking._units(slice(0, 8))] == [(0, 5), (5, 7), (7, 8)]
    assert [(c.start, c.stop) for c in ranking._columns(slice(0, 5), 4)] == [(0, 1), (1, 2), (2, 3), (3, 4)]


@pytest.mark.parametrize("n", [1, 254, 255, 256, 700])
def test_columns_are_counted_beyond_what_a_byte_holds(n):
    mask = np.random.default_rng(n).random((n, 5)) < 0.9
    assert ranks.count_columns(mask).tolist() == mask.sum(axis=0).tolist()
    assert ranks.count_rows(mask).tolist() == mask.sum(axis=1).tolist()


def test_rows_are_the_same_bits_alone_and_together():
    rows = Rows(np.random.default_rng(0).standard_normal((50, 37)).astype(np.float32))
    whole = rows.exact(slice(None))
    assert all(np.array_equal(rows.exact(np.array([i]))[0], whole[i]) for i in range(50))
    assert Rows(np.array([[1.0, 2.0], [np.inf, 0.0]], np.float32)).broken() == 1
    assert rows.broken() is None
