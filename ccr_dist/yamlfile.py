"""YAML files that remember where every value stands: `base:` inheritance, `key.sub=value` overrides, errors with file and line.

Used by run configs and by dataset recipes alike. Knows nothing about what a document means; the schema is a pydantic model.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from .errors import ConfigError

Model = TypeVar("Model", bound=BaseModel)
KeyPath = tuple[str | int, ...]


@dataclass
class Document:
    """Merged values and, for each key path, the place (`file:line`) that had the last word on it."""

    name: str
    data: dict[str, Any] = field(default_factory=dict)
    places: dict[KeyPath, str] = field(default_factory=dict)

    def place(self, path: KeyPath) -> str:
        """Where the value at `path`, or its nearest parent, was written."""
        for end in range(len(path), 0, -1):
            if path[:end] in self.places:
                return self.places[path[:end]]
        return self.name


def load(path: str | Path, overrides: Iterable[str] = ()) -> Document:
    """Read `path` with its bases, then apply `key.sub=value` overrides (values are YAML).

    `base:` is one path or a list, relative to the file that says it; later bases and then the file itself win. Mappings merge, anything
    else
    replaces. Raises ConfigError with file and line on bad YAML, a missing or circular base, a duplicate key or a malformed override.
    """
    document = _read(Path(path), ())
    for text in overrides:
        _override(document, text)
    return document


def validate(schema: type[Model], document: Document, *, at: KeyPath = ()) -> Model:
    """Build `schema` from the document, or raise ConfigError listing every problem with its place and, for unknown keys, the
    nearest valid one.
    """
    value: Any = document.data
    for key in at:
        value = value[key]
    try:
        return schema.model_validate(value)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(schema, document, at, problem) for problem in error.errors())) from None


def _explain(schema: type[BaseModel], document: Document, at: KeyPath, problem: Mapping[str, Any]) -> str:
    path = _without_tags(problem["loc"], document, at)
    dotted = ".".join(map(str, at + path)) or "(document)"
    where = document.place(at + path)
    if problem["type"] == "extra_forbidden":
        valid = valid_keys(schema, path[:-1], document, at)
        near = difflib.get_close_matches(str(path[-1]), valid, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"valid keys: {', '.join(valid)}"
        return f"{where}: unknown key {dotted!r}; {hint}"
    if problem["type"] == "missing":
        return f"{where}: {dotted!r} is missing"
    given = "" if isinstance(problem.get("input"), dict) else f" (got {problem.get('input')!r})"
    return f"{where}: {dotted}: {problem['msg']}{given}"


def _without_tags(loc: tuple[str | int, ...], document: Document, at: KeyPath) -> KeyPath:
    """A pydantic error location without the tags of discriminated unions, which are not keys of the document."""
    path: list[str | int] = []
    value: Any = document.data
    for key in at:
        value = value[key]
    for position, key in enumerate(loc):
        last = position == len(loc) - 1
        if isinstance(value, dict) and key not in value and not last and key in value.values():
            continue
        path.append(key)
        try:
            value = value[key]
        except (KeyError, IndexError, TypeError):
            value = None
    return tuple(path)


def valid_keys(schema: type[BaseModel], path: KeyPath, document: Document, at: KeyPath = ()) -> list[str]:
    """Keys that are allowed at `path` inside `schema` (for a discriminated union: those of the member that the document chose)."""
    models: list[type[BaseModel]] = [schema]
    value: Any = document.data
    for key in at:
        value = value[key]
    for key in path:
        value = value[key] if isinstance(value, dict) or (isinstance(value, list | tuple) and isinstance(key, int)) else None  # type: ignore[index]
        found: list[type[BaseModel]] = []
        for model in models:
            if isinstance(key, str) and key in model.model_fields:
                found += _models_in(model.model_fields[key].annotation)
            else:  # a key of a mapping or an index of a list: the element's model was collected with the field
                found.append(model)
        models = [m for m in found if _tag_fits(m, value)] or found
    return sorted({name for model in models for name in model.model_fields})


def _tag_fits(model: type[BaseModel], value: Any) -> bool:
    if not isinstance(value, dict):
        return True
    for name, info in model.model_fields.items():
        if get_origin(info.annotation) is Literal and name in value and value[name] not in get_args(info.annotation):
            return False
    return True


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models_in(part)]


def _read(path: Path, seen: tuple[Path, ...]) -> Document:
    path = path.resolve() if seen else path
    if path.resolve() in seen:
        raise ConfigError(f"{path}: 'base' goes in a circle: {' -> '.join(map(str, (*seen, path)))}")
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file" + (f" (a base of {seen[-1]})" if seen else "")) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as text: {error}") from None
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise ConfigError(f"{path}{line}: not valid YAML: {getattr(error, 'problem', error)}") from None
    own = Document(name=str(path))
    if node is not None:
        if not isinstance(node, yaml.MappingNode):
            raise ConfigError(f"{path}:{node.start_mark.line + 1}: expected `key: value` lines at the top level")
        own.data = _convert(node, (), str(path), own.places)
    bases = own.data.pop("base", [])
    merged = Document(name=str(path))
    for base in [bases] if isinstance(bases, str) else bases:
        if not isinstance(base, str):
            raise ConfigError(f"{own.place(('base',))}: 'base' is a path or a list of paths, got {base!r}")
        _merge(merged, _read(path.parent / base, (*seen, path.resolve())))
    _merge(merged, own)
    merged.places.pop(("base",), None)
    return merged


def _convert(node: yaml.Node, path: KeyPath, file: str, places: dict[KeyPath, str]) -> Any:
    if isinstance(node, yaml.MappingNode):
        result: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            key = yaml.SafeLoader("").construct_object(key_node)
            line = f"{file}:{key_node.start_mark.line + 1}"
            if not isinstance(key, str):
                # `no:` (Norwegian) is a boolean in YAML 1.1: the key as it was typed is what the author meant
                key = key_node.value
            if key in result:
                raise ConfigError(f"{line}: key {key!r} is given twice")
            places[(*path, key)] = line
            result[key] = _convert(value_node, (*path, key), file, places)
        return result
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            places[(*path, index)] = f"{file}:{item.start_mark.line + 1}"
        return [_convert(item, (*path, index), file, places) for index, item in enumerate(node.value)]
    assert isinstance(node, yaml.ScalarNode)
    value = yaml.SafeLoader("").construct_object(node)
    if isinstance(value, bool) and node.value.lower() not in ("true", "false"):
        return node.value  # `no`, `on`, `off` are booleans in YAML 1.1 alone: here they are a language and the names of choices
    if isinstance(value, str):
        try:  # YAML 1.1 reads 1e-3 as text; every author means the number
            return float(value) if node.style is None and value[:1] in "+-.0123456789" else value
        except ValueError:
            return value
    return value


def _merge(under: Document, over: Document) -> None:
    def merge(a: dict[str, Any], b: dict[str, Any], path: KeyPath) -> None:
        for key, value in b.items():
            here = (*path, key)
            if isinstance(value, dict) and isinstance(a.get(key), dict):
                merge(a[key], value, here)
            else:
                a[key] = value
                for old in [p for p in under.places if p[: len(here)] == here]:
                    del under.places[old]
            under.places.update({p: place for p, place in over.places.items() if p[: len(here)] == here})

    merge(under.data, over.data, ())


def _override(document: Document, text: str) -> None:
    dotted, sign, raw = text.partition("=")
    if not sign or not dotted.strip():
        raise ConfigError(f"override {text!r}: expected key.sub=value")
    keys: list[str | int] = [int(k) if k.isdigit() else k for k in dotted.strip().split(".")]
    place = f"override {text!r}"
    try:
        node = yaml.compose(raw, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{place}: the value is not valid YAML: {getattr(error, 'problem', error)}") from None
    target: Any = document.data
    for depth, key in enumerate(keys[:-1]):
        if isinstance(target, list) and isinstance(key, int) and key < len(target):
            target = target[key]
        elif isinstance(target, dict):
            target = target.setdefault(str(key), {})
        else:
            raise ConfigError(f"{place}: {'.'.join(map(str, keys[: depth + 1]))} is not there to be changed")
        if not isinstance(target, dict | list):
            raise ConfigError(f"{place}: {'.'.join(map(str, keys[: depth + 1]))} is a value, not a section")
    last = keys[-1]
    places: dict[KeyPath, str] = {}
    value = None if node is None else _convert(node, tuple(keys), place, places)
    if isinstance(target, list):
        if not isinstance(last, int) or last >= len(target):
            raise ConfigError(f"{place}: the list has {len(target)} entries, index {last!r} is not one of them")
        target[last] = value
    else:
        target[str(last)] = value
    document.places.update({key: place for key in places})
    document.places[tuple(keys)] = place
