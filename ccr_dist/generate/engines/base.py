"""The protocol of translation engines, and the registry of engines by name. Each engine is one file in this folder;
adding one edits no other file.

An engine turns text into text (pictures into text: `generator.py`) and knows nothing about columns and shards. No
engine imports its libraries at the top of its module: a missing library is an EngineError that says what to install.
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
from ccr_dist.yamldoc.errors import expected, shown


class EngineOptions(BaseModel):
    """Base of every engine's options: typed; unknown ones are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class Cut(str):
    """A translation that was cut off at the engine's limit."""

    __slots__ = ()


class Translator(ABC):
    """A machine translation system for one direction. The constructor loads nothing heavy.

    Args:
        source: Source language, as in column names (en, pt_BR, zh-Hans).
        target: Target language.
        options: The engine's options.

    Attributes:
        batch: Rows per call that suit this engine.
        directed: Options that may be for one direction only, and so not for the way back.
        longest: Most characters of a text; a longer one is a bad item, since the time of engines grows with the square
            of the length.
        packages: Packages that it imports when it is constructed.
        tools: Programs that it starts when it is constructed.
        local: Whether its model may be a local folder.

    Raises:
        EngineError: The direction does not exist, or a library is missing.
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
        """What determines the translations, as JSON: name, version, model with revision or digest, decoding options."""

    def versions(self) -> dict[str, str]:
        """Versions of libraries that are not part of the identity, for the provenance."""
        return {}

    def load(self) -> None:  # noqa: B027 (not all have something to load)
        """Load models; called once before the first `translate`."""

    @abstractmethod
    def translate(self, texts: list[str]) -> list[str | DataError]:
        """Translate texts. As far as possible, a translation must not depend on the other texts.

        Args:
            texts: Texts that are not blank and have no line breaks.

        Returns:
            One entry per text, in order: the translation, as a `Cut` if it was cut off at the engine's limit; or a
            DataError for a text that this engine cannot take.

        Raises:
            EngineError: The engine failed or gave another number of translations.
        """


E = TypeVar("E")
Opts = TypeVar("Opts", bound=EngineOptions)


class Registry(Generic[E]):
    """Engines of one protocol by name.

    Args:
        what: What these engines are called in messages.
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self._known: dict[str, type[E]] = {}

    def register(self, name: str) -> Callable[[type[E]], type[E]]:
        """Class decorator: registers an engine."""

        def add(cls: type[E]) -> type[E]:
            self._known[name] = cls
            return cls

        return add

    def names(self) -> list[str]:
        """All names, sorted; imports every module of this folder."""
        package = importlib.import_module(__package__)
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{__package__}.{module.name}")
        return sorted(self._known)

    def get(self, name: str) -> type[E]:
        """The engine class of a name. Raises ConfigError, with all names, for an unknown one."""
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
    """Construct a translation engine.

    Args:
        name: Name of the engine.
        source: Source language.
        target: Target language.
        options: The engine's options, as text or typed.

    Raises:
        ConfigError: The engine or an option is unknown or wrong; names the valid ones.
        EngineError: The direction does not exist, or a library is missing.
    """
    cls = translators.get(name)
    return cls(source, target, check_options(name, cls.Options, options))


def check_options(name: str, cls: type[Opts], options: dict[str, Any]) -> Opts:
    """Options of an engine as its class. Raises ConfigError, naming the valid ones."""
    try:
        return yamlfile.build(cls, yamlfile.of_options(options))
    except ValidationError as e:
        valid = ", ".join(f"{key} ({info.description})" for key, info in cls.model_fields.items()) or "none"
        faults = "; ".join(dict.fromkeys(_fault(cls, error) for error in e.errors()))
        raise ConfigError(f"engine {name!r}: {faults}. Its options: {valid}") from e


def _fault(cls: type[Opts], error: Any) -> str:
    option = ".".join(map(str, error["loc"]))
    if error["type"] == "extra_forbidden":
        near = difflib.get_close_matches(option, cls.model_fields, 1)
        return f"no option {option!r}" + (f" (did you mean {near[0]!r}?)" if near else "")
    if error["type"] == "missing":
        return f"{option} is missing"
    return f"{option}: {expected(error)} (got {shown(error.get('input'))})"


@contextmanager
def needs(engine: str, install: str) -> Iterator[None]:
    """Context manager: turns an ImportError into an EngineError that says what to install."""
    try:
        yield
    except ImportError as e:
        raise EngineError(f"engine {engine!r} is not installed ({e}); install it with: {install}") from e


_NOT_CONTENT = (".md", ".gitattributes", ".lock")


def model_identity(engine: str, model: str, revision: str | None) -> dict[str, Any]:
    """Identify the weights of a model in Hugging Face's format: a local folder by a digest of its files, an id by its
    commit.

    Args:
        engine: Name of the engine, for messages.
        model: A local folder or a Hugging Face id.
        revision: Branch, tag or commit of an id; None: main.

    Raises:
        EngineError: It is neither a folder nor an id that can be found.
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
    """The token ids in a setting that holds none, one or several."""
    if setting is None:
        return set()
    return {setting} if isinstance(setting, int) else set(setting)


def torch_device(name: str) -> str:
    """A torch device by name; `auto` is the accelerator of this machine, or the CPU."""
    import torch

    if name != "auto":
        return name
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return "cpu" if accelerator is None else str(accelerator)
