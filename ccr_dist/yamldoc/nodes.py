"""From YAML text to plain values, with the place and the text of each: strict, bounded, and without surprises of YAML
1.1.

Whatever a file says ends in values (mappings with text as keys, lists, text, numbers, true, false, null) or in a
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
LARGEST = 2**20  # bytes of a file: more is no config, and takes seconds to read
MOST = 100_000  # values of a document, aliases written out
DEEPEST = 50  # sections in sections
_TAG = "tag:yaml.org,2002:"
_TEXT = {f"{_TAG}{name}" for name in ("str", "timestamp", "value", "merge")}
_PLAIN = {f"{_TAG}{name}" for name in ("null", "bool", "int", "float")}


class Replacement(dict[str, Any]):
    """A mapping tagged `!replace`: it takes the place of the base's, instead of being merged with it."""


class Invalid(Exception):
    """Text that is no YAML. `line`: counted from 1, None where it is unknown."""

    def __init__(self, problem: str, line: int | None) -> None:
        super().__init__(problem)
        self.line = line


def read_text(path: Path) -> str:
    """The text of a regular file. FileNotFoundError; ConfigError for whatever else is no text, without waiting for
    pipes and devices.
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
    """The tree of a document, None of an empty one. Raises Invalid."""
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
    """Values of a tree. `place`: of the document, before the line. places: where each was written; texts: of values
    that were written as plain text and are none (numbers, dates, `null`) what was written.
    """

    file: str | None
    place: str
    quotes: bool = True  # errors may quote what the document says
    places: dict[KeyPath, str] = field(default_factory=dict)
    texts: dict[KeyPath, str] = field(default_factory=dict)
    _count: int = 0

    def of(self, node: yaml.Node, path: KeyPath = (), above: tuple[int, ...] = ()) -> Any:
        """Raises ConfigError with the place of what is not allowed."""
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
            key = key_node.value  # as it was typed: `no:` is Norwegian and not a boolean, `2026:` no number
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
                value = _number(text)  # YAML 1.1 reads 1e-3 as text; every author means the number
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
    """Of a number, a boolean, null. Text where YAML 1.1 takes times (1:30) for numbers and words (no, on) for
    booleans.
    """
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
