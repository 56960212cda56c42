"""A table of which every value names its row and caption, and all that a loader draws from it, over all ranks."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ccr_dist.data.stream.loader import Fields, make_loader, sources
from ccr_dist.data.stream.order import Order
from ccr_dist.data.table.dataset import Dataset, create_column, create_dataset

SHARDS, ROWS = 6, 10
FIELDS = Fields(
    visual="image",
    source="caption.en",
    targets={"de": "caption.de.mt", "cs": "caption.cs.mt"},
    source_feature="feature.en",
    description="description.llm",
    group="label.concept",
)
BROKEN = (2, 3)  # (shard, row) of a picture that is cut short
NULLS = {"de": {(0, 1), (4, 7)}, "cs": {(5, row) for row in range(5)}}


def picture(number: int) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (24, 24), (number * 4 % 256, 0, 0)).save(data, "PNG")
    return data.getvalue()


def to_tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.asarray(image, dtype=np.float32).transpose(2, 0, 1)[:, :4, :4].copy())


def captions(row: int) -> int:
    return row % 3 + 1


def build(folder: Path) -> str:
    """60 rows in 6 shards, 1 to 3 captions a row; everything a value says names its row and caption."""
    dataset = create_dataset(
        folder,
        name="toy",
        split="train",
        keys=[[f"s{s}r{r}" for r in range(ROWS)] for s in range(SHARDS)],
    )

    def column(name: str, kind: str, value) -> None:
        made = create_column(
            dataset, name, kind=kind, extension="png" if kind == "image" else "json", plan={}, provenance={}
        )
        for shard in range(SHARDS):
            values = [value(shard, row) for row in range(ROWS)]
            made.commit(shard, [v if kind == "image" or v is None else made.encode(v) for v in values])

    column("image", "image", lambda s, r: picture(s * ROWS + r)[: 60 if (s, r) == BROKEN else None])
    column("caption.en", "texts", lambda s, r: [f"en s{s}r{r} {i}" for i in range(captions(r))])
    for lang, nulls in NULLS.items():
        column(
            f"caption.{lang}.mt",
            "texts",
            lambda s, r, lang=lang, nulls=nulls: (
                None if (s, r) in nulls else [f"{lang} s{s}r{r} {i}" for i in range(captions(r))]
            ),
        )
    column("caption.bad", "texts", lambda s, r: ["", "x"] if r == 1 else [f"bad s{s}r{r}"] * (captions(r) + (r == 2)))
    column("caption.wrong", "texts", lambda s, r: ["wrong"] * (captions(r) + 1))
    column("caption.none", "texts", lambda s, r: None)
    column("description.llm", "views", lambda s, r: {"views": {"b": f"b s{s}r{r}", "a": f"a s{s}r{r}"}})
    column("label.concept", "label", lambda s, r: f"concept {r // 2}")
    feature = create_column(dataset, "feature.en", kind="matrix", extension="npy", plan={}, provenance={})
    pooled = create_column(dataset, "feature.image", kind="matrix", extension="npy", plan={}, provenance={})
    for shard in range(SHARDS):
        vectors = [[shard, row, i] for row in range(ROWS) for i in range(captions(row))]
        feature.commit_matrix(shard, np.array(vectors, np.float16), [captions(row) for row in range(ROWS)])
        pooled.commit_matrix(shard, np.array([[shard, row] for row in range(ROWS)], np.float16))
    return str(dataset.root)


def make_order(table: Dataset, fields: Fields = FIELDS, batch: int = 12, languages=("de", "cs")) -> Order:
    return Order(
        sources([table], [1.0], fields, languages),
        batch=batch,
        seed=11,
        lanes=4,
        languages=dict.fromkeys(languages, 1.0),
        window_rows=4,
    )


def load(
    table, fields=FIELDS, *, batch=12, world=1, workers=0, steps=(0, 12), transform=to_tensor, languages=("de", "cs")
):
    """{k: {slot: all that was loaded for it}} over all ranks, and the substitutions of all ranks."""
    order = make_order(table, fields, batch, languages)
    found: dict[int, dict[int, tuple]] = {}
    substituted = []
    for rank in range(world):
        options = {
            "world": world,
            "rank": rank,
            "first": steps[0],
            "last": steps[1],
            "workers": workers,
            "transform": transform,
        }
        loader = make_loader(order, [table], fields, **options)
        assert len(loader) == steps[1] - steps[0]
        for expected, got in zip(range(*steps), loader, strict=True):
            assert got.k == expected and len(got) == len(got.slots) == len(got.group)
            for tensor in (got.visual, got.source_feature):
                assert tensor is None or (len(tensor) == len(got) and tensor.dtype == torch.float32)
            columns = [got.items, got.group.tolist(), got.source_text, got.target_text, got.description]
            columns += [tensor.tolist() for tensor in (got.visual, got.source_feature) if tensor is not None]
            for i, slot in enumerate(got.slots.tolist()):
                assert slot not in found.setdefault(got.k, {})
                found[got.k][slot] = (got.lang, *[column[i] if column else None for column in columns])
            substituted += got.substituted
    return found, sorted(substituted, key=lambda record: (record["k"], record["slot"]))
