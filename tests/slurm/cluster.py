"""A running testbed, as tests see it: submit, look, wait, and harm its hosts. Polls, with generous limits; times
nothing.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
SCRIPT = Path(__file__).parent / "testbed" / "testbed.sh"
ROOT = Path(__file__).resolve().parents[2]
OVER = {
    "COMPLETED",
    "FAILED",
    "CANCELLED",
    "TIMEOUT",
    "NODE_FAIL",
    "PREEMPTED",
    "OUT_OF_MEMORY",
    "BOOT_FAIL",
    "DEADLINE",
}


def until(what: str, look: Callable[[], T], seconds: float = 600) -> T:
    """The first true answer. AssertionError after that many seconds."""
    end = time.monotonic() + seconds
    while True:
        found = look()
        if found:
            return found
        assert time.monotonic() < end, f"after {seconds:g} s still not: {what}"
        time.sleep(0.3)


@dataclass
class Cluster:
    folder: Path
    environment: dict[str, str]

    @classmethod
    @contextlib.contextmanager
    def started(cls, folder: Path, *writable: Path, nodes: int = 4) -> Iterator[Cluster]:
        environment = {
            **os.environ,
            "TESTBED_DIR": str(folder),
            "PYTHONPATH": str(ROOT),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
        }
        environment |= {"PATH": f"{folder}/bin:{environment['PATH']}", "SLURM_CONF": f"{folder}/etc/slurm.conf"}
        environment["TESTBED_READABLE"] = f"{ROOT}:{sys.prefix}:{sys.base_prefix}"
        self = cls(folder, environment)
        try:
            self.do("up", str(nodes), *map(str, writable), timeout=180)
            yield self
        finally:
            self.do("down")

    def do(self, *words: str, timeout: float = 120) -> str:
        """testbed.sh WORDS."""
        done = subprocess.run(
            ["bash", SCRIPT, *words], env=self.environment, capture_output=True, text=True, timeout=timeout
        )
        assert done.returncode == 0, f"testbed.sh {' '.join(words)}: {done.stderr}{done.stdout}"
        return done.stdout

    def run(self, *command: str | Path, cwd: Path = ROOT, timeout: float = 600) -> subprocess.CompletedProcess[str]:
        """A command on the login host: with its network, and SLURM's commands."""
        words = ["bash", SCRIPT, "login", *map(str, command)]
        return subprocess.run(words, cwd=cwd, env=self.environment, capture_output=True, text=True, timeout=timeout)

    def slurm(self, *command: str | Path, cwd: Path = ROOT) -> str:
        done = self.run(*command, cwd=cwd)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    def sbatch(self, *arguments: str | Path, cwd: Path = ROOT) -> str:
        return self.slurm("sbatch", "--parsable", *arguments, cwd=cwd).strip()

    def jobs(self, *which: str) -> dict[str, str]:
        """State by job (or JOB_TASK), ended ones included."""
        text = self.slurm("squeue", "--noheader", "--array", "--states=all", "--format=%i %T", *which)
        return {line.split()[0]: line.split()[1] for line in text.splitlines()}

    def state(self, job: str) -> str:
        """Of an array: that of a task which is not over, else of one that did not end well."""
        states = sorted(self.jobs(f"--jobs={job}").values(), key=lambda state: (state in OVER, state == "COMPLETED"))
        return states[0] if states else "?"

    def wait(self, job: str, *states: str, seconds: float = 600) -> str:
        """Until the job is in one of these states, by default over."""
        wanted = set(states) or OVER
        return (
            until(
                f"job {job} is {' or '.join(sorted(wanted))}",
                lambda: (now := self.state(job)) in wanted and now,
                seconds,
            )
            or ""
        )

    def nodes_of(self, job: str) -> list[str]:
        names = self.slurm("squeue", "--noheader", "--states=all", "--format=%N", f"--jobs={job}").strip()
        return self.slurm("scontrol", "show", "hostnames", names).split() if names else []

    def restarts(self, job: str) -> int:
        match = re.search(r"Restarts=(\d+)", self.slurm("scontrol", "show", "job", job))
        assert match
        return int(match[1])

    def settle(self) -> None:
        """All jobs are gone and all nodes idle, whatever was done to them."""
        waiting = [job for job, state in self.jobs().items() if state not in OVER]
        if waiting:
            self.slurm("scancel", *waiting)
        until("no job is left", lambda: all(state in OVER for state in self.jobs().values()))
        for node, state in self.states().items():
            if re.match("down|drain", state):
                self.slurm("scontrol", "update", f"nodename={node}", "state=resume")
        self.do("wait-idle", "120")

    def states(self) -> dict[str, str]:
        lines = self.slurm("sinfo", "--noheader", "-N", "-p", "main", "-o", "%N %T").splitlines()
        return {line.split()[0]: line.split()[1] for line in lines}


def log_of(folder: Path) -> str:
    """All logs below a folder, for messages of failed tests."""
    return "\n".join(
        f"--- {path}\n{path.read_text(errors='replace')[-4000:]}" for path in sorted(folder.rglob("*.log"))
    )


def script(folder: Path, name: str, lines: Sequence[str]) -> Path:
    path = folder / f"{name}.sbatch"
    path.write_text("\n".join(["#!/bin/bash", f"#SBATCH --output={folder}/{name}-%j.log", *lines]) + "\n")
    return path
