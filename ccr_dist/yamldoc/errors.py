"""What pydantic finds wrong with a document, as sentences: the place, the key, the nearest valid one, the overrides
that play a part.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel

from ccr_dist.yamldoc.document import Document
from ccr_dist.yamldoc.nodes import KeyPath


def explain(schema: type[BaseModel], document: Document, at: KeyPath, problem: Mapping[str, Any]) -> str:
    path = _without_tags(problem["loc"], document, at)
    dotted = ".".join(map(str, at + path))
    where = document.place(at + path)
    quotes = where.rpartition(":")[0] not in document.outside
    if problem["type"] == "extra_forbidden":
        valid = valid_keys(schema, path[:-1], document, at)
        near = difflib.get_close_matches(str(path[-1]), valid, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"valid keys: {', '.join(valid)}"
        said = (
            f"{where}: unknown key {dotted!r}; {hint}"
            if quotes
            else f"{where}: unknown key; valid keys: {', '.join(valid)}"
        )
    elif problem["type"] == "missing":
        said = f"{where}: {dotted!r} is missing"
    elif quotes:
        given = problem.get("input")
        got = "" if isinstance(given, dict | BaseModel) else f" (got {shown(given)})"
        message = problem["msg"].removeprefix("Value error, ")  # pydantic's prefix for ValueErrors of validators
        said = ": ".join(part for part in (where, dotted, message) if part) + got
    else:
        said = f"{where}: a value that is not allowed here ({problem['type']})"
    return said + _because(document, at + path, where)


def _because(document: Document, path: KeyPath, where: str) -> str:
    """The overrides of the same section, where the place does not name one: what a file says was right without them."""
    if where in document.overrides.values():
        return ""
    section = path[:-1] if len(path) > 1 else path
    near = [place for key, place in document.overrides.items() if key[: len(section)] == section]
    return f" (with {', '.join(dict.fromkeys(near))})" if near else ""


def shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def _without_tags(loc: tuple[str | int, ...], document: Document, at: KeyPath) -> KeyPath:
    """A pydantic error location without the tags of unions, which are not keys of the document."""
    path: list[str | int] = []
    value: Any = document.data
    for key in at:
        value = value[key]
    for position, key in enumerate(loc):
        there = isinstance(value, dict | list | tuple)
        if not there or (isinstance(value, dict) and key not in value and position < len(loc) - 1):
            continue
        path.append(key)
        try:
            value = value[key]
        except (KeyError, IndexError, TypeError):
            value = None
    return tuple(path)


def valid_keys(schema: type[BaseModel], path: KeyPath, document: Document, at: KeyPath = ()) -> list[str]:
    """Keys that are allowed at `path` inside `schema` (for a discriminated union: those of the member that the document
    chose).
    """
    models: list[type[BaseModel]] = [schema]
    value: Any = document.data
    for key in at:
        value = value[key]
    for key in path:
        try:
            value = value[key]
        except (KeyError, IndexError, TypeError):
            value = None
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
