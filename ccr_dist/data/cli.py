"""`ccr-dist shards ...`: parse, call, print. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from ccr_dist import terminal
from ccr_dist.declare import File, Folder, Item, Place, Settings, Table, Uses, declares
from ccr_dist.errors import ConfigError, DataError, StorageError, file_to_make, folder_to_make

shards_app = typer.Typer(no_args_is_help=True, help="Build, index, look at and verify datasets.")
CONVERSIONS = "expected nrccr, mla or replay"
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="no progress bar")]


def show(text: Any, style: str = "") -> None:
    """Prints without taking brackets in names for markup, and without cutting paths."""
    terminal.console(soft_wrap=True).print(text, style=style)


def _captions(given: list[str] | None) -> dict[str, str] | None:
    """Language -> the member that has its captions."""
    if not given:
        return None
    if bad := [text for text in given if not text.partition("=")[0] or not text.partition("=")[2]]:
        raise ConfigError(f"--caption {bad[0]}: expected LANG=txt or LANG=json:FIELD")
    captions = {text.partition("=")[0]: text.partition("=")[2] for text in given}
    if len(captions) < len(given):
        raise ConfigError("--caption: a language is given twice; a column has one source")
    return captions


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:10]) + (", ..." if len(keys) > 10 else "")


# -- what they read and make, for pipelines (ccr_dist/declare.py)


def _of_table(path: Path) -> Uses:
    return Uses(reads=(Table(str(path)),))


def _recipe_file(recipe: str | None, overrides: list[str] | None) -> tuple[Item, ...]:
    from ccr_dist.resources import is_path

    return (Settings(recipe, overrides=tuple(overrides or ())),) if recipe is not None and is_path(recipe) else ()


def _build(recipe: str, overrides: list[str] | None, out: Path) -> Uses:
    from ccr_dist.data.corpora.recipes.base import load_recipe

    needed = load_recipe(recipe, overrides or []).reads()
    return Uses(
        reads=(*_recipe_file(recipe, overrides), *(Place(str(path)) for path in needed)),
        makes=(Table(str(out)),),
    )


def _convert(to: str, source: Path, out: Path, column: list[str] | None) -> Uses:
    if to not in ("nrccr", "mla", "replay"):
        raise ConfigError(f"{to!r}: {CONVERSIONS}")
    if to == "replay":
        return Uses(reads=(Place(str(source)),), makes=(File(str(out)),))
    return Uses(reads=(*_columns(source, column), Table(str(source))), makes=(Folder(str(out)),))


def _index(urls: list[str], out: Path, caption: list[str] | None) -> Uses:
    from ccr_dist.data.corpora.foreign_tars import needed

    _captions(caption)
    return Uses(reads=tuple(map(Place, needed(urls))), makes=(Table(str(out)),))


def _export(path: Path, out: Path, image: str, caption: str | None, also: list[str] | None) -> Uses:
    columns = [image, *([] if caption is None else [caption]), *(also or [])]
    return Uses(reads=_columns(path, columns), makes=(Folder(str(out)),))


def _push(path: Path, url: str, column: list[str] | None) -> Uses:
    return Uses(
        reads=(Table(str(path)), *_columns(path, column)),
        makes=_columns(url, column) or (Table(url),),
        packages=("fsspec",),
    )


def _pull(url: str, folder: Path, column: list[str] | None) -> Uses:
    return Uses(reads=(Table(url),), makes=_columns(folder, column) or (Table(str(folder)),), packages=("fsspec",))


def _quality(path: Path, column: str, human: str | None, source: str | None, back: str | None) -> Uses:
    columns = [name for name in (column, human, source, back) if name is not None]
    return Uses(reads=_columns(path, columns), packages=("sacrebleu",))


def _columns(path: Path | str, names: list[str] | None) -> tuple[Table, ...]:
    return tuple(Table(str(path), name) for name in names or ())


# -- the commands


@shards_app.command("build")
@declares(_build)
def build_command(
    recipe: Annotated[
        str, typer.Argument(help="a recipe's YAML file, or the name of a shipped one (see `shards recipes`)")
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key=value, e.g. languages=[en,es] picture.size=128")
    ] = None,
    out: Annotated[
        Path, typer.Option(help="folder of the datasets: OUT/train, OUT/val, OUT/test", callback=folder_to_make)
    ] = ...,  # type: ignore[assignment]
    workers: Annotated[
        int | None, typer.Option(help="processes that render pictures; default: all cores; 0: none")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Build a dataset from a recipe; what already exists is kept, and an interrupted build resumes."""
    from ccr_dist.data.corpora.build import build
    from ccr_dist.data.corpora.recipes.base import load_recipe

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
        show(
            f"{done.out}: {rows} rows, {done.columns} columns; built {done.built} shards{before} in"
            f" {done.seconds:.0f} s"
        )
    for path in done.exports:
        show(f"texts to import with `ccr-dist replay`: {path}")


@shards_app.command("recipes")
@declares(lambda name, overrides: Uses(reads=_recipe_file(name, overrides)))
def recipes_command(
    name: Annotated[str | None, typer.Argument(help="a shipped recipe or a YAML file: say what it needs")] = None,
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value")] = None,
) -> None:
    """List the recipes; with a NAME: what must be downloaded for it, and from where."""
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
@declares(_convert)
def convert_command(
    to: Annotated[
        str, typer.Argument(help="nrccr, mla (datasets to those projects' files) or replay (their files to JSONL)")
    ],
    source: Annotated[
        Path, typer.Argument(help="a dataset or a folder of them; for replay: a .txt, a .json or a folder of texts")
    ],
    out: Annotated[Path, typer.Option(help="folder, empty or new; for replay: the JSONL file")] = ...,  # type: ignore[assignment]
    name: Annotated[
        str | None, typer.Option(help="nrccr: the collection in the files' names [default: the dataset's]")
    ] = None,
    media: Annotated[str, typer.Option(help="mla: the folder of pictures that path.json names")] = "images",
    column: Annotated[list[str] | None, typer.Option(help="only this column; any number")] = None,
) -> None:
    """Write captions and descriptions as NRCCR's and LECCR's or MLA's and DASD's files, or such files as what `replay`
    imports.
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
@declares(_index)
def index_command(
    urls: Annotated[
        list[str], typer.Argument(help="tars, or folders of tars; braces {0000..0012} and globs may be quoted")
    ],
    out: Annotated[Path, typer.Option(help="folder of the dataset", callback=folder_to_make)] = ...,  # type: ignore[assignment]
    caption: Annotated[
        list[str] | None,
        typer.Option(
            help="LANG=txt (a caption a line), LANG=txt:whole or LANG=json:FIELD, any number [default: en=txt]"
        ),
    ] = None,
    image: Annotated[
        str | None, typer.Option(help="members that are the pictures: jpg, input.jpg, 'jpg;png' or none [as found]")
    ] = None,
    video: Annotated[
        str | None, typer.Option(help="members that are videos: mp4, none [default: as found, where no pictures are]")
    ] = None,
    keys: Annotated[
        str,
        typer.Option(
            help="own, tar (each begins with its tar's name) or auto: tar where two tars have a key in common"
        ),
    ] = "auto",
    bad_items: Annotated[
        int, typer.Option("--bad-items", min=0, help="Captions tolerated that cannot be read (null) ...")
    ] = 10,
    bad_fraction: Annotated[
        float, typer.Option("--bad-fraction", min=0, max=1, help="... or this fraction of the rows, whichever is more.")
    ] = 0.01,
    split: Annotated[str, typer.Option(help="train, val or test")] = "train",
    name: Annotated[str | None, typer.Option(help="default: the folder's name")] = None,
    quiet: Quiet = False,
) -> None:
    """Make a dataset of tars that img2dataset, webdataset or others wrote, without a copy."""
    from ccr_dist.data.corpora.index import index

    done = index(
        urls,
        out,
        name=name,
        split=split,
        image=image,
        video=video,
        captions=_captions(caption),
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
            f"{column}: {len(rows)} rows are others than before: {_some(rows)}; what was made of them is of the old"
            " ones",
            "yellow",
        )
    for column, rows in done.missing.items():
        show(f"{column}: {len(rows)} rows have no such member and are null: {_some(rows)}", "yellow")
    for column, faults in done.bad.items():
        show(f"{column}: {len(faults)} values cannot be read and are null:", "yellow")
        for why in list(faults.values())[:10]:
            show(f"  {why}", "yellow")
    if done.ignored:
        show(f"{done.ignored} members without an extension, or hidden, are passed over, as WebDataset does", "dim")


@shards_app.command("export")
@declares(_export)
def export_command(
    path: Annotated[Path, typer.Argument(help="a dataset, or a folder of them")],
    out: Annotated[
        Path,
        typer.Option(help="folder of the tars; of several datasets OUT/train, OUT/val, ...", callback=folder_to_make),
    ] = ...,  # type: ignore[assignment]
    image: Annotated[str, typer.Option(help="the column of the pictures")] = "image",
    caption: Annotated[
        str | None, typer.Option(help="the column of the .txt [default: caption.en, or the only one]")
    ] = None,
    also: Annotated[list[str] | None, typer.Option(help="a column whose values go into the .json; any number")] = None,
    each: Annotated[
        bool, typer.Option("--each", help="a sample for each caption, KEY_0, KEY_1, ... [default: the first]")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Write tars of KEY.jpg and KEY.txt, as open_clip's training script and other readers of WebDataset take them."""
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
@declares(_of_table)
def inspect_command(
    path: Annotated[Path, typer.Argument(help="a dataset, or a folder of them")],
    rows: Annotated[int, typer.Option(help="rows to show of each")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Show rows, columns, languages, provenance and a few rows."""
    from ccr_dist.data.table.inspect import describe, render

    description = describe(path, rows=rows)
    if as_json:
        print(json.dumps(description, ensure_ascii=False, indent=1))
    else:
        show(render(description))


@shards_app.command("verify")
@declares(_of_table)
def verify_command(
    path: Annotated[Path, typer.Argument(help="a dataset, or a folder of them")],
    decode: Annotated[bool, typer.Option(help="decode every picture")] = True,
    fast: Annotated[
        bool, typer.Option("--fast", help="records, keys, sizes and indexes only: no payload is read")
    ] = False,
    mend: Annotated[
        bool, typer.Option("--repair", help="put right what can be; set aside what its command must make again")
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
    show(f"{place}: sound" + (" as far as records, sizes and indexes tell" if fast else ""))


@shards_app.command("seal")
@declares(_of_table)
def seal_command(
    path: Annotated[Path, typer.Argument(help="a dataset, or a folder of them")],
    quiet: Quiet = False,
) -> None:
    """Gather records and indexes of complete columns in two files each, so that large datasets open at once. Changes
    nothing else.
    """
    from ccr_dist.data.table.dataset import open_all
    from ccr_dist.data.table.sealing import seal_columns

    for dataset in open_all(path):
        sealed, left = seal_columns(dataset, progress=not quiet)
        show(f"{dataset.root}: sealed {', '.join(sealed) or 'nothing new'}")
        if left:
            show(f"not complete, left out: {', '.join(left)}", "yellow")


@shards_app.command("push")
@declares(_push)
def push_command(
    path: Annotated[Path, typer.Argument(help="a dataset, or a folder of them")],
    url: Annotated[str, typer.Argument(help="s3://bucket/folder, gs://..., file:///...: what fsspec knows")],
    column: Annotated[list[str] | None, typer.Option(help="only this column; may be repeated")] = None,
    quiet: Quiet = False,
) -> None:
    """Copy what is missing of a dataset to an object store; commit records last, other content there is refused."""
    from ccr_dist.data.table.transfer import push

    for done in push(path, url, columns=column or (), progress=not quiet):
        show(f"{done.place}: {done}")


@shards_app.command("pull")
@declares(_pull)
def pull_command(
    url: Annotated[str, typer.Argument(help="a dataset in an object store, or a folder of them")],
    folder: Annotated[Path, typer.Argument(help="where to")],
    column: Annotated[list[str] | None, typer.Option(help="only this column; may be repeated")] = None,
    lazy: Annotated[
        bool, typer.Option("--lazy", help="metadata only; payloads come through the cache when they are read")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Copy what is missing of a dataset from an object store, checked by digest."""
    from ccr_dist.data.table.transfer import pull

    for done in pull(url, folder, columns=column or (), lazy=lazy, progress=not quiet):
        show(f"{done.place}: {done}")


@shards_app.command("quality")
@declares(_quality)
def quality_command(
    path: Annotated[Path, typer.Argument(help="a dataset, or a folder of them")],
    column: Annotated[str, typer.Option(help="translated captions, e.g. caption.de.opus")] = ...,  # type: ignore[assignment]
    human: Annotated[
        str | None, typer.Option(help="human captions to compare with; default: caption.<lang>, where it is")
    ] = None,
    source: Annotated[str | None, typer.Option(help="what they were made from; default: as their plan says")] = None,
    back: Annotated[
        str | None, typer.Option(help="their back-translation; default: where one was made (`translate --back`)")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Measure translations: chrF against human captions, there and back, length, what stayed the same or is empty."""
    from ccr_dist.generate.jobs.quality import quality, render

    figures = quality(path, column, human=human, source=source, back=back)
    if as_json:
        print(json.dumps(figures, ensure_ascii=False, indent=1))
    else:
        show(render(figures))
