"""Commands of `ccr-dist shards` that work on a dataset: look at it, check it, copy it. Nothing heavy is imported before
a command runs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from ccr_dist import terminal
from ccr_dist.data.declared import measuring, of_table, overlapping, pulling, pushing
from ccr_dist.data.table.names import column_names
from ccr_dist.declare import declares
from ccr_dist.errors import DataError, StorageError
from ccr_dist.places import folder_to_make, folder_to_read

table_app = typer.Typer()
Columns = Annotated[list[str] | None, typer.Option(help="Only this column; may be repeated.", callback=column_names)]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress bar.")]


def show(text: Any, style: str = "") -> None:
    """Prints text without interpreting brackets as markup and without breaking paths."""
    terminal.console(soft_wrap=True).print(text, style=style)


@table_app.command("inspect")
@declares(of_table)
def inspect_command(
    path: Annotated[Path, typer.Argument(help="A dataset, or a folder of datasets.", callback=folder_to_read)],
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


@table_app.command("verify")
@declares(of_table)
def verify_command(
    path: Annotated[Path, typer.Argument(help="A dataset, or a folder of datasets.", callback=folder_to_read)],
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
    from ccr_dist.data.storage.object_store import as_url
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


@table_app.command("seal")
@declares(of_table)
def seal_command(
    path: Annotated[Path, typer.Argument(help="A dataset, or a folder of datasets.", callback=folder_to_read)],
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


@table_app.command("push")
@declares(pushing)
def push_command(
    path: Annotated[Path, typer.Argument(help="A dataset, or a folder of datasets.", callback=folder_to_read)],
    url: Annotated[
        str, typer.Argument(help="s3://bucket/folder, gs://..., file:///..., or another that fsspec knows.")
    ],
    column: Columns = None,
    quiet: Quiet = False,
) -> None:
    """Copy what an object store lacks of a dataset. Commit records come last; other content there is refused."""
    from ccr_dist.data.table.stores.push import push

    for done in push(path, url, columns=column or (), progress=not quiet):
        show(f"{done.place}: {done}")


@table_app.command("pull")
@declares(pulling)
def pull_command(
    url: Annotated[str, typer.Argument(help="A dataset in an object store, or a folder of datasets.")],
    folder: Annotated[Path, typer.Argument(help="Folder to copy into.", callback=folder_to_make)],
    column: Columns = None,
    lazy: Annotated[
        bool,
        typer.Option("--lazy", help="Copy only metadata; payloads are fetched when they are read."),
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Copy what a folder lacks of a dataset in an object store, checked by digest."""
    from ccr_dist.data.table.stores.pull import pull

    for done in pull(url, folder, columns=column or (), lazy=lazy, progress=not quiet):
        show(f"{done.place}: {done}")


@table_app.command("overlap")
@declares(overlapping)
def overlap_command(
    texts: Annotated[
        Path, typer.Argument(help="A dataset of texts, or a folder of datasets.", callback=folder_to_read)
    ],
    path: Annotated[
        Path,
        typer.Argument(
            help="The dataset whose concepts are looked for, or a folder of datasets.", callback=folder_to_read
        ),
    ],
    column: Annotated[
        str, typer.Option(help="Column of the concepts: a label or captions.", callback=column_names)
    ] = "label.concept",
    among: Annotated[str, typer.Option(help="Column of the texts.", callback=column_names)] = "caption.en",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Count the concepts of a dataset that occur in texts, as a whole text and as words of one. Case, punctuation and
    leading articles do not count; inflected words are other words.
    """
    from ccr_dist.data.table.overlap import overlap, render

    figures = overlap(texts, path, column=column, among=among)
    if as_json:
        print(json.dumps(figures, ensure_ascii=False, indent=1))
    else:
        show(render(figures))


@table_app.command("quality")
@declares(measuring)
def quality_command(
    path: Annotated[Path, typer.Argument(help="A dataset, or a folder of datasets.", callback=folder_to_read)],
    column: Annotated[
        str, typer.Option(help="Column of translated captions, e.g. caption.de.opus.", callback=column_names)
    ] = ...,  # type: ignore[assignment]
    human: Annotated[
        str | None,
        typer.Option(
            help="Human captions to compare with. Default: caption.<lang>, if it exists.", callback=column_names
        ),
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(help="Column they were made from. Default: by their plan.", callback=column_names),
    ] = None,
    back: Annotated[
        str | None,
        typer.Option(
            help="Their back-translation. Default: the one that `translate --back` made, if any.",
            callback=column_names,
        ),
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
