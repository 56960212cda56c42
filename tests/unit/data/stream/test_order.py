"""The order: any world size and cut point give the same global batches, every row once a pass, few shards a reader."""

from __future__ import annotations

import pickle
from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ccr_dist.data.stream import chance
from ccr_dist.data.stream.chance import WeightedCycle, mix, permutation
from ccr_dist.data.stream.order import Order, rank_slots
from ccr_dist.data.stream.streams import Source
from ccr_dist.errors import ConfigError, DataError


def rows_of(order: Order, ks, slots=None) -> list[tuple[int, int, int]]:
    return [(s.source, s.shard, s.row) for k in ks for s in order.batch(k, slots).slots]


@st.composite
def orders(
    draw,
    max_sources=3,
    languages=st.sampled_from([{"de": 1.0}, {"de": 1.0, "cs": 2.0}, {"de": 0.7, "cs": 0.1, "ja": 0.2}]),
):
    langs = draw(languages)
    sources = []
    for i in range(draw(st.integers(1, max_sources))):
        shard_rows = draw(st.lists(st.integers(8, 40), min_size=1, max_size=9))
        rng = np.random.default_rng(draw(st.integers(0, 99)))
        present = {lang: [rng.random(n) < 0.8 for n in shard_rows] for lang in langs}
        for masks in present.values():
            masks[0][:8] = True  # at least as many rows as lanes
        sources.append(Source(f"digest{i}", shard_rows, draw(st.sampled_from([1.0, 0.5, 3.0])), present))
    lanes = draw(st.sampled_from([None, 1, 2, 4]))
    batch = draw(st.integers(1, 6)) * lanes if lanes else draw(st.integers(1, 24))
    return Order(
        sources,
        batch=batch,
        seed=draw(st.integers(0, 2**63)),
        lanes=lanes,
        languages=langs,
        window_rows=draw(st.integers(1, 50)),
    )


@settings(max_examples=60)
@given(order=orders(), world=st.integers(1, 9), k=st.integers(0, 400))
def test_any_world_size_and_cut_point_give_the_same_global_batches(order, world, k):
    whole = order.batch(k)
    parts = [rank_slots(order.batch_size, order.lanes, world, rank) for rank in range(world)]
    lane_major = sorted(range(order.batch_size), key=lambda slot: (slot % order.lanes, slot // order.lanes))
    assert [slot for part in parts for slot in part] == lane_major
    assert {len(part) for part in parts} <= {order.batch_size // world, order.batch_size // world + 1}
    fresh = pickle.loads(pickle.dumps(order))  # a resumed process: nothing cached
    in_parts = [slot for part in parts for slot in fresh.batch(k, part).slots]
    assert sorted(in_parts) == list(whole.slots) and fresh.batch(k).lang == whole.lang
    assert [slot.slot for slot in whole.slots] == list(range(order.batch_size))


@settings(max_examples=25)
@given(order=orders(), first=st.integers(0, 60))
def test_starting_at_k_equals_iterating_from_zero(order, first):
    walked = [order.batch(k) for k in range(first + 4)]
    fresh = pickle.loads(pickle.dumps(order))
    assert [fresh.batch(k) for k in range(first, first + 4)] == walked[first:]


def walk_passes(order: Order, batches: int) -> dict:
    """Rows drawn by each (language, source, lane), in order."""
    drawn = defaultdict(list)
    for k in range(batches):
        batch = order.batch(k)
        for slot in sorted(batch.slots, key=lambda s: (s.slot % order.lanes, s.slot // order.lanes)):
            drawn[batch.lang, slot.source, slot.slot % order.lanes].append((slot.shard, slot.row))
    return drawn


@settings(max_examples=12)
@given(order=orders(max_sources=2))
def test_every_eligible_row_is_drawn_exactly_once_in_each_pass(order):
    drawn = walk_passes(order, 3 * order.epoch_batches + 8)
    complete = 0
    for lang in order.languages:
        for s, source in enumerate(order.sources):
            eligible = source.eligible(lang)
            expected = sorted(
                (shard, int(row)) for shard in range(len(source.shard_rows)) for row in eligible.rows(shard)
            )
            bounds = [lane * len(expected) // order.lanes for lane in range(order.lanes + 1)]
            lengths = np.diff(bounds)
            for epoch in range(min(len(drawn[lang, s, lane]) // lengths[lane] for lane in range(order.lanes))):
                rows = [
                    row for lane, n in enumerate(lengths) for row in drawn[lang, s, lane][epoch * n : (epoch + 1) * n]
                ]
                assert sorted(rows) == expected
                complete += 1
    assert complete >= 1


def test_passes_differ_and_seeds_differ():
    make = lambda seed: Order([Source("a", [50] * 8)], batch=8, seed=seed, languages={"de": 1})  # noqa: E731
    order, n = make(1), 50
    first, second = rows_of(order, range(n)), rows_of(order, range(n, 2 * n))
    assert sorted(first) == sorted(second) == [(0, shard, row) for shard in range(8) for row in range(50)]
    assert first != second and first != sorted(first) and first != rows_of(make(2), range(n))
    shards = [list(dict.fromkeys(shard for _, shard, _ in rows[0::8])) for rows in (first, second)]
    assert all(len(lane) <= 2 for lane in shards), "a lane reads one shard after another"
    assert shards[0] != shards[1], "the shards are permuted in each pass"
    assert order.epoch_batches == n


def test_rows_are_shuffled_inside_windows_only():
    order = Order([Source("a", [100, 100])], batch=1, seed=0, languages={"de": 1}, window_rows=25)
    rows = [row for _, _, row in rows_of(order, range(100))]
    for start in range(0, 100, 25):
        window = rows[start : start + 25]
        assert sorted(window) == list(range(start, start + 25)) and window != sorted(window)
    assert len({tuple(row % 25 for row in rows[start : start + 25]) for start in range(0, 100, 25)}) == 4, (
        "each window in its own way"
    )
    one = Order([Source("a", [40])], batch=1, seed=0, languages={"de": 1})
    assert rows_of(one, range(40)) != rows_of(one, range(40, 80)), "a window is shuffled anew in each pass"


@pytest.mark.parametrize("world", [2, 3, 4, 8])
def test_a_reader_opens_few_shards(world):
    """One reader of N opens its S/N shards and at most one more at each end, which is below 1.2 S/N when S >= 10 N."""
    shard_rows = [90 + mix("rows", shard) % 20 for shard in range(96)]
    batch = 96 if world == 3 else 64
    order = Order([Source("a", shard_rows)], batch=batch, seed=5, lanes=None if world != 3 else 48, languages={"de": 1})
    opened = []
    for rank in range(world):
        slots = rank_slots(batch, order.lanes, world, rank)
        opened.append({shard for _, shard, _ in rows_of(order, range(sum(shard_rows) // batch), slots)})
        assert len(opened[-1]) <= 96 / world + 2
        assert len(opened[-1]) <= 1.2 * 96 / world
    assert set.union(*opened) == set(range(96))


def test_lanes_by_default_are_the_largest_power_of_two_that_fits():
    def lanes(batch: int, *shards: int) -> int:
        return Order([Source(str(n), [100] * n) for n in shards], batch=batch, seed=0, languages={"de": 1}).lanes

    assert [lanes(48, 100), lanes(64, 100), lanes(64, 100, 20), lanes(7, 100), lanes(64, 1)] == [16, 64, 16, 1, 1]
    few = Source("few", [100] * 16, present={"de": [np.arange(100) < (shard < 5) for shard in range(16)]})
    assert Order([few], batch=16, seed=0, languages={"de": 1}).lanes == 4  # five rows cannot feed sixteen lanes


def test_weights_are_quotas_of_sources_and_languages():
    sources = [Source("a", [64] * 8, 3), Source("b", [64] * 8, 1)]
    order = Order(sources, batch=32, seed=2, lanes=8, languages={"de": 2, "cs": 1, "ja": 1})
    batches = [order.batch(k) for k in range(160)]
    assert Counter(batch.lang for batch in batches) == {"de": 80, "cs": 40, "ja": 40}
    counts = Counter(slot.source for batch in batches for slot in batch.slots)
    assert abs(counts[0] / (160 * 32) - 0.75) < 0.01
    assert all(5 <= Counter(slot.source for slot in batch.slots)[1] <= 11 for batch in batches), (
        "every batch is a mixture"
    )
    thin = Order(sources, batch=8, seed=2, lanes=8, languages={"de": 1})
    assert all({slot.source for slot in thin.batch(k).slots} == {0, 1} for k in range(30)), "also with one slot a lane"
    assert [batch.lang for batch in batches[:4]] == [batch.lang for batch in batches[4:8]], (
        "languages alternate in a short cycle"
    )


@settings(max_examples=60)
@given(weights=st.lists(st.floats(0.05, 10), min_size=1, max_size=6), n=st.integers(0, 10_000))
def test_a_weighted_cycle_counts_what_it_chose(weights, n):
    cycle = WeightedCycle(weights, 7, [str(i) for i in range(len(weights))])
    choice, before = cycle.at(n)
    assert before == cycle.counts(n)[choice] and cycle.counts(n).sum() == n
    assert cycle.counts(n + 1)[choice] == before + 1
    assert np.abs(cycle.quotas / cycle.length - np.array(weights) / sum(weights)).max() <= 1 / chance.LONGEST_CYCLE


def test_a_source_without_a_language_is_left_out_of_it():
    sources = [
        Source("a", [30], present={"de": None}),
        Source("b", [30], present={"de": None, "cs": [np.arange(30) < 20]}),
    ]
    order = Order(sources, batch=4, seed=2, languages={"de": 1, "cs": 1})
    drawn = defaultdict(set)
    for k in range(40):
        drawn[order.batch(k).lang] |= {(s.source, s.row < 20) for s in order.batch(k).slots}
    assert {source for source, _ in drawn["de"]} == {0, 1} and drawn["cs"] == {(1, True)}


@settings(max_examples=40)
@given(order=orders(), k=st.integers(0, 100), data=st.data())
def test_a_substitute_is_another_eligible_row_of_the_same_shard(order, k, data):
    batch = order.batch(k)
    slot = data.draw(st.sampled_from(batch.slots))
    rows = set(order.sources[slot.source].eligible(batch.lang).rows(slot.shard).tolist())
    fresh = pickle.loads(pickle.dumps(order))
    seen = {slot.row}
    for attempt in range(1, len(rows)):
        other = order.substitute(k, slot, attempt)
        assert other == fresh.substitute(k, slot, attempt)
        assert other._replace(row=slot.row) == slot and other.row in rows and other.row not in seen
        seen.add(other.row)
    with pytest.raises(DataError, match="no row is left"):
        order.substitute(k, slot, len(rows))


def test_drop_last_makes_each_pass_whole_batches():
    order = Order([Source("a", [37, 41, 25])], batch=8, seed=3, lanes=2, languages={"de": 1}, drop_last=True)
    assert order.epoch_batches == 103 // 8
    for start in (0, 12, 24):
        rows = rows_of(order, range(start, start + 12))
        assert len(set(rows)) == len(rows) == 96


def test_the_digest_covers_every_input():
    def digest(digest="a", rows=(40, 40), weight=1.0, present=None, **changes) -> str:
        sources = [Source(digest, rows, weight, present), Source("z", [40, 40])]
        return Order(
            sources, **{"batch": 8, "seed": 1, "lanes": 2, "languages": {"de": 1.0, "cs": 2.0}, **changes}
        ).digest

    base = digest()
    masks = [np.ones(40, dtype=bool), np.ones(40, dtype=bool)]
    assert digest(present={"de": masks, "cs": None}) == base == digest(present={"cs": [None, None], "de": masks})
    assert digest(languages={"cs": 2.0, "de": 1.0}) == base
    masks[1][3] = False
    changed = [
        digest(digest="b"),
        digest(rows=(40, 41)),
        digest(rows=(41, 39)),
        digest(weight=2.0),
        digest(present={"de": masks, "cs": None}),
        digest(present={"de": None, "cs": masks}),
        digest(batch=16),
        digest(seed=2),
        digest(lanes=1),
        digest(languages={"de": 1.0}),
        digest(languages={"de": 1.0, "cs": 1.0}),
        digest(window_rows=5),
        digest(drop_last=True),
    ]
    assert len({base, *changed}) == len(changed) + 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch": 0}, "batch .*at least 1"),
        ({"lanes": 3}, "3 lanes do not divide .* 8"),
        ({"lanes": 0}, "0 lanes do not divide"),
        ({"lanes": 8, "languages": {"cs": 1}}, "8 lanes, but dataset first has only 3 rows in language 'cs'"),
        ({"languages": {"de": 0.0}}, "weight of language 'de' is 0.0"),
        ({"languages": {"de": 1.0, "cs": 1e-9}}, "language 'cs' is below"),
        ({"languages": {}}, "at least one dataset and one language"),
        ({"languages": {"ja": 1.0}}, "language 'ja'.*first"),
        ({"drop_last": True, "languages": {"cs": 1}}, "would drop all 3 rows"),
        ({"window_rows": 0}, "window_rows"),
    ],
)
def test_a_wrong_request_is_named(changes, message):
    source = Source(
        "a", [40, 40], present={"de": None, "cs": [np.arange(40) < 3, np.zeros(40, dtype=bool)]}, name="first"
    )
    with pytest.raises(ConfigError, match=message):
        Order([source], **{"batch": 8, "seed": 1, "languages": {"de": 1}, **changes})


def test_other_wrong_requests_are_named():
    for weight in (0, -1, float("nan")):
        with pytest.raises(ConfigError, match="weight of dataset first"):
            Order([Source("a", [40], weight, name="first")], batch=8, seed=1, languages={"de": 1})
    with pytest.raises(DataError, match="bitmap of shard 0 has 9 rows"):
        Source("a", [8], present={"de": [np.ones(9, dtype=bool)]})
    with pytest.raises(DataError, match="2 bitmaps for 3 shards"):
        Source("a", [8] * 3, present={"de": [None, None]})
    with pytest.raises(ConfigError, match="rank 2"):
        rank_slots(8, 2, 2, 2)


@settings(max_examples=40)
@given(order=orders(max_sources=1), start=st.integers(0, 200), length=st.integers(0, 90))
def test_a_run_is_what_windows_shuffle(order, start, length):
    """Whole windows of a lane hold the rows of the run at their positions; a run goes through shards in ascending rows,
    over passes.
    """
    lang = next(iter(order.languages))
    stream = order.stream(lang, 0)
    for lane in range(order.lanes):
        rows = stream.lane(lane)[1]
        for position in (start, start + rows):
            epoch, window, place = stream.at(lane, position)
            first = position - place
            found = stream.window(lane, epoch, window)
            run = [(shard, int(row)) for shard, part in stream.run(lane, first, first + len(found)) for row in part]
            assert sorted(map(tuple, found.tolist())) == sorted(run)
        pieces = list(stream.run(lane, start, start + length))
        assert sum(len(part) for _, part in pieces) == length
        assert all((np.diff(part) > 0).all() and len(part) for _, part in pieces)


@given(first=st.lists(st.one_of(st.integers(), st.text()), max_size=3), last=st.integers())
def test_mixing_is_mix(first, last):
    assert chance.mixing(*first)(last) == mix(*first, last)
    assert mix(np.int64(3), True) == mix(3, 1)


def test_golden_values():
    """The order of existing runs: these numbers may only change together with the digest's format number."""
    assert (mix(1, "a"), mix("1", "a")) == (12463034207613233928, 3877307851856781048)
    sources = [
        Source("a", [5, 4, 6], 2),
        Source("b", [3, 3], 1, {"de": [None, np.array([True, False, True])], "cs": None}),
    ]
    order = Order(sources, batch=4, seed=42, languages={"de": 1, "cs": 1}, window_rows=3)
    assert order.lanes == 2
    assert [order.batch(k).lang for k in range(4)] == ["de", "cs", "de", "cs"]
    assert [rows_of(order, [k]) for k in (0, 1, 1000)] == [
        [(0, 0, 1), (1, 0, 1), (1, 1, 0), (0, 2, 4)],
        [(0, 2, 0), (1, 1, 1), (1, 0, 0), (0, 0, 1)],
        [(1, 1, 0), (0, 0, 3), (0, 1, 0), (0, 2, 1)],
    ]
    assert permutation(3, 8).tolist() == [3, 0, 6, 4, 2, 5, 1, 7]
    assert order.batch(1).slots[0].draw == 8338230061852151864
    assert order.digest == "eecede9b538b68cdc1c53adebd2971deed5cbb0cbe67d8b4f1f981fa2302adae"


def test_a_start_deep_in_a_large_source_is_cheap(monkeypatch):
    """100 million rows in 10,000 shards: no work grows with the rows or with k, only with shards and with this rank's
    windows.
    """
    hashed = []
    real = chance.hashes
    monkeypatch.setattr(chance, "hashes", lambda seed, n: hashed.append(n) or real(seed, n))
    order = Order([Source("a", [10_000] * 10_000)], batch=1024, seed=1, languages={"de": 1}, lanes=1024)
    order.batch(10_000_019, rank_slots(1024, 1024, 64, 17))
    assert sum(hashed) <= 3 * 10_000 + 16 * 4096
    hashed.clear()
    order.batch(10_000_020, rank_slots(1024, 1024, 64, 17))
    assert hashed == []
    assert len(order._windows) == 16
