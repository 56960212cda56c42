"""The commands for pipelines: `submit`, `status`, `cancel`, `resume`, `run`. Parse, call, print."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from ccr_dist.places import folder_to_make

pipelines_app = typer.Typer(no_args_is_help=True)

Pipeline = Annotated[Path, typer.Argument(metavar="PIPELINE.yaml", help="what to run; see docs/slurm.md")]
Overrides = Annotated[list[str] | None, typer.Argument(help="key.sub=value, any number, such as steps.train.nodes=2")]
Run = Annotated[Path, typer.Argument(metavar="RUN", help="folder of a submitted pipeline: FOLDER/NAME")]
ProfileName = Annotated[
    str,
    typer.Option(
        "--profile",
        help="site profile: a YAML file, or the name of one that comes with ccr-dist: default, example, kubernetes,"
        " skypilot",
    ),
]
DryRunHere = Annotated[
    bool, typer.Option("--dry-run", help="Check everything and say which steps would run, and why; run nothing.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="check everything and write the scripts, but queue nothing")]
To = Annotated[
    str,
    typer.Option(
        "--to",
        metavar="SCHEDULER",
        help="slurm: queue the pipeline; kubernetes, skypilot: only write files for that scheduler's own commands",
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out",
        metavar="DIR",
        help="with --to kubernetes or skypilot: new or empty folder for the files; default: FOLDER/NAME/SCHEDULER",
        callback=folder_to_make,
    ),
]


@pipelines_app.command()
def submit(
    pipeline: Pipeline,
    overrides: Overrides = None,
    profile: ProfileName = "default",
    dry_run: DryRun = False,
    to: To = "slurm",
    out: Out = None,
) -> None:
    """Queue a pipeline on SLURM as a chain of jobs, after checking everything that can be checked. Steps
    that are done are not repeated. With --to kubernetes or --to skypilot: write its steps as files for these.
    """
    from ccr_dist.cluster.elsewhere.write import SLURM, known_target, write
    from ccr_dist.cluster.pipeline import load_plan
    from ccr_dist.cluster.profile import load_profile
    from ccr_dist.cluster.submit import submit as submit_plan
    from ccr_dist.errors import ConfigError

    if known_target(to) != SLURM:
        write(load_plan(pipeline, overrides or ()), load_profile(profile), to=to, named=profile, out=out, say=_say)
        return
    if out is not None:
        raise ConfigError(f"--out {out}: with --to kubernetes or skypilot only; on SLURM the pipeline's folder counts")
    submit_plan(load_plan(pipeline, overrides or ()), load_profile(profile), dry_run=dry_run, say=_say)


@pipelines_app.command()
def resume(run: Run, overrides: Overrides = None, dry_run: DryRun = False) -> None:
    """Queue the unfinished steps of a pipeline again, with the profile that it was submitted with."""
    from ccr_dist.cluster.ledger import recorded
    from ccr_dist.cluster.submit import submit as submit_plan
    from ccr_dist.errors import ConfigError

    run = _from_home(run)
    plan, profile = recorded(run, overrides or ())
    if profile is None:
        raise ConfigError(f"{run} was run without SLURM; `ccr-dist run {run / 'pipeline.yaml'}` resumes it")
    submit_plan(plan, profile, dry_run=dry_run, say=_say)


@pipelines_app.command()
def cancel(run: Run) -> None:
    """End all jobs of a pipeline. Running jobs save their state; `resume` continues from there."""
    from ccr_dist.cluster.submit import cancel as cancel_run

    cancel_run(_from_home(run), _say)


@pipelines_app.command()
def status(run: Run, as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False) -> None:
    """Show the progress of a pipeline: states, attempts, rates, estimated time left, logs. Asks SLURM once."""
    import json

    from ccr_dist.cluster.status import status as look
    from ccr_dist.cluster.status import text

    found = look(_from_home(run))
    print(json.dumps(found, ensure_ascii=False, indent=1) if as_json else text(found))


@pipelines_app.command()
def run(pipeline: Pipeline, overrides: Overrides = None, dry_run: DryRunHere = False) -> None:
    """Run a pipeline on this machine, without SLURM: the same steps and files. Repeat the command to resume."""
    from ccr_dist.cluster import local
    from ccr_dist.cluster.pipeline import load_plan

    code = local.run(load_plan(pipeline, overrides or ()), _say, dry_run=dry_run)
    if code:
        raise typer.Exit(code)


def _from_home(run: Path) -> Path:
    """Return the run folder's absolute path, and change to the folder where the pipeline was submitted: its relative
    paths start there.
    """
    from ccr_dist.data.storage.store import read_json
    from ccr_dist.errors import DataError

    run = run.absolute()
    path = run / "record.json"
    if path.exists():
        try:
            record = read_json(path)
        except DataError:
            record = None
        folder = record.get("folder") if isinstance(record, dict) else None
        if not isinstance(folder, str):
            raise DataError(
                f"{path}: damaged, it does not say where the pipeline was submitted; remove it, and start the command"
                " in that folder"
            )
        os.chdir(folder)
    return run


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
