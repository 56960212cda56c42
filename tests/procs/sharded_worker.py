"""The ranks of test_sharded.py: runs whose checkpoints every rank writes its part of, a save that one rank cannot
finish, and ranks that do not begin alike.

python sharded_worker.py FOLDER
"""

from __future__ import annotations

import errno
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from ccr_dist.config import RuntimeConfig
from ccr_dist.errors import ConfigError, StorageError
from ccr_dist.train.state import checkpoint
from ccr_dist.train.state.checkpoint import State
from ccr_dist.train.strategies.strategy import Strategy
from tests.procs import forked, resume_worker

AVERAGED = (*resume_worker.PRECISIONS["fp32"], "stages.cma.ema=0.9")
resume_worker.PRECISIONS |= {"whole": AVERAGED, "sharded": (*AVERAGED, "runtime.checkpoint=sharded")}
WHOLE = {
    "matrix": torch.randn(5, 3),
    "one": torch.ones(1),
    "half": torch.randn(4, 2).bfloat16(),
    "scalar": torch.tensor(7.0),
}


def save_and_load(folder: Path) -> None:
    """Ragged shards, ranks without any, tensors of rank 0 alone; a full disk; what is read back, whole and in parts."""
    strategy = Strategy(RuntimeConfig(threads=1), name="fsdp2")
    ranks, mesh = strategy.beside(), init_device_mesh("cpu", (strategy.world,))
    whole = {name: strategy.agree(value) for name, value in WHOLE.items()}
    parts = {name: distribute_tensor(value, mesh, [Shard(0)]) if value.ndim else value for name, value in whole.items()}

    alone = {"x": torch.ones(2)} if strategy.main else {}

    def state(step: int) -> State:
        return State(
            {"step": step, "progress": {"step": step}},
            parts,
            {f"{name}/exp_avg": value for name, value in parts.items()},
            alone,
        )

    first = checkpoint.save(folder, state(5), ranks)
    strategy.barrier()
    found = checkpoint.load(first, strategy)
    room = {name: torch.zeros_like(value) for name, value in parts.items()}
    found.weights.fill(room)  # type: ignore[attr-defined]
    back = {
        "whole": all(torch.equal(found.weights[name], value) for name, value in whole.items()),
        "parts": all(torch.equal(room[name], value) for name, value in parts.items()),
        "names": [sorted(found.weights), sorted(found.optimizer), sorted(found.auxiliary)],
    }
    fsync = os.fsync

    def full(descriptor: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if strategy.rank == strategy.world - 1:
        os.fsync = full  # type: ignore[assignment]
    try:
        checkpoint.save(folder, state(9), ranks)
        back["full"] = "nothing was raised"
    except StorageError as error:
        back["full"] = str(error)
    os.fsync = fsync
    strategy.barrier()
    back["left"] = sorted(path.name for path in folder.iterdir())
    try:
        strategy.same({"alike": torch.ones(3), "w": torch.tensor([1.0, 2.0 + (strategy.rank == 1) * 1e-6])})
        back["same"] = "all alike"
    except ConfigError as error:
        back["same"] = str(error)
    told = strategy.all(back)
    if strategy.main:
        (folder / "found.json").write_text(json.dumps(told))
    strategy.close()


def main(folder: Path) -> None:
    forked.prepare()
    for world in (1, 2, 4):
        forked.world(world, save_and_load, folder / str(world))
    forked.world(1, resume_worker.prepare, folder)
    forked.world(2, resume_worker.train, folder, [("whole", "fsdp2", "whole"), ("sharded", "fsdp2", "sharded")])
    for world, name in ((1, "ddp"), (2, "ddp"), (2, "fsdp2")):
        case = ("sharded", f"{name}{world}", name, "whole")
        forked.world(world, resume_worker.resume, folder, [case], folder / f"{name}{world}.json")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
