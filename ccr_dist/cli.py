"""The command line: parse, call, print. Sub-commands of the data and generation rooms live beside what they call.

Starts without torch; a command imports what it needs when it runs. Errors that a user can act on are shown as one
message, and end the process with the exit code of their class (`errors.py`).
"""

from __future__ import annotations

import os
import re
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ccr_dist import __version__, errors, terminal
from ccr_dist.cluster.cli import pipelines_app
from ccr_dist.data.cli import shards_app
from ccr_dist.generate.cli import jobs_app
from ccr_dist.study.cli import study_app
from ccr_dist.train.cli import checkpoint_app


class Group(TyperGroup):
    """All commands, within the boundary at which errors become messages and exit codes. Typer would give interrupts
    codes of its own.
    """

    def invoke(self, ctx: Any) -> Any:
        code = errors.DONE
        with terminal.guarded(), errors.boundary():
            try:
                super().invoke(ctx)
            except typer.Exit as end:
                code = end.exit_code
        raise typer.Exit(code)


app = typer.Typer(
    cls=Group, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None
)
config_app = typer.Typer(no_args_is_help=True, help="Look at configs.")
app.add_typer(shards_app, name="shards")
app.add_typer(config_app, name="config")
app.add_typer(study_app, name="study")
app.add_typer(checkpoint_app, name="checkpoint")
app.registered_commands += jobs_app.registered_commands + pipelines_app.registered_commands
app.registered_groups += jobs_app.registered_groups

Config = Annotated[Path, typer.Argument(help="run config (YAML)")]
Overrides = Annotated[list[str] | None, typer.Argument(help="key.sub=value, any number")]
Seeds = Annotated[str | None, typer.Option(help="several runs, one after the other: 0,1,2")]


@app.callback(invoke_without_command=True)
def top(
    context: typer.Context, version: Annotated[bool, typer.Option("--version", help="print the version")] = False
) -> None:
    """Cross-lingual cross-modal retrieval: build datasets, translate and featurise them, train, evaluate."""
    if version:
        print(__version__)
        raise typer.Exit


@config_app.command("show")
def config_show(config: Config, overrides: Overrides = None) -> None:
    """Print the resolved run config: bases merged, overrides applied, defaults filled in."""
    import yaml

    from ccr_dist.config import as_dict
    from ccr_dist.methods.run_config import load_config

    print(yaml.safe_dump(as_dict(load_config(config, overrides or ())), sort_keys=False, allow_unicode=True), end="")


@app.command()
def methods(
    configs: Annotated[list[Path] | None, typer.Argument(help="run configs: count the parameters of each")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """List the methods, their stages and the columns they read; with run configs: how many parameters each trains."""
    import json

    from ccr_dist.methods import catalogue

    rows = catalogue.parameters(configs) if configs else catalogue.catalogue()
    if as_json:
        print(json.dumps(rows, ensure_ascii=False, indent=1))
        return
    show = terminal.console()
    if configs:
        table = catalogue.parameters_table(rows)
        show.width = max(show.width, table.__rich_measure__(show, show.options.update(max_width=1000)).maximum)
        show.print(table)
    else:
        show.print(catalogue.methods_table(rows), catalogue.columns_table(rows))


@app.command()
def train(
    config: Config,
    overrides: Overrides = None,
    seeds: Seeds = None,
    test: Annotated[
        bool, typer.Option("--test", help="measure the selected checkpoint on the test split at the end")
    ] = False,
    world: Annotated[int | None, typer.Option(help="refuse to run on any other number of processes")] = None,
    strategy: Annotated[
        str | None,
        typer.Option(
            help="ddp, zero1, zero2, zero3 or fsdp2; refuses another launch profile. Default: the profile's, or ddp"
        ),
    ] = None,
) -> None:
    """Train a run, or resume an interrupted one. Start it with `accelerate launch … -m ccr_dist train` for
    several processes.
    """
    configs = configs_of(config, overrides, seeds)
    from ccr_dist.train import commands

    _exit(commands.train(configs, test=test, world=world, spread=strategy))


@app.command()
def evaluate(
    config: Config,
    overrides: Overrides = None,
    seeds: Seeds = None,
    split: Annotated[str, typer.Option(help="val or test")] = "test",
    again: Annotated[
        bool,
        typer.Option("--again", help="measure again although a result exists (readings of a test set are counted)"),
    ] = False,
    world: Annotated[int | None, typer.Option(help="refuse to run on any other number of processes")] = None,
) -> None:
    """Measure a run's selected checkpoint (or an untrained method) on a split; writes RUN/results/SPLIT.json."""
    if split not in ("val", "test"):
        raise errors.ConfigError(f"--split {split}: expected val or test")
    configs = configs_of(config, overrides, seeds)
    from ccr_dist.train import commands

    _exit(commands.evaluate(configs, split=split, again=again, world=world))


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="run folders (or result files)")],
    out: Annotated[Path, typer.Option(help="folder of the report")] = Path("report"),
    split: Annotated[str, typer.Option(help="which result of each run")] = "test",
    title: Annotated[str, typer.Option(help="Title of the page.")] = "Cross-lingual retrieval",
    note: Annotated[list[str] | None, typer.Option(help="a paragraph below the title, any number")] = None,
    pictures: Annotated[Path | None, typer.Option(help="dataset whose pictures illustrate the examples")] = None,
) -> None:
    """Collect runs into one table: terminal, JSON, CSV and a self-contained HTML page."""
    from ccr_dist.evaluate.command import report as write

    write(runs, out=out, split=split, title=title, notes=note or [], pictures=pictures)


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="New, or a folder that has none of the files.")],
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


@app.command()
def doctor(
    out: Annotated[Path, typer.Option(help="folder that run folders will lie in")] = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Look at this machine: software, devices, limits, disk; under a launcher also at what is between its processes.

    Ends with exit code 2 when there is something to do about it.
    """
    from ccr_dist.train.watch import doctor as machine

    _exit(machine.command(out, as_json=as_json))


def configs_of(path: Path, overrides: list[str] | None, seeds: str | None) -> list:
    """The run configs of a command: one, or one a seed."""
    from ccr_dist.methods.run_config import load_config

    overrides = overrides or []
    if seeds is None:
        return [load_config(path, overrides)]
    numbers = seeds.split(",")
    if not all(number.strip().isdigit() for number in numbers):
        raise errors.ConfigError(f"--seeds {seeds}: expected whole numbers with commas between them, like 0,1,2")
    return [load_config(path, [*overrides, f"seed={number.strip()}"]) for number in numbers]


def _exit(code: int) -> None:
    if code:
        raise typer.Exit(code)


def main() -> None:
    # DDP looks for unused parameters on purpose (`train/strategies/strategy.py`) and would advise against it in every
    # run. Set before torch is imported.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    if len(sys.argv) > 1 and re.fullmatch(r"--local[_-]rank=\d+", sys.argv[1]):
        del sys.argv[1]  # DeepSpeed's launcher puts it in front of the command, and into the environment as well
    try:
        app()
    finally:
        # A launcher sends SIGTERM to all ranks when the first one has ended: those that are on their way out keep their
        # exit codes.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
