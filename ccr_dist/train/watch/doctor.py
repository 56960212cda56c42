"""`ccr-dist doctor`: what this machine is, and what of it would stand in the way of a run, each with what to do about
it.

Looks and measures nothing that takes long, and imports no torch until it is asked about it: what is missing here may be
just that. What the processes of a launcher have to do with each other is in `wires.py`.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ccr_dist.environment import PACKAGES, hardware, meminfo
from ccr_dist.errors import DONE, ConfigError
from ccr_dist.redact import is_secret, without_secrets
from ccr_dist.train.watch.machine_report import MachineReport

TRIED = ("torch", "torchvision", "open_clip", "transformers", "deepspeed", "vllm")  # imported in processes of their own
VARIABLES = (
    "ACCELERATE_",
    "CUDA_",
    "GLOO_",
    "HF_",
    "MASTER_",
    "NCCL_",
    "OMP_",
    "PYTORCH_",
    "SLURM_",
    "TORCH_",
    "WANDB_",
)
GIB = 2**30


def command(out: Path, *, as_json: bool) -> int:
    """Print what there is, on rank 0 of a launcher's processes. Returns DONE, or ConfigError's code when there is
    something to do.
    """
    report, main = examine(out), True
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from ccr_dist.train.processes import Processes
        from ccr_dist.train.watch import network

        processes = Processes(threads=None, world=None, group=False, timeout=120)
        network.examine(report, processes)
        main, report.problems = processes.main, processes.agree(report.problems)
        processes.close()
    if main:
        print(json.dumps(vars(report), indent=1, ensure_ascii=False) if as_json else "\n".join(_lines(report)))
    return ConfigError.exit_code if report.problems else DONE


def _lines(report: MachineReport) -> Iterator[str]:
    for section, facts in report.facts.items():
        yield f"{section}:"
        for key, value in facts.items():
            if isinstance(value, list) and value:
                yield f"  {key}:"
                yield from (f"    {each}" for each in value)
            else:
                yield f"  {key}: {value}"
    for each in report.problems:
        yield f"problem: {each['problem']}\n  -> {each['do']}"
    if not report.problems:
        yield "nothing stands in the way"


def examine(out: Path) -> MachineReport:
    """This machine, for runs whose folders lie in `out`."""
    report = MachineReport()
    sections = {
        "software": _software,
        "devices": _devices,
        "cpu": _cpu,
        "memory": _memory,
        "limits": _limits,
        "network": _network,
    }
    for name, look in sections.items():
        report.facts[name] = look(report)
    report.facts["disk"] = _disk(report, out)
    report.facts["environment"] = {
        key: without_secrets(value)
        for key, value in sorted(os.environ.items())
        if key.startswith(VARIABLES) and not is_secret(key)
    }
    return report


def _software(report: MachineReport) -> dict[str, Any]:
    found: dict[str, Any] = {"python": platform.python_version(), "system": platform.platform()}
    for package in (*PACKAGES, "deepspeed", "torchvision"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    there = [name for name in TRIED if importlib.util.find_spec(name)]
    tried = there if os.environ.get("LOCAL_RANK", "0") == "0" else []  # once a machine
    with ThreadPoolExecutor(2) as pool:
        for name, error in zip(tried, pool.map(_import_error, tried), strict=True):
            if error:
                report.problem(
                    f"{name} is installed, but cannot be imported: {error}",
                    "see docs/start/install.md, or install it again",
                )
    found["not installed"] = [name for name in TRIED if name not in there]
    return found


def _import_error(name: str) -> str | None:
    try:
        done = subprocess.run([sys.executable, "-c", f"import {name}"], capture_output=True, text=True, timeout=300)
    except subprocess.TimeoutExpired:
        return "not done after 300 s"
    return None if done.returncode == 0 else (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]


def _devices(report: MachineReport) -> dict[str, Any]:
    driver = _said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").splitlines()
    if importlib.util.find_spec("torch") is None:
        return {"driver": driver[:1], "torch": "not installed: training needs ccr-dist[train]"}
    import torch

    found: dict[str, Any] = {"cuda of torch": torch.version.cuda, "driver": driver[0] if driver else None, "gpus": []}
    if driver and not torch.cuda.is_available():
        reason = "this torch is a CPU build" if torch.version.cuda is None else "the driver may be too old for its CUDA"
        report.problem(
            f"there is a GPU (driver {driver[0]}), but torch {torch.__version__} does not see it: {reason}",
            "see launch/setup.sh",
        )
    for number in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(number)
        name = torch.cuda.get_device_name(number)
        found["gpus"].append({"name": name, "memory_gib": round(total / GIB, 1), "free_gib": round(free / GIB, 1)})
        if free < 0.9 * total:
            report.problem(
                f"GPU {number} ({name}): {(total - free) / GIB:.1f} of {total / GIB:.1f} GiB are taken",
                "nvidia-smi shows by which process",
            )
    if found["gpus"]:
        found["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))
        found["links"] = _said("nvidia-smi", "topo", "-m").splitlines()
    return found


def _cpu(report: MachineReport) -> dict[str, Any]:
    usable = len(os.sched_getaffinity(0))
    nodes = sorted(path.name for path in Path("/sys/devices/system/node").glob("node[0-9]*"))
    quota = _read("/sys/fs/cgroup/cpu.max").split()
    limit = int(quota[0]) / int(quota[1]) if quota and quota[0] != "max" else None
    if limit is not None and limit < usable:
        report.problem(
            f"the container may use {limit:g} of {usable} cores",
            f"set runtime.threads and runtime.workers for {limit:g} cores, not {usable}",
        )
    return {"model": hardware(), "usable cores": usable, "cores by quota": limit, "numa nodes": len(nodes) or None}


def _memory(report: MachineReport) -> dict[str, Any]:

    machine, limit = meminfo(), _read("/sys/fs/cgroup/memory.max").strip()
    shm = shutil.disk_usage("/dev/shm").total if Path("/dev/shm").is_dir() else 0
    if shm < GIB:
        report.problem(
            f"/dev/shm has {shm / GIB:.2f} GiB: loader processes hand over batches by it",
            "docker run --ipc=host or --shm-size=16g; or runtime.workers=0",
        )
    found = {
        f"{key} GiB": round(machine.get(name, 0) / GIB, 1)
        for key, name in (("total", "MemTotal"), ("available", "MemAvailable"))
    }
    return {
        **found,
        "limit GiB": round(int(limit) / GIB, 1) if limit.isdigit() else None,
        "shm GiB": round(shm / GIB, 2),
    }


def _limits(report: MachineReport) -> dict[str, Any]:
    kinds = {
        "open files": resource.RLIMIT_NOFILE,
        "processes": resource.RLIMIT_NPROC,
        "locked memory": resource.RLIMIT_MEMLOCK,
    }
    found = {name: resource.getrlimit(kind)[0] for name, kind in kinds.items()}
    if 0 <= found["open files"] < 4096:
        report.problem(
            f"{found['open files']} files may be open at once: shards and loader processes take more", "ulimit -n 65536"
        )
    infiniband = Path("/sys/class/infiniband").is_dir()
    if infiniband and found["locked memory"] != resource.RLIM_INFINITY:
        report.problem(
            "locked memory is limited, and InfiniBand wants to lock its buffers",
            "ulimit -l unlimited, or the cluster's PAM limits",
        )
    return {name: "unlimited" if value == resource.RLIM_INFINITY else value for name, value in found.items()}


def _network(report: MachineReport) -> dict[str, Any]:
    host = socket.gethostname()
    try:
        address: str | None = socket.gethostbyname(host)
    except OSError:
        address = None
        report.problem(
            f"the host's own name, {host}, has no address: gloo finds peers by it",
            "add it to /etc/hosts, or set GLOO_SOCKET_IFNAME",
        )
    several = os.environ.get("LOCAL_WORLD_SIZE", "1") != os.environ.get("WORLD_SIZE", "1")
    if several and (address or "").startswith("127.") and "GLOO_SOCKET_IFNAME" not in os.environ:
        report.problem(
            f"the host's own name, {host}, is {address} here: other machines cannot reach that",
            "set GLOO_SOCKET_IFNAME",
        )
    cards = {
        path.name: _read(str(path / "speed")).strip()
        for path in sorted(Path("/sys/class/net").glob("*"))
        if path.name != "lo"
    }
    for variable in ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME"):
        wanted = os.environ.get(variable, "")
        for name in filter(None, wanted.strip("=").split(",")):  # prefixes; ^ excludes
            if not wanted.startswith("^") and not any(card.startswith(name) for card in [*cards, "lo"]):
                report.problem(f"{variable} names {name}; there is {', '.join(cards) or 'none'}", "name one of those")
    infiniband = sorted(path.name for path in Path("/sys/class/infiniband").glob("*"))
    return {"host": host, "address": address, "interfaces (Mbit/s)": cards, "infiniband": infiniband}


def _disk(report: MachineReport, out: Path) -> dict[str, Any]:
    folder = next(path for path in (out.absolute(), *out.absolute().parents) if path.exists() or path.is_symlink())
    if not folder.is_dir():
        report.problem(f"{folder} is no folder, and runs are to lie in {out}", "name another `out`, or move it away")
        folder = folder.parent
    usage = shutil.disk_usage(folder)
    free = round(usage.free / GIB, 1)
    if free < 10:
        report.problem(
            f"{folder}: {free} GiB are free",
            "make room, or name another `out`: a checkpoint is thrice the trained weights",
        )
    wrong = _try_files(folder)
    if wrong:
        report.problem(f"{folder}: {wrong}", "name another `out`")
    return {
        "folder": str(folder),
        "free GiB": free,
        "of GiB": round(usage.total / GIB, 1),
        "file system": _file_system(folder),
    }


def _try_files(folder: Path) -> str | None:
    """What runs and datasets do to files: locks, and links that are made once."""
    import fcntl

    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".doctor-") as there:
            path = Path(there) / "file"
            with path.open("w") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.fsync(file.fileno())
            os.link(path, Path(there) / "link")
    except OSError as error:
        return f"writing, locking or linking a file fails: {error}"
    return None


def _file_system(folder: Path) -> str | None:
    mounts = [line.split()[1:3] for line in _read("/proc/mounts").splitlines()]
    fitting = [(point, kind) for point, kind in mounts if folder.is_relative_to(point)]
    return max(fitting, key=lambda mount: len(mount[0]))[1] if fitting else None


def _said(*command: str) -> str:
    """What a program prints; nothing where it is not there or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError:
        return ""
