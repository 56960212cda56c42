"""The parts of a published dataset's YAML: lists of items, and files that fill columns.

`{name}` in their strings stands for a variable.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field

from ccr_dist.config import Frozen
from ccr_dist.data.corpora.formats.readers import CaptionFormat, ItemFormat
from ccr_dist.errors import ConfigError

Split = Literal["train", "val", "test"]
_SHOWN = 8


class ItemList(Frozen):
    """A list of items, in order."""

    read: ItemFormat
    part: tuple[int, int] | None = Field(
        None, description="only items whose sha1 modulo 100 is at least the first and below the second"
    )
    first: int | None = Field(None, gt=0, description="only this many, from the beginning of the list")
    first_with_media: int | None = Field(
        None, gt=0, description="the same, counting only items whose media exist (missing=skip)"
    )


class CaptionSource(Frozen):
    """Files that fill a column. `{name}` in strings stands for a variable, or for each value of `each` in turn."""

    column: str = Field(
        description="caption.<lang>, caption.<lang>.<engine>, or description.<source> (a text per item, view `detail`)"
    )
    read: CaptionFormat
    each: dict[str, tuple[str | int, ...]] = Field(
        {}, description="values of variables; makes one source for each combination, in order"
    )
    splits: tuple[Split, ...] = Field(("train", "val", "test"), description="rows that it fills")
    translates: str | None = Field(None, description="the column whose captions these translate one by one")
    optional: bool = Field(False, description="may be absent")


def expand_source(source: CaptionSource, variables: dict[str, str | int]) -> Iterator[CaptionSource]:
    """One source for each combination of the values of `each`, with all variables filled in."""
    for values in itertools.product(*source.each.values()):
        known = {**variables, **dict(zip(source.each, values, strict=True))}
        yield CaptionSource.model_validate(fill_in(source.model_dump(exclude={"each"}), known))


def fill_in(value: Any, variables: dict[str, str | int]) -> Any:
    """`value` with `{name}` replaced in every string, at any depth. Raises ConfigError for an unknown variable."""
    if isinstance(value, dict):
        return {key: fill_in(one, variables) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [fill_in(one, variables) for one in value]
    if not isinstance(value, str):
        return value
    try:
        return value.format_map(variables)
    except (KeyError, ValueError, IndexError) as e:
        raise ConfigError(f"{value!r}: no such variable ({e}); there are: {', '.join(variables) or 'none'}") from None


def language_of(column: str) -> str:
    """The language of a column of captions; "" for other columns."""
    kind, _, rest = column.partition(".")
    return rest.split(".")[0] if kind == "caption" else ""


def some(names: list[str]) -> str:
    """The first names, and how many there are in all, for messages."""
    return ", ".join(names[:_SHOWN]) + (f", ... ({len(names)} in all)" if len(names) > _SHOWN else "")
