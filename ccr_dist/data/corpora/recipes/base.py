"""The protocol of recipes, their registry, and their YAML files. A new recipe is a new file here and a YAML in
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
    """A column to be made.

    Attributes:
        name: Its name.
        kind: Its kind.
        extension: Extension of its members, or several, as in `jpg;png`.
        plan: Everything that decides its bytes: options, digests of sources, versions that matter.
        provenance: Everything else worth recording.
        splits: The splits that have it.
    """

    name: str
    kind: str
    extension: str
    plan: dict[str, Any]
    provenance: dict[str, Any]
    splits: tuple[str, ...] = SPLITS


@dataclass(frozen=True)
class RecipeRow:
    """One item of a recipe.

    Attributes:
        split: train, val or test.
        key: Its key.
        columns: Value by column; a missing column is null. A value may be a picklable callable without arguments, which
            makes it in a pool and raises DataError if there is none.
        exports: JSON value by name, for `<name>.jsonl` beside the dataset.
    """

    split: str
    key: str
    columns: dict[str, Any]
    exports: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Material:
    """What a recipe found in its source.

    Attributes:
        plan: Everything that decides which rows there are; compared in every later build.
        columns: The columns to be made.
        rows: The rows.
        notes: Lines for the user.
        parallel: Whether making the values keeps many cores busy (rendering), rather than the disk (reading files).
    """

    plan: dict[str, Any]
    columns: Sequence[ColumnSpec]
    rows: Sequence[RecipeRow]
    notes: Sequence[str] = ()
    parallel: bool = True


class Recipe(Frozen):
    """Base of all recipes, with the options that each has. `kind` names the recipe."""

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
        """Lines on what a build needs: what to fetch, from where, under which names."""
        return [self.about]

    def reads(self) -> list[Path]:
        """The user's files and folders that a build reads; by default all options that are paths."""
        values = [each for _, value in self for each in (value if isinstance(value, tuple) else (value,))]
        return [value for value in values if isinstance(value, Path)]

    def material(self) -> Material:
        """Inspect the source without rendering anything.

        Returns:
            What there is to build.

        Raises:
            ConfigError: An option is wrong, or the source is missing.
            DataError: The source is not as expected.
        """
        raise TypeError(f"{type(self).__name__} must define material()")

    def advice(self, out: Path, material: Material) -> str:
        """What a user can do if `out` holds another build.

        Args:
            out: Folder of the datasets.
            material: What this recipe found.
        """
        return "use another --out, or remove it"


R = TypeVar("R", bound=type[Recipe])
_RECIPES: dict[str, type[Recipe]] = {}


def register(kind: str) -> Callable[[R], R]:
    """Class decorator: registers a recipe by its `kind`."""

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
    """Load a recipe.

    Args:
        where: A YAML file, or the name of a shipped one.
        overrides: `key=value` options.

    Raises:
        ConfigError: The file or an option is wrong; names file and line.
    """
    document = yamlfile.load(RECIPES.find(where), overrides)
    known, kind = recipes(), document.data.get("kind")
    if not isinstance(kind, str) or kind not in known:
        raise ConfigError(f"{document.place(('kind',))}: kind: expected one of {', '.join(known)}, found {kind!r}")
    return yamlfile.validate(known[kind], document)


def package_version(name: str, extra: str = "demo") -> str:
    """The version of an installed package.

    Args:
        name: The package.
        extra: The extra of ccr-dist that has it.

    Raises:
        ConfigError: It is not installed; says how to install it.
    """
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        raise ConfigError(
            f"this recipe needs the package {name!r}: pip install 'ccr-dist[{extra}]' (or pip install {name})"
        ) from None
