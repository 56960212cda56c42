"""Options that every job's command has, declared once."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Annotated, Any, get_type_hints

import typer


@dataclass(frozen=True)
class JobOptions:
    """The options that all jobs have: how a job runs, not what it makes."""

    share: Annotated[
        str,
        typer.Option(
            "--share",
            metavar="I/N",
            help="Do shards I, I+N, ... only. From the environment: `slurm`, `kubernetes/N`, `mpi`, `skypilot`, ..., or"
            " env:INDEX/COUNT with the names of two variables (COUNT may be a number). Default: any shard.",
        ),
    ] = "0/1"
    batch: Annotated[
        int | None, typer.Option("--batch", min=1, help="Rows per engine call. Default: what suits the engine.")
    ] = None
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers",
            min=0,
            help="Processes that prepare rows ahead of the engine; 0: threads. Default: what suits the job.",
        ),
    ] = None
    threads: Annotated[int, typer.Option("--threads", min=1, help="Threads that prepare rows, with --workers 0.")] = 4
    bad_items: Annotated[
        int,
        typer.Option(
            "--bad-items", min=0, help="Bad items tolerated per dataset (at most half of the rows of a small one) ..."
        ),
    ] = 10
    bad_fraction: Annotated[
        float, typer.Option("--bad-fraction", min=0, max=1, help="... or this fraction of the rows, whichever is more.")
    ] = 0.01
    wait: Annotated[
        bool,
        typer.Option(
            "--wait/--no-wait",
            help="Stay until the shards of other workers are done, and take over those whose worker dies.",
        ),
    ] = True
    lease_s: Annotated[
        float,
        typer.Option(
            "--lease-s",
            min=1,
            metavar="S",
            help="Seconds without a heartbeat after which this worker counts as dead for the others.",
        ),
    ] = 60.0
    silence_s: Annotated[
        float,
        typer.Option(
            "--silence-s",
            min=1,
            metavar="S",
            help="Seconds without any result from the engine after which the process ends (exit code 9).",
        ),
    ] = 600.0
    progress: Annotated[bool, typer.Option("--progress/--quiet", help="Show a progress bar and a summary.")] = True


def with_job_options(command: Callable[..., None], *, without: tuple[str, ...] = ()) -> Callable[..., None]:
    """Decorator: replaces a command's parameter `job` by the options of `JobOptions`, but for those in `without`."""
    types = get_type_hints(JobOptions, include_extras=True)
    offered = [one for one in fields(JobOptions) if one.name not in without]

    @functools.wraps(command)
    def with_options(**given: Any) -> None:
        job = JobOptions(**{one.name: given.pop(one.name) for one in offered})
        command(**given, job=job)

    signature = inspect.signature(command, eval_str=True)
    own = [parameter for name, parameter in signature.parameters.items() if name != "job"]
    options = [
        inspect.Parameter(o.name, inspect.Parameter.KEYWORD_ONLY, default=o.default, annotation=types[o.name])
        for o in offered
    ]
    with_options.__signature__ = signature.replace(parameters=[*own, *options])  # type: ignore[attr-defined]
    return with_options
