"""`ccr-dist shards ...`: the commands that make datasets and export them; `table_cli.py` has the others.

Parse, call, print; nothing heavy is imported before a command runs.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from ccr_dist.data.declared import (
    CONVERSIONS,
    building,
    captions_of,
    converting,
    exporting,
    indexing,
    recipe_file,
)
from ccr_dist.data.table.names import column_names
from ccr_dist.data.table_cli import Columns, Quiet, show, table_app
from ccr_dist.declare import Uses, declares
from ccr_dist.errors import ConfigError
from ccr_dist.places import file_to_make, folder_to_make, folder_to_read

shards_app = typer.Typer(no_args_is_help=True, help="Build, index, look at and verify datasets.")


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:10]) + (", ..." if len(keys) > 10 else "")


@shards_app.command("build")
@declares(building)
def build_command(
    recipe: Annotated[
        str, typer.Argument(help="A recipe: its YAML file, or the name of a shipped one (see `shards recipes`).")
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Options of the recipe, e.g. languages=[en,es] picture.size=128.")
    ] = None,
    out: Annotated[
        Path, typer.Option(help="Folder of the datasets: OUT/train, OUT/val, OUT/test.", callback=folder_to_make)
    ] = ...,  # type: ignore[assignment]
    workers: Annotated[
        int | None, typer.Option(help="Processes that render pictures; 0: none. Default: one per core.")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Build a dataset from a recipe. What already exists is kept, and an interrupted build resumes."""
    from ccr_dist.data.corpora.build import build
    from ccr_dist.data.corpora.recipes.base import load_recipe

    done = build(load_recipe(recipe, overrides or []), out, workers=workers, progress=not quiet)
    for note in done.notes:
        show(f"note: {note}", "dim")
    for key, why in done.bad.items():
        show(f"no picture: {key}: {why}", "yellow")
    rows = ", ".join(f"{n} {split}" for split, n in done.rows.items())
    if not done.built:
        show(f"{done.out}: already complete, nothing to do: {rows} rows, {done.columns} columns, {done.there} shards")
    else:
        before = f" ({done.there} already existed)" if done.there else ""
        show(
            f"{done.out}: {rows} rows, {done.columns} columns; built {done.built} shards{before} in"
            f" {done.seconds:.0f} s"
        )
    for path in done.exports:
        show(f"texts to import with `ccr-dist replay`: {path}")


@shards_app.command("recipes")
@declares(lambda name, overrides: Uses(reads=recipe_file(name, overrides)))
def recipes_command(
    name: Annotated[str | None, typer.Argument(help="A shipped recipe or a YAML file: show what it needs.")] = None,
    overrides: Annotated[list[str] | None, typer.Argument(help="Options of the recipe, key=value.")] = None,
) -> None:
    """List the recipes. With NAME: show what must be downloaded for it, and from where."""
    from ccr_dist.data.corpora.recipes.base import load_recipe, shipped
    from ccr_dist.resources import RECIPES

    if name is not None:
        for line in load_recipe(name, overrides or []).needs():
            show(line)
        show(f"its options: {RECIPES.find(name)}", "dim")
        return
    for each in shipped():
        show(f"{each:14} {load_recipe(each).needs()[0]}")
    show(f"their YAML files: {RECIPES.folder}; what one needs: ccr-dist shards recipes NAME", "dim")


@shards_app.command("convert")
@declares(converting)
def convert_command(
    to: Annotated[
        str,
        typer.Argument(help="nrccr or mla (dataset to these projects' files), or replay (their files to JSONL)."),
    ],
    source: Annotated[
        Path,
        typer.Argument(help="A dataset or a folder of them; for replay: a .txt, a .json or a folder of texts."),
    ],
    out: Annotated[Path, typer.Option(help="A new or empty folder; for replay: the JSONL file.")] = ...,  # type: ignore[assignment]
    name: Annotated[
        str | None, typer.Option(help="nrccr: name of the collection in file names. Default: the dataset's.")
    ] = None,
    media: Annotated[str, typer.Option(help="mla: the folder of pictures that path.json names.")] = "images",
    column: Columns = None,
) -> None:
    """Write captions and descriptions as the files of NRCCR and LECCR or of MLA and DASD, or convert such files to what
    `replay` imports.
    """
    from ccr_dist.data.corpora.convert import to_mla, to_nrccr, to_replay

    (file_to_make if to == "replay" else folder_to_make)(out)
    if to != "replay":
        folder_to_read(source)
    if to == "nrccr":
        done = to_nrccr(source, out, name=name, columns=column or ())
    elif to == "mla":
        done = to_mla(source, out, media=media, columns=column or ())
    elif to == "replay":
        done = to_replay(source, out)
    else:
        raise ConfigError(f"{to!r}: {CONVERSIONS}")
    for path in done.files:
        show(path)
    if done.blank:
        show(f"{done.blank} blank captions are left out", "yellow")


@shards_app.command("index")
@declares(indexing)
def index_command(
    urls: Annotated[
        list[str], typer.Argument(help="Tars, or folders of tars; braces {0000..0012} and globs may be quoted.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the dataset.", callback=folder_to_make)] = ...,  # type: ignore[assignment]
    caption: Annotated[
        list[str] | None,
        typer.Option(
            help="LANG=txt (a caption per line), LANG=txt:whole or LANG=json:FIELD; may be repeated. Default: en=txt."
        ),
    ] = None,
    image: Annotated[
        str | None, typer.Option(help="Members with pictures: jpg, input.jpg, 'jpg;png' or none. Default: as found.")
    ] = None,
    video: Annotated[
        str | None, typer.Option(help="Members with videos: mp4 or none. Default: as found, if there are no pictures.")
    ] = None,
    keys: Annotated[
        str,
        typer.Option(help="own; tar: each key begins with its tar's name; auto: tar if two tars have a key in common."),
    ] = "auto",
    bad_items: Annotated[
        int, typer.Option("--bad-items", min=0, help="Unreadable captions that are tolerated and become null ...")
    ] = 10,
    bad_fraction: Annotated[
        float, typer.Option("--bad-fraction", min=0, max=1, help="... or this fraction of the rows, whichever is more.")
    ] = 0.01,
    split: Annotated[str, typer.Option(help="train, val or test.")] = "train",
    name: Annotated[str | None, typer.Option(help="Name of the dataset. Default: the folder's.")] = None,
    quiet: Quiet = False,
) -> None:
    """Make a dataset of tars that img2dataset, webdataset or others wrote, without copying them."""
    from ccr_dist.data.corpora.index import index

    done = index(
        urls,
        out,
        name=name,
        split=split,
        image=image,
        video=video,
        captions=captions_of(caption),
        keys=keys,
        bad_items=bad_items,
        bad_fraction=bad_fraction,
        command=shlex.join(["ccr-dist", *sys.argv[1:]]),
        progress=not quiet,
    )
    dataset = done.dataset
    there = f", {done.there} were recorded before" if done.there else ""
    show(
        f"{dataset.root}: {dataset.rows} rows in {len(dataset.shards)} tars; recorded {done.recorded} column"
        f" shards{there}"
    )
    for note in done.notes:
        show(f"note: {note}")
    if done.again:
        show(f"{done.again} column shards are recorded again: their tars were written or touched since", "yellow")
    for column, rows in done.changed.items():
        show(
            f"{column}: {len(rows)} rows changed: {_some(rows)}; columns made from them still belong to the old"
            " content",
            "yellow",
        )
    for column, rows in done.missing.items():
        show(f"{column}: {len(rows)} rows have no such member and are null: {_some(rows)}", "yellow")
    for column, faults in done.bad.items():
        show(f"{column}: {len(faults)} values cannot be read and are null:", "yellow")
        for why in list(faults.values())[:10]:
            show(f"  {why}", "yellow")
    if done.ignored:
        show(f"{done.ignored} members without an extension, or hidden, are ignored, as in WebDataset", "dim")


@shards_app.command("export")
@declares(exporting)
def export_command(
    path: Annotated[Path, typer.Argument(help="A dataset, or a folder of datasets.", callback=folder_to_read)],
    out: Annotated[
        Path,
        typer.Option(help="Folder of the tars; for several datasets OUT/train, OUT/val, ...", callback=folder_to_make),
    ] = ...,  # type: ignore[assignment]
    image: Annotated[str, typer.Option(help="Column of the pictures.", callback=column_names)] = "image",
    caption: Annotated[
        str | None,
        typer.Option(help="Column of the .txt. Default: caption.en, or the only one.", callback=column_names),
    ] = None,
    also: Annotated[
        list[str] | None, typer.Option(help="Column for the .json; may be repeated.", callback=column_names)
    ] = None,
    each: Annotated[
        bool, typer.Option("--each", help="Write a sample for each caption, KEY_0, KEY_1, ...; not only for the first.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Write tars of KEY.jpg and KEY.txt for open_clip's training script and other readers of WebDataset."""
    from ccr_dist.data.corpora.export import export

    for done in export(path, out, image=image, caption=caption, also=also or (), each=each, progress=not quiet):
        show(f"{done.out}: {done.samples} samples in {len(done.tars)} tars; wrote {done.written}")
        if done.left_out:
            show(f"{done.left_out} rows have no picture or no caption and are left out", "yellow")
        if done.tars:
            first, last = (name.removesuffix(".tar") for name in (done.tars[0], done.tars[-1]))
            names = f"{first}..{last}".join("{}") if first != last else first
            show(
                f"open_clip: --dataset-type webdataset --train-data '{done.out}/{names}.tar' --train-num-samples"
                f" {done.samples}",
                "dim",
            )


shards_app.registered_commands += table_app.registered_commands
