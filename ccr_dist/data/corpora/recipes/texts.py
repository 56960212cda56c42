"""texts: texts without pictures, for stages that learn from text alone. Repeated texts are taken once.

`file` is JSONL (key `field`, a string or a list of strings), CSV (column `field`) or plain text, one text per line, all
with .gz or without; or a glob of such files. Every record is a row with the column `caption.LANG`; its key is the
record's `id`, or a digest of the text.
"""

from __future__ import annotations

import glob
import hashlib
import itertools
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from ccr_dist.data.corpora.recipes.apart import Apart, TextRecipe
from ccr_dist.data.corpora.recipes.base import ColumnSpec, Material, RecipeRow, register
from ccr_dist.data.corpora.recipes.captions import records, safe_key, texts_of
from ccr_dist.data.storage import store
from ccr_dist.errors import ConfigError, DataError


@register("texts")
class TextFile(TextRecipe):
    """A file of texts."""

    kind: Literal["texts"]
    file: Path = Field(description="JSONL, JSON, CSV, TSV or TXT, with .gz or without; or a glob of files")
    lines: bool = Field(False, description="each line is a text, whatever the files are called (train.en)")
    field: str = Field("text", description="key or CSV column of the text")
    language: str = Field("en", pattern=r"^[A-Za-z]{2,8}(-[A-Za-z0-9]+)*$")
    keep_apart: bool = Field(
        True, description="leave out texts whose concept is in another split of the picture corpora"
    )
    source: str = Field("unknown", description="where the texts come from: goes into the provenance")
    licence: str = "unknown"

    about: ClassVar[str] = "a file of texts without pictures"

    def reads(self) -> list[Path]:
        return [*(self._files() or [self.file]), *self.apart_from]

    def _files(self) -> list[Path]:
        """The files that `file` means; none if it is a glob without matches."""
        if self.file.exists() or not glob.has_magic(str(self.file)):
            return [self.file]
        return sorted(map(Path, glob.glob(str(self.file))))  # noqa: PTH207 (absolute patterns, too)

    def material(self) -> Material:
        rows: dict[str, RecipeRow] = {}
        seen: set[tuple[str, ...]] = set()
        repeated = blank = 0
        if not (files := self._files()):
            raise ConfigError(f"file: {self.file} matches no file")
        apart = Apart(self)
        for place, record in itertools.chain.from_iterable(records(path, lines=self.lines) for path in files):
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
            if apart.leaves_out({self.language: texts}, texts):
                continue
            key = safe_key(str(record.get("id") or hashlib.sha256("\n".join(texts).encode()).hexdigest()[:20]))
            if key in rows:
                raise DataError(f"{place}: the id {key!r} occurs twice with different texts")
            rows[key] = RecipeRow(self.split, key, {f"caption.{self.language}": texts})
        digests = [store.sha256_file(path) for path in files]
        plan = {
            "file": digests[0] if len(digests) == 1 else digests,
            "field": self.field,
            "split": self.split,
            "keep_apart": self.keep_apart,
            **({"lines": True} if self.lines else {}),
            **apart.plan(),
        }
        about = {"file": str(self.file), "source": self.source, "licence": self.licence}
        spec = ColumnSpec(f"caption.{self.language}", "texts", "json", {**plan, "language": self.language}, about)
        notes = []
        if repeated:
            notes.append(f"{repeated} repeated texts taken once")
        notes += apart.notes()
        if blank:
            notes.append(f"{blank} records without a text left out")
        return Material(plan, [spec], list(rows.values()), notes)
