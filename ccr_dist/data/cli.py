"""`ccr-dist shards ...`: parse, call, print. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from ccr_dist.errors import ConfigError, DataError

shards_app = typer.Typer(no_args_is_help=True, help="Build, index, look at and verify datasets.")
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="no progress bar")]


def show(text: Any, style: str = "") -> None:
    """Prints without taking brackets in names for markup, and without cutting paths."""
    from rich.console import Console

    Console(soft_wrap=True, highlight=False, markup=False).print(text, style=style)


@shards_app.command("build")
def build_command(
    recipe: Annotated[str, typer.Argument(help="a recipe's YAML file, or the name of a shipped one (see `shards recipes`)")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, e.g. languages=[en,es] picture.size=128")] = None,
    out: Annotated[Path, typer.Option(help="folder of the datasets: OUT/train, OUT/val, OUT/test")] = ...,  # type: ignore[assignment]
    workers: Annotated[int | None, typer.Option(help="processes that render pictures; default: all cores; 0: none")] = None,
    quiet: Quiet = False,
) -> None:
    """Build a dataset from a recipe; what is there already is kept, what a kill interrupted is continued."""
    from ccr_dist.data.build import build
    from ccr_dist.data.recipes.base import load_recipe

    done = build(load_recipe(recipe, overrides or []), out, workers=workers, progress=not quiet)
    for note in done.notes:
        show(f"note: {note}", "dim")
    for key, why in done.bad.items():
        show(f"no picture: {key}: {why}", "yellow")
    rows = ", ".join(f"{n} {split}" for split, n in done.rows.items())
    if not done.built:
        show(f"{done.out}: complete already, nothing to do: {rows} rows, {done.columns} columns, {done.there} shards")
    else:
        before = f" ({done.there} were there)" if done.there else ""
        show(f"{done.out}: {rows} rows, {done.columns} columns; built {done.built} shards{before} in {done.seconds:.0f} s")
    for path in done.exports:
        show(f"texts to import with `ccr-dist replay`: {path}")


@shards_app.command("recipes")
def recipes_command() -> None:
    """List the kinds of recipes and the shipped ones."""
    from ccr_dist.data.recipes.base import recipes, shipped

    for kind, recipe in recipes().items():
        path = shipped().get(kind)
        show(f"{kind:10} {recipe.about}" + (f"  ({path})" if path else ""))


@shards_app.command("index")
def index_command(
    urls: Annotated[list[str], typer.Argument(help="tars; braces {0000..0012} and globs may be quoted")],
    out: Annotated[Path, typer.Option(help="folder of the dataset")] = ...,  # type: ignore[assignment]
    caption: Annotated[list[str] | None, typer.Option(help="LANG=txt or LANG=json:FIELD, any number [default: en=txt]")] = None,
    split: Annotated[str, typer.Option(help="train, val or test")] = "train",
    name: Annotated[str | None, typer.Option(help="default: the folder's name")] = None,
    quiet: Quiet = False,
) -> None:
    """Make a dataset of tars that img2dataset, webdataset or others wrote, without a copy."""
    from ccr_dist.data.index import index

    captions = None
    if caption:
        if bad := [text for text in caption if not text.partition("=")[0] or not text.partition("=")[2]]:
            raise ConfigError(f"--caption {bad[0]}: expected LANG=txt or LANG=json:FIELD")
        captions = {text.partition("=")[0]: text.partition("=")[2] for text in caption}
    done = index(urls, out, name=name, split=split, captions=captions, progress=not quiet)
    dataset = done.dataset
    there = f", {done.there} were recorded before" if done.there else ""
    show(f"{dataset.root}: {dataset.rows} rows in {len(dataset.shards)} tars; recorded {done.recorded} column shards{there}")
    for column, keys in done.missing.items():
        more = ", ..." if len(keys) > 10 else ""
        show(f"{column}: {len(keys)} rows have no such member and are null: {', '.join(keys[:10])}{more}", "yellow")
    if done.ignored:
        show(f"{done.ignored} members without an extension, or hidden, are passed over, as WebDataset does", "dim")


@shards_app.command("inspect")
def inspect_command(
    path: Annotated[Path, typer.Argument(help="a dataset, or a folder of them")],
    rows: Annotated[int, typer.Option(help="rows to show of each")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Show rows, columns, languages, provenance and a few rows."""
    from ccr_dist.data.inspect import describe, render

    description = describe(path, rows=rows)
    if as_json:
        print(json.dumps(description, ensure_ascii=False, indent=1))
    else:
        show(render(description))


@shards_app.command("verify")
def verify_command(
    path: Annotated[Path, typer.Argument(help="a dataset, or a folder of them")],
    decode: Annotated[bool, typer.Option(help="decode every picture")] = True,
    quiet: Quiet = False,
) -> None:
    """Check digests, keys, indexes and every value. Exit code 3 when something is wrong."""
    from ccr_dist.data.verify import verify

    problems = verify(path, decode=decode, progress=not quiet)
    if problems:
        shown = "\n".join(str(problem) for problem in problems[:50]) + ("\n..." if len(problems) > 50 else "")
        raise DataError(f"{path}: {len(problems)} problems\n{shown}")
    show(f"{path}: sound")
