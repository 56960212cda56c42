"""The processes of a run and what they tell each other: rank, device, agreement. Nothing here knows a model.

The launcher (torchrun, `accelerate launch`, srun) says by environment variables how many processes there are; this file
makes the process group and refuses what differs from it, since every silent fallback would train something else than
was asked for.
"""

from __future__ import annotations

import atexit
import gc
import hashlib
import os
import re
import socket
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ccr_dist.errors import ConfigError
from ccr_dist.resources import shown


class Ranks:
    """This process among others of a process group; without one: alone. All methods are collective."""

    def __init__(self, rank: int = 0, world: int = 1, *, group: dist.ProcessGroup | None = None) -> None:
        self.rank, self.world, self.group = rank, world, group
        self.device = torch.device("cpu")

    @property
    def main(self) -> bool:
        return self.rank == 0

    def agree(self, value: Any) -> Any:
        """Rank 0's value, on every rank."""
        if self.world == 1:
            return value
        box = [value]
        dist.broadcast_object_list(
            box, src=0, group=self.group, device=self.device if self.device.type == "cuda" else None
        )
        return box[0]

    def all(self, value: Any) -> list[Any]:
        """Every rank's value, in rank order."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value, group=self.group)
        return values

    def together(self, action: Callable[[], Any]) -> None:
        """Call `action` on this rank. One rank's error is every rank's: nobody may wait in a collective for a rank that
        is gone.
        """
        error: Exception | None = None
        try:
            action()
        except Exception as caught:
            error = caught
        errors = [e for e in self.all(error) if e is not None]
        if error is not None:
            raise error
        if errors:
            raise errors[0]


class Processes(Ranks):
    """This process among those that the launcher started.

    Args:
        threads: CPU threads of this process; None: usable cores / processes of the machine.
        world: refuse to run on any other number of processes; None: take what the launcher started.
        group: make a process group for a single process, too (for libraries that insist on one).
        timeout: seconds after which a collective that some rank does not join is an error.

    Raises:
        ConfigError: the launcher started something else than what was asked for.
    """

    def __init__(self, *, threads: int | None, world: int | None, group: bool, timeout: float) -> None:
        super().__init__()
        self.in_shards = False  # checkpoints are written by all ranks, each its part
        launched, local = launch()
        if world is not None and world != launched:
            raise ConfigError(
                f"--world {world} was asked for, but {launched} process(es) run; start with `accelerate launch"
                f" --config_file {shown('launch/accelerate/cpu.yaml')} --num_processes {world} -m ccr_dist train …`"
                " (`--cpu` alone starts one)"
            )
        # bound: to this process' part of them
        cores = len(os.sched_getaffinity(0)) * (local if "CCR_BOUND" in os.environ else 1)
        self.cores = cores
        torch.set_num_threads(threads or max(1, cores // max(local, 1)))
        if torch.cuda.is_available():
            if local > torch.cuda.device_count():
                raise ConfigError(
                    f"{local} processes run on a machine that shows {torch.cuda.device_count()} GPU(s): give"
                    " --num_processes one a GPU, or hide the GPUs with CUDA_VISIBLE_DEVICES="
                )
            self.device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
            torch.cuda.set_device(self.device)
        self._timeout = timedelta(seconds=timeout)
        backend = "nccl" if self.device.type == "cuda" else "gloo"
        if dist.is_initialized():
            pass  # several runs in one start
        elif launched > 1:
            _require_launcher(launched)
            dist.init_process_group(
                backend, timeout=self._timeout, device_id=self.device if backend == "nccl" else None
            )
            _settle_gloo_at_exit()
        elif group:
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
        self.rank, self.world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        if self.world != launched:
            raise ConfigError(
                f"the launcher started {launched} processes, but the run would have {self.world}: a silent fallback;"
                " see docs/strategies.md"
            )

    def describe(self) -> dict[str, Any]:
        """What really runs, for records; the same on every rank. Collective."""
        return {
            "world": self.world,
            "backend": dist.get_backend() if dist.is_initialized() else None,
            "device": torch.cuda.get_device_name() if self.device.type == "cuda" else "cpu",
            "threads": torch.get_num_threads(),
            "cores": self.cores,  # that the processes of this machine share
            "processes": self.all({"pid": os.getpid(), "host": socket.gethostname()}),
        }

    def sum(self, values: Tensor) -> Tensor:
        """Elementwise sum over ranks, in place."""
        if self.world > 1:
            dist.all_reduce(values)
        return values

    def any(self, yes: bool) -> bool:
        """Whether some rank says yes, on every rank."""
        return bool(self.sum(torch.tensor(float(yes), device=self.device)))

    def table(self, numbers: Sequence[float]) -> Tensor:
        """Every rank's numbers, (world, n) float64 on the CPU, on every rank."""
        mine = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        rows = [mine]
        if self.world > 1:
            rows = [torch.empty_like(mine) for _ in range(self.world)]
            dist.all_gather(rows, mine)
        return torch.stack(rows).cpu()

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Sum the gradients of replicated modules that are not wrapped (auxiliary networks), in one flat buffer."""
        grads = [p.grad for p in parameters if p.grad is not None]
        if self.world == 1 or not grads:
            return
        flat = torch.cat([grad.reshape(-1) for grad in grads])
        dist.all_reduce(flat)
        for grad, part in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
            grad.copy_(part.view_as(grad))

    def beside(self) -> Ranks:
        """The same ranks over a group of their own, on CPUs: for a thread that must not mix its collectives with the
        training's.
        """
        group = dist.new_group(backend="gloo", timeout=self._timeout) if self.world > 1 else None
        return Ranks(self.rank, self.world, group=group)

    def same(self, tensors: Mapping[str, Tensor]) -> None:
        """ConfigError where ranks do not begin with the same bits: DDP and ZeRO would continue with rank 0's, FSDP2
        with a piece of each.
        """
        sums = {name: _bits(tensor) for name, tensor in tensors.items()}
        if len(set(self.all(hashlib.sha256(repr(sums).encode()).hexdigest()))) == 1:
            return
        others = self.all(sums)
        name = next(name for name in sums if any(other.get(name) != others[0][name] for other in others))
        ranks = [rank for rank, other in enumerate(others) if other.get(name) != others[0][name]]
        raise ConfigError(
            f"{name} is not the same on rank {ranks[0]} as on rank 0 before the first step: they did not read the same"
            " files, or a library left weights for a launcher to fill (FSDP_CPU_RAM_EFFICIENT_LOADING)"
        )

    def barrier(self) -> None:
        if self.world > 1:
            dist.barrier()

    def close(self) -> None:
        if dist.is_initialized():
            dist.destroy_process_group()


# How many processes each says that it started.
STARTERS = {"OMPI_COMM_WORLD_SIZE": "mpirun", "PMI_SIZE": "mpirun", "SLURM_STEP_NUM_TASKS": "srun"}


def launch() -> tuple[int, int]:
    """How many processes the launcher started, and how many of them on this machine: 1 and 1 without a launcher.

    ConfigError where a launcher's variable holds something else, and where mpirun or srun started several processes
    that know nothing of each other.
    """
    found = {name: os.environ.get(name) for name in ("WORLD_SIZE", "RANK", "LOCAL_WORLD_SIZE", "LOCAL_RANK")}
    # DeepSpeed's launcher says the second
    found["LOCAL_WORLD_SIZE"] = found["LOCAL_WORLD_SIZE"] or os.environ.get("LOCAL_SIZE")
    wrong = [
        f"{name}={value!r}"
        for name, value in found.items()
        if value is not None and not re.fullmatch(r"[0-9]{1,6}", value)
    ]
    if wrong or found["WORLD_SIZE"] == "0":
        raise ConfigError(
            f"{', '.join(wrong) or 'WORLD_SIZE=0'} in the environment: a launcher sets a whole number there; unset it"
            f" to train with one process, or {_how_to_start()}"
        )
    for name, starter in STARTERS.items() if found["WORLD_SIZE"] is None else ():
        if os.environ.get(name, "").isdigit() and int(os.environ[name]) > 1:
            raise ConfigError(
                f"{starter} started {os.environ[name]} processes ({name}) without naming the others, so that each"
                f" would train the whole run: {_how_to_start()}"
            )
    return int(found["WORLD_SIZE"] or 1), int(found["LOCAL_WORLD_SIZE"] or 1)


def _how_to_start() -> str:
    return (
        f"start with `accelerate launch --config_file {shown('launch/accelerate/ddp.yaml')} --num_processes N -m"
        " ccr_dist …`, with torchrun, or on SLURM with `ccr-dist submit`"
    )


def _require_launcher(world: int) -> None:
    """ConfigError unless the environment says how `world` processes find each other."""
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    if missing:
        raise ConfigError(
            f"WORLD_SIZE={world} is in the environment without {', '.join(missing)}, so no launcher set it; unset"
            f" WORLD_SIZE to train with one process, or {_how_to_start()}"
        )
    if int(os.environ["RANK"]) >= world:
        raise ConfigError(
            f"RANK={os.environ['RANK']} with WORLD_SIZE={world}: ranks are 0 to {world - 1}; {_how_to_start()}"
        )


def _bits(tensor: Tensor) -> int:
    """A sum over a tensor's bits as whole numbers, in which order has no part."""
    whole = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    return int(tensor.detach().contiguous().view(whole).sum(dtype=torch.int64))


def _settle_gloo_at_exit() -> None:
    # A gloo thread may need the GIL just after the last collective; an interpreter that is already going down aborts
    # (SIGABRT) then.
    atexit.register(time.sleep, 0.2)
    atexit.register(gc.collect)
