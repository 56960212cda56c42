"""The commands allowed in a step of a pipeline, as one tree, and what the words of a step use: all commands except
those for pipelines.

Each command declares beside itself what it reads and makes (`declare.py`). Starts without torch.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from ccr_dist import declare, terminal
from ccr_dist.data.cli import shards_app
from ccr_dist.declare import Settings, Uses, declares
from ccr_dist.evaluate.cli import report_app
from ccr_dist.export.cli import export_app
from ccr_dist.generate.cli import jobs_app
from ccr_dist.search.cli import search_app
from ccr_dist.simulate.cli import simulate_app
from ccr_dist.study.cli import study_app
from ccr_dist.train.cli import Config, Overrides, train_app

app = typer.Typer()
config_app = typer.Typer(no_args_is_help=True, help="Look at configs.")
app.add_typer(shards_app, name="shards")
app.add_typer(config_app, name="config")
app.add_typer(study_app, name="study")


@functools.cache
def tree() -> Any:
    """The commands as the command line's own parser (click) knows them."""
    return typer.main.get_command(app)


def uses_of(words: Sequence[str], place: str) -> Uses:
    """What a step's command reads, makes and needs.

    Args:
        words: the command line without `ccr-dist`.
        place: its place in the pipeline, for messages.

    Returns:
        What the command declares.

    Raises:
        ConfigError: starts with `place`; the command line, a run config or the declaration rejects the words.
    """
    return declare.parse(tree(), words, place)


@config_app.command("show")
@declares(lambda config, overrides: Uses(reads=(Settings(str(config), overrides=tuple(overrides or ())),)))
def config_show(config: Config, overrides: Overrides = None) -> None:
    """Print the resolved run config: bases merged, overrides applied, defaults filled in."""
    import yaml

    from ccr_dist.config import as_dict
    from ccr_dist.methods.run_config import load_config

    print(yaml.safe_dump(as_dict(load_config(config, overrides or ())), sort_keys=False, allow_unicode=True), end="")


@app.command()
@declares(lambda configs: Uses(reads=tuple(Settings(str(config)) for config in configs or ())))
def methods(
    configs: Annotated[list[Path] | None, typer.Argument(help="run configs: count the parameters of each")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """List the methods, their stages and the columns they read; with run configs: how many parameters each trains."""
    import json

    from ccr_dist.methods import catalogue

    if configs:
        from ccr_dist.methods.build import build_method
        from ccr_dist.train.assemble import training_texts

        rows = catalogue.parameters(configs, lambda config: build_method(config, texts=training_texts(config)))
    else:
        rows = catalogue.catalogue()
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


for _each in (train_app, report_app, jobs_app, search_app, export_app, simulate_app):
    app.registered_commands += _each.registered_commands
    app.registered_groups += _each.registered_groups
