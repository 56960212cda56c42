"""What is between the processes that a launcher started: do they agree, how fast is each, how fast are the ways between
them.

For `ccr-dist doctor`; a second of measurements, on whatever devices and links a run would use.
"""

from __future__ import annotations

import socket
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from ccr_dist.train.processes import Processes
from ccr_dist.train.watch.machine_report import MachineReport

SLOW = 1.5  # times the median: a rank, or a link, that holds up the others
ROUNDS = 5


def examine(report: MachineReport, processes: Processes) -> None:
    """Add the section `processes`, and the problems of other machines, to the report. Collective."""
    mine = {
        "host": socket.gethostname(),
        "device": _device(processes),
        "software": report.facts["software"],
        "problems": report.problems,
    }
    ranks = processes.all(mine)
    for host, rank in {rank["host"]: rank for rank in reversed(ranks)}.items():  # the first rank of each
        if host != ranks[0]["host"]:
            report.problems += [{**each, "problem": f"{host}: {each['problem']}"} for each in rank["problems"]]
    for key in sorted({key for rank in ranks for key in rank["software"]}):
        versions = [str(rank["software"].get(key)) for rank in ranks]
        if len(set(versions)) > 1:
            report.problem(f"the processes differ in {key}: {', '.join(versions)}", "install the same everywhere")
    if len({rank["device"] for rank in ranks}) > 1:
        report.problem(
            f"the processes have different devices: {', '.join(rank['device'] for rank in ranks)}",
            "all wait for the slowest",
        )

    gpu = processes.device.type == "cuda"
    size = 2**26 if gpu else 2**22
    values = torch.ones(size // 4, device=processes.device)
    whole = _seconds(processes, lambda: dist.all_reduce(values))
    product = torch.randn((4096,) * 2 if gpu else (768,) * 2, device=processes.device)
    alone = _seconds(processes, lambda: product @ product)
    right, left = ((processes.rank + step) % processes.world for step in (1, -1))
    got = torch.empty_like(values)

    def pass_on() -> None:
        for work in dist.batch_isend_irecv([dist.P2POp(dist.isend, values, right), dist.P2POp(dist.irecv, got, left)]):
            work.wait()

    passing = _seconds(processes, pass_on)
    times = processes.table([whole, alone, passing])
    names = [f"rank {number} ({rank['host']}, {rank['device']})" for number, rank in enumerate(ranks)]
    reduced = times[:, 0].max().item()
    report.facts["processes"] = {
        "world": processes.world,
        "backend": dist.get_backend(),
        "all-reduce": f"{size / 2**20:.0f} MiB in {1000 * reduced:.1f} ms",
        "all-reduce GB/s": round(size / reduced / 1e9, 2),  # bytes of the tensor over time, as nccl-tests' algbw
        "bus GB/s": round(2 * (processes.world - 1) / processes.world * size / reduced / 1e9, 2),
        "slowest rank": _slowest(report, "computes", names, times[:, 1].tolist()),
        "slowest link": _slowest(report, "gives to the next rank", names, times[:, 2].tolist()),
    }


def _slowest(report: MachineReport, what: str, names: list[str], seconds: list[float]) -> str:
    worst, usual = max(seconds), statistics.median_low(seconds)
    name = names[seconds.index(worst)]
    if worst > SLOW * usual:
        report.problem(
            f"{name} {what} {worst / usual:.1f} times slower than the median",
            "look at that node: other jobs, clocks, cables",
        )
    return f"{name}: {1000 * worst:.1f} ms, median {1000 * usual:.1f} ms"


def _seconds(processes: Processes, action: Callable[[], Any]) -> float:
    """The best of some rounds, all ranks at once."""
    found = []
    for _ in range(1 + ROUNDS):
        processes.barrier()
        _settle(processes)
        begun = time.perf_counter()
        action()
        _settle(processes)
        found.append(time.perf_counter() - begun)
    return min(found[1:])


def _settle(processes: Processes) -> None:
    if processes.device.type == "cuda":
        torch.cuda.synchronize(processes.device)


def _device(processes: Processes) -> str:
    return torch.cuda.get_device_name(processes.device) if processes.device.type == "cuda" else "cpu"
