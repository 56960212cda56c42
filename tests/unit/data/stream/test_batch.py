"""A batch is cut into micro-batches without losing, doubling or mixing up a row."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from ccr_dist.data.stream.batch import Batch

LENGTHS = [9, 2, 5, 2, 7, 1, 5]


def made(lengths: list[int] = LENGTHS, **changed) -> Batch:
    """Every value of row i says i."""
    n = len(lengths)
    rows = torch.arange(n)
    values = dict(
        k=4,
        lang="de",
        slots=10 + rows,
        items=[f"item {i}" for i in range(n)],
        group=20 + rows,
        visual=rows.float()[:, None, None].expand(n, 3, 2),
        visual_mask=rows[:, None] > torch.arange(3),
        source_text=[f"source {i}" for i in range(n)],
        target_text=[str(i) * length for i, length in enumerate(lengths)],
        source_feature=rows.float()[:, None],
        description=[f"description {i}" for i in range(n)],
        back_text=[f"back {i}" for i in range(n)],
        back_feature=-rows.float()[:, None],
        substituted=[{"slot": 3}],
    )
    return Batch(**{**values, **changed})


def rows_of(batch: Batch) -> list[dict]:
    """What a batch says of each of its rows."""
    fields = [f.name for f in dataclasses.fields(batch) if f.name not in ("k", "lang", "substituted")]
    values = {name: value for name in fields if (value := getattr(batch, name)) is not None and len(value)}
    assert all(len(value) == len(batch) for value in values.values())
    return [
        {n: v[i].tolist() if isinstance(v, torch.Tensor) else v[i] for n, v in values.items()}
        for i in range(len(batch))
    ]


@pytest.mark.parametrize("size", [1, 2, 3, 6, 7, 100])
def test_parts_hold_every_row_once_sorted_by_length(size):
    batch = made()
    parts = batch.parts(size)
    order = torch.cat([indices for indices, _ in parts])
    assert order.tolist() == [5, 1, 3, 2, 6, 4, 0]  # by length, equal ones by position
    assert [len(part) for _, part in parts] == [len(piece) for piece in torch.arange(7).split(size)]
    expected = rows_of(batch)
    for indices, part in parts:
        assert rows_of(part) == [expected[i] for i in indices.tolist()]
        assert (part.k, part.lang) == (4, "de")
    outputs = torch.cat([part.slots for _, part in parts])
    assert torch.equal(outputs[order.argsort()], batch.slots), "the documented way back"
    assert [part.substituted for _, part in parts] == [[{"slot": 3}], *[[]] * (len(parts) - 1)]
    assert batch.substituted == [{"slot": 3}]


def test_fields_that_a_stage_does_not_read_stay_absent():
    bare = made(visual=None, visual_mask=None, target_text=[], source_feature=None, back_text=[], back_feature=None)
    (indices, part), *_ = bare.parts(4)
    assert (
        part.visual is part.visual_mask is part.source_feature is part.back_feature is None
        and part.target_text == part.back_text == []
    )
    assert indices.tolist() == [0, 1, 2, 3], "all source texts are of equal length"
    assert bare.parts(4)[0][1].source_text == [f"source {i}" for i in range(4)]
    (indices, _), *_ = made(source_text=["ccc", "bb", "a"] + ["dddd"] * 4, target_text=[]).parts(3)
    assert indices.tolist() == [2, 1, 0]
    (indices, _), *_ = made(source_text=[], target_text=[], description=[]).parts(3)
    assert indices.tolist() == [0, 1, 2]


def test_a_batch_without_rows_gives_one_part_without_rows():
    ((indices, part),) = made([]).parts(4)
    assert indices.shape == (0,) and indices.dtype == torch.int64 and len(part) == 0
    assert part.visual.shape == (0, 3, 2) and part.visual_mask.shape == (0, 3) and part.substituted == [{"slot": 3}]
    assert len(made().take(torch.zeros(0, dtype=torch.int64))) == 0, (
        "a rank with fewer parts than others can add empty ones"
    )
