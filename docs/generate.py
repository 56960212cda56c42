"""Writes the pages that are made from the code: the command line, the config keys and the exit codes.

Run `python docs/generate.py` after a change to a command, a config section or an error class, and commit what it
writes. A test compares the committed pages with what this module makes.
"""

from __future__ import annotations

import importlib
import inspect
import textwrap
import types
import typing
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import typer
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from ccr_dist import errors
from ccr_dist.cli import app
from ccr_dist.cluster.pipeline import Pipeline
from ccr_dist.cluster.profile import Profile
from ccr_dist.config import RunConfig
from ccr_dist.methods import registry
from ccr_dist.models.backbones import registry as backbones
from ccr_dist.scaling.plan import ScalingStudy
from ccr_dist.simulate.schema import Job, Rates
from ccr_dist.study.plan import Study

FOLDER = Path(__file__).parent / "reference"
NOTICE = "<!-- Made by `python docs/generate.py` from the code; do not edit. -->\n"
WIDTH = 100


def pages() -> dict[Path, str]:
    """Every generated page.

    Returns:
        The text of each page by its path.
    """
    return {
        FOLDER / "command-line.md": command_line(),
        FOLDER / "config-keys.md": config_keys(),
        FOLDER / "exit-codes.md": exit_codes(),
    }


def command_line() -> str:
    """The page of all commands, with their arguments and options."""
    parts = [
        NOTICE,
        "# Command line\n",
        _wrapped(
            "All commands of `ccr-dist`. `ccr-dist COMMAND --help` prints the same texts. Commands that take a run"
            " config accept `key=value` overrides after it; [Configs](../configs.md) has the rules."
        ),
    ]
    for path, command in _commands(typer.main.get_command(app), ("ccr-dist",)):
        parts.append(f"## {' '.join(path)}\n")
        parts.append(_paragraphs(command.help or ""))
        parts.append("```text\n" + _usage(path, command) + "\n```\n")
        rows = [_parameter(parameter) for parameter in command.params if not _is_help(parameter)]
        if rows:
            parts.append(_table(("argument or option", "what", "default"), rows))
    return "\n".join(parts)


def config_keys() -> str:
    """The page of all keys of run configs, methods, pipelines, profiles and studies."""
    parts = [
        NOTICE,
        "# Config keys\n",
        _wrapped(
            "Every key of every YAML file that `ccr-dist` reads, with its default. A key without a default is required."
        ),
        "## Run configs\n",
        *_sections("The run", "", RunConfig),
        "## Backbones\n",
        _wrapped("`backbone.kind` chooses the kind of model; the other keys of `backbone` are its own."),
        *(_section(f"backbone, kind: {kind}", backbones.config(kind)) for kind in backbones.kinds()),
        "## Methods\n",
        _wrapped("`method.name` chooses the method; the other keys of `method` are its options."),
    ]
    seen: set[type[BaseModel]] = set()
    for name in registry.names():
        options = registry.options(name)
        parts.append(_section(f"method, name: {name}", options, without=("name",), about=_about(name)))
        parts += _sections("", "method", options, seen)
    parts += [
        "## Pipelines and profiles\n",
        *_sections("A pipeline", "", Pipeline),
        *_sections("A profile", "", Profile),
    ]
    parts += ["## Studies\n", *_sections("A study", "", Study)]
    parts += ["## Simulations\n", *_sections("A simulated job", "", Job), *_sections("Failure rates", "", Rates)]
    parts += ["## Scaling studies\n", *_sections("A scaling study", "", ScalingStudy)]
    return "\n".join(parts)


def exit_codes() -> str:
    """The page of exit codes, from the error classes that they belong to."""
    rows = [("0", "done", "")]
    classes = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, errors.CcrError)]
    for kind in sorted(classes, key=lambda kind: kind.exit_code):
        if kind is not errors.CcrError:
            rows.append((str(kind.exit_code), f"`{kind.__name__}`", " ".join((kind.__doc__ or "").split())))
    rows.append(("1", "crash", "A bug, or a process that was killed; the traceback is printed."))
    rows.append(
        (str(errors.STOPPED), "stopped", "Stopped on request with its state saved: run the same command again.")
    )
    rows.append((str(errors.INTERRUPTED), "interrupted", "Ctrl-C: run the same command again."))
    rows.append((str(errors.UNREAD), "output closed", "The reader of the output has left, as `head` does."))
    rows.sort(key=lambda row: int(row[0]))
    about = _wrapped(
        "Every command ends with one of these codes. SLURM jobs decide by them whether to try again; see"
        " [SLURM](../slurm.md). `accelerate launch` reports every failure of a process as 1, whatever its own code was:"
        " read the message above it, or start the run with `python -m ccr_dist.launcher`, which keeps the code."
    )
    return "\n".join([NOTICE, "# Exit codes\n", about, _table(("code", "name", "meaning"), rows)])


def _commands(command: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Commands below a group, sorted by name, those of sub-groups after the others."""
    children = getattr(command, "commands", None)
    if children is None:
        yield path, command
        return
    for name in sorted(children, key=lambda name: (hasattr(children[name], "commands"), name)):
        if not children[name].hidden:
            yield from _commands(children[name], (*path, name))


def _is_help(parameter: Any) -> bool:
    return "--help" in parameter.opts


def _usage(path: tuple[str, ...], command: Any) -> str:
    words = list(path)
    for parameter in command.params:
        if parameter.param_type_name == "argument":
            many = "..." if parameter.nargs == -1 else ""
            name = _argument(parameter)
            words.append(f"{name}{many}" if parameter.required else f"[{name}]{many}")
        elif parameter.required:
            words.append(f"{parameter.opts[0]} {(parameter.name or '').upper()}")
    return textwrap.fill(
        " ".join([*words, "[OPTIONS]"]), WIDTH, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False
    )


def _argument(parameter: Any) -> str:
    return parameter.metavar or (parameter.name or "").upper()


def _parameter(parameter: Any) -> tuple[str, str, str]:
    help_text = " ".join((getattr(parameter, "help", None) or "").split())
    if parameter.param_type_name == "argument":
        return f"`{_argument(parameter)}`", _cell(help_text), "required" if parameter.required else ""
    names = ", ".join(f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts))
    if parameter.multiple:
        help_text += " (repeatable)"
    return names, _cell(help_text), "required" if parameter.required else _default(parameter.default)


def _sections(title: str, path: str, model: type[BaseModel], seen: set[type[BaseModel]] | None = None) -> list[str]:
    """A model's table under `title` (none: without it), then those of its sections, each once, by path."""
    seen = set() if seen is None else seen
    parts = [_section(title, model)] if title else []
    for field in model.model_fields.values():
        nested = list(_models(field.annotation))
        for inner in nested:
            if inner in seen or not inner.model_fields.keys() - {"name", "kind"}:  # the registries know the rest
                continue
            seen.add(inner)
            names = [name for name, other in model.model_fields.items() if inner in _models(other.annotation)]
            at = ", ".join(f"{path}.{name}" if path else name for name in names)
            at += ".NAME" if typing.get_origin(field.annotation) is dict else ""
            kind = _which(inner) if len(nested) > 1 else ""
            parts += _sections(at + kind, at, inner, seen)
    return parts


def _which(model: type[BaseModel]) -> str:
    """What distinguishes a section from others at the same place."""
    if "kind" in model.model_fields:
        return f", kind: {typing.get_args(model.model_fields['kind'].annotation)[0]}"
    return f" ({model.__name__})"


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models that a type is made of."""
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in typing.get_args(annotation):
        yield from _models(argument)


def _section(title: str, model: type[BaseModel], *, without: tuple[str, ...] = (), about: str | None = None) -> str:
    """A heading, what the section is, and a table of its keys."""
    rows = []
    for name, field in model.model_fields.items():
        if name in without:
            continue
        default = "required" if field.is_required() else _default(field.get_default(call_default_factory=True))
        rows.append(
            (f"`{name}`", _cell(_type(field.annotation)), _cell(field.description or _described(field)), default)
        )
    table = _table(("key", "value", "what", "default"), rows) if rows else "No options.\n"
    return f"### {title}\n\n" + _paragraphs(about or inspect.getdoc(model) or "") + "\n" + table


def _described(field: Any) -> str:
    """What a field without a description is: the section's first line, or what its only value does."""
    for model in _models(field.annotation):
        return (inspect.getdoc(model) or "").splitlines()[0]
    if typing.get_origin(field.annotation) is typing.Literal and len(typing.get_args(field.annotation)) == 1:
        return "chooses this section"
    return ""


def _about(method: str) -> str:
    """The first paragraph of the docstring of a method's folder, which says what the method is."""
    text = importlib.import_module(registry.package(method)).__doc__ or ""
    return inspect.cleandoc(text).split("\n\n")[0]


def _type(annotation: Any) -> str:
    """A type as a reader of YAML would name it."""
    names = {str: "text", int: "whole number", float: "number", bool: "true, false", type(None): "null", Path: "path"}
    if annotation in names:
        return names[annotation]
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin is typing.Annotated:
        return _type(arguments[0])
    if origin in (typing.Union, types.UnionType):
        kinds = dict.fromkeys(_type(argument) for argument in arguments if argument is not type(None))
        return " or ".join(kinds) + (" or null" if type(None) in arguments else "")
    if origin in (tuple, list, set, frozenset):
        inner = [_type(argument) for argument in arguments if argument is not Ellipsis]
        return f"list of {inner[0]}" if Ellipsis in arguments or len(inner) == 1 else "[" + ", ".join(inner) + "]"
    if origin is dict:
        return f"mapping of {_type(arguments[0])} to {_type(arguments[1])}"
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return "section"
    return getattr(annotation, "__name__", None) or str(annotation)


def _default(value: Any) -> str:
    """A default as YAML or the command line would have it; empty where there is none."""
    if value is PydanticUndefined or value is None or value == [] or value is ...:
        return ""
    if isinstance(value, BaseModel):
        return "the defaults below"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if value == "":
        return "empty"
    if isinstance(value, tuple):
        return "`[" + ", ".join(str(item) for item in value) + "]`"
    return f"`{value}`"


def _cell(text: str) -> str:
    """Text of a table's cell: a pipe would end it, and `<name>` would be taken for HTML."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;").replace(">", "&gt;")


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "| " + " | ".join("---" for _ in head) + " |"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"


def _paragraphs(text: str) -> str:
    blocks = inspect.cleandoc(text).replace("\b", "").split("\n\n")
    return "\n".join(_wrapped(block.replace("<", "&lt;")) for block in blocks if block.strip())


def _wrapped(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), WIDTH, break_long_words=False, break_on_hyphens=False) + "\n"


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
