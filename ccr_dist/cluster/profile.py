"""Site profiles: names of a cluster's partitions and GPUs, how its environment is set up, how early it warns jobs.
Typed YAML.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from ccr_dist import yamlfile
from ccr_dist.cluster.elsewhere.sections import Kubernetes, SkyPilot
from ccr_dist.cluster.elsewhere.words import Line, Variables
from ccr_dist.config import Frozen
from ccr_dist.resources import PROFILES


def _options(text: str) -> str:
    shlex.split(text)  # ValueError if a quotation mark is not closed
    return text


Options = Annotated[Line, AfterValidator(_options)]


def _gpus(text: str) -> str:
    if "{n}" not in text or set("{}") & set(text.replace("{n}", "")):
        raise ValueError("expected an option of sbatch with {n} for the number of GPUs, and no other braces")
    return text


def _interpreter(text: str) -> str:
    if set('"\\') & set(text) or not text.strip():
        raise ValueError("expected the name or path of an interpreter, without quotation marks and backslashes")
    return text


def _quoted(value: object) -> object:
    if isinstance(value, int):  # 24:00:00 without quotes is a number in YAML 1.1
        raise ValueError("expected a time limit as text: write it in quotes, such as '24:00:00'")
    return value


TimeLimit = Annotated[str, BeforeValidator(_quoted), Field(pattern=r"^(\d+-)?\d+(:\d\d){0,2}$")]


class Preflight(Frozen):
    """Requirements of a node before ranks start on it."""

    bandwidth: bool = Field(
        True, description="also measure a short all-reduce between the nodes; the log names the slowest link"
    )
    least_gbs: float | None = Field(
        None, gt=0, description="GB/s of that all-reduce below which the slowest node counts as broken"
    )
    free_memory_gib: float = Field(1.0, ge=0, description="free memory per node")
    free_disk_gib: float = Field(1.0, ge=0, description="free disk in the scratch folder of each node")
    wait_s: float = Field(120.0, gt=0, description="seconds to wait for the slowest node to appear")


class Profile(Frozen):
    """The settings of a site."""

    partition: Line | None = Field(None, description="as for sbatch; default: the site's")
    account: Line | None = Field(None, description="as for sbatch; default: the site's")
    qos: Line | None = Field(None, description="as for sbatch; default: the site's")
    constraint: Line | None = Field(None, description="as for sbatch; default: the site's")
    gpus: Annotated[Options, AfterValidator(_gpus)] | None = Field(
        "--gpus-per-node={n}",
        description="sbatch option that requests GPUs per node, such as --gres=gpu:a100:{n}; null: the site has none",
    )
    setup: tuple[str, ...] = Field((), description="shell lines to run first: modules, conda")
    python: Annotated[Line, AfterValidator(_interpreter)] = Field(
        "python", description="Python interpreter on the nodes, with ccr_dist installed"
    )
    prefix: Options = Field(
        "", description="prefix of every command on a node, such as `apptainer exec --nv image.sif`"
    )
    environment: Variables = Field(
        default_factory=dict, description="environment variables of every job, such as NCCL_SOCKET_IFNAME"
    )
    time: TimeLimit = Field("24:00:00", description="time limit of steps without their own")
    lead_s: int = Field(120, gt=0, description="seconds before the time limit at which a job is warned and saves")
    grace_s: float = Field(
        30.0, gt=0, description="seconds between SIGTERM and SIGKILL: the partition's GraceTime, or KillWait"
    )
    scratch: Line | None = Field(
        None, description="folder on each node for temporary files; a job removes its own folder in it"
    )
    free_disk_gib: float = Field(
        10.0, ge=0, description="free disk required at submission wherever runs and datasets are written"
    )
    mail: Line | None = Field(None, description="mail address for SLURM")
    mail_type: Line = Field("FAIL,END", description="events for which SLURM sends mail")
    max_array: int | None = Field(None, gt=0, description="tasks in one array; default: the site's MaxArraySize")
    throttle: int | None = Field(None, gt=0, description="tasks of an array that run at a time")
    retries: int = Field(3, ge=0, description="attempts without progress after which a job is given up")
    sbatch: tuple[Options, ...] = Field((), description="further options of sbatch, such as --exclusive")
    preflight: Preflight | Literal["off"] = Preflight()
    kubernetes: Kubernetes | None = Field(None, description="for `submit --to kubernetes`")
    skypilot: SkyPilot | None = Field(None, description="for `submit --to skypilot`")


def load_profile(name: str | Path) -> Profile:
    """Load a site profile.

    Args:
        name: A file's path, or the name of a shipped profile.

    Raises:
        ConfigError: The file is missing or wrong; names file, line and the nearest valid key.
    """
    return yamlfile.validate(Profile, yamlfile.load(PROFILES.find(name)))
