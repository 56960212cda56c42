"""How a step is spread over processes. The one place that talks to Accelerate and to DDP (later: DeepSpeed, FSDP2).

Loop and methods know neither rank arithmetic nor wrappers: they call `Step`, hand their loss share to `backward`, and ask for a
parameter's gradient here.
"""

from __future__ import annotations

import atexit
import gc
import inspect
import os
import socket
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..config import RuntimeConfig
from ..errors import ConfigError

if TYPE_CHECKING:
    from ..methods.base import Method


class Step(nn.Module):
    """What is wrapped for distribution: backbone and method networks behind one `forward`, since wrappers hook nothing else."""

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.backbone = method.backbone
        self.net = method.net
        self.method = method  # no module: its networks are the two above

    def forward(self, part: str, *inputs: Any) -> Any:
        """`part` is a function of the method: outputs(stage, batch), encode_visual(visual, mask, description) or encode_text(texts, lang,
        companion)."""
        if part == "outputs":
            return self.method.outputs(*inputs)
        if part == "encode_visual":
            return self.method.encode_visual(*inputs)
        if part == "encode_text":
            return self.method.encode_text(*inputs)
        raise ValueError(f"unknown part {part!r} of a step")


class Strategy:
    """Processes, device, precision and gradient reduction of a run.

    Args:
        runtime: precision and threads.
        world: refuse to run on any other number of processes; None: take what the launcher started.

    Raises:
        ConfigError: the launcher started something else than what was asked for, or the device cannot do the precision.
    """

    def __init__(self, runtime: RuntimeConfig, *, world: int | None = None) -> None:
        from accelerate import Accelerator, InitProcessGroupKwargs
        from accelerate.utils import DistributedType

        cpu = not torch.cuda.is_available()
        if cpu and runtime.precision == "fp16":
            raise ConfigError("runtime.precision: fp16 needs a GPU (its loss scaling is a CUDA feature here); use bf16 or fp32")
        launched = int(os.environ.get("WORLD_SIZE", "1"))
        local = int(os.environ.get("LOCAL_WORLD_SIZE", launched))
        torch.set_num_threads(runtime.threads or max(1, (os.cpu_count() or 1) // max(local, 1)))
        process_group = InitProcessGroupKwargs(backend="gloo" if cpu else "nccl")
        precision = "no" if runtime.precision == "fp32" else runtime.precision
        self.accelerator = Accelerator(cpu=cpu, mixed_precision=precision, kwargs_handlers=[process_group] if launched > 1 else None)
        if launched > 1 and cpu:
            _settle_gloo_at_exit()
        self.rank, self.world = self.accelerator.process_index, self.accelerator.num_processes
        self.device: torch.device = self.accelerator.device
        plain = (DistributedType.NO, DistributedType.MULTI_GPU, DistributedType.MULTI_CPU)
        if self.accelerator.distributed_type not in plain:
            raise ConfigError(
                f"launched as {self.accelerator.distributed_type}, but this run trains with ddp; use launch/accelerate/*.yaml"
            )
        if self.world != launched or (self.world > 1) != dist.is_initialized():
            raise ConfigError(
                f"the launcher started {launched} processes, but the run would have {self.world}: a silent fallback; see launch/README.md"
            )
        if world is not None and world != self.world:
            raise ConfigError(
                f"--world {world} was asked for, but {self.world} process(es) run; start with "
                f"`accelerate launch --config_file launch/accelerate/cpu.yaml --num_processes {world} -m ccr_dist train …` "
                "(`--cpu` alone starts one)"
            )
        self.facts: dict[str, Any] = {  # what really runs, for the run's records; the same on every rank
            "strategy": "ddp" if self.world > 1 else "single",
            "world": self.world,
            "backend": dist.get_backend() if self.world > 1 else None,
            "precision": runtime.precision,
            "device": torch.cuda.get_device_name() if self.device.type == "cuda" else "cpu",
            "threads": torch.get_num_threads(),
            "processes": self.all({"pid": os.getpid(), "host": socket.gethostname()}),
        }

    @property
    def main(self) -> bool:
        return self.rank == 0

    def wrap(self, step: nn.Module) -> nn.Module:
        """The step as it is called in training. Wrap anew whenever the set of trainable parameters changes."""
        if self.world == 1 or not any(p.requires_grad for p in step.parameters()):
            return step
        # Unused parameters are looked for because DDP then keeps its first bucket layout. Otherwise it rebuilds the buckets after the first
        # backward, and a resumed process would reduce its first step in another layout than the process that was never interrupted:
        # other bits from three ranks on. It also lets a rank without rows take part.
        device_ids = [self.device.index] if self.device.type == "cuda" else None
        # Frozen tables are buffers: nothing to synchronise in every forward. (torch 2.13 renamed the option.)
        renamed = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
        still: dict[str, Any] = {"forward_sync_buffers" if renamed else "broadcast_buffers": False}
        return DistributedDataParallel(step, device_ids=device_ids, find_unused_parameters=True, **still)

    @property
    def scaler(self) -> Any:
        """The loss scaler of fp16, else None."""
        return self.accelerator.scaler

    def optimizer(self, inner: torch.optim.Optimizer) -> Any:
        return self.accelerator.prepare_optimizer(inner)

    def autocast(self) -> Any:
        return self.accelerator.autocast()

    def backward(self, share: Tensor) -> None:
        """Back-propagate a share of the global loss. DDP averages over ranks and shares add up, hence the factor."""
        self.accelerator.backward(share * self.world)

    def clip(self, parameters: Iterable[nn.Parameter], max_norm: float | None) -> Tensor:
        """Norm of the whole gradient before clipping, the same on every rank."""
        return self.accelerator.clip_grad_norm_(list(parameters), float("inf") if max_norm is None else max_norm)

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Sum the gradients of replicated modules that are not wrapped (auxiliary networks), in one flat buffer."""
        grads = [p.grad for p in parameters if p.grad is not None]
        if self.world == 1 or not grads:
            return
        flat = torch.cat([grad.reshape(-1) for grad in grads])
        dist.all_reduce(flat)
        for grad, part in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
            grad.copy_(part.view_as(grad))

    def sum(self, values: Tensor) -> Tensor:
        """Elementwise sum over ranks."""
        if self.world > 1:
            dist.all_reduce(values)
        return values

    def agree(self, value: Any) -> Any:
        """Rank 0's value, on every rank."""
        if self.world == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self.device if self.device.type == "cuda" else None)
        return box[0]

    def all(self, value: Any) -> list[Any]:
        """Every rank's value, in rank order."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def together(self, action: Callable[[], Any]) -> None:
        """Call `action` on this rank. One rank's error is every rank's: nobody may wait in a collective for a rank that is gone."""
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

    def barrier(self) -> None:
        self.accelerator.wait_for_everyone()

    def close(self) -> None:
        self.accelerator.end_training()


def _settle_gloo_at_exit() -> None:
    # A gloo thread may need the GIL just after the last collective; an interpreter that is already going down aborts (SIGABRT) then.
    atexit.register(time.sleep, 0.2)
    atexit.register(gc.collect)
