"""Checks that every node of a job can train. Run by srun on each node (slurm/ranks.sh); prints the number of ranks to
start here, and in total.

    NOTES/node-NAME.json    what a node reports: ranks, versions, problems

A node checks itself (devices, memory, disk, environment), waits for the reports of the others, and compares them. Then,
if the profile asks for it, all measure a short all-reduce. After any problem all end with the exit code NODE; `job.py`
reports the node at fault, and the job is run again without it.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ccr_dist import errors, resources
from ccr_dist.cluster.decide import NODE
from ccr_dist.cluster.profile import Preflight
from ccr_dist.data.storage.store import read_json, replace_atomic
from ccr_dist.environment import PACKAGES, meminfo

GIB = 2**30


def software() -> dict[str, str]:
    """Versions, and a digest of this package's source, which must be equal on all nodes."""
    found = {"python": platform.python_version()}
    for package in (*PACKAGES, "deepspeed"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {**found, "ccr_dist": _source()}


def lacking(modules: Sequence[str], tools: Sequence[str]) -> list[str]:
    """Names of missing packages and programs. Nothing is imported.

    Args:
        modules: Packages that this Python must have.
        tools: Programs that this machine must have.
    """
    absent = [module for module in modules if importlib.util.find_spec(module) is None]
    return absent + [tool for tool in tools if shutil.which(tool) is None]


def _source() -> str:
    root, digest = resources.package(), hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def alone(wants: Preflight | None) -> dict[str, Any]:
    """The report of this node.

    Args:
        wants: Requirements; None: report only the number of ranks.
    """
    node = os.environ["SLURMD_NODENAME"]
    gpus = int(os.environ.get("SLURM_GPUS_ON_NODE") or 0) if os.environ.get("CUDA_VISIBLE_DEVICES") else 0
    ranks = int(os.environ.get("CCR_RANKS") or 0) or gpus or 1
    record: dict[str, Any] = {"node": node, "ranks": ranks, "problems": []}
    if wants is None:
        return record
    problems: list[str] = record["problems"]
    if gpus:
        seen = gpus_here()
        if seen < gpus:
            problems.append(f"SLURM gave {gpus} GPU(s), and nvidia-smi shows {seen}: a dead device or driver")
    memory = meminfo().get("MemAvailable", 0) / GIB
    if memory < wants.free_memory_gib:
        problems.append(
            f"{memory:.1f} GiB of memory are free, {wants.free_memory_gib:g} are needed (preflight.free_memory_gib)"
        )
    scratch = Path(tempfile.gettempdir())
    disk = shutil.disk_usage(scratch).free / GIB
    if disk < wants.free_disk_gib:
        problems.append(
            f"{scratch}: {disk:.1f} GiB are free, {wants.free_disk_gib:g} are needed (preflight.free_disk_gib)"
        )
    return {**record, "free_memory_gib": round(memory, 1), "free_disk_gib": round(disk, 1), "software": software()}


def gpus_here() -> int:
    """The number of GPUs that the driver shows."""
    try:
        done = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return 0
    return len(done.stdout.splitlines()) if done.returncode == 0 else 0


def gather(notes: Path, nodes: int, wait_s: float) -> list[dict[str, Any]]:
    """The reports of all nodes, or of those that reported in time.

    Args:
        notes: The attempt's folder of notes.
        nodes: Number of nodes.
        wait_s: Seconds to wait.
    """
    until = time.monotonic() + wait_s
    while True:
        found = list(notes.glob("node-*.json"))
        if len(found) >= nodes or time.monotonic() > until:
            return [read_json(path) for path in sorted(found)]
        time.sleep(0.2)


def compare(records: Sequence[dict[str, Any]], recorded: dict[str, str] | None) -> list[tuple[str, str]]:
    """Problems of nodes: those that they report, and software that differs.

    Args:
        records: Reports of the nodes.
        recorded: Software at submission; None: that of most nodes counts.

    Returns:
        (node, problem) pairs.
    """
    found = [(record["node"], problem) for record in records for problem in record["problems"]]
    sound = [record["software"] for record in records if "software" in record]
    usual = recorded or (max(sound, key=sound.count) if sound else {})
    for record in records:
        theirs = record.get("software", usual)
        keys = [key for key in sorted({*usual, *theirs}) if theirs.get(key) != usual.get(key)]
        differ = [f"{key} is {theirs.get(key)}, not {usual.get(key)}" for key in keys]
        if differ:
            found.append((record["node"], "another environment: " + "; ".join(differ[:4])))
    return found


def together(nodes: int, least_gbs: float | None) -> tuple[str, list[tuple[str, str]]]:
    """Measure an all-reduce between one process per node.

    Args:
        nodes: Number of nodes.
        least_gbs: GB/s that are required; None: none.

    Returns:
        A line with the result, and (node, problem) of the slowest node if it is too slow.
    """
    os.environ |= {
        "RANK": os.environ["SLURM_NODEID"], "WORLD_SIZE": str(nodes), "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1",
        "MASTER_ADDR": os.environ["CCR_HEAD"], "MASTER_PORT": str(int(os.environ["CCR_PORT"]) + 1),
    }  # fmt: skip
    from ccr_dist.train.processes import Processes
    from ccr_dist.train.watch import network
    from ccr_dist.train.watch.machine_report import MachineReport

    report = MachineReport(facts={"software": {}})
    processes = Processes(threads=None, world=nodes, group=False, timeout=120)
    network.examine(report, processes)
    names = processes.all(os.environ["SLURMD_NODENAME"])
    measured = processes.agree(report.facts["processes"])
    processes.close()
    line = (
        f"all-reduce {measured['all-reduce']}, {measured['all-reduce GB/s']} GB/s; slowest link:"
        f" {measured['slowest link']}"
    )
    if least_gbs is None or measured["all-reduce GB/s"] >= least_gbs:
        return line, []
    rank = int(measured["slowest link"].split()[1])
    return line, [
        (
            names[rank],
            f"{measured['all-reduce GB/s']} GB/s, the profile expects {least_gbs:g} (preflight.least_gbs): {line}",
        )
    ]


def main() -> int:
    """Check this node together with the others. Returns the exit code."""
    wants = None if os.environ["CCR_PREFLIGHT"] == "off" else Preflight.model_validate_json(_wanted())
    notes, nodes, node = Path(os.environ["CCR_NOTES"]), int(os.environ["SLURM_NNODES"]), os.environ["SLURMD_NODENAME"]
    replace_atomic(notes / f"node-{node}.json", json.dumps(alone(wants)).encode())
    records = gather(notes, nodes, wants.wait_s if wants else Preflight().wait_s)
    if len(records) < nodes:
        print(
            f"preflight: only {', '.join(record['node'] for record in records)} of {nodes} nodes have reported",
            file=sys.stderr,
        )
        return NODE
    recorded = Path(os.environ["CCR_RUN"]) / "record.json"
    problems = compare(records, read_json(recorded)["software"] if recorded.exists() else None) if wants else []
    if wants and wants.bandwidth and nodes > 1 and not problems:
        line, problems = together(nodes, wants.least_gbs)
        if os.environ["SLURM_NODEID"] == "0":
            print(f"preflight: {line}", file=sys.stderr)
    for bad in dict(problems):
        found = [problem for name, problem in problems if name == bad]
        # For `job.py`. All nodes write the same, since srun ends the others when the first one ends.
        replace_atomic(notes / f"node-{bad}.json", json.dumps({"node": bad, "ranks": 0, "problems": found}).encode())
    if problems:
        return NODE
    here = next(record["ranks"] for record in records if record["node"] == node)
    print(here, sum(record["ranks"] for record in records))
    return 0


def _wanted() -> str:
    text = os.environ["CCR_PREFLIGHT"]
    return "{}" if text == "full" else text


if __name__ == "__main__":
    with errors.boundary():
        sys.exit(main())
