"""Running out of memory, reported so that a user can act on it: where, with what batch, what lies in memory, and which
keys to change.

The advice is a list in the order of what it saves for this config; what is on already, or cannot help where it
happened, is not in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ccr_dist.config import RunConfig
from ccr_dist.data.stream.batch import Batch
from ccr_dist.environment import meminfo
from ccr_dist.errors import OutOfMemoryError
from ccr_dist.train.processes import Processes
from ccr_dist.train.record.phases import Phases

TOLD = ("can't allocate memory", "Cannot allocate memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


def ran_out(error: BaseException) -> bool:
    """Whether the error says that memory ran out: on a GPU, in torch's allocator of the CPU, in Python."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(each in str(error) for each in TOLD)


def report(
    error: BaseException,
    phases: Phases,
    config: RunConfig,
    processes: Processes,
    *,
    strategy: str | None = None,
    held: Mapping[str, int] | None = None,
    cut: bool = True,
) -> OutOfMemoryError:
    """The error to raise instead of `error`.

    Args:
        error: for which `ran_out` is true.
        phases: what this rank was doing.
        config: of the run, whose keys are recommended.
        processes: of the run.
        strategy: of the current stage; None before the first stage.
        held: bytes on this rank by what they hold (`Engine.held`).
        cut: whether the method allows micro-batches.

    Returns:
        An error that says where memory ran out, what is in memory, and which keys to change.
    """
    first = (str(error).strip() or repr(error)).splitlines()[0]
    lines = [f"rank {processes.rank} ran out of memory in {phases.name} at step {phases.step}: {first}"]
    if phases.batch:
        lines.append("batch of this rank: " + ", ".join(f"{key} {value}" for key, value in phases.batch.items()))
    held = held or {}
    whole, facts = _memory(processes.device)
    facts += [f"{gib(size)} {what} on this rank" for what, size in held.items()]
    lines.append("memory: " + ", ".join(facts))
    keys = advice(
        phases.name,
        config,
        strategy=strategy,
        world=processes.world,
        rows=phases.batch.get("rows"),
        cut=cut,
        heavy=sum(held.values()) > whole / 2,
    )
    return OutOfMemoryError(
        "\n  ".join([*lines, "what to change, the most effective first:", *(f"- {each}" for each in keys)])
    )


def advice(
    phase: str, config: RunConfig, *, strategy: str | None, world: int, rows: int | None, cut: bool, heavy: bool
) -> list[str]:
    """Keys to change. cut: the method's batches can be; heavy: parameters and optimiser state take most of the
    memory.
    """
    runtime, found = config.runtime, []
    several = "" if world > 1 else " on several processes"
    shard = (
        f"--strategy zero2 or fsdp2{several}: optimiser state and gradients (fsdp2: parameters, too) are cut over the"
        " ranks"
    )
    shards = [shard] if strategy in (None, "single", "ddp", "zero1") else []
    if heavy or phase == "update":
        found += shards
    if phase == "validation":
        found.append(f"runtime.eval_batch={max(1, runtime.eval_batch // 4)} (now {runtime.eval_batch})")
    elif phase in ("forward", "losses", "backward"):
        if phase == "losses" and runtime.contrastive in ("auto", "gathered"):
            found.append("runtime.contrastive=tiled: logits are never held whole")
        now = runtime.micro_batch or rows or 2
        if cut and now > 1:
            found.append(f"runtime.micro_batch={now // 2}: the same loss and gradients, for a second forward")
        if not runtime.gradient_checkpointing:
            found.append(
                "runtime.gradient_checkpointing=true: activations inside blocks are computed again in the backward"
            )
        if runtime.precision == "fp32":
            found.append("runtime.precision=bf16: activations take half the room")
    found += [each for each in shards if each not in found]
    if config.data.visual == "image":
        found.append(
            "data.visual=feature.…: the frozen image tower runs once, in `ccr-dist featurise`, instead of in every step"
        )
    if config.data.source_feature is None:
        found.append("data.source_feature=feature.…: so does the English text tower")
    return found


def _memory(device: torch.device) -> tuple[int, list[str]]:
    """Bytes of the device or machine, and what is known of their use."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        now, most = torch.cuda.memory_allocated(device), torch.cuda.max_memory_allocated(device)
        return total, [
            f"{gib(total)} on the device",
            f"{gib(free)} free",
            f"{gib(now)} allocated",
            f"{gib(most)} at most",
        ]
    machine = meminfo()
    facts = [f"{gib(resident())} resident in this process"]
    if not machine:
        return 2**63, facts
    return machine["MemTotal"], [
        f"{gib(machine['MemTotal'])} in the machine",
        f"{gib(machine['MemAvailable'])} available",
        *facts,
    ]


def sizes(batch: Batch) -> dict[str, Any]:
    """How large this rank's part of a batch is, for reports."""
    known: dict[str, Any] = {"rows": len(batch), "lang": batch.lang}
    for name in ("visual", "source_feature", "back_feature"):
        value = getattr(batch, name)
        if value is not None:
            known[name] = tuple(value.shape)
    for name in ("source_text", "target_text", "back_text", "description"):
        texts = getattr(batch, name)
        if texts:
            known[name] = f"up to {max(map(len, texts))} characters"
    return known


def resident() -> int:
    """Bytes of this process in memory now; 0 where /proc does not say."""
    status = Path("/proc/self/statm")
    return int(status.read_text().split()[1]) * 4096 if status.exists() else 0


def gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
