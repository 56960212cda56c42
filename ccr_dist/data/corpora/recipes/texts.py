"""texts: texts without pictures, for stages that learn from text alone. Repeated texts are taken once.

`file` is JSONL (key `field`, a string or a list of strings), CSV (column `field`) or plain text, one text per line.
Every record is a row with the column `caption.LANG`; its key is the record's `id`, or a digest of the text.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from ccr_dist.data.corpora.recipes.base import ColumnSpec, Material, Recipe, RecipeRow, register
from ccr_dist.data.corpora.recipes.captions import records, safe_key, texts_of
from ccr_dist.data.storage import store
from ccr_dist.data.table.splits import concept, split_of
from ccr_dist.errors import DataError


@register("texts")
class TextFile(Recipe):
    """A file of texts."""

    kind: Literal["texts"]
    file: Path = Field(description="JSONL, JSON, CSV, TSV or TXT")
    field: str = Field("text", description="key or CSV column of the text")
    language: str = Field("en", pattern=r"^[A-Za-z]{2,8}(-[A-Za-z0-9]+)*$")
    split: Literal["train", "val", "test"] = "train"
    keep_apart: bool = Field(
        True, description="leave out texts whose concept is in another split of the picture corpora"
    )
    source: str = Field("unknown", description="where the texts come from: goes into the provenance")
    licence: str = "unknown"

    about: ClassVar[str] = "a file of texts without pictures"

    def material(self) -> Material:
        rows: dict[str, RecipeRow] = {}
        seen: set[tuple[str, ...]] = set()
        repeated = apart = blank = 0
        for place, record in records(self.file):
            if self.field not in record:
                raise DataError(f"{place}: expected the key {self.field!r} (option `field`), found {', '.join(record)}")
            texts = texts_of(record[self.field], place)
            if not texts:
                blank += 1
                continue
            if tuple(texts) in seen:
                repeated += 1
                continue
            seen.add(tuple(texts))
            if self.keep_apart and any(split_of(concept(text)) != self.split for text in texts):
                apart += 1
                continue
            key = safe_key(str(record.get("id") or hashlib.sha256("\n".join(texts).encode()).hexdigest()[:20]))
            if key in rows:
                raise DataError(f"{place}: the id {key!r} occurs twice with different texts")
            rows[key] = RecipeRow(self.split, key, {f"caption.{self.language}": texts})
        plan = {
            "file": store.sha256_file(self.file),
            "field": self.field,
            "split": self.split,
            "keep_apart": self.keep_apart,
        }
        about = {"file": str(self.file), "source": self.source, "licence": self.licence}
        spec = ColumnSpec(f"caption.{self.language}", "texts", "json", {**plan, "language": self.language}, about)
        notes = []
        if repeated:
            notes.append(f"{repeated} repeated texts taken once")
        if apart:
            notes.append(f"{apart} texts left out: their concepts belong to other splits (keep_apart)")
        if blank:
            notes.append(f"{blank} records without a text left out")
        return Material(plan, [spec], list(rows.values()), notes)
