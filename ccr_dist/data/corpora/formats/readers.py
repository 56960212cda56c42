"""Readers of caption files and id lists: small models whose YAML names file and fields, and that yield entries in the
order of the file.

    names     an item per line; a .npy array of strings; a JSON list  id lists of Multi30K, NRCCR, MLA
    lines     line i of `file` is a caption of line i of `ids`        Multi30K, DutchDescriptions, XTD10
    keyed     `ITEM#TAG#N caption` or `ITEM#N<tab>caption`            NRCCR and LECCR; COCO-CN, Flickr30K's .token
    mapping   a JSON object {item: caption or [captions]}             MLA and DASD
    records   JSONL, or a JSON list somewhere in a document           Karpathy's splits, STAIR, VATEX, MSR-VTT, XM3600
    texts     a folder with a text file per item                      LECCR's descriptions

Readers are strict: anything unexpected is a DataError that names file and line (or record). They know neither datasets
nor splits.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from pydantic import Field

from ccr_dist.config import Frozen
from ccr_dist.data.corpora.formats.files import Files
from ccr_dist.errors import DataError


class Entry(NamedTuple):
    """One caption.

    Attributes:
        place: Its place in the file, such as `file:line`, for messages.
        item: The item that it belongs to.
        text: The caption.
        label: Its number in the file, which translations share with their caption; None if the file has no numbers.
    """

    place: str
    item: str
    text: str
    label: str | None = None


class Format(Frozen):
    """Base of all formats. The recipe fills in `{variables}` in all strings."""

    file: str

    def needs(self) -> list[str]:
        """The files to be read, relative to the folder."""
        return [self.file]

    def entries(self, files: Files) -> Iterator[Entry]:
        """The captions in the order of the file. Raises DataError for anything unexpected."""
        raise TypeError(f"{type(self).__name__} has no captions")

    def items(self, files: Files) -> Iterator[tuple[str, str]]:
        """(place, item) in the order of the file; an item with several captions occurs several times."""
        return ((entry.place, entry.item) for entry in self.entries(files))


class Names(Format):
    """A list of items."""

    format: Literal["names"] = "names"

    def items(self, files: Files) -> Iterator[tuple[str, str]]:
        if self.file.endswith((".npy", ".json")):
            path = files.path(self.file)
            names = files.document(self.file) if self.file.endswith(".json") else _array(files, self.file)
            if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                raise DataError(f"{path}: expected a list of names")
            return ((f"{path}: entry {i}", name) for i, name in enumerate(names))
        return ((place, line.strip()) for place, line in files.lines(self.file) if line.strip())


class Lines(Format):
    """Two parallel files: captions, and the items that they belong to."""

    format: Literal["lines"]
    ids: str

    def needs(self) -> list[str]:
        return [self.file, self.ids]

    def entries(self, files: Files) -> Iterator[Entry]:
        items = [item for _, item in Names(file=self.ids).items(files)]
        lines = list(files.lines(self.file))
        if len(lines) != len(items):
            raise DataError(
                f"{files.path(self.file)}: {len(lines)} lines for the {len(items)} items of {files.path(self.ids)}"
            )
        return (Entry(place, item, text) for (place, text), item in zip(lines, items, strict=True))


class Keyed(Format):
    """Lines of `ITEM#TAG#N caption`; the first blank or tab ends the key. `tag`: the TAG that is required, if any."""

    format: Literal["keyed"]
    tag: str | None = None

    def entries(self, files: Files) -> Iterator[Entry]:
        for place, line in files.lines(self.file):
            if not line.strip():
                continue
            key, *rest = line.strip().split(None, 1)
            item, *parts = key.split("#")
            if not item or not 1 <= len(parts) <= 2:
                raise DataError(f"{place}: expected `ITEM#N caption` or `ITEM#TAG#N caption`, found {line[:80]!r}")
            if self.tag is not None and parts[:-1] != [self.tag]:
                raise DataError(
                    f"{place}: expected the tag {self.tag!r}, found the key {key!r}: not the file of this column?"
                )
            yield Entry(place, item, rest[0] if rest else "", parts[-1])


class Mapping(Format):
    """A JSON object of captions by item."""

    format: Literal["mapping"]

    def entries(self, files: Files) -> Iterator[Entry]:
        path, found = files.path(self.file), files.document(self.file)
        if not isinstance(found, dict):
            raise DataError(f"{path}: expected a JSON object {{item: [captions]}}")
        for item, texts in found.items():
            place = f"{path}: {item!r}"
            for text in _texts(texts, place):
                yield Entry(place, item, text)


class Records(Format):
    """Objects in a list. A path `a.b` leads into nested objects, and through all elements of lists in between."""

    format: Literal["records"]
    at: str | None = Field(None, description="path to the list in the document; default: the document is the list")
    item: str = Field(description="path of the item in a record")
    text: str | None = Field(None, description="path of its captions: texts or lists of texts")
    where: dict[str, tuple[str, ...]] = Field({}, description="field: allowed values; records with others are skipped")

    def _records(self, files: Files) -> Iterator[tuple[str, str, Any]]:
        path, found = files.path(self.file), files.document(self.file)
        for name in self.at.split(".") if self.at else ():
            if not isinstance(found, dict) or name not in found:
                raise DataError(f"{path}: expected a list at {self.at!r}; {_there(found)}")
            found = found[name]
        if not isinstance(found, list) or not all(isinstance(record, dict) for record in found):
            raise DataError(f"{path}: expected a list of objects" + (f" at {self.at!r}" if self.at else ""))
        for number, record in enumerate(found):
            place = f"{path}: record {number}"
            if any(str(_one(record, field, place)) not in values for field, values in self.where.items()):
                continue
            yield place, str(_one(record, self.item, place)), record

    def items(self, files: Files) -> Iterator[tuple[str, str]]:
        return ((place, item) for place, item, _ in self._records(files))

    def entries(self, files: Files) -> Iterator[Entry]:
        if self.text is None:
            raise DataError(f"{self.file}: set `text` to the field with the captions")
        for place, item, record in self._records(files):
            for text in _texts(list(_values(record, self.text.split("."))), place):
                yield Entry(place, item, text)


class TextFolder(Format):
    """`file` is a folder of `ITEM.txt`; each file is one text."""

    format: Literal["texts"]

    def entries(self, files: Files) -> Iterator[Entry]:
        folder = files.path(self.file)
        if not folder.is_dir():
            raise DataError(f"{folder}: expected a folder of text files")
        for path in sorted(folder.glob("*.txt")):
            try:
                yield Entry(str(path), path.stem, path.read_text(encoding="utf-8-sig").strip())
            except UnicodeDecodeError as e:
                raise DataError(f"{path}: not UTF-8 ({e})") from e


ItemFormat = Annotated[Names | Keyed | Mapping | Records, Field(discriminator="format")]
CaptionFormat = Annotated[Lines | Keyed | Mapping | Records | TextFolder, Field(discriminator="format")]


def _array(files: Files, name: str) -> list[str]:
    path = files.path(name)
    try:
        array = np.load(path, allow_pickle=False)
    except ValueError as e:
        raise DataError(
            f"{path}: expected an array of strings ({e}); save it again with np.save(file, names.astype(str))"
        ) from e
    if array.ndim != 1 or array.dtype.kind not in "US":
        raise DataError(f"{path}: expected one dimension of strings, found {array.shape} of {array.dtype}")
    return [name.decode() if isinstance(name, bytes) else name for name in array.tolist()]


def _values(value: Any, path: list[str]) -> Iterator[Any]:
    if isinstance(value, list):
        for element in value:
            yield from _values(element, path)
    elif not path:
        if value is not None:
            yield value
    elif isinstance(value, dict) and path[0] in value:
        yield from _values(value[path[0]], path[1:])


def _one(record: dict[str, Any], path: str, place: str) -> Any:
    values = list(_values(record, path.split(".")))
    if len(values) != 1 or not isinstance(values[0], str | int):
        raise DataError(f"{place}: expected one value at {path!r}, found {len(values)}; {_there(record)}")
    return values[0]


def _texts(value: Any, place: str) -> Iterable[str]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise DataError(f"{place}: expected a caption or a list of captions, found {repr(value)[:100]}")
    return texts


def _there(value: Any) -> str:
    return (
        f"there are: {', '.join(map(str, list(value)[:12]))}"
        if isinstance(value, dict)
        else f"found {repr(value)[:80]}"
    )
