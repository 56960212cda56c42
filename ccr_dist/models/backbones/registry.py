"""How backbones are found by kind.

A kind is a folder here, of its name: `options.py` holds the section of a run config, `backbone.py` the model. Reading a
config must be quick, so only `options.py` is imported for it, and no options file imports torch. `backbone.py` is
imported when a backbone is built.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import ccr_dist.models.backbones as folder
from ccr_dist.config import BackboneConfig
from ccr_dist.errors import ConfigError

if TYPE_CHECKING:  # torch must not be imported to read a config
    from ccr_dist.models.backbones.backbone import Backbone

SomeConfig = TypeVar("SomeConfig", bound=type[BackboneConfig])
SomeBackbone = TypeVar("SomeBackbone", bound="type[Backbone]")
_configs: dict[str, type[BackboneConfig]] = {}
_backbones: dict[str, Callable[[Any], Backbone]] = {}


def register_config(kind: str) -> Callable[[SomeConfig], SomeConfig]:
    """Class decorator: this is the section of backbones of this kind, which is the name of its folder."""

    def add(config: SomeConfig) -> SomeConfig:
        assert config.__module__ == f"{folder.__name__}.{kind}.options", f"kind {kind!r} is in {config.__module__}"
        _configs[kind] = config
        return config

    return add


def register_backbone(kind: str) -> Callable[[SomeBackbone], SomeBackbone]:
    """Class decorator: this class, which is made of a section, is the backbone of this kind."""

    def add(backbone: SomeBackbone) -> SomeBackbone:
        _backbones[kind] = backbone
        return backbone

    return add


def kinds() -> list[str]:
    """The kinds of backbones, sorted."""
    for module in pkgutil.iter_modules(folder.__path__):
        if module.ispkg:
            importlib.import_module(f"{folder.__name__}.{module.name}.options")
    return sorted(_configs)


def config(kind: str, *, place: str = "backbone.kind") -> type[BackboneConfig]:
    """The class of sections of this kind. Does not import torch.

    Args:
        kind: of the backbone.
        place: file, line or key that holds it, for the error.

    Raises:
        ConfigError: there is no such kind; lists the known ones and the nearest.
    """
    known = kinds()
    if kind not in known:
        near = difflib.get_close_matches(kind, known, n=1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise ConfigError(f"{place}: unknown kind '{kind}'; {hint}known kinds: {', '.join(known)}")
    return _configs[kind]


def backbone(kind: str) -> Callable[[Any], Backbone]:
    """The class of backbones of this kind, which is made of its section. Raises ConfigError as `config`."""
    module = f"{config(kind).__module__.rpartition('.')[0]}.backbone"
    if kind not in _backbones:
        importlib.import_module(module)
    return _backbones[kind]
