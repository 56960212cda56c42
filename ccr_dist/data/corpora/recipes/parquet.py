"""parquet: pictures and captions in Parquet files, as of Hugging Face's datasets and img2dataset
(`output_format=parquet`). Pictures are copied byte for byte, not encoded again.

`files` are Parquet files or folders of them. `image` is a column of bytes, or of Hugging Face's records {bytes, path};
`captions` names a column of texts or lists of texts for each language. A row's key comes from the column `key`, or is
made of the file's name and the row's number.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from ccr_dist.data.corpora.formats import parquet
from ccr_dist.data.corpora.recipes.base import ColumnSpec, Material, Recipe, RecipeRow, register
from ccr_dist.data.corpora.recipes.captions import safe_key, texts_of
from ccr_dist.data.corpora.recipes.media import EXTENSIONS
from ccr_dist.data.media.decode import picture_extension
from ccr_dist.data.table.names import is_column_name
from ccr_dist.data.table.splits import concept, split_of
from ccr_dist.errors import ConfigError, DataError


@register("parquet")
class Parquet(Recipe):
    """Parquet files with pictures in them."""

    kind: Literal["parquet"]
    files: tuple[Path, ...] = Field(min_length=1, description="Parquet files, or folders of them")
    image: str = Field("image", description="column of the pictures")
    captions: dict[str, str] = Field(description="language -> column of its captions; {}: there are none yet")
    key: str | None = Field(None, description="column of the keys; default: made of file and row")
    split: Literal["train", "val", "test", "concept"] = Field(
        "train", description="of all rows; concept: drawn by the first caption, as `folder` does"
    )
    test_percent: int = Field(25, ge=0, le=100)
    val_percent: int = Field(10, ge=0, le=100)
    licence: str = "unknown"

    about: ClassVar[str] = "your own Parquet files with pictures in them (Hugging Face, img2dataset)"

    def material(self) -> Material:
        if odd := [lang for lang in self.captions if not is_column_name(f"caption.{lang}")]:
            raise ConfigError(f"captions: {odd[0]!r} is not a language tag; expected letters, digits and - as in pt-BR")
        paths = self._paths()
        wanted = [*self.captions.values(), *([self.key] if self.key else [])]
        rows: dict[str, RecipeRow] = {}
        for path in paths:
            self._require(path, [self.image, *wanted])
            for number, (place, record) in enumerate(parquet.records(path, wanted)):
                name = record[self.key] if self.key else f"{path.stem}-{number:06d}"
                if name in (None, ""):
                    raise DataError(f"{place}: no key in column {self.key!r}; name another one, or leave `key` out")
                key = safe_key(str(name))
                if key in rows:
                    raise DataError(f"{place}: the key {key!r} occurs twice; name another column, or leave `key` out")
                texts = {lang: texts_of(record[column], str(place)) for lang, column in self.captions.items()}
                columns: dict[str, Any] = {f"caption.{lang}": found for lang, found in texts.items() if found}
                columns["image"] = functools.partial(read_picture, place, self.image)
                first = next((found[0] for found in texts.values() if found), key)
                rows[key] = RecipeRow(self._split(first), key, columns)
        plan = {
            "files": {path.name: parquet.digest(path) for path in paths},
            **self.model_dump(include={"image", "captions", "key", "split", "test_percent", "val_percent"}),
        }
        about = {"files": [str(path) for path in self.files], "licence": self.licence}
        specs = [ColumnSpec("image", "image", ";".join(EXTENSIONS), plan, about)]
        specs += [
            ColumnSpec(f"caption.{lang}", "texts", "json", {**plan, "language": lang}, about) for lang in self.captions
        ]
        return Material(plan, specs, list(rows.values()), parallel=False)

    def _paths(self) -> list[Path]:
        paths: list[Path] = []
        for path in self.files:
            paths += sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
        if not paths:
            raise ConfigError(f"files: no .parquet in {', '.join(map(str, self.files))}")
        if len({path.name for path in paths}) < len(paths):
            raise ConfigError("files: two files have one name; build a dataset of each, or give them different names")
        return paths

    def _require(self, path: Path, wanted: list[str]) -> None:
        there = parquet.opened(str(path)).schema_arrow.names
        if missing := [name for name in wanted if name not in there]:
            hint = ""
            if any("url" in name.lower() for name in there):
                hint = ". Links do not count as pictures: img2dataset downloads them"
            raise ConfigError(f"{path}: no column {missing[0]!r}; there are: {', '.join(there)}{hint}")

    def _split(self, text: str) -> str:
        if self.split != "concept":
            return self.split
        return split_of(concept(text), test=self.test_percent, val=self.val_percent)


def read_picture(place: parquet.RowPlace, column: str) -> bytes:
    """The bytes of a picture. Raises DataError if there are none, or they do not begin like a picture."""
    found = parquet.value(place, column)
    data = found.get("bytes") if isinstance(found, dict) else found
    if not isinstance(data, bytes) or not data:
        raise DataError(f"{place}: no bytes of a picture in column {column!r}, but {repr(found)[:80]}")
    picture_extension(data, place)
    return data
