"""published: datasets that others published as text files and a folder of media. One mechanism; each dataset is a YAML
in `shards/`.

The YAML says which files there are, in which format (`data/corpora/formats/readers.py`), which lists make the splits
and which files fill which column. Everything meets at the item: `item` is a regular expression whose group finds the
item in an id, in a file name or in a tar's key alike. Downloading is the user's: `needs` says what must be there, and a
build reports all that is missing at once.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from ccr_dist.config import Frozen
from ccr_dist.data.corpora.formats.files import Files
from ccr_dist.data.corpora.formats.readers import CaptionFormat, ItemFormat, Names
from ccr_dist.data.corpora.recipes.base import ColumnSpec, Material, Recipe, Row, register
from ccr_dist.data.corpora.recipes.captions import safe_key
from ccr_dist.data.corpora.recipes.folder import EXTENSIONS
from ccr_dist.data.corpora.recipes.media import SUFFIXES, Medium, find_media, read_medium
from ccr_dist.data.storage import store
from ccr_dist.data.table.dataset import check_column_name
from ccr_dist.data.table.splits import SPLITS, draw
from ccr_dist.errors import ConfigError, DataBudgetError, DataError

Split = Literal["train", "val", "test"]
Labelled = dict[str, str]  # the captions of an item by their labels, blank ones included
_SUFFIX = "|".join(sorted({suffix for suffixes in SUFFIXES.values() for suffix in suffixes}))
_SHOWN = 8
_COMPARED = 1000  # captions of tars, at the most


class ItemList(Frozen):
    """The items of a split, in their order."""

    read: ItemFormat
    part: tuple[int, int] | None = Field(
        None, description="only items whose sha1 modulo 100 is at least the first and below the second"
    )
    first: int | None = Field(None, gt=0, description="this many from the beginning of the list")
    first_with_media: int | None = Field(
        None, gt=0, description="the same, counted over those whose media are there (missing=skip)"
    )


class CaptionSource(Frozen):
    """Files that fill a column. `{name}` in its strings stands for a variable, or goes over the values of `each`."""

    column: str = Field(
        description="caption.<lang>, caption.<lang>.<engine>, or description.<source> (one text an item, view `detail`)"
    )
    read: CaptionFormat
    each: dict[str, tuple[str | int, ...]] = Field(
        {}, description="variable: its values; one source for each combination, in order"
    )
    splits: tuple[Split, ...] = Field(("train", "val", "test"), description="rows that it fills")
    translates: str | None = Field(None, description="the column whose captions these translate one by one")
    optional: bool = Field(False, description="may be absent")


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
        columns = self._captions(files, sources, split_of, notes)
        self._check_pairing(media, columns, notes)
        rows = []
        for item, split in split_of.items():
            values: dict[str, Any] = {name: texts[item] for name, texts in columns.items() if item in texts}
            if item in media:
                values[self.media_kind] = functools.partial(read_medium, media[item], self.media_kind)
            rows.append(Row(split, safe_key(item), values))
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
            for one in _expanded(source, self.variables)
            if set(one.splits) & set(self.only)
        ]
        for source in every:
            check_column_name(source.column)
        if self.languages is None:
            return every
        if unknown := set(self.languages) - {_language(source.column) for source in every}:
            there = ", ".join(sorted({_language(source.column) for source in every} - {""}))
            raise ConfigError(f"languages: {self.name} has none in {', '.join(sorted(unknown))}; there are: {there}")
        kept = {source.column for source in every if _language(source.column) in ("", *self.languages)}
        kept |= {source.translates for source in every if source.column in kept and source.translates}
        return [source for source in every if source.column in kept]

    def _lists(self) -> dict[Split, ItemList]:
        used = {split: one for split, one in self.splits.items() if split != "train" or split in self.only}
        return {
            split: ItemList.model_validate(_filled(one.model_dump(), self.variables)) for split, one in used.items()
        }

    def _reserved(self) -> list[ItemList]:
        used = self.reserved if "train" in self.only else ()
        return [ItemList.model_validate(_filled(one.model_dump(), self.variables)) for one in used]

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
        """The sources whose files are there. ConfigError with all that is missing and how to get it."""
        sources = self._sources()
        must, may = self._files(sources)
        absent = [f"{self.folder / name}" for name in must if files.find(name) is None]
        absent += [
            f"{root} (media)" for root in self.media or () if not Path(root).is_dir() and not root.endswith(".tar")
        ]
        if absent:
            lines = [
                f"{self.name}: {len(absent)} of the files and folders it needs are not there:",
                *(f"  {name}" for name in absent),
            ]
            lines += [
                "to get them:",
                *(f"  {line}" for line in self.download),
                "or say where they are with folder=... and media=[...]",
            ]
            raise ConfigError("\n".join(lines))
        if gone := [name for name in may if files.find(name) is None]:
            notes.append(f"{len(gone)} optional files are not there: {_some(gone)}")
        return [source for source in sources if all(files.find(name) for name in source.read.needs())]

    # -- which rows there are

    def _split_items(self, files: Files, notes: list[str]) -> dict[str, str]:
        """{item: split} in the order of the lists; train without what is held out anywhere."""
        lists = {split: self._items(files, one, notes) for split, one in self._lists().items()}
        test = set(lists.get("test", []))
        if both := [item for item in lists.get("val", []) if item in test]:
            raise DataError(f"{self.name}: {len(both)} items are in val and in test: {_some(both)}; correct the lists")
        held = test.union(lists.get("val", []))
        held |= {item for one in self._reserved() for item in self._items(files, one, notes)}
        if leaked := [item for item in lists.get("train", []) if item in held]:
            notes.append(
                f"train: {len(leaked)} of {len(lists['train'])} items are held out for val or test and left out:"
                f" {_some(leaked)}"
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
        """{item: Medium}; takes the items without one out of `split_of`, or raises DataError naming them."""
        if self.media is None:
            return {}
        found = find_media(self.media, self.media_kind, split_of, self._item_of)
        if absent := [item for item in split_of if item not in found]:
            text = (
                f"{len(absent)} of {len(split_of)} items have no {self.media_kind} in {', '.join(self.media)}:"
                f" {_some(absent)}"
            )
            if self.missing == "error":
                raise DataError(
                    f"{self.name}: {text}\nexpected file names are like {absent[0]}.{SUFFIXES[self.media_kind][0]},"
                    " anywhere below; to leave these items out say missing=skip"
                )
            notes.append(f"left out: {text}")
        for item in absent:
            del split_of[item]
        for split, one in self.splits.items():
            for item in [item for item, of in split_of.items() if of == split][one.first_with_media or len(split_of) :]:
                del split_of[item]
        return found

    # -- what they say

    def _captions(
        self, files: Files, sources: list[CaptionSource], split_of: dict[str, str], notes: list[str]
    ) -> dict[str, dict[str, Any]]:
        """{column: {item: value}}."""
        texts: dict[str, dict[str, Labelled]] = {}
        for source in sources:
            if set(source.splits) & set(split_of.values()):
                self._read(files, source, split_of, texts.setdefault(source.column, {}), notes)
        columns: dict[str, dict[str, Any]] = {}
        for column in texts:
            base = next(
                (source.translates for source in sources if source.column == column and source.translates), None
            )
            if not texts[column]:
                files_of = [name for source in sources if source.column == column for name in source.read.needs()]
                raise DataError(
                    f"{self.name}: {column}: nothing in {_some(files_of)} is about an item of the splits, such as"
                    f" {next(iter(split_of))!r}"
                )
            columns[column] = self._values(column, texts[column], texts.get(base, {}) if base else None)
            notes += self._coverage(column, columns[column], split_of, texts[column])
        return columns

    def _read(
        self, files: Files, source: CaptionSource, split_of: dict[str, str], into: dict[str, Labelled], notes: list[str]
    ) -> None:
        outside = set()
        for entry in source.read.entries(files):
            item = self._item(entry.item, entry.place)
            if item not in split_of:
                outside.add(item)
            elif split_of[item] in source.splits:
                captions = into.setdefault(item, {})
                label = str(len(captions)) if entry.label is None else entry.label
                if label in captions:
                    raise DataError(f"{entry.place}: {entry.item!r} has a second caption numbered {label}")
                captions[label] = entry.text.strip()
        if outside:
            notes.append(
                f"{source.column}: {source.read.file} tells of {len(outside)} items that are in no split built here"
            )

    def _values(self, column: str, texts: dict[str, Labelled], base: dict[str, Labelled] | None) -> dict[str, Any]:
        if column.startswith("description."):
            if many := [item for item, captions in texts.items() if len(captions) > 1]:
                raise DataError(
                    f"{self.name}: {column}: {len(many)} items have several texts: {_some(many)}; expected one"
                )
            return {
                item: {"views": {"detail": next(iter(captions.values()))}}
                for item, captions in texts.items()
                if any(captions.values())
            }
        if base is None:
            plain = {item: [text for text in captions.values() if text] for item, captions in texts.items()}
            return {item: captions for item, captions in plain.items() if captions}
        aligned, bad = {}, []
        for item, captions in texts.items():
            wanted = base.get(item, {})
            said = [captions.get(label, "") for label, text in wanted.items() if text]
            if captions.keys() == wanted.keys() and all(said):
                aligned[item] = said
            else:
                bad.append(
                    f"{item} ({len([t for t in wanted.values() if t])} captions,"
                    f" {len([t for t in captions.values() if t])} translations)"
                )
        if len(bad) > self.unaligned:
            raise DataBudgetError(
                f"{self.name}: {column}: the translations of {len(bad)} items do not match their captions one by one, "
                f"unaligned={self.unaligned} allowed (they get no translations): {_some(bad)}"
            )
        return aligned

    def _check_pairing(self, media: dict[str, Medium], columns: dict[str, dict[str, Any]], notes: list[str]) -> None:
        """Tars of img2dataset have captions of their own: when they are other ones, the keys number another list.
        DataError.
        """
        seen, alike, other = 0, 0, ""
        for item, medium in itertools.islice(((item, one) for item, one in media.items() if one.caption), _COMPARED):
            mine = {
                _letters(text)
                for texts in columns.values()
                if isinstance(texts.get(item), list)
                for text in texts[item]
            }
            if mine:
                own = medium.read_caption() or ""
                seen, alike = seen + 1, alike + (_letters(own) in mine)
                other = other or (f"{item}: {own!r} in {medium.path}" if _letters(own) not in mine else "")
        if 2 * alike < seen:
            raise DataError(
                f"{self.name}: of {seen} captions in the tars only {alike} are among those of the same items here"
                f" ({other}): the tars' keys seem to number another list; make tars whose keys are this dataset's items"
            )
        if seen:
            notes.append(f"{alike} of {seen} captions that were compared with the tars' own are the same")

    def _coverage(
        self, column: str, values: dict[str, Any], split_of: dict[str, str], texts: dict[str, Labelled]
    ) -> Iterator[str]:
        for split in dict.fromkeys(split_of.values()):
            items = [item for item, of in split_of.items() if of == split]
            if 0 < (count := sum(item in values for item in items)) < len(items):
                yield f"{column}: {count} of {len(items)} {split} rows have it"
        if blank := sum(not text for captions in texts.values() for text in captions.values()):
            yield f"{column}: {blank} blank captions passed over"

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


def _expanded(source: CaptionSource, variables: dict[str, str | int]) -> Iterator[CaptionSource]:
    for values in itertools.product(*source.each.values()):
        filled = _filled(
            source.model_dump(exclude={"each"}), {**variables, **dict(zip(source.each, values, strict=True))}
        )
        yield CaptionSource.model_validate(filled)


def _filled(value: Any, variables: dict[str, str | int]) -> Any:
    """`value` with {name} replaced in every string. ConfigError for a name that is no variable."""
    if isinstance(value, dict):
        return {key: _filled(one, variables) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_filled(one, variables) for one in value]
    if not isinstance(value, str):
        return value
    try:
        return value.format_map(variables)
    except (KeyError, ValueError, IndexError) as e:
        raise ConfigError(f"{value!r}: no such variable ({e}); there are: {', '.join(variables) or 'none'}") from None


def _language(column: str) -> str:
    kind, _, rest = column.partition(".")
    return rest.split(".")[0] if kind == "caption" else ""


def _letters(text: str) -> str:
    return "".join(filter(str.isalnum, text.casefold()))


def _some(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f", ... ({len(names)} in all)" if len(names) > _SHOWN else "")
