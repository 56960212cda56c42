"""`ccr-dist scale run` and `scale report`; `scale compare`, which a step of a pipeline may be, is in `train/cli.py`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from ccr_dist.errors import DONE, STOPPED
from ccr_dist.places import file_to_read, folder_to_make, folder_to_read, require_writable
from ccr_dist.train.cli import scale_app

scaling_app = typer.Typer(no_args_is_help=True, help=scale_app.info.help)


@scaling_app.command("run")
def run_command(
    studies: Annotated[
        list[Path],
        typer.Argument(metavar="STUDY.yaml...", help="Scaling studies, see configs/scaling/.", callback=file_to_read),
    ],
    again: Annotated[bool, typer.Option("--again", help="Measure points again that failed.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would run.")] = False,
) -> None:
    """Carry out what is left of scaling studies, one after the other.

    Trains a study's run for a few steps at each of its points, and records how fast every step was and where its time
    went. A point that runs out of memory is a result, too. Exit code 75: it was stopped; start it again. With `where:
    slurm` the points become SLURM jobs. Example: `ccr-dist scale run configs/scaling/strong.yaml`
    (docs/start/scaling.md).
    """
    from ccr_dist.scaling.jobs import submit
    from ccr_dist.scaling.plan import load_plan
    from ccr_dist.scaling.runner import run

    codes = []
    for plan in [load_plan(study) for study in studies]:  # all are read before the first begins
        if plan.study.where == "slurm":
            submit(plan, again=again, dry_run=dry_run, say=_say)
        else:
            codes.append(run(plan, again=again, dry_run=dry_run, say=_say))
        if STOPPED in codes:
            raise typer.Exit(STOPPED)
    if code := max(codes, default=DONE):
        raise typer.Exit(code)


@scaling_app.command("report")
def report_command(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="The folder `out` of a scaling study.", callback=folder_to_read)
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the report. Default: report/ in the study's folder.", callback=folder_to_make),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report's JSON, too.")] = False,
) -> None:
    """Write what a scaling study has shown so far: tables and plots as a page, as Markdown and as JSON.

    Samples a second, efficiency, the parts of a step, memory and communication, the serial fraction, and the planner's
    numbers beside them, with commands, commits, versions and hardware. Example: `ccr-dist scale report
    runs/scaling/strong`.
    """
    import json

    from ccr_dist.scaling.jobs import collect
    from ccr_dist.scaling.report import as_json as values
    from ccr_dist.scaling.report import markdown, write
    from ccr_dist.scaling.summary import summarise

    target = out or folder / "report"
    folder_to_make(target)
    require_writable(target)
    collect(folder, _say)
    summary = summarise(folder)
    page = write(summary, target)
    print(json.dumps(values(summary), ensure_ascii=False, indent=1) if as_json else markdown(summary, ()))
    _say(str(page.resolve()))


scaling_app.registered_commands += scale_app.registered_commands


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
