"""Reading ahead: rows are asked for before they are drawn, once, in the order of the payload; and it is a hint, nothing
more.
"""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import numpy as np
import pytest

from ccr_dist.data.storage.file_ranges import forget_files
from ccr_dist.data.stream import read_ahead
from ccr_dist.data.stream.fields import Fields, sources
from ccr_dist.data.stream.loader import make_loader
from ccr_dist.data.stream.order import Order
from ccr_dist.data.table.dataset import Dataset, create_column, create_dataset

SHARDS, ROWS, BATCH, LANES, WINDOW = 6, 40, 8, 2, 60
FIELDS = Fields(visual="feature.x", source="caption.en")


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Captions, one row in five null, and vectors."""
    keys = [[f"s{s}r{r}" for r in range(ROWS)] for s in range(SHARDS)]
    dataset = create_dataset(tmp_path_factory.mktemp("data") / "d", name="d", split="train", keys=keys)
    captions = create_column(dataset, "caption.en", kind="texts", extension="json", plan={}, provenance={})
    vectors = create_column(dataset, "feature.x", kind="matrix", extension="npy", plan={}, provenance={})
    for shard in range(SHARDS):
        captions.commit(shard, [None if row % 5 == 2 else captions.encode([f"{shard} {row}"]) for row in range(ROWS)])
        vectors.commit_matrix(shard, np.array([[shard, row] for row in range(ROWS)]))
    return dataset.root


class Kernel:
    """Notes in turn what is asked for and what is read: ("ask" or "read", file name, first byte, byte after the
    last).
    """

    def __init__(self, monkeypatch) -> None:
        self.log: list[tuple[str, str, int, int]] = []
        pread = os.pread

        def note(what: str, fd: int, start: int, size: int) -> None:
            path = Path(f"/proc/self/fd/{fd}").readlink()
            self.log.append((what, f"{path.parent.name}/{path.name}", start, start + size))

        def asked(fd: int, start: int, size: int, advice: int) -> None:
            assert advice == os.POSIX_FADV_WILLNEED
            note("ask", fd, start, size)

        def read(fd: int, size: int, start: int) -> bytes:
            note("read", fd, start, size)
            return pread(fd, size, start)

        monkeypatch.setattr(os, "posix_fadvise", asked)
        monkeypatch.setattr(os, "pread", read)
        forget_files()


def run(root: Path, first: int = 0, last: int = 60, workers: int = 0):
    dataset = Dataset(root)
    order = Order(
        sources([dataset], [1.0], FIELDS, ["en"]),
        batch=BATCH,
        seed=2,
        lanes=LANES,
        languages={"en": 1.0},
        window_rows=WINDOW,
    )
    loader = make_loader(order, [dataset], FIELDS, world=1, rank=0, first=first, last=last, workers=workers)
    return [(batch.items, batch.source_text, batch.visual.tolist()) for batch in loader]


def missed(log) -> list[bool]:
    """Of each read: whether some byte of it had not been asked for."""
    known: dict[str, set[int]] = {}
    found = []
    for what, name, start, stop in log:
        if what == "ask":
            known.setdefault(name, set()).update(range(start, stop))
        else:
            found.append(not known.get(name, set()).issuperset(range(start, stop)))
    return found


@pytest.fixture
def kernel(monkeypatch) -> Kernel:
    monkeypatch.setattr(read_ahead, "STEP_BYTES", 4000)  # a few rows
    return Kernel(monkeypatch)


def test_rows_are_asked_for_before_they_are_drawn(root, kernel):
    run(root)
    reads = missed(kernel.log)
    assert len(reads) == 2 * 60 * BATCH
    window = 2 * WINDOW * LANES  # reads in it, of two columns
    assert not any(reads[window:]), "from the second window on, nothing is read that was not asked for"
    assert 0 < sum(reads[:window]) < window / 2, "in the first one, asking overtakes drawing"


def test_nothing_is_asked_for_twice_in_a_pass_or_after_the_end(root, kernel):
    rows = SHARDS * ROWS * 4 // 5
    run(root, last=rows // BATCH)  # one pass
    asked: dict[str, list[int]] = {}
    for what, name, start, stop in kernel.log:
        if what == "ask":
            asked.setdefault(name, []).extend(range(start, stop))
    size = sum(len(numbers) for numbers in asked.values())
    distinct = sum(len(set(numbers)) for numbers in asked.values())
    vectors = [numbers for name, numbers in asked.items() if name.startswith("feature.x")]
    assert size == distinct, "nothing twice"
    assert len(vectors) == SHARDS and all(len(numbers) >= 0.9 * 4 * ROWS for numbers in vectors), "everything once"
    for name in asked:
        starts = [start for what, other, start, _ in kernel.log if what == "ask" and other == name]
        backwards = sum(after < before for before, after in itertools.pairwise(starts))
        assert backwards <= 1, "in sequence; two lanes may share a shard"


def test_a_start_in_the_middle_asks_from_its_window_on(root, kernel):
    run(root, first=7, last=8)
    vectors = sum(
        stop - start for what, name, start, stop in kernel.log if what == "ask" and name.startswith("feature.x")
    )
    # the 32 rows up to the end of the run, and null ones between them
    assert 4 * LANES * 32 <= vectors <= 4 * LANES * 41
    assert sum(missed(kernel.log)) < 2 * BATCH, "it comes to rows of the batch"


@pytest.mark.parametrize("workers", [0, 2])
def test_it_changes_no_batch(root, monkeypatch, workers):
    before = run(root, workers=workers)
    monkeypatch.setattr(read_ahead.ReadAhead, "__call__", lambda self, batch: None)
    assert run(root) == before


def test_it_needs_memory(root, kernel, monkeypatch):
    sysconf = os.sysconf
    monkeypatch.setattr(os, "sysconf", lambda name: 1 if name == "SC_PHYS_PAGES" else sysconf(name))
    run(root, last=5)
    assert {what for what, *_ in kernel.log} == {"read"}


def test_what_cannot_be_asked_for_is_left_to_the_read(root, kernel, monkeypatch):
    def refuse(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "posix_fadvise", refuse)
    assert len(run(root, last=3)) == 3
