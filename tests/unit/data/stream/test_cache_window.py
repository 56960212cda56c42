"""A remote dataset in training: the same batches and weights as from a folder; a cache smaller than the order's window
is refused.
"""

import itertools
import re

import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st

from ccr_dist.data.storage import payload_cache, remote
from ccr_dist.data.stream.cache_window import require_room
from ccr_dist.data.stream.loader import Fields, make_loader, sources
from ccr_dist.data.stream.order import Order, Source, rank_slots
from ccr_dist.data.table.dataset import Dataset
from ccr_dist.data.table.stores.pull import pull
from ccr_dist.data.table.stores.push import push
from ccr_dist.errors import ConfigError
from tests import toy

URL = "memory://bucket/data"
FIELDS = Fields(visual="feature.x", source="caption.en", targets={"es": "caption.es.toy"}, group="label.concept")


@pytest.fixture
def local(tmp_path, monkeypatch):
    """A dataset of 6 shards of 5 rows, and its copy at URL/train."""
    monkeypatch.setenv("CCR_DIST_CACHE", str(tmp_path / "cache"))
    MemoryFileSystem.store.clear()
    remote.look_again()
    dataset = toy.build(tmp_path / "data", "train")
    toy.add_feature(dataset, "feature.x", np.arange(60).reshape(30, 2))
    push(dataset.root, f"{URL}/train")
    yield dataset
    MemoryFileSystem.store.clear()


def make_order(dataset, **options):
    return Order(
        sources([dataset], [1.0], FIELDS, ["es"]),
        batch=6,
        seed=3,
        languages={"es": 1.0},
        **{"lanes": 2, "window_rows": 4, **options},
    )


def load(dataset, workers=0, world=1, rank=0, **options):
    loader = make_loader(
        make_order(dataset, **options), [dataset], FIELDS, world=world, rank=rank, first=0, last=12, workers=workers
    )
    return [(b.items, b.visual.tolist(), b.source_text, b.target_text, b.group.tolist(), b.substituted) for b in loader]


def limit(monkeypatch, size):
    monkeypatch.setenv("CCR_DIST_CACHE_GB", str(size / 1e9))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_url_gives_the_batches_of_the_folder_through_a_cache_of_one_window(local, tmp_path, monkeypatch, workers):
    dataset = Dataset(f"{URL}/train")
    columns = [dataset.column(name) for name in ("feature.x", "caption.en", "caption.es.toy", "label.concept")]
    by_shard = [sum(column.record(shard)["bytes"] for column in columns) for shard in range(6)]
    need = 2 * sum(sorted(by_shard)[-2:])  # two lanes; four rows lie in two shards of five at most
    assert need < sum(by_shard)
    limit(monkeypatch, need)
    assert load(dataset, workers) == load(local)
    held = sum(path.stat().st_size for path in (tmp_path / "cache/remote/payloads").iterdir())
    assert 0 < held <= need
    limit(monkeypatch, need - 1)
    with pytest.raises(ConfigError) as refused:
        load(dataset)
    numbers = re.search(
        r"may hold (.*) GB \(CCR_DIST_CACHE_GB\).* up to (.*) GB at a time on a machine: 1 rank\(s\) x 2 lanes x",
        str(refused.value),
    )
    assert numbers and [float(n) for n in numbers.groups()] == [
        pytest.approx(n / 1e9, rel=0.01) for n in (need - 1, need)
    ]
    assert "4 rows (up to 2 shards of a dataset)" in str(refused.value)
    assert load(local)  # a folder needs no cache


def test_the_need_is_that_of_the_machine_and_at_most_everything(local, monkeypatch):
    dataset = Dataset(f"{URL}/train")
    order = make_order(dataset)
    columns = {"es": [FIELDS.open(dataset, "es")]}
    total = sum(column.record(shard)["bytes"] for column in columns["es"][0].values() for shard in range(6))
    limit(monkeypatch, total // 2 + 10_000)
    assert total // 2 + 10_000 < total
    require_room(order, columns, rank_slots(6, 2, 2, 0))  # one lane
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    with pytest.raises(ConfigError, match=r"8 rank\(s\) x 1 lanes"):
        require_room(order, columns, rank_slots(6, 2, 2, 0))
    limit(monkeypatch, total)
    require_room(order, columns, rank_slots(6, 2, 2, 0))


def test_payloads_in_the_folder_need_no_room(local, tmp_path, monkeypatch):
    pull(f"{URL}/train", tmp_path / "lazy", lazy=True)
    pull(f"{URL}/train", tmp_path / "lazy", columns=["feature.x", "caption.en", "caption.es.toy"])
    dataset = Dataset(tmp_path / "lazy")
    labels = sum(dataset.column("label.concept").record(shard)["bytes"] for shard in range(6))
    limit(monkeypatch, labels)
    assert load(dataset) == load(local)
    limit(monkeypatch, dataset.column("label.concept").record(0)["bytes"])
    with pytest.raises(ConfigError, match="CCR_DIST_CACHE_GB"):
        load(dataset)


@settings(max_examples=60)
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=8), st.integers(1, 20), st.sampled_from([1, 2, 4]), st.randoms()
)
def test_no_window_touches_more_shards_than_said(rows, window_rows, lanes, random):
    present = [np.array([random.random() < 0.7 for _ in range(n)]) for n in rows]
    if sum(mask.sum() for mask in present) < lanes:
        return
    order = Order(
        [Source("d", rows, present={"x": present})],
        batch=4,
        seed=1,
        languages={"x": 1.0},
        lanes=lanes,
        window_rows=window_rows,
    )
    ((_, stream),) = order._streams["x"]
    said, most = order.window_shards("x")[0], 0
    for lane, epoch in itertools.product(range(lanes), range(6)):
        for window in range(-(-stream.lane(lane)[1] // window_rows)):
            most = max(most, len(set(stream.window(lane, epoch, window)[:, 0].tolist())))
    assert most <= said
    if lanes == 1 and window_rows >= sum(rows):
        assert most == said == sum(mask.any() for mask in present)


def test_cache_limits_read_as_they_are_written(monkeypatch):
    monkeypatch.setenv("CCR_DIST_CACHE_GB", "1.5")
    assert payload_cache.gb(payload_cache.limit()) == "1.5 GB"
