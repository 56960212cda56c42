"""`ccr-dist study ...`: parse, call, print."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ccr_dist import terminal
from ccr_dist.declare import File, Folder, Run, Settings, Uses, declares
from ccr_dist.errors import ConfigError
from ccr_dist.places import folder_to_make, require_writable

if TYPE_CHECKING:
    from ccr_dist.study.plan import StudyPlan

study_app = typer.Typer(no_args_is_help=True, help="Carry out many runs with one command, and report what they show.")
StudyFile = Annotated[Path, typer.Argument(help="A study (YAML), see configs/studies/.")]


def _running(study: Path, only: str | None, seeds: str | None) -> Uses:
    from ccr_dist.study.plan import load_plan
    from ccr_dist.train.declared import inputs

    plan = _selected(load_plan(study), only, seeds)
    runs = [*plan.first, *plan.runs]
    made = (
        *(Run(str(run.config.folder)) for run in runs if run.config.stages),
        *(File(str(run.result)) for run in runs),
    )
    own = {item.path for item in made}
    reads = [item for item in inputs([run.config for run in runs]) if item.path not in own]
    return Uses(reads=(Settings(str(study)), *reads), makes=made, packages=("torch",))


def _reporting(study: Path, out: Path | None) -> Uses:
    from ccr_dist.study.plan import load_plan

    return Uses(reads=(Settings(str(study)),), makes=(Folder(str(out or Path(load_plan(study).study.out) / "report")),))


def _binning(study: Path, by: str, out: Path | None) -> Uses:
    needs = ("sacrebleu",) if by.startswith("chrf") else ()
    return replace(_reporting(study, out), packages=needs)


def _selected(plan: StudyPlan, only: str | None, seeds: str | None) -> StudyPlan:
    """The part of a study that the options ask for. ConfigError."""
    given = seeds.split(",") if seeds is not None else []
    if not all(number.strip().isdigit() for number in given):
        raise ConfigError(f"--seeds {seeds}: expected whole numbers with commas between them, like 0,1,2")
    rows = [name.strip() for name in only.split(",")] if only else []
    return plan.select(rows, [int(number) for number in given] if seeds is not None else None)


def _report_folder(plan: StudyPlan, out: Path | None) -> Path:
    """Where the report goes. ConfigError where a file is there; an error of the system where nothing can be written."""
    folder = out or Path(plan.study.out) / "report"
    folder_to_make(folder)
    require_writable(folder)
    return folder


@study_app.command("run")
@declares(_running)
def run_command(
    study: StudyFile,
    jobs: Annotated[int, typer.Option(help="Runs at a time, each in its own process.")] = 1,
    threads: Annotated[int, typer.Option(help="CPU threads of each run.")] = 1,
    only: Annotated[str | None, typer.Option(help="Only these rows: NAME,NAME.")] = None,
    seeds: Annotated[str | None, typer.Option(help="Only these seeds: 0,1.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would run.")] = False,
) -> None:
    """Carry out what is left of a study: complete runs are skipped, interrupted ones resume. Exit code 75: it was
    stopped; start it again. Exit code 14: other processes train some of the runs; all others are done.
    """
    from ccr_dist.study.plan import load_plan
    from ccr_dist.study.runner import run_study

    plan = _selected(load_plan(study), only, seeds)
    if code := run_study(plan, jobs=jobs, threads=threads, dry_run=dry_run):
        raise typer.Exit(code)


@study_app.command("report")
@declares(_reporting)
def report_command(
    study: StudyFile,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the report. Default: report/ in the study's folder.", callback=folder_to_make),
    ] = None,
) -> None:
    """Write a table, comparisons with intervals, plots and a page of the runs that are complete."""

    from ccr_dist.evaluate.schema import unrecorded
    from ccr_dist.study.plan import load_plan
    from ccr_dist.study.report import table_markdown, write
    from ccr_dist.study.summary import sentence, summarise

    plan = load_plan(study)
    target = _report_folder(plan, out)
    summary = summarise(plan)
    page = write(summary, target)
    console = terminal.console(soft_wrap=True)
    console.print(table_markdown(summary))
    for each in summary.judged:
        console.print(f"{each.comparison.claim}: {sentence(each, summary.label)}")
    if note := unrecorded(summary.results.runs):
        print(f"\n{note}", file=sys.stderr)
    if summary.missing:
        console.print(f"\nincomplete: no result of {', '.join(summary.missing)}")
    for name, why in summary.outdated.items():
        console.print(f"not counted: {name}, {why}")
    console.print(f"\n{page.resolve()}")


@study_app.command("bins")
@declares(_binning)
def bins_command(
    study: StudyFile,
    by: Annotated[
        str,
        typer.Option(help="words, or chrf:A:B with two columns of the queries' translations ({lang}: the language)."),
    ] = "words",
    count: Annotated[
        int, typer.Option("--count", min=1, help="Number of bins, with about as many queries in each.")
    ] = 4,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the tables. Default: report/ in the study's folder.", callback=folder_to_make),
    ] = None,
) -> None:
    """Write recalls by the length of the queries, or by the agreement of two of their translations."""

    from ccr_dist.study.bins import binned, markdown, write
    from ccr_dist.study.plan import load_plan

    plan = load_plan(study)
    target = _report_folder(plan, out)
    tables = binned(plan, by, count)
    file = write(tables, target)
    terminal.console(soft_wrap=True).print(f"{markdown(tables)}\n{file.resolve()}")


@study_app.command("growth")
@declares(_reporting)
def growth_command(
    study: StudyFile,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the tables. Default: report/ in the study's folder.", callback=folder_to_make),
    ] = None,
) -> None:
    """Write how SumR grows along the curves of a study (rows with `curve` and `x`): log-linear fits with intervals,
    where they reach other rows, and how differences of curves change.
    """

    from ccr_dist.study.growth import grown
    from ccr_dist.study.growth_report import markdown, report
    from ccr_dist.study.plan import load_plan

    plan = load_plan(study)
    target = _report_folder(plan, out)
    found = grown(plan)
    file = report(found, target)
    terminal.console(soft_wrap=True).print(f"{markdown(found)}\n{file.resolve()}")
