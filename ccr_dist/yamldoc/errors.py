"""Turns pydantic's errors about a document into sentences: the place, the key, the nearest valid key, the overrides
involved.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel

from ccr_dist.yamldoc.document import Document
from ccr_dist.yamldoc.nodes import KeyPath

_WHOLE, _NUMBER, _CHOICE = "a whole number", "a number", "true or false"
_LIST, _SECTION = "a list, such as [a, b]", "a section of `key: value` lines"
_KINDS = {
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float", "int_parsing_size"), _WHOLE),
    **dict.fromkeys(("float_type", "float_parsing"), _NUMBER),
    "finite_number": "a finite number",
    **dict.fromkeys(("bool_type", "bool_parsing"), _CHOICE),
    **dict.fromkeys(("string_type", "string_sub_type", "string_unicode"), "text"),
    "path_type": "a path",
    **dict.fromkeys(("list_type", "tuple_type", "set_type", "iterable_type"), _LIST),
    **dict.fromkeys(("dict_type", "mapping_type", "model_type", "model_attributes_type"), _SECTION),
    "none_required": "null",
}
_LIMITS = {
    "greater_than": "more than {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "less_than": "less than {lt:g}",
    "less_than_equal": "at most {le:g}",
    "multiple_of": "a multiple of {multiple_of}",
    "literal_error": "{expected}",
    "enum": "{expected}",
    "union_tag_invalid": "{discriminator} to be one of {expected_tags}",
    "union_tag_not_found": "a key {discriminator}",
}


def explain(schema: type[BaseModel], document: Document, at: KeyPath, problem: Mapping[str, Any]) -> str:
    """One error as a sentence.

    Args:
        schema: Class of the model.
        document: The document.
        at: Path of the section that the model describes.
        problem: One of `ValidationError.errors()`.
    """
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
        message = expected(problem, _about(schema, path, document, at))
        said = ": ".join(part for part in (where, dotted, message) if part) + got
    else:
        said = f"{where}: a value that is not allowed here ({problem['type']})"
    return said + _because(document, at + path, where)


def expected(problem: Mapping[str, Any], about: str = "") -> str:
    """What is wrong with a value, without place and key.

    Args:
        problem: One of `ValidationError.errors()`.
        about: Description of the field, for values that must match a pattern.
    """
    kind, facts = problem["type"], problem.get("ctx", {})
    if kind in _KINDS:
        return f"expected {_KINDS[kind]}"
    if kind in _LIMITS:
        return f"expected {_LIMITS[kind].format(**facts)}"
    if kind in ("too_short", "string_too_short"):
        what = "characters" if kind == "string_too_short" else "entries"
        least = facts["min_length"]
        return f"expected at least {least} {what}" if least > 1 else "expected something here; it is empty"
    if kind in ("too_long", "string_too_long"):
        what = "characters" if kind == "string_too_long" else "entries"
        return f"expected at most {facts['max_length']} {what}"
    if kind == "string_pattern_mismatch":
        return f"expected text of the form {facts['pattern']}" + (f" ({about})" if about else "")
    message: str = problem["msg"]
    return message.removeprefix("Value error, ")  # pydantic's prefix for ValueErrors of validators


def _about(schema: type[BaseModel], path: KeyPath, document: Document, at: KeyPath) -> str:
    """The description of the field at `path`, or ""."""
    for model in _models_at(schema, path[:-1], document, at) if path else ():
        field = model.model_fields.get(str(path[-1]))
        if field is not None and field.description:
            return field.description
    return ""


def _because(document: Document, path: KeyPath, where: str) -> str:
    """The overrides of the same section, unless the place is one: the file may be right without them."""
    if where in document.overrides.values():
        return ""
    section = path[:-1] if len(path) > 1 else path
    near = [place for key, place in document.overrides.items() if key[: len(section)] == section]
    return f" (with {', '.join(dict.fromkeys(near))})" if near else ""


def shown(value: Any) -> str:
    """A value for messages, shortened."""
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
    """Keys that are allowed in the section at `path`; of a discriminated union, those of the member that the document
    chose.

    Args:
        schema: Class of the model.
        path: Path of the section in the model.
        document: The document.
        at: Path of the section that the model describes.
    """
    return sorted({name for model in _models_at(schema, path, document, at) for name in model.model_fields})


def _models_at(schema: type[BaseModel], path: KeyPath, document: Document, at: KeyPath) -> list[type[BaseModel]]:
    """The models that the section at `path` may be."""
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
    return models


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
