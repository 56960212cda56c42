"""Reads YAML files and remembers the place of every value: `base:` inheritance, `key.sub=value` overrides, errors with
file and line.

Used for run configs, recipes, prompts, pipelines, profiles and studies. Knows nothing about the meaning of a document;
its schema is a pydantic model. `yamldoc/nodes.py` defines what a single file may contain.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from ccr_dist import resources
from ccr_dist.errors import ConfigError, let_pass
from ccr_dist.yamldoc.document import Document
from ccr_dist.yamldoc.errors import explain, shown
from ccr_dist.yamldoc.nodes import DEEPEST, Invalid, KeyPath, Replacement, Values, compose, read_text

Model = TypeVar("Model", bound=BaseModel)
# pydantic's errors of options that are text
_WANTS_TEXT = {"string_type", "string_sub_type", "path_type", "literal_error"}


class Given(str):
    """An option's value as typed on a command line; the option's type decides what it means."""


def load(path: str | Path, overrides: Iterable[str] = ()) -> Document:
    """Reads a file with its bases, then applies overrides.

    `base:` is a path or a list of paths, relative to the file that names it. Later bases override earlier ones, and the
    file itself overrides all. Mappings are merged, anything else is replaced. `key: null` removes a mapping of the
    base, `key: !replace {...}` replaces it.

    Args:
        path: The file.
        overrides: `key.sub=value`. The value is YAML, or taken literally if the option is text.

    Raises:
        ConfigError: Invalid YAML, a missing or circular base, a duplicate key or a malformed override; names file and
            line.
    """
    return overridden(_Reader(Path(path)).read(Path(path), ()), overrides)


def overridden(document: Document, overrides: Iterable[str]) -> Document:
    """Apply overrides to a document, as `load` does. Raises ConfigError for a malformed one."""
    for text in overrides:
        _override(document, text, f"override {shown(text)}")
    return document


def files(path: str | Path) -> list[Path]:
    """The file and all its bases, links resolved. Raises ConfigError as `load` does."""
    reader = _Reader(Path(path))
    reader.read(Path(path), ())
    return list(reader.known)


def of_options(options: Mapping[str, Any]) -> Document:
    """Options of a command line as a document; values that are `Given` are parsed by their type in the schema."""
    document = Document("options")
    for key, value in options.items():
        if isinstance(value, Given):
            _override(document, f"{key}={value}", f"option {shown(f'{key}={value}')}")
        else:
            document.data[key] = value
    return document


def validate(schema: type[Model], document: Document, *, at: KeyPath = ()) -> Model:
    """Build a model from a document.

    Args:
        schema: Class of the model.
        document: The document.
        at: Path of the section that the model describes.

    Raises:
        ConfigError: The document does not fit; lists every problem with its place and, for an unknown key, the nearest
            valid one.
    """
    try:
        return build(schema, document, at=at)
    except ValidationError as error:
        problems = error.errors()
        places = [tuple(problem["loc"]) for problem in problems]
        told = [
            problem
            for problem, place in zip(problems, places, strict=True)
            # a list whose only entries are wrong is too short for pydantic, and not empty for the person who wrote it
            if problem["type"] != "too_short" or not any(place == other[: len(place)] != other for other in places)
        ]
        raise ConfigError(
            "\n".join(dict.fromkeys(explain(schema, document, at, problem) for problem in told))
        ) from None


def build(schema: type[Model], document: Document, *, at: KeyPath = ()) -> Model:
    """Build a model from a document; where it expects text, a number or date counts as written.

    Arguments as for `validate`.

    Raises:
        ValidationError: Pydantic's error.
    """
    while True:
        value: Any = document.data
        for key in at:
            value = value[key]
        try:
            return schema.model_validate(value)
        except ValidationError as error:
            wanted = [at + tuple(problem["loc"]) for problem in error.errors() if problem["type"] in _WANTS_TEXT]
            paths = {found for path in wanted if (found := _written(document, path)) is not None}
            if not paths:
                raise
            for path in paths:
                _set(document.data, path, document.texts.pop(path))


def _written(document: Document, loc: KeyPath) -> KeyPath | None:
    """The path of pydantic's `loc`, without the tags of unions, if plain text was written there; otherwise None."""
    path: KeyPath = ()
    value: Any = document.data
    for key in loc:
        if (isinstance(value, dict) and key in value) or (
            isinstance(value, list) and isinstance(key, int) and key < len(value)
        ):
            path, value = (*path, key), value[key]  # type: ignore[index]
    return path if path in document.texts else None


def _set(data: Any, path: KeyPath, value: Any) -> None:
    for key in path[:-1]:
        data = data[key]
    data[path[-1]] = value


class _Reader:
    """Reads a file with its bases, each once."""

    def __init__(self, root: Path) -> None:
        self._folder = root.absolute().parent.resolve()
        self.known: dict[Path, Document] = {}

    def read(self, path: Path, above: tuple[Path, ...]) -> Document:
        try:
            real = path.resolve()
        except (OSError, RuntimeError, ValueError) as error:  # a link to itself, an invalid character
            let_pass(error, path)
            raise ConfigError(f"{str(path)!r}: cannot be read: {error}") from None
        if real in above:
            raise ConfigError(f"{path}: 'base' goes in a circle: {' -> '.join(map(str, (*above, real)))}")
        if len(above) > DEEPEST:
            raise ConfigError(f"{path}: bases of bases, more than {DEEPEST} deep")
        if real not in self.known:
            self.known[real] = self._whole(real if above else path, real, above)
        return self.known[real]

    def _whole(self, path: Path, real: Path, above: tuple[Path, ...]) -> Document:
        own = self._own(path, real, above)
        bases = own.data.pop("base", [])
        merged = Document(name=str(path), outside=set(own.outside))
        for base in bases if isinstance(bases, list) else [bases]:
            if not isinstance(base, str) or not base:
                raise ConfigError(f"{own.place(('base',))}: 'base' is a path or a list of paths" + self._got(own, base))
            _merge(merged, self.read(path.parent / base, (*above, real)))
        _merge(merged, own)
        merged.forget(("base",))
        return merged

    def _own(self, path: Path, real: Path, above: tuple[Path, ...]) -> Document:
        try:
            text = read_text(path)
        except FileNotFoundError:
            raise ConfigError(
                f"{path}: no such file" + (f" (a base of {above[-1]})" if above else resources.hint(path))
            ) from None
        quotes = real.is_relative_to(self._folder) or not above
        own = Document(name=str(path), outside=set() if quotes else {str(path)})
        try:
            node = compose(text)
        except Invalid as error:
            line = f":{error.line}" if error.line else ""
            raise ConfigError(f"{path}{line}: not valid YAML" + (f": {error}" if quotes else "")) from None
        if node is not None:
            if not isinstance(node, yaml.MappingNode):
                raise ConfigError(f"{path}:{node.start_mark.line + 1}: expected `key: value` lines at the top level")
            values = Values(str(path), str(path), quotes, own.places, own.texts)
            own.data = values.of(node)
        return own

    @staticmethod
    def _got(document: Document, value: Any) -> str:
        return "" if document.outside else f", got {shown(value)}"


def _merge(under: Document, over: Document) -> None:
    def merge(a: dict[str, Any], b: dict[str, Any], path: KeyPath) -> None:
        for key, value in b.items():
            here = (*path, key)
            if isinstance(value, dict) and isinstance(a.get(key), dict) and not isinstance(value, Replacement):
                merge(a[key], value, here)
                under.places |= {here: over.places[here]} if here in over.places else {}
                continue
            under.forget(here)
            if value is None and isinstance(a.get(key), dict):
                del a[key]
                continue
            a[key] = _copy(value)
            for mine, theirs in ((under.places, over.places), (under.texts, over.texts)):
                mine.update({p: said for p, said in theirs.items() if p[: len(here)] == here})

    merge(under.data, over.data, ())
    under.outside |= over.outside


def _copy(value: Any) -> Any:
    """A deep copy of lists and mappings, since a base may be merged more than once."""
    if isinstance(value, dict):
        return {key: _copy(each) for key, each in value.items()}
    return [_copy(each) for each in value] if isinstance(value, list) else value


def _override(document: Document, text: str, place: str) -> None:
    dotted, sign, raw = text.partition("=")
    words = dotted.strip().split(".")
    if not sign or not all(words) or len(words) > DEEPEST:
        raise ConfigError(f"{place}: expected key.sub=value")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ConfigError(f"{place}: not UTF-8 text") from None
    keys: list[str | int] = [int(word) if re.fullmatch("[0-9]{1,9}", word) else word for word in words]
    target: Any = document.data
    for depth, key in enumerate(keys[:-1]):
        there = ".".join(map(str, keys[: depth + 1]))
        if isinstance(target, list) and isinstance(key, int) and key < len(target):
            target = target[key]
        elif isinstance(target, dict):
            keys[depth] = str(key)
            target = target.setdefault(str(key), {})
        else:
            raise ConfigError(f"{place}: {there} is not there to be changed")
        if not isinstance(target, dict | list):
            raise ConfigError(f"{place}: {there} is a value, not a section")
    last = keys[-1]
    if isinstance(target, list):
        if not isinstance(last, int) or last >= len(target):
            raise ConfigError(f"{place}: the list has {len(target)} entries, index {last!r} is not one of them")
    else:
        last = keys[-1] = str(last)
    path = tuple(keys)
    document.forget(path)
    value = _meant(document, path, raw, place)
    if value is None and isinstance(target, dict) and isinstance(target.get(last), dict):
        del target[last]
    else:
        target[last] = value
    for end in range(1, len(path)):
        document.places.setdefault(path[:end], place)
    document.places[path] = document.overrides[path] = place


def _meant(document: Document, path: KeyPath, raw: str, place: str) -> Any:
    """An override's value as YAML, recording its text for options that are text. Quoted values are always YAML."""
    try:
        node = compose(raw)
    except Invalid:
        return raw
    if isinstance(node, yaml.ScalarNode) and node.style in ("'", '"'):
        return node.value
    places: dict[KeyPath, str] = {}
    texts: dict[KeyPath, str] = {}
    try:
        value = None if node is None else Values(None, place, True, places, texts).of(node, path)
    except ConfigError:  # a tag or an anchor: plain text, if text is expected
        return raw
    document.places |= places
    document.texts |= texts
    if isinstance(value, str):
        document.texts[path] = value
        return raw
    document.texts[path] = raw
    return value
