"""The best k against a plain definition: exact scores of all rows, sorted."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ccr_dist.errors import DataError, NonFiniteError
from ccr_dist.scoring import topk
from ccr_dist.scoring.bounds import product_error, scores
from ccr_dist.scoring.gallery import Gallery, Segment, reduce
from ccr_dist.scoring.topk import top_k


def naive(queries, rows, k, allowed=None):
    """All scores as they are defined, a stable sort of each row."""
    live = np.arange(len(rows)) if allowed is None else np.flatnonzero(allowed)
    table = np.stack([scores(np.broadcast_to(q, rows[live].shape), rows[live]) for q in queries])
    order = np.argsort(-table, axis=1, kind="stable")[:, :k]
    return live[order], np.take_along_axis(table, order, axis=1)


def same(found, expected):
    assert np.array_equal(found[0], expected[0])
    assert np.array_equal(found[1], expected[1]) and found[1].dtype == np.float32 and found[0].dtype == np.int64


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def stored(rows, dtype, *, exact=True):
    """A gallery of segments of several sizes in a dtype; one is empty."""
    segments = []
    for part in np.split(rows, [len(rows) // 4, len(rows) // 4, len(rows) // 3, len(rows) // 2]):
        if dtype == "float32":
            segments.append(Segment(part))
            continue
        values, scales, errors = reduce(part, dtype)
        segments.append(Segment(values, scales, part, errors) if exact else Segment(values, scales))
    return Gallery(segments)


SMALL = {"BLOCK_SCORES": 64, "BLOCK_QUERIES": 5, "MOST_CANDIDATES": 40, "READ_VALUES": 32, "PAIRS_AT_ONCE": 7}


def rows_of(kind, dice, n, width):
    if kind == "random":
        return unit(dice.standard_normal((n, width)))
    if kind == "tied":  # few different rows: most of the best are ties
        return unit(dice.integers(-1, 2, (n, width)) + 0.25)[dice.integers(0, max(1, n // 8), n)]
    if kind == "near":  # differences of the size of rounding errors
        return unit(np.ones(width) + 1e-7 * dice.standard_normal((n, width)))
    if kind == "lengths":  # lengths that differ much, and zero rows
        return (unit(dice.standard_normal((n, width))) * 10.0 ** dice.integers(-30, 4, (n, 1))).astype(np.float32)
    ascending = np.linspace(-1, 1, n)[:, None]  # every row is better than all before
    return np.hstack([ascending, np.zeros((n, width - 1))]).astype(np.float32)


KINDS = ("random", "tied", "near", "lengths", "ascending")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
@pytest.mark.parametrize("sizes", [{}, SMALL], ids=["one block", "many blocks"])
@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 80), width=st.integers(1, 40), k=st.integers(1, 12))
def test_the_best_are_those_of_all_exact_scores(kind, dtype, sizes, seed, n, width, k):
    dice = np.random.default_rng(seed)
    rows, queries = rows_of(kind, dice, n, width), rows_of(kind, dice, 7, width)
    share = dice.choice([0.0, 0.5, 1.0])
    allowed = None if share == 1 else dice.random(n) < share
    with pytest.MonkeyPatch.context() as patch:
        for name, value in sizes.items():
            patch.setattr(topk, name, value)
        found = top_k(queries, stored(rows, dtype), k, allowed=allowed)
    same(found, naive(queries, rows, k, allowed))


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_reduced_rows_without_exact_ones_are_the_rows(dtype):
    dice = np.random.default_rng(0)
    rows, queries = unit(dice.standard_normal((300, 24))), unit(dice.standard_normal((9, 24)))
    gallery = stored(rows, dtype, exact=False)
    whole = gallery.take(np.arange(300))
    same(top_k(queries, gallery, 5), naive(queries, whole, 5))
    assert np.abs(whole - rows).max() < 0.005


def test_equal_rows_are_ties_by_number_wherever_they_lie():
    """A row that is nearly the query lies at several places of blocks and segments."""
    dice = np.random.default_rng(3)
    rows = unit(dice.standard_normal((257, 33)))
    places = np.array([0, 1, 84, 85, 86, 200, 255, 256])
    rows[places] = rows[7]
    numbers, values = top_k(rows[7:8], stored(rows, "float32"), 9)
    assert numbers[0].tolist() == sorted([*places.tolist(), 7]) and len(set(values[0].tolist())) == 1


def test_scores_do_not_depend_on_where_a_pair_stands():
    dice = np.random.default_rng(4)
    left, right = dice.standard_normal((2, 61, 301)).astype(np.float32)
    whole = scores(left, right)
    assert all(scores(left[i : i + 1], right[i : i + 1])[0] == whole[i] for i in range(61))
    assert np.array_equal(scores(left[::-1], right[::-1])[::-1], whole)
    assert np.array_equal(scores(np.asfortranarray(left), right), whole)
    assert np.array_equal(scores(np.broadcast_to(left[3], right.shape), right), scores(left[[3] * 61], right))


def test_the_bound_holds_where_rounding_is_worst():
    """Every term has the same sign, so that errors add up; the product is summed one term after another."""
    for width in (1, 2, 100, 5000):
        row = np.full(width, 1 / 3, np.float32)
        total = np.float32(0)
        for value in row * row:
            total = np.float32(total + value)
        length = float((row.astype(np.float64) ** 2).sum())
        assert abs(float(total) - float(scores(row[None], row[None])[0])) <= product_error(width) * length


def test_fewer_rows_than_asked_for():
    rows = unit(np.random.default_rng(0).standard_normal((4, 3)))
    assert top_k(rows, Gallery.of(rows), 9)[0].shape == (4, 4)
    assert top_k(rows, Gallery.of(rows), 9, allowed=np.zeros(4, bool))[0].shape == (4, 0)
    assert top_k(rows[:0], Gallery.of(rows), 2)[0].shape == (0, 2)
    assert top_k(rows, Gallery.of(rows[:0], rows), 2)[0].tolist() == top_k(rows, Gallery.of(rows), 2)[0].tolist()


def test_bad_input_is_refused():
    rows = np.ones((4, 3), np.float32)
    gallery = Gallery.of(rows)
    with pytest.raises(DataError, match="rows are 3 wide"):
        top_k(np.ones((1, 2), np.float32), gallery, 1)
    with pytest.raises(DataError, match="expected 1 or more"):
        top_k(rows, gallery, 0)
    with pytest.raises(DataError, match="one bool a row of 4"):
        top_k(rows, gallery, 1, allowed=np.ones(3, bool))
    with pytest.raises(NonFiniteError, match="query 1 is not finite"):
        top_k(np.array([[1, 1, 1], [1, np.nan, 1]], np.float32), gallery, 1)
    for bad in (np.nan, np.inf):
        broken = rows.copy()
        broken[2, 1] = bad
        with pytest.raises(NonFiniteError, match="row 6 of the gallery"):
            top_k(rows, Gallery.of(rows, broken), 1)
        with pytest.raises(NonFiniteError, match="row 2 of the gallery"):
            top_k(rows, Gallery.of(broken.astype(np.float16)), 1)
    with pytest.raises(DataError, match="too long"):
        top_k(rows * np.float32(1e30), Gallery.of(rows * np.float32(1e30)), 1)
    with pytest.raises(DataError, match="one width"):
        Gallery.of(rows, rows[:, :2])
    with pytest.raises(DataError, match="float64 of shape"):
        Gallery.of(rows.astype(np.float64))
    with pytest.raises(DataError, match="`scales`"):
        Gallery([Segment(rows.astype(np.int8))])
    with pytest.raises(DataError, match="`exact` and `errors`"):
        Gallery([Segment(rows, exact=rows)])
    with pytest.raises(DataError, match="exact"):
        Gallery([Segment(rows, exact=rows[:2], errors=rows[:, 0])])
    with pytest.raises(DataError, match="65504"):
        reduce(rows * np.float32(1e6), "float16")


def test_a_wrong_length_does_not_pass_for_a_result():
    """A record says that rows are of length 1; they are not, so the bounds do not hold."""
    rows = np.full((8, 4), 3, np.float32)
    with pytest.raises(DataError, match="longer than"):
        top_k(rows, Gallery([Segment(rows, longest=1.0)]), 2)


def test_memory_maps_are_read_as_they_lie(tmp_path):
    dice = np.random.default_rng(5)
    rows = unit(dice.standard_normal((100, 16)))
    np.save(tmp_path / "rows.npy", rows)
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    values, scales, errors = reduce(rows, "int8")
    for gallery in (Gallery.of(mapped), Gallery([Segment(values, scales, mapped, errors)])):
        same(top_k(rows[:9], gallery, 4), naive(rows[:9], rows, 4))


def test_every_finite_float16_is_widened_to_its_value():
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16).reshape(-1, 64)
    finite = every[np.isfinite(every).all(axis=1)]
    wide = Segment(finite).unscaled(slice(None))
    assert len(finite) > 900 and np.array_equal(wide.view(np.int32), finite.astype(np.float32).view(np.int32))


@pytest.mark.parametrize("n", [0, 1, 7, 8, 9, 64, 1001])
def test_places_of_a_mask(n):
    for share in (0, 0.01, 0.5, 1):
        mask = np.random.default_rng(n).random(n) < share
        assert topk._places(mask).tolist() == np.flatnonzero(mask).tolist()
