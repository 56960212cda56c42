"""`ccr-dist report`: parse, call, print."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ccr_dist.declare import File, Folder, Table, Uses, declares
from ccr_dist.places import folder_to_make, folder_to_read

report_app = typer.Typer()


def _reporting(runs: list[Path], out: Path, split: str, pictures: Path | None) -> Uses:
    advice = f"`ccr-dist evaluate CONFIG --split {split}` makes it" + (
        " (or `train --test`)" if split == "test" else ""
    )
    files = [run if run.suffix == ".json" else run / "results" / f"{split}.json" for run in runs]
    shown = () if pictures is None else (Table(str(pictures), "image", single=True),)
    return Uses(reads=(*(File(str(file), advice) for file in files), *shown), makes=(Folder(str(out)),))


@report_app.command()
@declares(_reporting)
def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, or result files.")],
    out: Annotated[Path, typer.Option(help="Folder of the report.", callback=folder_to_make)] = Path("report"),
    split: Annotated[str, typer.Option(help="Which result of each run: val or test.")] = "test",
    title: Annotated[str, typer.Option(help="Title of the page.")] = "Cross-lingual retrieval",
    note: Annotated[list[str] | None, typer.Option(help="A paragraph below the title, any number.")] = None,
    pictures: Annotated[
        Path | None, typer.Option(help="The dataset whose pictures illustrate the examples.", callback=folder_to_read)
    ] = None,
) -> None:
    """Compare runs in one table and one page.

    Prints the table and writes OUT/report.html (one file that opens anywhere), results.json and results.csv. Runs of
    one method with different seeds become one row. Example: `ccr-dist report runs/dasd-s* runs/clip-s* --out report`.
    """
    from ccr_dist.evaluate.command import report as write

    write(runs, out=out, split=split, title=title, notes=note or [], pictures=pictures)
