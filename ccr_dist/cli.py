"""The command line: the commands that work (`commands.py`) and those that submit them (`cluster/cli.py`), in one
program.

Starts without torch; a command imports what it needs when it runs. Errors that a user can act on are shown as one
message, and end the process with the exit code of their class (`errors.py`).
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ccr_dist import __version__, commands, errors, terminal
from ccr_dist.cluster.cli import pipelines_app
from ccr_dist.declare import require_values
from ccr_dist.export.cli import push_app
from ccr_dist.places import folder_to_make
from ccr_dist.plan.cli import plan_app
from ccr_dist.scaling.cli import scaling_app
from ccr_dist.serve.cli import serve_app


class Group(TyperGroup):
    """All commands, within the boundary at which errors become messages and exit codes. Typer would give interrupts
    codes of its own.
    """

    def main(self, *arguments: Any, **more: Any) -> Any:
        """What it says of arguments that it does not know holds these, too."""
        with terminal.guarded():
            return super().main(*arguments, **more)

    def invoke(self, ctx: Any) -> Any:
        code = errors.DONE
        with terminal.guarded(), errors.boundary():
            try:
                require_values(ctx.args)
                super().invoke(ctx)
            except typer.Exit as end:
                code = end.exit_code
        raise typer.Exit(code)


app = typer.Typer(
    cls=Group, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None
)
for _each in (commands.app, plan_app, serve_app, push_app, pipelines_app):
    app.registered_commands += _each.registered_commands
    app.registered_groups += [group for group in _each.registered_groups if group.name != "scale"]
app.add_typer(scaling_app, name="scale")  # more than a step of a pipeline may be


@app.callback(invoke_without_command=True)
def top(
    context: typer.Context, version: Annotated[bool, typer.Option("--version", help="print the version")] = False
) -> None:
    """Cross-lingual cross-modal retrieval: build datasets, translate and featurise them, train, evaluate."""
    if version:
        print(__version__)
        raise typer.Exit


@app.command()
def init(
    folder: Annotated[
        Path,
        typer.Argument(metavar="DIR", help="New, or a folder that has none of the files.", callback=folder_to_make),
    ],
    configs: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="Folder of configs to copy, any number [default: demo, clip]; `?` lists them."
        ),
    ] = None,
) -> None:
    """Lay out a project folder with configs, a pipeline and profiles to edit. Overwrites nothing."""
    from ccr_dist import project

    for path in project.lay_out(folder, configs or project.CONFIGS):
        print(terminal.visible(str(folder / path)))
    go = "" if folder == Path() else f"cd {shlex.quote(str(folder))} && "
    print(terminal.visible(f"next: {go}ccr-dist run configs/{project.PIPELINE} --dry-run"), file=sys.stderr)


def _formatted(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> str:
    """A notice as one line; other warnings as Python shows them."""
    return f"note: {message}\n" if issubclass(category, errors.Notice) else _usual(message, category, *place, **more)


_usual = warnings.formatwarning


def main() -> None:
    # DDP looks for unused parameters on purpose (`train/strategies/strategy.py`) and would advise against it in every
    # run. Set before torch is imported.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    warnings.formatwarning = _formatted
    if len(sys.argv) > 1 and re.fullmatch(r"--local[_-]rank=\d+", sys.argv[1]):
        del sys.argv[1]  # DeepSpeed's launcher puts it in front of the command, and into the environment as well
    try:
        app()
    finally:
        # A launcher sends SIGTERM to all ranks when the first one has ended: those that are on their way out keep their
        # exit codes.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
