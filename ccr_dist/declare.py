"""What a command reads and makes, declared beside the command; and how a pipeline derives it from the words of a step.

    @shards_app.command("verify")
    @declares(lambda path: Uses(reads=(Table(path),)))
    def verify_command(path: ..., fast: ...) -> None: ...

The declaring function takes the parameters of the command that it needs, by name and as parsed, and returns a `Uses`.
It raises ConfigError for options that a step of a pipeline may not have. `parse` uses the command's own parser, so that
options, defaults and aliases are those of the command line. Nothing here opens a dataset or imports torch;
`cluster/checks.py` checks what exists.
"""

from __future__ import annotations

import contextlib
import difflib
import inspect
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import typer

from ccr_dist.errors import ConfigError


@dataclass(frozen=True)
class Item:
    """Something on disk, by its path as given on the command line, relative to the working folder.

    Attributes:
        path: its path, or its URL if it is a dataset in a store.
    """

    path: str


@dataclass(frozen=True)
class File(Item):
    """One file.

    Attributes:
        advice: for the message if it is missing: what to do.
    """

    advice: str = ""


@dataclass(frozen=True)
class Settings(File):
    """A YAML file whose values may name further files, its own bases included.

    Attributes:
        overrides: `key=value` words that change it.
    """

    overrides: tuple[str, ...] = ()


@dataclass(frozen=True)
class Folder(Item):
    """A folder with everything in it."""


@dataclass(frozen=True)
class Place(Item):
    """A file or a folder: the command takes either."""


@dataclass(frozen=True)
class Run(Item):
    """The folder of a training with its selected weights. Where weights are read, a weights file is accepted, too."""


@dataclass(frozen=True)
class Table(Item):
    """A dataset, or a folder of datasets (train/, val/, test/).

    Attributes:
        column: one of its columns. None: the dataset without columns if read, with all columns if made.
        single: it must be one dataset, not a folder of several.
    """

    column: str | None = None
    single: bool = False


@dataclass(frozen=True)
class Uses:
    """What one call of a command reads, makes and needs.

    Attributes:
        reads: what must exist when it starts.
        makes: what exists when it has ended.
        runs: training folders in which it works: their hang reports and checkpoints are read.
        steps: training steps in all of `runs` together; 0 if it does not train.
        fills: the column whose shards show its progress.
        packages: modules that it imports beyond those of the base installation.
        tools: programs that it starts.
        device: the device that it requires, such as cuda; default: any.
    """

    reads: tuple[Item, ...] = ()
    makes: tuple[Item, ...] = ()
    runs: tuple[Path, ...] = ()
    steps: int = 0
    fills: Table | None = None
    packages: tuple[str, ...] = ()
    tools: tuple[str, ...] = ()
    device: str | None = None


def names_a_path(name: str) -> bool:
    """Whether the name of a model or of weights can only be a path: a Hugging Face id has at most one slash, not at
    the start.
    """
    return (
        name.startswith(("/", "./", "../", "~"))
        or name.count("/") > 1
        or name.endswith((".pt", ".pth", ".bin", ".safetensors"))
    )


C = TypeVar("C", bound=Callable[..., None])


def declares(uses: Callable[..., Uses]) -> Callable[[C], C]:
    """Decorator: `uses` returns what a call of the command reads and makes. Place it below the decorator that registers
    the command.

    Args:
        uses: takes some of the command's parameters, by name.

    Raises:
        TypeError: it takes a parameter that the command does not have.
    """
    wanted = tuple(inspect.signature(uses).parameters)

    def mark(command: C) -> C:
        if unknown := set(wanted) - set(inspect.signature(command).parameters):
            raise TypeError(
                f"{command.__name__} has no parameter {', '.join(sorted(unknown))}, which its declaration takes"
            )
        command.declared = lambda given: uses(**{name: given[name] for name in wanted})  # type: ignore[attr-defined]
        return command

    return mark


def require_values(words: Sequence[str]) -> None:
    """Raises ConfigError for an empty word and an option without its value, such as of an unset shell variable: an
    empty path would be the current folder.
    """
    for word, before in zip(words, ["", *words], strict=False):
        if not word or re.fullmatch("--[a-z-]+=", word):
            given = f"{before} ''" if not word and before.startswith("-") else word or "''"
            raise ConfigError(f"{given}: an empty value; give one, or leave it out (. is the current folder)")


def commands(root: Any) -> dict[str, Any]:
    """All commands of a tree, by their words: `train`, `shards build`."""
    found: dict[str, Any] = {}
    for name, command in root.commands.items():
        if hasattr(command, "commands"):
            found |= {f"{name} {below}": each for below, each in commands(command).items()}
        else:
            found[name] = command
    return found


def declared(command: Any) -> Callable[[dict[str, Any]], Uses] | None:
    """The declaration of a command of a tree: parsed parameters to what they use. None if it has none."""
    found: Callable[[dict[str, Any]], Uses] | None = getattr(command.callback, "declared", None)
    return found


def parse(root: Any, words: Sequence[str], place: str) -> Uses:
    """Parse the command of a step, and return what it uses.

    Args:
        root: the tree of commands allowed in a step (click).
        words: the command line without `ccr-dist`.
        place: its place in the pipeline, for messages.

    Returns:
        What the command declares for these words.

    Raises:
        ConfigError: starts with `place`; the command line or the declaration rejects the words.
    """
    current, names = root, list[str]()
    while hasattr(current, "commands"):
        known, group = sorted(current.commands), " ".join(["ccr-dist", *names])
        if len(names) == len(words):
            raise ConfigError(f"{place}: {group}: expected one of its commands after it: {', '.join(known)}")
        word = words[len(names)]
        if word not in known:
            near = difflib.get_close_matches(word, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(known)}"
            if not names and word == "ccr-dist":
                hint = "leave out the word ccr-dist"
            raise ConfigError(f"{place}: {group} has no command {word!r} that a pipeline can run; {hint}")
        current = current.commands[word]
        names.append(word)
    name = " ".join(names)
    try:
        require_values(words)
        with contextlib.redirect_stdout(io.StringIO()):  # --help would print here, in the middle of the check
            given = current.make_context(f"ccr-dist {name}", list(words[len(names) :])).params
    except typer.Exit:
        raise ConfigError(f"{place}: {' '.join(words)!r} only prints help; leave this step out") from None
    except ConfigError as error:  # of an option's callback
        raise ConfigError(f"{place}: {error}") from None
    except Exception as error:
        # what typer raises for wrong options; its classes moved between versions
        if not hasattr(error, "format_message"):
            raise
        raise ConfigError(f"{place}: ccr-dist {name}: {error.format_message()}") from None
    uses = declared(current)
    if uses is None:
        raise TypeError(f"the command {name!r} does not declare what it reads and makes (ccr_dist/declare.py)")
    try:
        return uses(given)
    except ConfigError as error:
        raise ConfigError(f"{place}: {error}") from None
