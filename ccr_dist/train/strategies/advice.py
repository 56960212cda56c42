"""Reports settings that work but are probably unintended, before the first step: what a strategy saves and costs with
this model and config.

Settings that cannot work are refused where they are used. Sizes are bytes in fp32, the type of weights, gradients and
moments under every strategy, with two moments as in Adam.
"""

from __future__ import annotations

import math

from ccr_dist.config import RuntimeConfig

LITTLE = 0.1  # of what a rank holds under ddp; a strategy that saves less is not worth its communication


def held(strategy: str, trained: float, frozen: float, world: int) -> dict[str, float]:
    """Bytes that a rank holds of a model, without buffers for communication.

    Args:
        strategy: Name of the strategy.
        trained: Bytes of trained parameters.
        frozen: Bytes of frozen parameters.
        world: Number of processes.

    Returns:
        Bytes of "parameters", "copies" and "optimizer", held from step to step, and of "gradients", held from the
        backward to the update.
    """
    whole, part = trained + frozen, 1 / world
    if strategy in ("single", "ddp"):
        return {
            "parameters": whole,
            "copies": 0,
            "optimizer": 2 * trained,
            "gradients": trained * (2 if strategy == "ddp" else 1),
        }
    if strategy == "fsdp2":
        return {"parameters": whole * part, "copies": 0, "optimizer": 2 * trained * part, "gradients": trained * part}
    return {
        "parameters": whole * part if strategy == "zero3" else whole,
        "copies": trained * part,  # DeepSpeed's optimiser updates a flat copy of its partition
        "optimizer": 2 * trained * part,
        "gradients": trained if strategy == "zero1" else trained * part,
    }


def advice(
    strategy: str,
    *,
    world: int,
    trained: int,
    frozen: int,
    rows: int,
    runtime: RuntimeConfig,
    offload: bool,
    gpu: bool,
    recomputes: bool,
) -> list[str]:
    """Lines on settings that have no effect, or cost more than they save.

    Args:
        strategy: Name of the strategy.
        world: Number of processes.
        trained: Bytes of trained parameters.
        frozen: Bytes of frozen parameters.
        rows: Most rows of the global batch on a rank.
        runtime: The run config's `runtime`.
        offload: Whether parameters or optimiser state are kept in the CPU's memory.
        gpu: Whether the device is a GPU.
        recomputes: Whether the method has parts that gradient checkpointing recomputes.
    """
    told: list[str] = []
    sharded = strategy not in ("single", "ddp")
    if sharded and world == 1:
        told.append(f"{strategy} shards nothing on one process: start several, or leave the strategy out")
    elif sharded:
        ours, plain = (sum(held(name, trained, frozen, world).values()) for name in (strategy, "ddp"))
        if plain - ours < LITTLE * plain:
            told.append(
                f"{strategy} saves each rank {_mb(plain - ours)} of the {_mb(plain)} that ddp would keep: it shards"
                f" what belongs to {_mb(trained)} of trained parameters, and {_mb(frozen)} are frozen; ddp is simpler,"
                " zero3 and fsdp2 shard those, too"
            )
    if offload and not gpu:
        told.append("offload to the CPU has no effect on a CPU: use zero3.yaml")
    parts = math.ceil(rows / runtime.micro_batch) if runtime.micro_batch else 1
    if runtime.micro_batch and parts == 1:
        told.append(
            f"runtime.micro_batch={runtime.micro_batch} has no effect: no rank has more than {rows} rows of a batch"
        )
    elif parts > 1 and strategy in ("zero3", "fsdp2") and world > 1:
        where = "come from the CPU and are gathered" if offload else "are gathered"
        told.append(
            f"runtime.micro_batch={runtime.micro_batch} makes {parts} parts of a rank's {rows} rows, two forwards and a"
            f" backward each; under {strategy} parameters {where} for all of these, up to"
            f" {_mb(3 * parts * (trained + frozen))} a rank and step: larger parts are faster, and under ddp, zero1 and"
            " zero2 weights stay where they are"
        )
    if runtime.gradient_checkpointing and not recomputes:
        told.append(
            "runtime.gradient_checkpointing has no effect: the method trains nothing behind blocks that could be"
            " computed again"
        )
    return told


def _mb(size: float) -> str:
    return f"{size / 1e6:,.1f} MB" if size < 1e8 else f"{size / 1e6:,.0f} MB"
