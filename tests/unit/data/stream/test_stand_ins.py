"""Rows that cannot be had: another of the shard stands in for a broken row and is listed, none for a storage that
hiccups.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ccr_dist.data.storage import store
from ccr_dist.data.stream.loader import Fields
from ccr_dist.errors import DataError, StorageError
from tests.loading import BROKEN, NULLS, ROWS, SHARDS, load


def test_null_rows_are_never_drawn_and_all_others_are(table):
    found, _ = load(table, steps=(0, 40))
    for lang, nulls in NULLS.items():
        drawn = {entry[1] for slots in found.values() for entry in slots.values() if entry[0] == lang}
        assert drawn == {f"s{s}r{r}" for s in range(SHARDS) for r in range(ROWS) if (s, r) not in nulls | {BROKEN}}


def test_a_broken_picture_is_substituted_and_listed(undisturbed):
    found, substituted = undisturbed
    assert substituted, "the broken picture must be met"
    for record in substituted:
        assert (record["dataset"], record["shard"], record["row"], record["item"]) == ("toy/train", "000002", 3, "s2r3")
        assert "broken picture" in record["error"] and "s2r3" in record["error"]
        assert found[record["k"]][record["slot"]][1] == record["stand_in"] != "s2r3"
        assert record["stand_in"].startswith("s2")
    assert all(entry[1] != "s2r3" for slots in found.values() for entry in slots.values())


def test_misaligned_captions_are_substituted_and_blank_ones_not_drawn(table):
    fields = Fields(source="caption.en", targets={"bad": "caption.bad"})
    found, substituted = load(table, fields, languages=("bad",), steps=(0, 20))
    assert {record["row"] for record in substituted} == {2} and all(
        "aligned" in record["error"] for record in substituted
    )
    drawn = {entry[4]: entry[3] for slots in found.values() for entry in slots.values() if entry[1] == "s0r1"}
    assert drawn == {"x": "en s0r1 1"}, "the caption that the translation belongs to"
    kept = {entry[4] for slots in found.values() for entry in slots.values()}
    assert kept == {f"bad s{s}r{r}" for s in range(SHARDS) for r in range(ROWS) if r not in (1, 2)} | {"x"}


def test_too_many_broken_rows_end_the_run(table):
    fields = Fields(source="caption.en", targets={"wrong": "caption.wrong"})
    with pytest.raises(
        DataError, match=r"batch 0, slot 0: 9 broken rows in a row; the first: caption.wrong/.* aligned"
    ):
        load(table, fields, languages=("wrong",))


def test_a_visual_matrix_has_one_vector_a_row(table):
    _, substituted = load(table, Fields(visual="feature.en"), languages=("en",), steps=(0, 5))
    assert {record["row"] for record in substituted} == {1, 2, 4, 5, 7, 8}
    assert all("vectors, but this method takes one per row" in record["error"] for record in substituted)


class FlakyReads:
    """os.pread that fails `times` times for each (offset) of the image tars, then works."""

    def __init__(self, times: float) -> None:
        self.times, self.real = times, os.pread
        self.failed: dict[tuple[int, int], int] = {}

    def __call__(self, fd: int, size: int, offset: int) -> bytes:
        path = str(Path(f"/proc/self/fd/{fd}").readlink())
        if "image" in path and offset % 3 == 0:
            self.failed[path, offset] = self.failed.get((path, offset), 0) + 1
            if self.failed[path, offset] <= self.times:
                raise OSError(5, "Input/output error", path)
        return self.real(fd, size, offset)


@pytest.mark.parametrize("workers", [0, 2])
def test_reads_that_fail_twice_change_nothing(table, undisturbed, monkeypatch, workers):
    flaky = FlakyReads(2)
    monkeypatch.setattr(os, "pread", flaky)
    monkeypatch.setattr(store.time, "sleep", lambda seconds: None)
    assert load(table, world=2, workers=workers) == undisturbed
    assert workers or (len(flaky.failed) > 5 and min(flaky.failed.values()) >= 3)


@pytest.mark.parametrize("workers", [0, 1])
def test_reads_that_keep_failing_end_the_run(table, monkeypatch, workers):
    monkeypatch.setattr(os, "pread", FlakyReads(float("inf")))
    monkeypatch.setattr(store.time, "sleep", lambda seconds: None)
    with pytest.raises(StorageError, match=r"image/.*Input/output error") as caught:
        load(table, workers=workers)
    assert caught.value.exit_code == 5
