"""What one call of a command reads and makes, declared beside the command; and how a pipeline learns it from a step's
words.

    @shards_app.command("verify")
    @declares(lambda path: Uses(reads=(Table(path),)))
    def verify_command(path: ..., fast: ...) -> None: ...

The declaring function takes those parameters of the command by name that it needs, as the command line parsed them, and
returns a `Uses`. It raises ConfigError for what a step of a pipeline may not say. `parse` reads the words with the
command's own parser, so that options, defaults and aliases are those of the command line. Nothing here opens a dataset
or imports torch; what is really there is for `cluster/checks.py` to look at.
"""

from __future__ import annotations

import contextlib
import difflib
import inspect
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import typer

from ccr_dist.errors import ConfigError


@dataclass(frozen=True)
class Item:
    """Something on a disk, by its path as the command line has it: relative to the working folder.

    Attributes:
        path: where it is; a URL where datasets may be in a store.
    """

    path: str


@dataclass(frozen=True)
class File(Item):
    """One file.

    Attributes:
        advice: what to do where it is missing, for the message.
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
    """A folder with all that is in it."""


@dataclass(frozen=True)
class Place(Item):
    """A file or a folder: the command takes either."""


@dataclass(frozen=True)
class Run(Item):
    """The folder of a training with its selected weights; where weights are read, a file of them will do."""


@dataclass(frozen=True)
class Table(Item):
    """A dataset, or a folder of datasets (train/, val/, test/).

    Attributes:
        column: one column of it. None: the dataset alone; of what a command makes: all columns that there will be.
        single: it has to be one dataset; a folder of several will not do.
    """

    column: str | None = None
    single: bool = False


@dataclass(frozen=True)
class Uses:
    """What one call of a command reads, makes and needs.

    Attributes:
        reads: what must be there when it starts.
        makes: what is there when it has ended.
        runs: folders of trainings in which it works: where hangs and checkpoints are looked for.
        steps: training steps that it takes in all of `runs` together; 0: it does not train.
        fills: the column whose shards tell how far it is.
        packages: modules that it imports besides those of a plain installation.
        tools: programs that it starts.
        device: the device that it insists on, such as cuda; none: what there is.
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
    """Whether the name of a model or of weights can only be a path: a Hugging Face id has one slash, and begins with
    none.
    """
    return (
        name.startswith(("/", "./", "../", "~"))
        or name.count("/") > 1
        or name.endswith((".pt", ".pth", ".bin", ".safetensors"))
    )


def weights_of(backbone: Any) -> list[Item]:
    """Files and folders of the user's that the backbone of a run config is made of."""
    found: list[Item] = [] if backbone.weights is None else [Run(backbone.weights)]
    names = [getattr(backbone, key, None) for key in ("pretrained", "text")]
    return found + [Place(name) for name in names if name is not None and names_a_path(name)]


C = TypeVar("C", bound=Callable[..., None])


def declares(uses: Callable[..., Uses]) -> Callable[[C], C]:
    """Decorator: `uses` says what a call of the command reads and makes. Below the line that registers the command.

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
    """The declaration of a command of a tree: parsed parameters to what they use. None: it has none."""
    found: Callable[[dict[str, Any]], Uses] | None = getattr(command.callback, "declared", None)
    return found


def parse(root: Any, words: Sequence[str], place: str) -> Uses:
    """What a step's command uses.

    Args:
        root: the tree of commands that a step may be (click).
        words: the command line without `ccr-dist`.
        place: where it stands, for messages.

    Returns:
        What the command declares of itself for these words.

    Raises:
        ConfigError: beginning with `place`, for what the command line or the declaration refuses.
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
        with contextlib.redirect_stdout(io.StringIO()):  # --help would print here, in the middle of the check
            given = current.make_context(f"ccr-dist {name}", list(words[len(names) :])).params
    except typer.Exit:
        raise ConfigError(f"{place}: {' '.join(words)!r} only prints help; leave this step out") from None
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
