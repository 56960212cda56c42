"""folder: your own pictures and captions. Pictures are copied byte for byte, not encoded again.

`captions` is a file of records (`captions.py`: JSONL, CSV, TSV, JSON, COCO's). A record has

    file       path of the picture, relative to `images` (a picture gets the captions of all its records); or
               Hugging Face's `file_name`, with the caption in `text`
    caption    one caption in the language `lang` of the record (default: the recipe's `language`), or
    captions   not in CSV: a list of captions, or {"en": ["..."], "de": "..."}
    id         optional key; default: the path without its extension
    split      optional train, val or test; default: drawn by `split_by`

Names are compared in Unicode's normal form NFC, since macOS and others encode the same name differently. If two
pictures would have the same key (`IMG 1.jpg`, `IMG_1.jpg`), the second key ends with a digest of the name.
"""

from __future__ import annotations

import functools
import hashlib
import os
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from ccr_dist.data.corpora.formats.files import walk
from ccr_dist.data.corpora.recipes.base import ColumnSpec, Material, Recipe, RecipeRow, register
from ccr_dist.data.corpora.recipes.captions import records, texts_of
from ccr_dist.data.corpora.recipes.folder_names import (
    SHOWN,
    FileNames,
    PictureEntry,
    base_key,
    distinct_key,
    keys_of,
    some,
)
from ccr_dist.data.corpora.recipes.media import EXTENSIONS, SUFFIXES
from ccr_dist.data.media.decode import picture_extension
from ccr_dist.data.storage import store
from ccr_dist.data.table.dataset import Column, open_all
from ccr_dist.data.table.names import is_column_name
from ccr_dist.data.table.splits import SPLITS, concept, split_of
from ccr_dist.errors import ConfigError, DataError

_TO_CONVERT = (".heic", ".heif", ".avif", ".jxl", ".jp2")


@register("folder")
class Folder(Recipe):
    """A directory of pictures and a file of captions."""

    kind: Literal["folder"]
    images: Path = Field(description="folder of the pictures")
    captions: Path | None = Field(
        description="JSONL, CSV, TSV or JSON file; null: there are none yet, all pictures are taken"
    )
    language: str = Field("en", pattern=r"^[A-Za-z]{2,8}(-[A-Za-z0-9]+)*$", description="of captions that name none")
    missing: Literal["error", "skip"] = Field("error", description="captions whose picture is not there")
    uncaptioned: Literal["skip", "keep"] = Field(
        "skip", description="pictures without a caption; keep: rows that `ccr-dist describe` can fill"
    )
    beside: tuple[Path, ...] = Field((), description="datasets built before: pictures that are in them are left out")
    split_by: Literal["concept", "key", "none"] = Field(
        "concept",
        description=(
            "concept: by the concept of the first caption, or by the key without captions; none: everything is `train`"
        ),
    )
    test_percent: int = Field(25, ge=0, le=100)
    val_percent: int = Field(10, ge=0, le=100)
    licence: str = "unknown"

    about: ClassVar[str] = "your own folder of pictures with a JSONL, CSV or COCO file of captions"

    def material(self) -> Material:
        if not self.images.is_dir():
            what = "a file, and a folder is expected" if self.images.exists() else "no such folder"
            raise ConfigError(f"images: {self.images}: {what}; name the folder of your pictures: images=FOLDER")
        names: list[str] = []
        dead: list[str] = []
        for name in walk(self.images):
            (names if (self.images / name).is_file() else dead).append(name)
        notes = []
        if dead:
            notes.append(f"{len(dead)} files are left out: broken links, or not plain files: {some(dead)}")
        used = self._used(names, notes)
        keys = keys_of(used, notes)
        if self.beside:
            self._leave_out(used, keys, notes)
        rows, digest = [], hashlib.sha256()
        for name, item in used.items():
            path = self.images / name
            digest.update(os.fsencode(f"{keys[name]}\0{name}\0{path.stat().st_size}\n"))
            columns: dict[str, Any] = {f"caption.{lang}": texts for lang, texts in item.captions.items()}
            columns["image"] = functools.partial(read_picture, str(path))
            rows.append(RecipeRow(item.split or self._split(keys[name], item), keys[name], columns))
        source = {"captions": self.captions and store.sha256_file(self.captions), "pictures": digest.hexdigest()}
        rule = {"split_by": self.split_by, "test_percent": self.test_percent, "val_percent": self.val_percent}
        about = {"images": str(self.images), "captions": str(self.captions), "licence": self.licence}
        specs = [ColumnSpec("image", "image", ";".join(EXTENSIONS), source, about)]
        languages = sorted({lang for item in used.values() for lang in item.captions})
        specs += [
            ColumnSpec(f"caption.{lang}", "texts", "json", {**source, "language": lang}, about) for lang in languages
        ]
        return Material({**source, **rule}, specs, rows, notes, parallel=False)

    def advice(self, out: Path, material: Material) -> str:
        datasets = [path.parent for path in sorted(out.glob("*/dataset.json"))]
        there = {
            key
            for root in datasets
            for dataset in open_all(root)
            for shard in range(len(dataset.shards))
            for key in dataset.keys(shard)
        }
        if not there or not (new := sum(row.key not in there for row in material.rows)):
            return super().advice(out, material)
        beside = ",".join(map(str, (*self.beside, out)))
        return (
            f"{new} of these {len(material.rows)} pictures are not in it. A dataset stays as it was built, since"
            " translations and features are made for its rows. Build the new ones beside it, and name both in"
            f" data.train:\n  ccr-dist shards build folder --out {out}-2 beside=[{beside}] ... (the other options as"
            f" here)\nor remove {out} and build everything again"
        )

    # -- which pictures

    def _used(self, names: list[str], notes: list[str]) -> dict[str, PictureEntry]:
        """Entries of the pictures that become rows, by path relative to `images`, in the order of the captions.

        Args:
            names: Paths of all files.
            notes: Gets lines on what is left out.

        Raises:
            DataError: No picture remains, or the captions are not as expected.
        """
        pictures = [name for name in names if name.rpartition(".")[2].lower() in SUFFIXES["image"]]
        items = self._items(names, notes) if self.captions else {}
        told = {name for name, item in items.items() if item.captions}
        silent = [name for name in pictures if name not in told]
        if self.uncaptioned == "keep" or self.captions is None:
            if silent and self.captions:
                notes.append(f"{len(silent)} pictures have no caption and are kept: {some(silent)}")
            items |= {name: items.get(name) or PictureEntry(name) for name in silent}
        else:
            if silent:
                notes.append(f"{len(silent)} pictures have no caption and are left out: {some(silent)}")
            items = {name: item for name, item in items.items() if name in told}
        own = self.captions and os.path.relpath(self.captions, self.images)
        known = {*pictures, *items, own}
        others: dict[str, list[str]] = {}
        for name in names:
            if name not in known:
                others.setdefault(Path(name).suffix.lower(), []).append(name)
        for suffix, which in sorted(others.items()):
            what = (
                f"{len(which)} files {'*' + suffix if suffix else 'without an extension'} are no pictures that are"
                f" read: {some(which)}"
            )
            notes.append(what + ("; convert them to JPEG to have them in" if suffix in _TO_CONVERT else ""))
        if not items:
            raise DataError(
                f"{self.captions or self.images}: no pictures"
                + (" with captions; " + "; ".join(notes) if notes else " there")
            )
        return items

    def _items(self, names: list[str], notes: list[str]) -> dict[str, PictureEntry]:
        assert self.captions is not None
        there = FileNames(self.images, names)
        items: dict[str, PictureEntry] = {}
        absent: dict[str, str] = {}
        count = blank = 0
        for count, (place, record) in enumerate(records(self.captions), 1):  # noqa: B007
            if "file" not in record and "file_name" in record:  # Hugging Face's imagefolder: metadata.jsonl or .csv
                named = {
                    "file_name": "file",
                    **({} if {"caption", "captions"} & record.keys() else {"text": "caption"}),
                }
                record = {named.get(key, key): value for key, value in record.items()}
            name = record.get("file")
            if not isinstance(name, str) or not name:
                raise DataError(
                    f"{place}: expected the key `file` (path of a picture), found"
                    f" {', '.join(map(str, record)) or 'nothing'}"
                )
            found = there.find(self._inside(name, place), place)
            if found is None:
                absent.setdefault(name, place)
                continue
            item = items.setdefault(found, PictureEntry(place))
            for attribute in ("id", "split"):
                if (value := record.get(attribute)) not in (None, ""):
                    if getattr(item, attribute) not in (None, str(value)):
                        raise DataError(
                            f"{place}: {attribute} {value!r} of {name}, but {getattr(item, attribute)!r} at"
                            f" {item.place}"
                        )
                    setattr(item, attribute, str(value))
            if item.split is not None and item.split not in SPLITS:
                raise DataError(f"{place}: split: expected one of {', '.join(SPLITS)}, found {item.split!r}")
            for lang, texts in self._captions(record, place).items():
                if not texts:
                    blank += 1
                else:
                    item.captions.setdefault(lang, []).extend(texts)
        if not count:
            raise DataError(f"{self.captions}: no records")
        if absent:
            shown = "".join(f"\n  {self.images / name} ({place})" for name, place in list(absent.items())[:SHOWN])
            text = f"{len(absent)} pictures with captions are not there:{shown}" + (
                "\n  ..." if len(absent) > SHOWN else ""
            )
            if self.missing == "error":
                raise DataError(f"{self.captions}: {text}\ncorrect the file, or leave them out with missing=skip")
            notes.append(f"left out: {text}")
        if blank:
            notes.append(f"{blank} blank captions are left out")
        return items

    def _inside(self, name: str, place: str) -> str:
        """A path relative to `images`, normalised. Raises DataError if it leads out of it: captions may come from
        others.
        """
        path = os.path.normpath(os.path.join(self.images.absolute(), name))  # noqa: PTH118 (os.path knows no links: they are the user's own)
        inside = os.path.relpath(path, os.path.normpath(self.images.absolute()))
        if inside.startswith(".."):
            raise DataError(
                f"{place}: {name!r} is not below images={self.images}: give the folder that holds all pictures"
            )
        return inside

    def _captions(self, record: dict[str, Any], place: str) -> dict[str, list[str]]:
        given = [name for name in ("caption", "captions") if name in record]
        if len(given) != 1:
            raise DataError(
                f"{place}: expected `caption` or `captions`, found {' and '.join(given) or ', '.join(map(str, record))}"
            )
        value = record[given[0]]
        if not isinstance(value, dict):
            value = {record.get("lang") or self.language: value}
        if odd := [lang for lang in value if not is_column_name(f"caption.{lang}")]:
            raise DataError(f"{place}: {odd[0]!r} is not a language tag; expected letters, digits and - as in pt-BR")
        return {str(lang): texts_of(texts, place) for lang, texts in value.items()}

    def _split(self, key: str, item: PictureEntry) -> str:
        if self.split_by == "none":
            return "train"
        first = next(iter(item.captions.get("en") or next(iter(item.captions.values()), [])), None)
        text = concept(first) if self.split_by == "concept" and first is not None else key
        return split_of(text, test=self.test_percent, val=self.val_percent)

    # -- datasets that are there

    def _leave_out(self, used: dict[str, PictureEntry], keys: dict[str, str], notes: list[str]) -> None:
        """Remove from `used` the pictures that a dataset in `beside` already has, found by key and compared by bytes.

        Args:
            used: Entries by path; changed here.
            keys: Key by path; changed here for names whose key another picture has.
            notes: Gets a line on what is left out.

        Raises:
            DataError: A dataset has other bytes under a picture's key.
        """
        there: dict[str, tuple[Column, int, int]] = {}
        for dataset in (dataset for path in self.beside for dataset in open_all(path)):
            column = dataset.column("image")
            column.require_complete()
            there |= {
                key: (column, shard, row)
                for shard in range(len(dataset.shards))
                for row, key in enumerate(dataset.keys(shard))
            }
        claimed: dict[str, str] = {}
        for name in used:
            for key in dict.fromkeys(
                (keys[name], base_key(name, used[name]), distinct_key(base_key(name, used[name]), name))
            ):
                if key in there and key not in claimed and _same(there[key], self.images / name):
                    claimed[key] = name
                    break
        done = set(claimed.values())
        for name in [name for name in used if name not in done]:
            if keys[name] in claimed:
                keys[name] = distinct_key(keys[name], name)
            if keys[name] in there:
                column = there[keys[name]][0]
                raise DataError(
                    f"{self.images / name}: {column.dataset.place} has other bytes under its key {keys[name]!r}: a"
                    " picture that was changed is not read again; give the file another name, or build everything again"
                )
        for name in done:
            del used[name]
        if done:
            notes.append(
                f"{len(done)} pictures are already in {', '.join(map(str, self.beside))} and are left out, with their"
                " captions"
            )


def _same(there: tuple[Column, int, int], path: Path) -> bool:
    """Whether a file has the bytes of a dataset's picture, or both are unusable."""
    column, shard, row = there
    data = store.retry_io(lambda: column.value(shard, row), what=column.where(shard, row))
    if data is not None:
        return path.stat().st_size == len(data) and store.retry_io(path.read_bytes, what=path) == data
    try:
        read_picture(str(path))
    except DataError:
        return True
    return False


def read_picture(path: str) -> bytes:
    """The bytes of a picture file. Raises DataError if they do not begin like a picture."""
    data = store.retry_io(Path(path).read_bytes, what=path)
    picture_extension(data, path)
    return data
