"""folder: your own pictures and captions. Pictures are copied byte for byte, never encoded again.

`captions` is a JSONL or CSV file; paths in it are relative to `images`. A record has
    file       path of the picture (several records may name the same picture: their captions add up)
    caption    one caption in the language `lang` of the record (default: the recipe's `language`), or
    captions   JSONL only: a list of captions, or {"en": ["..."], "de": "..."}
    id         optional key; default: the path without its extension
    split      optional train, val or test; default: drawn by `split_by`
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from ccr_dist.data import store
from ccr_dist.data.decode import picture_extension
from ccr_dist.data.recipes.base import ColumnSpec, Material, Recipe, Row, register
from ccr_dist.data.recipes.captions import records, safe_key, texts_of
from ccr_dist.data.splits import SPLITS, concept, split_of
from ccr_dist.errors import ConfigError, DataError

EXTENSIONS = ("jpg", "png", "webp", "gif", "bmp", "tif")
_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"}
_SHOWN = 10


@dataclass
class _Item:
    place: str
    captions: dict[str, list[str]] = field(default_factory=dict)
    id: str | None = None
    split: str | None = None


@register("folder")
class Folder(Recipe):
    """A directory of pictures and a file of captions."""

    kind: Literal["folder"]
    images: Path = Field(description="folder of the pictures")
    captions: Path = Field(description="JSONL or CSV file")
    language: str = Field("en", pattern=r"^[A-Za-z]{2,8}(-[A-Za-z0-9]+)*$", description="of captions that name none")
    missing: Literal["error", "skip"] = Field("error", description="captions whose picture is not there")
    split_by: Literal["concept", "key", "none"] = Field("concept", description="concept: of the first caption; none: all of it is `train`")
    test_percent: int = Field(25, ge=0, le=100)
    val_percent: int = Field(10, ge=0, le=100)
    licence: str = "unknown"

    about: ClassVar[str] = "your own folder of pictures with a JSONL or CSV of captions"

    def material(self) -> Material:
        if not self.images.is_dir():
            raise ConfigError(f"images: {self.images} is not a folder")
        items, notes = self._items(), []
        absent = [name for name in items if not (self.images / name).is_file()]
        if absent:
            shown = "".join(f"\n  {self.images / name} ({items[name].place})" for name in absent[:_SHOWN])
            text = f"{len(absent)} pictures with captions are not there:{shown}" + ("\n  ..." if len(absent) > _SHOWN else "")
            if self.missing == "error":
                raise DataError(f"{self.captions}: {text}\ncorrect the file, or leave them out with missing=skip")
            notes.append(f"left out: {text}")
        used = {name: item for name, item in items.items() if name not in set(absent)}
        pictures = {str(p.relative_to(self.images)) for p in self.images.rglob("*") if p.suffix.lower() in _SUFFIXES}
        if silent := sorted(pictures - {str(Path(name)) for name in items}):
            more = ", ..." if len(silent) > _SHOWN else ""
            notes.append(f"{len(silent)} pictures have no caption and are left out: {', '.join(silent[:_SHOWN])}{more}")
        rows, digest = [], hashlib.sha256()
        keys: dict[str, str] = {}
        for name, item in used.items():
            key = safe_key(item.id or str(Path(name).with_suffix("")))
            if key in keys:
                raise DataError(f"{item.place}: the id {key!r} of {name} is that of {keys[key]} already; give them different `id`s")
            keys[key] = name
            path = self.images / name
            digest.update(f"{key}\0{name}\0{path.stat().st_size}\n".encode())
            columns: dict[str, Any] = {f"caption.{lang}": texts for lang, texts in item.captions.items()}
            columns["image"] = functools.partial(read_picture, str(path))
            rows.append(Row(item.split or self._split(key, item), key, columns))
        source = {"captions": store.sha256_file(self.captions), "pictures": digest.hexdigest()}
        rule = {"split_by": self.split_by, "test_percent": self.test_percent, "val_percent": self.val_percent}
        about = {"images": str(self.images), "captions": str(self.captions), "licence": self.licence}
        specs = [ColumnSpec("image", "image", ";".join(EXTENSIONS), source, about)]
        languages = sorted({lang for item in used.values() for lang in item.captions})
        specs += [ColumnSpec(f"caption.{lang}", "texts", "json", {**source, "language": lang}, about) for lang in languages]
        return Material({**source, **rule}, specs, rows, notes, parallel=False)

    def _split(self, key: str, item: _Item) -> str:
        if self.split_by == "none":
            return "train"
        first = next(iter(item.captions.get("en") or next(iter(item.captions.values()))))
        return split_of(concept(first) if self.split_by == "concept" else key, test=self.test_percent, val=self.val_percent)

    def _items(self) -> dict[str, _Item]:
        items: dict[str, _Item] = {}
        for place, record in records(self.captions):
            name = record.get("file")
            if not isinstance(name, str) or not name:
                raise DataError(f"{place}: expected the key `file` (path of a picture), found {', '.join(record) or 'nothing'}")
            item = items.setdefault(str(Path(name)), _Item(place))
            for attribute in ("id", "split"):
                if (value := record.get(attribute)) is not None:
                    if getattr(item, attribute) not in (None, str(value)):
                        raise DataError(f"{place}: {attribute} {value!r} of {name}, but {getattr(item, attribute)!r} at {item.place}")
                    setattr(item, attribute, str(value))
            if item.split is not None and item.split not in SPLITS:
                raise DataError(f"{place}: split: expected one of {', '.join(SPLITS)}, found {item.split!r}")
            for lang, texts in self._captions(record, place).items():
                item.captions.setdefault(lang, []).extend(texts)
        if not items:
            raise DataError(f"{self.captions}: no records")
        return items

    def _captions(self, record: dict[str, Any], place: str) -> dict[str, list[str]]:
        given = [name for name in ("caption", "captions") if name in record]
        if len(given) != 1:
            raise DataError(f"{place}: expected `caption` or `captions`, found {' and '.join(given) or ', '.join(record)}")
        value = record[given[0]]
        if not isinstance(value, dict):
            value = {record.get("lang", self.language): value}
        return {str(lang): texts_of(texts, place) for lang, texts in value.items()}


def read_picture(path: str) -> bytes:
    """The bytes of a file. DataError when they do not begin like a picture."""
    data = store.retry_io(Path(path).read_bytes, what=path)
    picture_extension(data, path)
    return data
