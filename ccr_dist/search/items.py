"""The items of an index: what they are called, what is known of them, and the pictures themselves."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ccr_dist.data.storage.lru import Recent
from ccr_dist.data.table.dataset import Dataset
from ccr_dist.errors import DataError
from ccr_dist.search.listing import is_below
from ccr_dist.search.names import Line, Names
from ccr_dist.search.state import Source, State, name_of

FOLDER = "folder"  # the label of files: the folder that they lie in
_DATASETS_HELD = 64


@dataclass(frozen=True)
class Item:
    """A picture or video of an index.

    Attributes:
        number: names it in this index, also after updates.
        key: its path in its folder, or its key in its dataset.
        kind: image or video.
        name: for people: the same as the key.
        path: the file, or the dataset that holds it.
        names: all its names; files of the same content are one item.
        captions: by language (and engine): `en`, `es.apertium`.
        labels: by name; files have the label `folder`.
    """

    number: int
    key: str
    kind: str
    name: str
    path: str
    names: tuple[str, ...] = ()
    captions: dict[str, list[str]] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)


class Items:
    """The items of one state of an index.

    Args:
        path: of the index, for messages.
        state: of the index.
        names: of that state; None of an empty one.

    Attributes:
        live: (total,) bool: the numbers that can be found.
    """

    def __init__(self, path: Path, state: State, names: Names | None) -> None:
        self._path, self._state, self._names = path, state, names
        self.live = names.live if names else np.zeros(0, np.bool_)
        self._datasets: Recent[Dataset] = Recent(_DATASETS_HELD)
        self._labels: dict[str, dict[str, list[int]]] = {}

    def _lines(self, number: int) -> list[Line]:
        if self._names is None:
            raise DataError(f"{self._path}: no item has the number {number}: the index is empty")
        return self._names.of(number)

    def named(self, number: int) -> Item:
        """See `Index.named`."""
        lines = self._lines(number)
        line, source = lines[0], self._state.sources[lines[0]["source"]]
        names = tuple(name_of(each, self._state.sources) for each in lines)
        if "path" not in line:
            return Item(number, line["key"], line["kind"], line["key"], source["path"], names)
        path = line["path"]
        return Item(number, path, line["kind"], path, names[0], names, labels={FOLDER: folder_of(path)})

    def item(self, number: int) -> Item:
        """See `Index.item`."""
        item, line = self.named(number), self._lines(number)[0]
        if "key" not in line:
            return item
        dataset = self._dataset(self._state.sources[line["source"]])
        captions, labels = _described(dataset, line["shard"], line["row"])
        return replace(item, captions=captions, labels=labels)

    def picture(self, number: int) -> bytes:
        """See `Index.picture`."""
        why = ""
        for line in self._lines(number):
            source = self._state.sources[line["source"]]
            if "key" in line:
                return self._media(source, line)
            try:
                return _unchanged(Path(source["path"]), line)
            except DataError as error:
                why = str(error)
        raise DataError(why)

    def _media(self, source: Source, line: Line) -> bytes:
        dataset = self._dataset(source)
        names = [source["visual"], *(name for name in ("image", "video") if name in dataset.columns())]
        for name in names:
            column = dataset.column(name)
            if column.kind in ("image", "video"):
                data: bytes | None = column.value(line["shard"], line["row"])
                if data:
                    return data
        raise DataError(f"{source['path']}: item {line['key']!r} has no picture or video there, only features")

    def _dataset(self, source: Source) -> Dataset:
        return self._datasets.made(source["path"], lambda: Dataset(source["path"]))

    def where(self, labels: Mapping[str, str]) -> np.ndarray:
        """(total,) bool: the numbers that have all of these labels.

        Raises:
            DataError: there is no such label, or no item with this value of it.
        """
        mask = self.live.copy()
        for name, value in labels.items():
            if name not in self._labels:
                self._labels[name] = self._read(name)
            known = self._labels[name]
            if value not in known:
                some = ", ".join(map(repr, sorted(known)[:8])) + (", ..." if len(known) > 8 else "")
                raise DataError(f"{self._path}: no item has {name}={value!r}; there are: {some or 'no values'}")
            having = np.zeros_like(mask)
            having[known[value]] = True
            mask &= having
        return mask

    def labels(self) -> dict[str, dict[str, int]]:
        """See `Index.labels`."""
        names: set[str] = set()
        for source in self._state.sources:
            if source["kind"] == "dataset":
                columns = self._dataset(source).columns()
                names |= {name.removeprefix("label.") for name in columns if name.startswith("label.")}
        if any("path" in line for line in (self._names.all() if self._names else ())):
            names.add(FOLDER)
        found = {}
        for name in sorted(names):
            if name not in self._labels:
                self._labels[name] = self._read(name)
            found[name] = {value: len(numbers) for value, numbers in self._labels[name].items()}
        return found

    def _read(self, name: str) -> dict[str, list[int]]:
        """Value of a label -> the numbers that have it."""
        columns: dict[int, Any] = {}
        for at, source in enumerate(self._state.sources):
            if source["kind"] == "dataset" and f"label.{name}" in self._dataset(source).columns():
                columns[at] = self._dataset(source).column(f"label.{name}")
        found: dict[str, list[int]] = {}
        files = False
        for line in self._names.all() if self._names else ():
            files = files or "path" in line
            if not self.live[line["number"]]:
                continue
            if "path" in line and name == FOLDER:
                found.setdefault(folder_of(line["path"]), []).append(line["number"])
            elif line["source"] in columns:
                value = columns[line["source"]].value(line["shard"], line["row"])
                if value is not None:
                    found.setdefault(value, []).append(line["number"])
        if not columns and not (files and name == FOLDER):
            raise DataError(
                f"{self._path}: no label {name!r}; files have the label {FOLDER}, datasets those of their columns"
            )
        return found


def folder_of(path: str) -> str:
    """The folder of a path with /, wherever this runs; "" at the top."""
    return path.rpartition("/")[0]


def _described(dataset: Dataset, shard: int, row: int) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Captions and labels of a row."""
    captions: dict[str, list[str]] = {}
    labels: dict[str, str] = {}
    for name in dataset.columns():
        kind, _, rest = name.partition(".")
        if kind in ("caption", "label") and not dataset.column(name).missing():
            value = dataset.column(name).value(shard, row)
            if value is not None and kind == "caption":
                captions[rest] = value
            elif value is not None:
                labels[rest] = value
    return captions, labels


def _unchanged(root: Path, line: Line) -> bytes:
    path = root / line["path"]
    try:
        if not is_below(os.path.realpath(path), os.path.realpath(root)):
            raise DataError(f"{path}: leads out of the folder {root}")
        about = path.stat()  # of a pipe, reading would never end; a file that has grown may not fit into memory
        if not stat.S_ISREG(about.st_mode) or about.st_size != line["bytes"]:
            raise DataError(f"{path}: changed since it was indexed; run `ccr-dist index` again")
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}); run `ccr-dist index` again") from None
    if hashlib.sha256(data).hexdigest() != line["sha256"]:
        raise DataError(f"{path}: changed since it was indexed; run `ccr-dist index` again")
    return data
