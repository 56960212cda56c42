"""Sweeps and galleries: every value of a column once, in blocks that ignore the world size."""

from __future__ import annotations

import pytest
import torch

from ccr_dist.data.stream.sweep import Gallery, Sweep, gallery, sweep
from ccr_dist.errors import ConfigError, DataError
from tests.loading import ROWS, captions, to_tensor


@pytest.mark.parametrize(
    ("column", "number"), [("caption.de.mt", 110), ("feature.en", 114), ("feature.image", 60), ("description.llm", 120)]
)
@pytest.mark.parametrize(("world", "workers"), [(1, 0), (3, 0), (2, 1), (20, 0)])
def test_a_sweep_reads_every_value_once_in_blocks_that_ignore_the_world(table, column, number, world, workers):
    def read(world, workers=0):
        return [
            block
            for r in range(world)
            for block in sweep(table, column, world=world, rank=r, block_rows=7, workers=workers)
        ]

    blocks = read(world, workers)
    assert len(blocks) == 9
    for block, alone in zip(blocks, read(1), strict=True):
        assert (
            torch.equal(block.rows, alone.rows)
            and torch.equal(block.parts, alone.parts)
            and len(block.values) == len(block.rows)
        )
        assert (
            torch.equal(block.values, alone.values)
            if isinstance(block.values, torch.Tensor)
            else block.values == alone.values
        )
    places = [
        (int(row), int(part), value) for b in blocks for row, part, value in zip(b.rows, b.parts, b.values, strict=True)
    ]
    assert len(places) == number and [place[:2] for place in places] == sorted(place[:2] for place in places)
    for row, part, value in places:
        shard, at = divmod(row, ROWS)
        expected = {
            "caption.de.mt": f"de s{shard}r{at} {part}",
            "feature.en": [shard, at, part],
            "feature.image": [shard, at],
            "description.llm": f"{'ab'[part % 2]} s{shard}r{at}",
        }[column]
        assert (value.tolist() if isinstance(value, torch.Tensor) else value) == expected


def test_a_sweep_of_pictures_refuses_a_broken_one(table):
    pictures = Sweep(table, "image", transform=to_tensor, block_rows=8)
    assert pictures[0].values.shape == (8, 3, 4, 4) and len(pictures) == 8 and len(pictures[7].rows) == 4
    with pytest.raises(DataError, match="s2r3"):
        pictures[2]
    with pytest.raises(ConfigError, match="rank 2 of 2"):
        Sweep(table, "image", world=2, rank=2)


@pytest.mark.parametrize("world", [1, 3, 20])
def test_a_gallery_is_every_item_once_with_its_description(table, world):
    def read(**options):
        return [block for r in range(world) for block in gallery(table, world=world, rank=r, block_rows=7, **options)]

    blocks = [b for b in read(visual="feature.en", many=True, description="description.llm") if len(b.rows)]
    assert [row for block in blocks for row in block.rows.tolist()] == list(range(60))
    for block in blocks:
        for row, vectors, mask, text in zip(
            block.rows.tolist(), block.visual, block.mask, block.description, strict=True
        ):
            shard, at = divmod(row, ROWS)
            assert (
                vectors[mask].tolist() == [[shard, at, i] for i in range(captions(at))]
                and text == f"a s{shard}r{at} b s{shard}r{at}"
            )
    plain = [block for block in read(visual="feature.image") if len(block.rows)]
    assert (
        torch.cat([block.visual for block in plain]).shape == (60, 2)
        and plain[0].mask is None
        and plain[0].description == []
    )


def test_a_gallery_refuses_what_it_cannot_show(table):
    with pytest.raises(DataError, match=r"s0r1.*2 vectors;"):
        Gallery(table, "feature.en")[0]
    with pytest.raises(ConfigError, match="a column of kind texts; a gallery needs pictures or vectors"):
        Gallery(table, "caption.en")
