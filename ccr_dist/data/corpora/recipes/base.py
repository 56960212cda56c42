"""What a recipe is, the registry of them, and reading their YAML files. A new recipe is a new file here and a YAML in
`shards/`.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pydantic import Field

from ccr_dist import yamlfile
from ccr_dist.config import Frozen
from ccr_dist.data.table.splits import SPLITS
from ccr_dist.errors import ConfigError
from ccr_dist.resources import RECIPES


@dataclass(frozen=True)
class ColumnSpec:
    """A column to be made. The plan decides its bytes (options, source digests, versions that matter); provenance tells
    the rest.
    """

    name: str
    kind: str
    extension: str
    plan: dict[str, Any]
    provenance: dict[str, Any]
    splits: tuple[str, ...] = SPLITS  # that have it


@dataclass(frozen=True)
class RecipeRow:
    """One item. A column's value, or a picklable callable without arguments that makes it (run in a pool); a missing
    column: null.

    A callable raises DataError where there is no value to be had. `exports`: JSON values that go to `<name>.jsonl`
    beside the dataset.
    """

    split: str
    key: str
    columns: dict[str, Any]
    exports: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Material:
    """What a recipe found: `plan` decides which rows there are and is compared on every later build; notes are shown to
    the user.
    """

    plan: dict[str, Any]
    columns: Sequence[ColumnSpec]
    rows: Sequence[RecipeRow]
    notes: Sequence[str] = ()
    parallel: bool = True  # making the values is work for many cores (rendering), not for the disk (reading files)


class Recipe(Frozen):
    """Options that every recipe has. `kind` names the recipe."""

    kind: str
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    shard_rows: int = Field(1000, gt=0)
    limit: int | None = Field(
        None, gt=0, description="at most this many rows per split, evenly spaced, for a first try"
    )
    bad_pictures: int = Field(
        0, ge=0, description="pictures that may turn out unusable; their rows keep their captions and get no picture"
    )

    about: ClassVar[str] = ""

    def needs(self) -> list[str]:
        """Lines that say what must be there before a build: what to fetch, from where, under which names."""
        return [self.about]

    def reads(self) -> list[Path]:
        """Files and folders of the user's that must be there before a build. Here: all options that are paths."""
        values = [each for _, value in self for each in (value if isinstance(value, tuple) else (value,))]
        return [value for value in values if isinstance(value, Path)]

    def material(self) -> Material:
        """Looks at the source and says what there is to build; renders nothing. ConfigError or DataError: the source is
        not as expected.
        """
        raise TypeError(f"{type(self).__name__} must define material()")

    def advice(self, out: Path, material: Material) -> str:
        """What to do where OUT holds another build than the one asked for."""
        return "use another --out, or remove it"


R = TypeVar("R", bound=type[Recipe])
_RECIPES: dict[str, type[Recipe]] = {}


def register(kind: str) -> Callable[[R], R]:
    """Class decorator: makes a recipe known under its `kind`."""

    def add(cls: R) -> R:
        if kind in _RECIPES and _RECIPES[kind].__qualname__ != cls.__qualname__:
            raise ValueError(f"two recipes of kind {kind!r}: {_RECIPES[kind]} and {cls}")
        _RECIPES[kind] = cls
        return cls

    return add


def recipes() -> dict[str, type[Recipe]]:
    """All recipes by kind."""
    import ccr_dist.data.corpora.recipes as package

    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
    return dict(sorted(_RECIPES.items()))


def shipped() -> dict[str, Path]:
    """The recipe files that come with ccr-dist (`shards/*.yaml`), by name."""
    return RECIPES.files()


def load_recipe(where: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """A recipe from a YAML file, or from the name of a shipped one, with `key=value` overrides. ConfigError with file
    and line.
    """
    document = yamlfile.load(RECIPES.find(where), overrides)
    known, kind = recipes(), document.data.get("kind")
    if not isinstance(kind, str) or kind not in known:
        raise ConfigError(f"{document.place(('kind',))}: kind: expected one of {', '.join(known)}, found {kind!r}")
    return yamlfile.validate(known[kind], document)


def package_version(name: str, extra: str = "demo") -> str:
    """The version of an installed package. ConfigError saying how to get it when it is missing."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        raise ConfigError(
            f"this recipe needs the package {name!r}: pip install 'ccr-dist[{extra}]' (or pip install {name})"
        ) from None
