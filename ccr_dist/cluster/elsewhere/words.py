"""Types of the words in a site profile: what a scheduler, a shell or a YAML file could read as more than text is
refused.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Annotated

from pydantic import AfterValidator, Field


def one_line(text: str) -> str:
    """Return the text unchanged. Raises ValueError for line breaks and other control characters, which could start a
    new line in a script.
    """
    if any(ord(c) < 32 or ord(c) in (127, 0x85, 0x2028, 0x2029) for c in text):
        raise ValueError("expected one line of text without control characters")
    return text


# Variables that are set for a job, by whom: a profile that sets one, too, would change what a process takes itself for,
# or be overwritten in silence.
_LAUNCHERS = "the scripts and launchers of ccr-dist"
_TORCH = "the launcher of a training"
OURS: dict[str, str] = {
    **dict.fromkeys(
        (
            *("CCR_RUN", "CCR_STEP", "CCR_TASK", "CCR_TASKS", "CCR_JOB", "CCR_ATTEMPT", "CCR_RETRIES", "CCR_NOTES"),
            *("CCR_SCRATCH", "CCR_HEAD", "CCR_PORT", "CCR_LAUNCH", "CCR_RANKS", "CCR_PREFLIGHT", "CCR_BOUND"),
            "CCR_STOP_FILE",
            # shell variables of the scripts, and what they export (`render.py`, `slurm/`)
            *("ROOT", "SCRIPTS", "RUN", "STEP", "PYTHON", "RETRIES", "TASKS", "OFFSET", "SCRATCH", "LAUNCH", "RANKS"),
            *("PREFLIGHT", "PREFIX", "COMMAND", "SRUN_CPUS_PER_TASK", "PET_SIGNALS_TO_HANDLE", "JOBSET_RESTART"),
        ),
        _LAUNCHERS,
    ),
    **dict.fromkeys(("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"), _TORCH),
    "JOB_COMPLETION_INDEX": "Kubernetes",
}


def variable(name: str) -> str:
    """Return the name unchanged. Raises ValueError if it is no name of an environment variable, or one of `OURS`."""
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name, re.ASCII):
        raise ValueError(f"{name!r} is no name of a variable")
    if name in OURS:
        raise ValueError(f"{name} is set by {OURS[name]} for every job: leave it out, or take another name")
    return name


def variables(values: dict[str, str]) -> dict[str, str]:
    """Return the mapping unchanged. Raises ValueError for a key that a profile cannot set (`variable`)."""
    for name in values:
        variable(name)
    return values


def _absolute(text: str) -> str:
    if not text.startswith("/") or ".." in PurePosixPath(text).parts or ":" in text:
        raise ValueError("expected a path that begins with /, without .. and colons")
    return text if text == "/" else text.rstrip("/")


Line = Annotated[str, AfterValidator(one_line)]
Variables = Annotated[dict[str, Line], AfterValidator(variables)]
Variable = Annotated[str, AfterValidator(variable)]
Absolute = Annotated[Line, AfterValidator(_absolute)]
# Names in Kubernetes: of a namespace, of other objects, in a label's value, of a label, of a resource.
_PART = "[a-z0-9]([a-z0-9-]*[a-z0-9])?"
_DOMAIN = rf"{_PART}(\.{_PART})*"
_WORD = "[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?"
DnsLabel = Annotated[str, Field(max_length=63, pattern=rf"^{_PART}$")]
DnsName = Annotated[str, Field(max_length=253, pattern=rf"^{_DOMAIN}$")]
LabelValue = Annotated[str, Field(pattern=rf"^({_WORD})?$")]
Qualified = Annotated[str, Field(max_length=317, pattern=rf"^({_DOMAIN}/)?{_WORD}$")]
Device = Annotated[str, Field(max_length=317, pattern=rf"^{_DOMAIN}/{_WORD}$")]  # only Kubernetes' own need no domain
Quantity = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?(k|[MGTPE]|[KMGTPE]i)?$")]


def below(path: str, folders: list[str]) -> bool:
    """Whether a path is one of the folders, or lies in one.

    Args:
        path: Absolute path.
        folders: Absolute paths.
    """
    place = PurePosixPath(path)
    return any(place.is_relative_to(folder) for folder in folders)
