"""`ccr-dist shards ...`: parse, call, print. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from ccr_dist import terminal
from ccr_dist.data.declared import (
    CONVERSIONS,
    building,
    captions_of,
    converting,
    exporting,
    indexing,
    measuring,
    of_table,
    pulling,
    pushing,
    recipe_file,
)
from ccr_dist.declare import Uses, declares
from ccr_dist.errors import ConfigError, DataError, StorageError, file_to_make, folder_to_make

shards_app = typer.Typer(no_args_is_help=True, help="Build, index, look at and verify datasets.")
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress bar.")]


def show(text: Any, style: str = "") -> None:
    """Prints text without interpreting brackets as markup and without breaking paths."""
    terminal.console(soft_wrap=True).print(text, style=style)


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
    column: Annotated[list[str] | None, typer.Option(help="Only this column; may be repeated.")] = None,
) -> None:
    """Write captions and descriptions as the files of NRCCR and LECCR or of MLA and DASD, or convert such files to what
    `replay` imports.
    """
    from ccr_dist.data.corpora.convert import to_mla, to_nrccr, to_replay

    (file_to_make if to == "replay" else folder_to_make)(out)
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
    path: Annotated[Path, typer.Argument(help="A dataset, or a folder of datasets.")],
    out: Annotated[
        Path,
        typer.Option(help="Folder of the tars; for several datasets OUT/train, OUT/val, ...", callback=folder_to_make),
    ] = ...,  # type: ignore[assignment]
    image: Annotated[str, typer.Option(help="Column of the pictures.")] = "image",
    caption: Annotated[
        str | None, typer.Option(help="Column of the .txt. Default: caption.en, or the only one.")
    ] = None,
    also: Annotated[list[str] | None, typer.Option(help="Column for the .json; may be repeated.")] = None,
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


@shards_app.command("inspect")
@declares(of_table)
def inspect_command(
    path: Annotated[Path, typer.Argument(help="A dataset, or a folder of datasets.")],
    rows: Annotated[int, typer.Option(help="Rows to show of each dataset.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show rows, columns, languages, provenance and a few rows."""
    from ccr_dist.data.table.inspect import describe, render

    description = describe(path, rows=rows)
    if as_json:
        print(json.dumps(description, ensure_ascii=False, indent=1))
    else:
        show(render(description))


@shards_app.command("verify")
@declares(of_table)
def verify_command(
    path: Annotated[Path, typer.Argument(help="A dataset, or a folder of datasets.")],
    decode: Annotated[bool, typer.Option(help="Decode every picture.")] = True,
    fast: Annotated[
        bool, typer.Option("--fast", help="Check only records, keys, sizes and indexes; read no payload.")
    ] = False,
    mend: Annotated[
        bool, typer.Option("--repair", help="Repair what can be repaired; set aside what its command must make again.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Check digests, keys, indexes and every value. Exit code 3 when something is wrong, 5 when a file could not be
    read.
    """
    from ccr_dist.data.storage.remote import as_url
    from ccr_dist.data.table.repair import repair
    from ccr_dist.data.table.verify import unusable, verify

    place = as_url(path) or path
    problems = verify(path, decode=decode, fast=fast, progress=not quiet)
    if mend and problems:
        for line in repair(problems):
            show(line, "yellow")
        problems = [p for p in verify(path, fast=True)] + [p for p in problems if not p.damage]
    if problems:
        shown = "\n".join(str(problem) for problem in problems[:50]) + ("\n..." if len(problems) > 50 else "")
        kind = StorageError if any(problem.unread for problem in problems) else DataError
        raise kind(f"{place}: {len(problems)} problems\n{shown}")
    if bad := unusable(place):
        shown = "\n  ".join(bad[:50]) + ("\n  ..." if len(bad) > 50 else "")
        show(
            f"{place}: {len(bad)} values cannot be used and count as null, as reported when they were indexed:\n "
            f" {shown}",
            "yellow",
        )
    show(f"{place}: sound" + (" as far as records, sizes and indexes show" if fast else ""))


@shards_app.command("seal")
@declares(of_table)
def seal_command(
    path: Annotated[Path, typer.Argument(help="A dataset, or a folder of datasets.")],
    quiet: Quiet = False,
) -> None:
    """Gather the records and indexes of each complete column in two files, so that large datasets open quickly. Nothing
    else is changed.
    """
    from ccr_dist.data.table.dataset import open_all
    from ccr_dist.data.table.sealing import seal_columns

    for dataset in open_all(path):
        sealed, left = seal_columns(dataset, progress=not quiet)
        show(f"{dataset.root}: sealed {', '.join(sealed) or 'nothing new'}")
        if left:
            show(f"incomplete, left out: {', '.join(left)}", "yellow")


@shards_app.command("push")
@declares(pushing)
def push_command(
    path: Annotated[Path, typer.Argument(help="A dataset, or a folder of datasets.")],
    url: Annotated[
        str, typer.Argument(help="s3://bucket/folder, gs://..., file:///..., or another that fsspec knows.")
    ],
    column: Annotated[list[str] | None, typer.Option(help="Only this column; may be repeated.")] = None,
    quiet: Quiet = False,
) -> None:
    """Copy what an object store lacks of a dataset. Commit records come last; other content there is refused."""
    from ccr_dist.data.table.transfer import push

    for done in push(path, url, columns=column or (), progress=not quiet):
        show(f"{done.place}: {done}")


@shards_app.command("pull")
@declares(pulling)
def pull_command(
    url: Annotated[str, typer.Argument(help="A dataset in an object store, or a folder of datasets.")],
    folder: Annotated[Path, typer.Argument(help="Folder to copy into.")],
    column: Annotated[list[str] | None, typer.Option(help="Only this column; may be repeated.")] = None,
    lazy: Annotated[
        bool,
        typer.Option("--lazy", help="Copy only metadata; payloads are fetched when they are read."),
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Copy what a folder lacks of a dataset in an object store, checked by digest."""
    from ccr_dist.data.table.transfer import pull

    for done in pull(url, folder, columns=column or (), lazy=lazy, progress=not quiet):
        show(f"{done.place}: {done}")


@shards_app.command("quality")
@declares(measuring)
def quality_command(
    path: Annotated[Path, typer.Argument(help="A dataset, or a folder of datasets.")],
    column: Annotated[str, typer.Option(help="Column of translated captions, e.g. caption.de.opus.")] = ...,  # type: ignore[assignment]
    human: Annotated[
        str | None, typer.Option(help="Human captions to compare with. Default: caption.<lang>, if it exists.")
    ] = None,
    source: Annotated[str | None, typer.Option(help="Column they were made from. Default: by their plan.")] = None,
    back: Annotated[
        str | None, typer.Option(help="Their back-translation. Default: the one that `translate --back` made, if any.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure translations: chrF against human captions and of the round trip, lengths, unchanged and empty texts."""
    from ccr_dist.generate.jobs.quality import quality, render

    figures = quality(path, column, human=human, source=source, back=back)
    if as_json:
        print(json.dumps(figures, ensure_ascii=False, indent=1))
    else:
        show(render(figures))
