"""What an engine is, and finding one by name. One file an engine in this folder: adding one edits no other file.

An engine is a system that turns text into text (pictures into text: `generator.py`) behind a small protocol; it knows
nothing about columns and shards. No engine imports its libraries at module top: a missing one is an EngineError that
says what to install.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from ccr_dist import yamlfile
from ccr_dist.data.storage import store
from ccr_dist.errors import ConfigError, DataError, EngineError, let_pass


class EngineOptions(BaseModel):
    """Base of every engine's options: typed, unknown ones are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class Cut(str):
    """A translation that ended at the engine's limit and not by itself."""

    __slots__ = ()


class Translator(ABC):
    """A machine translation system for one direction; making it loads nothing heavy.

    `source`, `target`: language codes as in column names (en, pt_BR, zh-Hans). The maker raises EngineError when the
    direction does not exist. `batch`: rows a call that suit this engine. `directed`: options that may be for one
    direction only, not for the way back. `packages`, `tools`: what it imports, and starts, when it is made. `local`:
    its model may be a folder here. `longest`: characters of a text that it is given at most; a longer one is a bad
    item, since an engine's time grows with their square.
    """

    Options: ClassVar[type[EngineOptions]] = EngineOptions
    batch: ClassVar[int] = 64
    directed: ClassVar[tuple[str, ...]] = ()
    longest: ClassVar[int] = 4000
    packages: ClassVar[tuple[str, ...]] = ()
    tools: ClassVar[tuple[str, ...]] = ()
    local: ClassVar[bool] = True

    @abstractmethod
    def __init__(self, source: str, target: str, options: Any) -> None: ...

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What determines the translations: name, version, model and revision or digest of its weights, decoding
        options. JSON.
        """

    def versions(self) -> dict[str, str]:
        """Of libraries that are no part of the identity, for the provenance."""
        return {}

    def load(self) -> None:  # noqa: B027 (not all have something to load)
        """Loads models; called once before the first `translate`."""

    @abstractmethod
    def translate(self, texts: list[str]) -> list[str | DataError]:
        """One translation a text, in order; a `Cut` where it ended at the engine's limit, a DataError for a text this
        engine cannot take.

        The texts are not blank and hold no line breaks. A translation must not depend on its neighbours in the list, as
        far as the engine can help it. EngineError when the engine is gone or answers with another number of texts.
        """


E = TypeVar("E")
Opts = TypeVar("Opts", bound=EngineOptions)


class Registry(Generic[E]):
    """Engines of one protocol by name."""

    def __init__(self, what: str) -> None:
        self.what = what
        self._known: dict[str, type[E]] = {}

    def register(self, name: str) -> Callable[[type[E]], type[E]]:
        """Class decorator."""

        def add(cls: type[E]) -> type[E]:
            self._known[name] = cls
            return cls

        return add

    def names(self) -> list[str]:
        package = importlib.import_module(__package__)
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{__package__}.{module.name}")
        return sorted(self._known)

    def get(self, name: str) -> type[E]:
        """ConfigError, with the names there are, for an unknown one."""
        names = self.names()
        if name not in names:
            near = difflib.get_close_matches(name, names, 1)
            raise ConfigError(
                f"unknown {self.what} {name!r}"
                + (f"; did you mean {near[0]!r}?" if near else ";")
                + f" There are: {', '.join(names)}"
            )
        return self._known[name]


translators: Registry[Translator] = Registry("translation engine")


def make_translator(name: str, source: str, target: str, options: dict[str, Any]) -> Translator:
    """The engine of this name for a direction. ConfigError for an unknown engine or option, naming the valid ones."""
    cls = translators.get(name)
    return cls(source, target, check_options(name, cls.Options, options))


def check_options(name: str, cls: type[Opts], options: dict[str, Any]) -> Opts:
    """The options of an engine, typed. ConfigError naming the valid ones."""
    try:
        return yamlfile.build(cls, yamlfile.of_options(options))
    except ValidationError as e:
        valid = ", ".join(f"{key} ({info.description})" for key, info in cls.model_fields.items()) or "none"
        faults = "; ".join(f"{'.'.join(map(str, error['loc']))}: {error['msg']}" for error in e.errors())
        raise ConfigError(f"engine {name!r}: {faults}. Its options: {valid}") from e


@contextmanager
def needs(engine: str, install: str) -> Iterator[None]:
    """An ImportError inside the block becomes an EngineError that says what to install."""
    try:
        yield
    except ImportError as e:
        raise EngineError(f"engine {engine!r} is not installed ({e}); install it with: {install}") from e


_NOT_CONTENT = (".md", ".gitattributes", ".lock")


def model_identity(engine: str, model: str, revision: str | None) -> dict[str, Any]:
    """Which weights a model in Hugging Face's format is: a local folder by the digest of its files, an id by its
    commit.

    EngineError when it is neither a folder nor an id that can be found.
    """
    folder = Path(model)
    if folder.is_dir():
        files = sorted(
            p for p in folder.iterdir() if p.is_file() and p.suffix not in _NOT_CONTENT and not p.name.startswith(".")
        )
        return {
            "model": folder.resolve().name,
            "files": store.digest_json({p.name: store.sha256_file(p) for p in files}),
        }
    with needs(engine, "pip install huggingface_hub"):
        from huggingface_hub import hf_hub_download
    try:
        config = hf_hub_download(model, "config.json", revision=revision)
    except (OSError, ValueError) as e:
        let_pass(e, model)
        raise EngineError(
            f"engine {engine!r}: {model!r} is neither a local folder nor a Hugging Face id that can be found"
            f" (revision {revision or 'main'}): {str(e)[:300]}"
        ) from e
    return {"model": model, "revision": Path(config).parent.name}  # .../snapshots/<commit>/config.json


def token_ids(setting: int | list[int] | None) -> set[int]:
    """The ids in a setting that holds none, one or several of them."""
    if setting is None:
        return set()
    return {setting} if isinstance(setting, int) else set(setting)


def torch_device(name: str) -> str:
    """The device of a name; `auto`: the accelerator of this machine, else cpu."""
    import torch

    if name != "auto":
        return name
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return "cpu" if accelerator is None else str(accelerator)
