"""How fast steps are and where their time goes: the numbers of a logged step that depend on the machine and on nothing
else.

- samples_per_s: of the global batch, over the whole step, waiting for data included (with data_s and step_s in every
  step)
- tokens_per_s: of all ranks: tokens that tokenisers gave to text towers for this step, start and end marks included,
  padding not
- mfu: `flops.py`; only where the device's peak is known (runtime.peak_tflops)
- <phase>_s: `phases.STEP`, mean over ranks: together they are the step
- longest_s: the step of the rank that took longest
- slowest_rank: whose data and forward took longest: the others wait for it in their losses
- sent_bytes: what losses sent to other ranks in this step (`losses/sent.py`), mean over ranks
- memory_bytes: the most that any rank has held so far: on a GPU what torch has allocated, else the process' resident
  memory
"""

from __future__ import annotations

import resource
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from ccr_dist.config import RuntimeConfig
from ccr_dist.losses import sent
from ccr_dist.models import token_counts
from ccr_dist.train.processes import Processes
from ccr_dist.train.record.flops import Flops, peak
from ccr_dist.train.record.phases import STEP, Phases


class Speed:
    """Of the steps of a stage. It reads and counts, and changes nothing."""

    def __init__(self, processes: Processes, phases: Phases, runtime: RuntimeConfig) -> None:
        self._processes, self._phases = processes, phases
        self._peak = peak(processes.device, runtime.precision, runtime.peak_tflops)
        self._flops = Flops()
        self._read, self._sent = token_counts.tokens, sent.total

    def counting(self, kind: str) -> AbstractContextManager[None]:
        """Around the arithmetic of a step of that kind."""
        return nullcontext() if self._peak is None else self._flops.counting(kind)

    def begin(self) -> None:
        self._read, self._sent = token_counts.tokens, sent.total

    def of_step(self, kind: str) -> dict[str, Any]:
        """The numbers of a measured step that has just ended. Collective."""
        spent = self._phases.seconds()
        mine = [
            *spent.values(),
            token_counts.tokens - self._read,
            self._flops.known.get(kind, 0),
            sent.total - self._sent,
            memory_bytes(self._processes.device),
        ]
        ranks = self._processes.table(mine)
        seconds, (tokens, flops, features) = ranks[:, : len(STEP)], ranks[:, len(STEP) : -1].sum(0).tolist()
        whole = seconds.mean(0).sum().item()
        values: dict[str, Any] = {
            f"{name}_s": value for name, value in zip(STEP, seconds.mean(0).tolist(), strict=True)
        }
        values |= {
            "longest_s": seconds.sum(1).max().item(),
            "tokens_per_s": tokens / whole,
            "sent_bytes": features / self._processes.world,
            "memory_bytes": int(ranks[:, -1].max()),
        }
        if self._peak is not None:
            values["mfu"] = flops / (whole * self._processes.world * self._peak)
        if self._processes.world > 1:
            own = seconds[:, STEP.index("data")] + seconds[:, STEP.index("forward")]
            values["slowest_rank"] = int(own.argmax())
        return values


def memory_bytes(device: torch.device) -> int:
    """Peak so far in this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def groups_of(names: list[str], *, most: int = 8) -> dict[str, list[str]]:
    """Parameters by the longest prefixes of one depth that make at most `most` groups (one depth at least)."""

    def at(depth: int) -> dict[str, list[str]]:
        made: dict[str, list[str]] = {}
        for name in names:
            made.setdefault(".".join(name.split(".")[:-1][:depth]) or name, []).append(name)
        return made

    groups = at(1)
    for depth in range(2, 1 + max((name.count(".") for name in names), default=0)):
        finer = at(depth)
        if len(finer) > most:
            break
        groups = finer
    return groups
