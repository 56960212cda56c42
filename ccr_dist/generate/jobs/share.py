"""`--share`: which of N workers this one is, as a person says it, or as the scheduler that started it does.

    2/8                         the third of eight
    kubernetes/8                the index is in a variable that this scheduler sets, and the number is given
    mpi                         this launcher's variables say both
    env:MY_INDEX/8              any variable that holds an index from 0 ...
    env:MY_INDEX-1/MY_COUNT     ... or from 1, and the number in another one

`SCHEDULERS` is the list of names: for another scheduler add a line.
"""

from __future__ import annotations

import difflib
import os
import re
from dataclasses import dataclass

from ccr_dist.errors import ConfigError

_NAME = r"[A-Za-z_][A-Za-z0-9_]*"
_VARIABLES = re.compile(rf"env:(?P<index>{_NAME})(?:-(?P<first>[0-9]+))?/(?P<count>{_NAME}|[0-9]+)", re.ASCII)


@dataclass(frozen=True)
class Scheduler:
    """The environment variables in which a scheduler tells a worker its place.

    Attributes:
        index: Name of the variable with this worker's number.
        count: Name of the variable with the number of workers; None: this scheduler does not tell it.
        first: The lowest number, or the name of the variable that has it.
        last: Name of the variable with the highest number, if numbers may have gaps.
        step: Name of the variable with the distance between numbers; it may be unset for 1.
    """

    index: str
    count: str | None
    first: str | int = 0
    last: str | None = None
    step: str | None = None


SCHEDULERS = {
    "slurm": Scheduler(
        index="SLURM_ARRAY_TASK_ID",
        count="SLURM_ARRAY_TASK_COUNT",
        first="SLURM_ARRAY_TASK_MIN",
        last="SLURM_ARRAY_TASK_MAX",
        step="SLURM_ARRAY_TASK_STEP",
    ),
    "srun": Scheduler("SLURM_PROCID", "SLURM_NTASKS"),
    "kubernetes": Scheduler("JOB_COMPLETION_INDEX", None),
    "mpi": Scheduler("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    "pmi": Scheduler("PMI_RANK", "PMI_SIZE"),  # MPICH, Intel MPI
    "skypilot": Scheduler("SKYPILOT_NODE_RANK", "SKYPILOT_NUM_NODES"),
    "skypilot-jobs": Scheduler("SKYPILOT_JOB_RANK", "SKYPILOT_NUM_JOBS"),
    "aws-batch": Scheduler("AWS_BATCH_JOB_ARRAY_INDEX", "AWS_BATCH_JOB_ARRAY_SIZE"),
    "google-batch": Scheduler("BATCH_TASK_INDEX", "BATCH_TASK_COUNT"),
    "cloud-run": Scheduler("CLOUD_RUN_TASK_INDEX", "CLOUD_RUN_TASK_COUNT"),
}
FORMS = (
    "I/N with 0 <= I < N, for example 0/8; env:INDEX/COUNT with the names of variables; or one of"
    f" {', '.join(name if known.count else f'{name}/N' for name, known in SCHEDULERS.items())}"
)


def parse_share(text: str) -> tuple[int, int]:
    """Parse `--share`.

    Args:
        text: One of the forms at the top of this module.

    Returns:
        (I, N), with 0 <= I < N.

    Raises:
        ConfigError: Not of these forms; or the environment does not hold what the form names, or something else than
            the place of a worker; or a SLURM array has gaps, where SLURM does not say the place. Names the variable.
    """
    if numbers := re.fullmatch(r"([0-9]+)/([0-9]+)", text, re.ASCII):
        index, count = int(numbers[1]), int(numbers[2])
        if index < count:
            return index, count
    elif match := _VARIABLES.fullmatch(text):
        first = int(match["first"] or 0)
        count_text = match["count"]
        given = int(count_text) if count_text.isdecimal() else None
        return _place(text, Scheduler(match["index"], None if given is not None else count_text, first), given)
    else:
        name, slash, count_text = text.partition("/")
        if name in SCHEDULERS and (not slash or re.fullmatch("[0-9]+", count_text)):
            return _place(text, SCHEDULERS[name], int(count_text) if slash else None)
        near = difflib.get_close_matches(name, SCHEDULERS, 1)
        if near and name != near[0]:
            raise ConfigError(f"--share {text!r}: did you mean {near[0]!r}? Expected {FORMS}")
    raise ConfigError(f"--share {text!r}: expected {FORMS}")


def _place(text: str, known: Scheduler, count: int | None) -> tuple[int, int]:
    """The place and the number of workers in the environment; `count`: as given on the command line."""
    if count is not None and known.count is not None:
        raise ConfigError(f"--share {text}: {known.count} tells the number of workers; leave out /{count}")
    if count is None and known.count is None:
        raise ConfigError(
            f"--share {text}: this scheduler tells the index ({known.index}), not the number of workers: write"
            f" {text}/N with the number that the job has, for example {text}/8"
        )
    index = _number(text, known.index)
    workers = _number(text, known.count) if known.count else count or 0
    first = known.first if isinstance(known.first, int) else _number(text, known.first)
    step = _number(text, known.step) if known.step and os.environ.get(known.step) else 1
    place, rest = divmod(index - first, max(step, 1))
    last = first + step * (workers - 1)
    if known.last is not None:
        said = _number(text, known.last) if os.environ.get(known.last) else last
        if rest or not index <= said == last:
            raise ConfigError(
                f"--share {text}: the array's {workers} tasks from {first} to {said} have gaps, and SLURM does not tell"
                f" which place task {index} has among them: submit an array like 0-7 or 0-6:2, or give --share I/N"
            )
    if rest or not 0 <= place < workers:
        number = f"{known.count}={workers}" if known.count else f"{workers} workers"
        places = f"{first} to {last}" if workers else "1 worker or more"
        raise ConfigError(f"--share {text}: {known.index}={index} is no place among {number}: expected {places}")
    return place, workers


def _number(text: str, variable: str) -> int:
    """The number in a variable. ConfigError if there is none."""
    value = os.environ.get(variable)
    if value is None:
        raise ConfigError(
            f"--share {text}: {variable} is not set, so this is no worker of such a job. Give --share I/N instead"
        )
    if not re.fullmatch(r"[0-9]+", value, re.ASCII):
        raise ConfigError(f"--share {text}: {variable}={value!r}: expected a whole number")
    return int(value)
