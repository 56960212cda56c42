"""published: datasets that others published as text files and a folder of media. Each dataset is a YAML in `shards/`.

The YAML says which files there are, in which format (`data/corpora/formats/readers.py`), which lists make the splits,
and which files fill which column. Files are matched by item: the group of the regular expression `item` finds the item
in an id, a file name or a tar's key. Users download the files themselves: `needs` lists them, and a build reports all
missing ones at once.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from ccr_dist.data.corpora.formats.files import Files
from ccr_dist.data.corpora.formats.readers import Names
from ccr_dist.data.corpora.recipes.base import ColumnSpec, Material, Recipe, RecipeRow, register
from ccr_dist.data.corpora.recipes.captions import safe_key
from ccr_dist.data.corpora.recipes.media import EXTENSIONS, SUFFIXES, Medium, find_media, read_medium
from ccr_dist.data.corpora.recipes.published_captions import CaptionReader, check_pairing
from ccr_dist.data.corpora.recipes.published_sources import (
    CaptionSource,
    ItemList,
    Split,
    expand_source,
    fill_in,
    language_of,
    some,
)
from ccr_dist.data.storage import store
from ccr_dist.data.table.dataset import check_column_name
from ccr_dist.data.table.splits import SPLITS, draw
from ccr_dist.errors import ConfigError, DataError

_SUFFIX = "|".join(sorted({suffix for suffixes in SUFFIXES.values() for suffix in suffixes}))


@register("published")
class Published(Recipe):
    """A published dataset in its own files."""

    kind: Literal["published"]
    title: str
    licence: str
    download: tuple[str, ...] = Field(description="what to fetch, from where: a line each")
    folder: Path = Field(description="of the text files")
    media: tuple[str, ...] | None = Field(description="folders of the pictures or videos, or tars; null for texts only")
    media_kind: Literal["image", "video"] = "image"
    item: str = Field(
        rf"(?:.*/)?(.+?)(?:\.(?i:{_SUFFIX}))?",
        description="regular expression: group 1 of an id or file name is the item",
    )
    variables: dict[str, str | int] = Field({}, description="for {name} in `splits`, `reserved` and `captions`")
    languages: tuple[str, ...] | None = Field(
        None, description="only captions in these (and what they are translations of)"
    )
    only: tuple[Split, ...] = Field(
        ("train", "val", "test"), description="only these splits; what is in `train` does not depend on it"
    )
    splits: dict[Split, ItemList]
    reserved: tuple[ItemList, ...] = Field(
        (), description="items that must not be in train; those of val and test never are"
    )
    captions: tuple[CaptionSource, ...]
    missing: Literal["error", "skip"] = Field("error", description="items whose media are not there")
    unaligned: int = Field(
        0, ge=0, description="items that may have other captions translated than they have; they get no translations"
    )

    about: ClassVar[str] = "a published dataset in its own files (multi30k, mscoco-zh, vatex, ...)"

    @field_validator("item")
    @classmethod
    def _one_group(cls, pattern: str) -> str:
        try:
            groups = re.compile(pattern).groups
        except re.error as e:
            raise ValueError(f"not a regular expression: {e}") from e
        if groups != 1:
            raise ValueError(f"expected one group (...), the item; found {groups}")
        return pattern

    def needs(self) -> list[str]:
        must, may = self._files(self._sources())
        lines = [self.title, f"  licence: {self.licence}", *(f"  fetch: {line}" for line in self.download)]
        lines += [f"  folder={self.folder} has, with .gz or without:", *(f"    {name}" for name in must)]
        lines += [f"    {name} (optional)" for name in may]
        return lines + [f"  media={root} ({self.media_kind}s: a folder, or tars)" for root in self.media or ()]

    def reads(self) -> list[Path]:
        files, (must, _) = Files(self.folder), self._files(self._sources())
        texts = [self.folder / name for name in must if files.find(name) is None]
        return [self.folder, *texts, *map(Path, self.media or ())]

    def material(self) -> Material:
        files, notes = Files(self.folder), list[str]()
        sources = self._check_files(files, notes)
        split_of = self._split_items(files, notes)
        media = self._media(split_of, notes)
        captions = CaptionReader(self.name, self._item, self.unaligned)
        columns = captions.columns(files, sources, split_of, notes)
        check_pairing(self.name, media, columns, notes)
        rows = []
        for item, split in split_of.items():
            values: dict[str, Any] = {name: texts[item] for name, texts in columns.items() if item in texts}
            if item in media:
                values[self.media_kind] = functools.partial(read_medium, media[item], self.media_kind)
            rows.append(RecipeRow(split, safe_key(item), values))
        items = [[split, item, media[item].size if media else 0] for item, split in split_of.items()]
        return Material(
            {"items": store.digest_json(items)},
            self._columns(files, sources, columns, split_of),
            rows,
            notes,
            parallel=False,
        )

    # -- the files

    def _sources(self) -> list[CaptionSource]:
        every = [
            one
            for source in self.captions
            for one in expand_source(source, self.variables)
            if set(one.splits) & set(self.only)
        ]
        for source in every:
            check_column_name(source.column)
        if self.languages is None:
            return every
        if unknown := set(self.languages) - {language_of(source.column) for source in every}:
            there = ", ".join(sorted({language_of(source.column) for source in every} - {""}))
            raise ConfigError(f"languages: {self.name} has none in {', '.join(sorted(unknown))}; there are: {there}")
        kept = {source.column for source in every if language_of(source.column) in ("", *self.languages)}
        kept |= {source.translates for source in every if source.column in kept and source.translates}
        return [source for source in every if source.column in kept]

    def _lists(self) -> dict[Split, ItemList]:
        used = {split: one for split, one in self.splits.items() if split != "train" or split in self.only}
        return {
            split: ItemList.model_validate(fill_in(one.model_dump(), self.variables)) for split, one in used.items()
        }

    def _reserved(self) -> list[ItemList]:
        used = self.reserved if "train" in self.only else ()
        return [ItemList.model_validate(fill_in(one.model_dump(), self.variables)) for one in used]

    def _files(self, sources: Iterable[CaptionSource]) -> tuple[list[str], list[str]]:
        """(files that must be there, files that may be), relative to the folder."""
        lists = [name for one in (*self._lists().values(), *self._reserved()) for name in one.read.needs()]
        must = dict.fromkeys(
            lists + [name for source in sources if not source.optional for name in source.read.needs()]
        )
        may = dict.fromkeys(
            name for source in sources if source.optional for name in source.read.needs() if name not in must
        )
        return list(must), list(may)

    def _check_files(self, files: Files, notes: list[str]) -> list[CaptionSource]:
        """The sources whose files exist. Raises ConfigError that lists all missing files and how to get them."""
        sources = self._sources()
        must, may = self._files(sources)
        absent = [f"{self.folder / name}" for name in must if files.find(name) is None]
        absent += [
            f"{root} (media)" for root in self.media or () if not Path(root).is_dir() and not root.endswith(".tar")
        ]
        if absent:
            lines = [
                f"{self.name}: {len(absent)} of the files and folders that it needs do not exist:",
                *(f"  {name}" for name in absent),
            ]
            lines += [
                "to get them:",
                *(f"  {line}" for line in self.download),
                "or say where they are with folder=... and media=[...]",
            ]
            raise ConfigError("\n".join(lines))
        if gone := [name for name in may if files.find(name) is None]:
            notes.append(f"{len(gone)} optional files are not there: {some(gone)}")
        return [source for source in sources if all(files.find(name) for name in source.read.needs())]

    # -- which rows there are

    def _split_items(self, files: Files, notes: list[str]) -> dict[str, str]:
        """Split by item, in the order of the lists. Items held out in any list are not in train."""
        lists = {split: self._items(files, one, notes) for split, one in self._lists().items()}
        test = set(lists.get("test", []))
        if both := [item for item in lists.get("val", []) if item in test]:
            raise DataError(f"{self.name}: {len(both)} items are in val and in test: {some(both)}; correct the lists")
        held = test.union(lists.get("val", []))
        held |= {item for one in self._reserved() for item in self._items(files, one, notes)}
        if leaked := [item for item in lists.get("train", []) if item in held]:
            notes.append(
                f"train: {len(leaked)} of {len(lists['train'])} items are held out for val or test and left out:"
                f" {some(leaked)}"
            )
        found: dict[str, str] = {}
        for split in self.only:
            found |= {item: split for item in lists.get(split, []) if split != "train" or item not in held}
        return found

    def _items(self, files: Files, one: ItemList, notes: list[str]) -> list[str]:
        every = [self._item(raw, place) for place, raw in one.read.items(files)]
        items = list(dict.fromkeys(every))
        if isinstance(one.read, Names) and len(items) != len(every):
            notes.append(f"{one.read.file}: {len(every) - len(items)} repeated items taken once")
        if one.part is not None:
            items = [item for item in items if one.part[0] <= draw(item) < one.part[1]]
        return items[: one.first]

    def _item(self, raw: str, place: str) -> str:
        item = self._item_of(raw)
        if item is None:
            raise DataError(f"{place}: the id {raw!r} does not match the recipe's `item`: {self.item}")
        return item

    def _item_of(self, name: str) -> str | None:
        match = re.fullmatch(self.item, name)
        return match[1] if match else None

    def _media(self, split_of: dict[str, str], notes: list[str]) -> dict[str, Medium]:
        """Medium by item. Removes items without one from `split_of`, or raises DataError that names them."""
        if self.media is None:
            return {}
        found = find_media(self.media, self.media_kind, split_of, self._item_of)
        if absent := [item for item in split_of if item not in found]:
            text = (
                f"{len(absent)} of {len(split_of)} items have no {self.media_kind} in {', '.join(self.media)}:"
                f" {some(absent)}"
            )
            if self.missing == "error":
                raise DataError(
                    f"{self.name}: {text}\nexpected file names are like {absent[0]}.{SUFFIXES[self.media_kind][0]},"
                    " anywhere below; to leave these items out, set missing=skip"
                )
            notes.append(f"left out: {text}")
        for item in absent:
            del split_of[item]
        for split, one in self.splits.items():
            for item in [item for item, of in split_of.items() if of == split][one.first_with_media or len(split_of) :]:
                del split_of[item]
        return found

    def _columns(
        self, files: Files, sources: list[CaptionSource], columns: dict[str, dict[str, Any]], split_of: dict[str, str]
    ) -> list[ColumnSpec]:
        about = {"dataset": self.title, "licence": self.licence, "folder": str(self.folder)}
        specs = []
        if self.media is not None:
            extension = ";".join(EXTENSIONS if self.media_kind == "image" else SUFFIXES["video"])
            specs.append(
                ColumnSpec(
                    self.media_kind,
                    self.media_kind,
                    extension,
                    {"item": self.item},
                    {**about, "media": list(self.media)},
                )
            )
        for column, values in columns.items():
            mine = [source for source in sources if source.column == column]
            read = [source.model_dump(exclude={"column", "each", "optional"}) for source in mine]
            digests = {name: files.digest(name) for source in mine for name in source.read.needs()}
            kind = "views" if column.startswith("description.") else "texts"
            splits = tuple(split for split in SPLITS if any(split_of[item] == split for item in values))
            specs.append(
                ColumnSpec(column, kind, "json", {"item": self.item, "read": read, "files": digests}, about, splits)
            )
        return specs
