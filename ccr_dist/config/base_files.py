"""Which keys of a config name local files and folders of base weights, and the same config with others in their place.

A key says of itself that it may (`MayBeLocal`), so one walk over a config finds all of them, of any backbone, front end
and method. Public models, by an id, a tag or a package, are not among them.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from ccr_dist.declare import Item, Place, Run, names_a_path
from ccr_dist.errors import ConfigError

LOCAL_DIR = "local-dir:"  # of open_clip and timm


@dataclass(frozen=True)
class MayBeLocal:
    """Annotation of a text option that names weights: its value may be a local path.

    Attributes:
        names: values that never are, whatever lies in the working folder; also with something behind a colon.
        marked: a path stands behind `local-dir:`, and nothing else is one.
        folder: weights are a folder or a file, and not only a file.
        trained: they are of a run (its folder, of which `model.safetensors` is read, or a file), not of the model's
            makers.
    """

    names: tuple[str, ...] = ()
    marked: bool = False
    folder: bool = True
    trained: bool = False

    def path(self, value: str) -> Path | None:
        """The path that a value names; None: something public. A path need not exist."""
        if self.marked:
            return Path(value.removeprefix(LOCAL_DIR)) if value.startswith(LOCAL_DIR) else None
        if value.partition(":")[0] in self.names:
            return None
        path = Path(value)
        there = path.is_file() or (self.folder and path.is_dir())
        return path if self.trained or there or names_a_path(value) else None


def base_files(section: BaseModel) -> dict[str, Path]:
    """The local files and folders that a section, or a whole run config, takes weights from.

    Args:
        section: of a run config, or all of it.

    Returns:
        Dotted key (`backbone.text`, `method.frontend.embeddings`) -> path, as it is written there. Of a folder of a run
        (`backbone.weights`), only `model.safetensors` is read. The run that `init_from` names is not among them.
    """
    return {key: path for key, path, _ in _found(section)}


def reads(section: BaseModel) -> list[Item]:
    """The same, as what a command of a pipeline reads."""
    return [Run(str(path)) if mark.trained else Place(str(path)) for _, path, mark in _found(section)]


def with_base_files(values: Mapping[str, Any], paths: Mapping[str, str | Path]) -> dict[str, Any]:
    """A config with other paths of base weights.

    Args:
        values: a config as plain values, or a section of it.
        paths: keys of `base_files` -> the new path.

    Returns:
        A copy of `values`.

    Raises:
        ConfigError: `values` has no such key.
    """
    changed = copy.deepcopy(dict(values))
    for key, path in paths.items():
        *above, last = key.split(".")
        section: Any = changed
        for name in above:
            section = section.get(name) if isinstance(section, dict) else None
        if not isinstance(section, dict) or not isinstance(section.get(last), str):
            raise ConfigError(
                f"'{key}': the config names no weights under this key, so no other path can take its place"
            )
        section[last] = f"{LOCAL_DIR if section[last].startswith(LOCAL_DIR) else ''}{path}"
    return changed


def _found(section: BaseModel, above: str = "") -> Iterator[tuple[str, Path, MayBeLocal]]:
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            yield from _found(value, f"{above}{name}.")
        for mark in field.metadata:
            if isinstance(mark, MayBeLocal) and value is not None and (path := mark.path(value)) is not None:
                yield f"{above}{name}", path, mark
