"""Turns YAML text into plain values with their places and texts: strict, bounded, and without the surprises of YAML
1.1.

The result consists of mappings with text as keys, lists, text, numbers, true, false and null; everything else is a
ConfigError with its line.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ccr_dist.errors import ConfigError, let_pass

KeyPath = tuple[str | int, ...]
LARGEST = 2**20  # most bytes of a file; a larger one is no config and would take seconds to read
MOST = 100_000  # most values of a document, aliases expanded
DEEPEST = 50  # deepest nesting of sections
_TAG = "tag:yaml.org,2002:"
_TEXT = {f"{_TAG}{name}" for name in ("str", "timestamp", "value", "merge")}
_PLAIN = {f"{_TAG}{name}" for name in ("null", "bool", "int", "float")}


class Replacement(dict[str, Any]):
    """A mapping tagged `!replace`: it replaces the mapping of the base instead of being merged with it."""


class Invalid(Exception):
    """Text that is not YAML.

    Args:
        problem: What is wrong.
        line: Its line, counted from 1, or None.
    """

    def __init__(self, problem: str, line: int | None) -> None:
        super().__init__(problem)
        self.line = line


def read_text(path: Path) -> str:
    """The text of a regular file; does not wait for pipes and devices.

    Raises:
        FileNotFoundError: There is no such file.
        ConfigError: It is no regular file, too large, unreadable, or not UTF-8.
        OSError: Storage fails.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        let_pass(error, path)
        raise ConfigError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    mode = os.fstat(fd).st_mode
    if not stat.S_ISREG(mode):
        os.close(fd)
        raise ConfigError(
            f"{path}: expected a file; this is a {'folder' if stat.S_ISDIR(mode) else 'device or a pipe'}"
        )
    with os.fdopen(fd, "rb") as file:
        try:
            data = file.read(LARGEST + 1)
        except OSError as error:
            error.filename = str(path)
            raise
    if len(data) > LARGEST:
        raise ConfigError(f"{path}: larger than {LARGEST // 2**20} MiB: no config")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}:{line}: not UTF-8 text") from None


def compose(text: str) -> yaml.Node | None:
    """The tree of a document, or None if it is empty. Raises Invalid for text that is not YAML."""
    try:
        return yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.reader.ReaderError as error:
        raise Invalid(
            f"a character that text cannot have (#x{error.character:04x})", text.count("\n", 0, error.position) + 1
        ) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise Invalid(
            str(getattr(error, "problem", None) or error).splitlines()[0], mark.line + 1 if mark else None
        ) from None
    except RecursionError:
        raise Invalid(f"nested more than {DEEPEST} deep", None) from None


@dataclass
class Values:
    """Turns a tree into values.

    Attributes:
        file: The file, or None for an override.
        place: Place of an override, for messages.
        quotes: Whether errors may quote the document.
        places: Where each value was written, by key path.
        texts: What was written, for plain values that are no text (numbers, dates, `null`).
    """

    file: str | None
    place: str
    quotes: bool = True
    places: dict[KeyPath, str] = field(default_factory=dict)
    texts: dict[KeyPath, str] = field(default_factory=dict)
    _count: int = 0

    def of(self, node: yaml.Node, path: KeyPath = (), above: tuple[int, ...] = ()) -> Any:
        """The value of a node.

        Args:
            node: The node.
            path: Its key path.
            above: Ids of the nodes that contain it.

        Raises:
            ConfigError: Something in it is not allowed; names the place.
        """
        self._count += 1
        if self._count > MOST:
            raise ConfigError(f"{self._at(node)}: more than {MOST:,} values, anchors written out: no config")
        if len(above) > DEEPEST:
            raise ConfigError(f"{self._at(node)}: nested more than {DEEPEST} deep")
        if id(node) in above:
            raise ConfigError(f"{self._at(node)}: an anchor that contains itself")
        inside = (*above, id(node))
        if isinstance(node, yaml.MappingNode):
            if node.tag not in (f"{_TAG}map", "!replace"):
                raise self._tagged(node)
            result: dict[str, Any] = Replacement() if node.tag == "!replace" else {}
            for key, value in self._items(node):
                self.places[(*path, key)] = self._at(value[0])
                result[key] = self.of(value[1], (*path, key), inside)
            return result
        if isinstance(node, yaml.SequenceNode):
            if node.tag != f"{_TAG}seq":
                raise self._tagged(node)
            for index, item in enumerate(node.value):
                self.places[(*path, index)] = self._at(item)
            return [self.of(item, (*path, index), inside) for index, item in enumerate(node.value)]
        assert isinstance(node, yaml.ScalarNode)
        return self._scalar(node, path)

    def _items(self, node: yaml.MappingNode) -> Iterator[tuple[str, tuple[yaml.Node, yaml.Node]]]:
        known: set[str] = set()
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise ConfigError(f"{self._at(key_node)}: a key is a word, not a list or a section")
            key = key_node.value  # as typed: `no:` is Norwegian, not a boolean, and `2026:` is no number
            said = f" {key!r}" if self.quotes else ""
            if key_node.tag == f"{_TAG}merge":
                raise ConfigError(
                    f"{self._at(key_node)}: `<<` is not understood here; put what is shared into a file and name it by"
                    " `base:`"
                )
            if key_node.tag not in _PLAIN | _TEXT:
                raise self._tagged(key_node)
            if key in known:
                raise ConfigError(f"{self._at(key_node)}: key{said} is given twice")
            known.add(key)
            yield key, (key_node, value_node)

    def _scalar(self, node: yaml.ScalarNode, path: KeyPath) -> Any:
        text: str = node.value
        if node.tag not in _PLAIN:
            if node.tag not in _TEXT:
                raise self._tagged(node)
            value: Any = text
            if node.style is None and text[:1] in ("+", "-", ".", *"0123456789") and node.tag == f"{_TAG}str":
                value = _number(text)  # YAML 1.1 reads 1e-3 as text, but authors mean the number
        else:
            value = _constructed(node)
        if value is not text and not isinstance(value, str):
            self.texts[path] = text
        return value

    def _at(self, node: yaml.Node) -> str:
        return self.place if self.file is None else f"{self.file}:{node.start_mark.line + 1}"

    def _tagged(self, node: yaml.Node) -> ConfigError:
        said = f" {node.tag.replace(_TAG, '!!')!r}" if self.quotes else ""
        return ConfigError(
            f"{self._at(node)}: the tag{said} is not understood here; there is `!replace`, before a section"
        )


def _constructed(node: yaml.Node) -> Any:
    """The value of a number, boolean or null; times (1:30) and words (no, on) stay text, unlike in YAML 1.1."""
    text: str = node.value
    if node.tag == f"{_TAG}bool" and text.lower() not in ("true", "false"):
        return text  # a language, the name of a choice
    if node.tag in (f"{_TAG}int", f"{_TAG}float") and ":" in text:
        return text
    try:
        return yaml.SafeLoader("").construct_object(node)
    except (ValueError, KeyError, yaml.YAMLError):  # thousands of digits; `!!int word`
        return text


def _number(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text
