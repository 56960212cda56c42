"""How methods are found by name.

A method is a folder here: `options.py` holds what a run config can set, which stages there are and which columns are
read; `method.py` holds the computation. Reading a config needs the options of every method and must be quick, so only
`options.py` is imported for it, and no options file imports torch. `method.py` is imported when a method is built.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import ccr_dist.methods as folder
from ccr_dist.config import MethodOptions
from ccr_dist.errors import ConfigError

if TYPE_CHECKING:  # torch must not be imported to read a config
    from ccr_dist.methods.base import Method

SomeOptions = TypeVar("SomeOptions", bound=type[MethodOptions])
SomeMethod = TypeVar("SomeMethod", bound="type[Method]")
_options: dict[str, type[MethodOptions]] = {}
_methods: dict[str, type[Method]] = {}


def register_options(name: str) -> Callable[[SomeOptions], SomeOptions]:
    """Class decorator: these are the options of the method `name`."""

    def add(options: SomeOptions) -> SomeOptions:
        known = _options.get(name)
        assert known is None or known.__module__ == options.__module__, f"two folders have options of method {name!r}"
        _options[name] = options
        return options

    return add


def register_method(name: str) -> Callable[[SomeMethod], SomeMethod]:
    """Class decorator: this class computes the method `name`, whose options are registered under the same name."""

    def add(method: SomeMethod) -> SomeMethod:
        assert _options.get(name) is method.Options, f"method {name!r} and its options are registered apart"
        method.name = name
        _methods[name] = method
        return method

    return add


def names() -> list[str]:
    """The names of all methods, sorted."""
    for module in pkgutil.iter_modules(folder.__path__):
        if module.ispkg:
            importlib.import_module(f"{folder.__name__}.{module.name}.options")
    return sorted(_options)


def options(name: str, *, place: str = "method.name") -> type[MethodOptions]:
    """The class of options of the method called `name`. Does not import torch.

    Args:
        name: the method.
        place: file, line or key that holds the name, for the error.

    Raises:
        ConfigError: there is no such method; lists the known ones and the nearest.
    """
    known = names()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise ConfigError(f"{place}: unknown method '{name}'; {hint}known methods: {', '.join(known)}")
    return _options[name]


def package(name: str) -> str:
    """The dotted name of the folder of a method. Raises ConfigError as `options`."""
    return options(name).__module__.rpartition(".")[0]


def method(name: str) -> type[Method]:
    """The class of the method called `name`. Raises ConfigError as `options`."""
    module = f"{package(name)}.method"
    if name not in _methods:
        importlib.import_module(module)
    return _methods[name]
