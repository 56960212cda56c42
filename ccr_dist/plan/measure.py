"""Measures what the machine at hand reaches, on operators like those of a step: the numbers of a `Calibration`.

On a CPU each of several processes runs the same at the same time, as ranks of a training do, since they share caches
and memory. Rates are those of the fastest quarter of repetitions: other work on a machine only ever makes them slower.
"""

from __future__ import annotations

import os
import re
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from ccr_dist.config import RunConfig
from ccr_dist.environment import environment, meminfo
from ccr_dist.errors import ConfigError
from ccr_dist.plan.cost.calibration import Calibration, Product, read, write
from ccr_dist.plan.engines import engines
from ccr_dist.plan.predict import Traces, require_rows, stages_of, steps_of
from ccr_dist.plan.step.operators import SOLVERS, Kind, Operators

Clock = Literal["wall", "cpu"]
Shape = tuple[str, int, int, int, int]  # name, m, n, k, batch of a `Kind`
SIZES = (1 << 14, 1 << 18, 1 << 22, 1 << 25)  # elements of tensors whose operators move bytes
# of tensors that are copied: malloc takes more than 32 MiB from the system each time, and gives it back at once
COPIED = (1 << 14, 1 << 18, 1 << 22, 9 << 20, 1 << 25)
ENDS = (1 << 10, 1 << 22)  # elements of the buffers by which collectives are measured
GRID = (32, 256, 1024)  # rows, columns and depth of products that are always measured
MOST = 24  # shapes of a run that are measured, those with most FLOPs
TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64}
SOLVED = 768  # rows of the largest matrix that a solver is measured on; larger ones are taken to be as fast


def measure(
    *,
    device: str = "auto",
    processes: int = 1,
    precisions: Sequence[str] = ("fp32",),
    kinds: Sequence[Kind] = (),
    threads: int | None = None,
    clock: Clock = "wall",
    with_engines: bool = True,
) -> Calibration:
    """Measure this machine.

    Args:
        device: auto, cpu or cuda.
        processes: local processes, over which collectives are measured.
        precisions: of products: fp32 (losses take it in every run), bf16, fp16; fp64 for stages in closed form, with
            solvers.
        kinds: operators of the run's own shapes, the most expensive first.
        threads: of a process; None: cores / processes.
        clock: wall, or cpu: seconds of processor time of a rank, which others on the machine hardly change.
        with_engines: measure the engines of strategies, too, on several processes.

    Raises:
        ConfigError: there is no such device.
    """
    where = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    if where not in ("cpu", "cuda") or (where == "cuda" and not torch.cuda.is_available()):
        raise ConfigError(f"--measure on {device}: this machine has no such device; expected cpu, or cuda with a GPU")
    if where == "cuda" and processes > torch.cuda.device_count():
        raise ConfigError(
            f"--measure over {processes} processes: this machine has {torch.cuda.device_count()} GPU(s), one a process"
        )
    cores = len(os.sched_getaffinity(0))
    each = threads or max(1, cores // processes)
    with tempfile.TemporaryDirectory(prefix="ccr-dist-measure-") as folder:
        work = (where, processes, tuple(precisions), tuple(kinds), each, clock, with_engines, folder)
        torch.multiprocessing.spawn(_rank, args=work, nprocs=processes, join=True)
        found = [torch.load(Path(folder) / f"{rank}.pt") for rank in range(processes)]
    about = environment()
    gpu = torch.cuda.get_device_name() if where == "cuda" else None
    room = torch.cuda.get_device_properties(0).total_memory if where == "cuda" else meminfo().get("MemTotal", 0)
    return Calibration(
        machine={
            "name": gpu or about["hardware"], "device": where, "clock": clock, "torch": about["versions"].get("torch"),
            "versions": about["versions"], "commit": about["commit"],
        },
        cores=cores,
        threads=each,
        products={
            precision: tuple(
                _product(shape, _middle([rank["products"][precision][shape] for rank in found]))
                for shape in found[0]["products"][precision]
            )
            for precision in precisions
        },
        moves=_by_size(found, "moves"),
        copies=_by_size(found, "copies"),
        clones=_by_size(found, "clones"),
        per_kernel=_middle([rank["per_kernel"] for rank in found]),
        memory_bytes=int(room),
        processes=processes,
        alpha={name: _middle([rank["alpha"][name] for rank in found]) for name in found[0]["alpha"]},
        beta={name: _middle([rank["beta"][name] for rank in found]) for name in found[0]["beta"]},
        engines={
            name: {part: _middle([rank["engines"][name][part] for rank in found]) for part in parts}
            for name, parts in found[0]["engines"].items()
        },
    )  # fmt: skip


def _by_size(found: Sequence[dict[str, Any]], name: str) -> tuple[tuple[float, float], ...]:
    return tuple((size, _middle([rank[name][size] for rank in found])) for size in found[0][name])


def _product(shape: Shape, flops_per_s: float) -> Product:
    name, m, n, k, batch = shape
    return Product(name, m, n, k, batch, flops_per_s)


def _middle(values: Sequence[float]) -> float:
    return float(statistics.median(values))


def _rank(
    rank: int,
    device: str,
    processes: int,
    precisions: Sequence[str],
    kinds: Sequence[Kind],
    threads: int,
    clock: Clock,
    with_engines: bool,
    folder: str,
) -> None:
    os.dup2(2, 1)  # libraries print, and stdout is the plan's
    torch.set_num_threads(threads)
    warnings.filterwarnings("ignore", "`torch.distributed", FutureWarning)  # of functions that were renamed
    here = torch.device(device, rank) if device == "cuda" else torch.device("cpu")
    if device == "cuda":
        torch.cuda.set_device(here)
    if processes > 1:
        dist.init_process_group(
            "nccl" if device == "cuda" else "gloo", store=dist.FileStore(f"{folder}/store", processes), rank=rank,
            world_size=processes,
        )  # fmt: skip
    stopwatch = _Stopwatch(here, clock)
    moves = moving(stopwatch)
    copies, clones = copying(stopwatch)
    found: dict[str, Any] = {
        "moves": moves,
        "copies": copies,
        "clones": clones,
        "products": {each: products(stopwatch, each, kinds) for each in precisions},
        "per_kernel": per_kernel(stopwatch),
        "alpha": {},
        "beta": {},
        "engines": {},
    }
    if processes > 1:
        found["alpha"], found["beta"] = collectives(stopwatch, processes)
        if with_engines:
            found["engines"] = engines(here, clock, found["alpha"], found["beta"])
        dist.destroy_process_group()
    torch.save(found, Path(folder) / f"{rank}.pt")


class _Stopwatch:
    """Seconds of one call of some work."""

    def __init__(self, device: torch.device, clock: Clock) -> None:
        self.device, self._clock = device, time.process_time if clock == "cpu" else time.perf_counter

    def __call__(self, work: Callable[[], Any], *, budget: float = 0.06, least: int = 3) -> float:
        """The first quartile over repetitions within about `budget` seconds, after one that does not count."""
        work()
        spent: list[float] = []
        until = time.perf_counter() + budget
        while len(spent) < least or (time.perf_counter() < until and len(spent) < 1000):
            self._wait()
            start = self._clock()
            work()
            self._wait()
            spent.append(self._clock() - start)
        return sorted(spent)[len(spent) // 4]

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def moving(stopwatch: _Stopwatch) -> dict[float, float]:
    """Bytes/s by bytes that a call moves: the mean over operators that layers are made of besides products."""
    made: dict[float, float] = {}
    for count in SIZES:
        x = torch.randn(count // 256, 256, device=stopwatch.device)
        y = torch.randn_like(x)
        works: list[tuple[int, Callable[..., Any], tuple[Any, ...]]] = [  # by tensors that go in and come out
            (3, torch.add, (x, y)),
            (2, torch.mul, (x, 0.5)),
            (2, functional.gelu, (x,)),
            (2, functional.layer_norm, (x, (256,))),
            (2, torch.Tensor.contiguous, (x.T,)),
        ]
        seconds = [stopwatch(partial(work, *given)) for _, work, given in works]
        size = 4.0 * count
        made[2 * size] = sum(tensors for tensors, _, _ in works) * size / sum(seconds)
    return made


def copying(stopwatch: _Stopwatch) -> tuple[dict[float, float], dict[float, float]]:
    """Bytes/s by bytes that a call reads and writes: of copies into memory that is there, and into new memory."""
    there: dict[float, float] = {}
    new: dict[float, float] = {}
    for count in COPIED:
        x, y = (torch.ones(count, device=stopwatch.device) for _ in range(2))
        size = 8.0 * count
        there[size] = size / stopwatch(partial(y.copy_, x))
        new[size] = size / stopwatch(x.clone)
    return there, new


def products(stopwatch: _Stopwatch, precision: str, kinds: Sequence[Kind]) -> dict[Shape, float]:
    """FLOP/s of products and attention by shape: a grid, and the run's own."""
    shapes: list[Shape] = [("product", m, n, k, 1) for m in GRID for n in GRID for k in GRID]
    for name in ("attention", "attention_backward"):
        shapes += [(name, 64, 64, 64, 64), (name, 16, 16, 64, 64)]
    own = [kind for kind in kinds if kind.flops and kind.precision in ("", precision)]
    shapes += [
        (kind.name, kind.m, kind.n, kind.k, kind.batch)
        if kind.name not in SOLVERS
        else (kind.name, min(kind.m, SOLVED), min(kind.n, SOLVED), 1, 1)
        for kind in own
    ]
    made: dict[Shape, float] = {}
    for shape in dict.fromkeys(shapes):
        if 4 * (shape[4] * (shape[1] * shape[2] + shape[2] * shape[3] + shape[1] * shape[3])) < 2**30:
            made[shape] = _rate(stopwatch, TYPES[precision], *shape)
    return made


def _rate(stopwatch: _Stopwatch, dtype: torch.dtype, name: str, m: int, n: int, k: int, batch: int) -> float:
    def random(*size: int) -> Tensor:
        return torch.randn(*size, device=stopwatch.device, dtype=torch.float32).to(dtype)

    flops = 2.0 * m * n * k * batch
    if name in SOLVERS:
        return SOLVERS[name](m, n) / stopwatch(_solver(name, m, n, dtype, stopwatch.device))
    if name.startswith("attention"):
        query, key, value = random(1, batch, m, k), random(1, batch, n, k), random(1, batch, n, k)
        attend = functional.scaled_dot_product_attention
        if name == "attention":
            with torch.no_grad():
                return 2 * flops / stopwatch(lambda: attend(query, key, value))
        for each in (query, key, value):
            each.requires_grad_()
        upper = random(1, batch, m, k)
        forward = stopwatch(lambda: attend(query, key, value))
        both = stopwatch(lambda: torch.autograd.grad(attend(query, key, value), (query, key, value), upper))
        return 5 * flops / max(both - forward, both / 10)
    if batch > 1:
        left, right = random(batch, m, k), random(batch, k, n)
        return flops / stopwatch(lambda: torch.bmm(left, right))
    left, right = random(m, k), random(n, k)
    return flops / stopwatch(lambda: functional.linear(left, right))


def _solver(name: str, m: int, n: int, dtype: torch.dtype, device: torch.device) -> Callable[[], Any]:
    """A call of a solver on a matrix that it can solve for."""
    values = torch.randn(m, m if name != "svd" else n, device=device, dtype=dtype)
    if name == "svd":
        return lambda: torch.linalg.svd(values, full_matrices=False)
    square = values @ values.T / m + torch.eye(m, device=device, dtype=dtype)
    if name == "eigh":
        return lambda: torch.linalg.eigh(square)
    if name == "cholesky":
        return lambda: torch.linalg.cholesky(square)
    right, factor = torch.randn(m, n, device=device, dtype=dtype), torch.linalg.cholesky(square)
    if name == "cholesky_solve":
        return lambda: torch.cholesky_solve(right, factor)
    return lambda: torch.linalg.solve_triangular(factor, right, upper=False)


class _Counting(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.found = Operators()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        self.found.add("all", function, args, kwargs or {}, result)
        return result


def per_kernel(stopwatch: _Stopwatch) -> float:
    """Seconds a kernel of a layer of width 8, forward and backward: what calls cost when there is nothing to do."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, device=stopwatch.device)
    x = torch.randn(1, 2, 8, device=stopwatch.device)

    def work() -> None:
        layer(x).sum().backward()

    work()
    with _Counting() as counting:
        work()
    _, _, kernels = counting.found.sums("all")
    return stopwatch(work, budget=0.5, least=20) / kernels


def collectives(stopwatch: _Stopwatch, processes: int) -> tuple[dict[str, float], dict[str, float]]:
    """Seconds of a collective of few bytes, and seconds a byte of the whole buffer, by name."""
    alpha: dict[str, float] = {}
    beta: dict[str, float] = {}
    for name in ("all_reduce", "all_gather", "reduce_scatter"):
        spent: list[float] = []
        for count in ENDS:
            whole = torch.ones(count, device=stopwatch.device)
            own = whole[: count // processes].clone()

            # into new memory, as engines that gather and scatter do
            def work(name: str = name, whole: Tensor = whole, own: Tensor = own) -> None:
                if name == "all_reduce":
                    dist.all_reduce(whole.mul_(0))
                elif name == "all_gather":
                    dist.all_gather_into_tensor(torch.empty_like(whole), own)
                else:
                    dist.reduce_scatter_tensor(torch.empty_like(own), whole)

            dist.barrier()
            spent.append(stopwatch(work, budget=0, least=15))  # the same number of calls on every rank
        small, large = (4.0 * count for count in ENDS)
        beta[name] = max((spent[1] - spent[0]) / (large - small), 1e-15)
        alpha[name] = max(spent[0] - beta[name] * small, 1e-9)
    return alpha, beta


def calibrated(
    config: RunConfig,
    traces: Traces,
    *,
    fresh: bool,
    path: Path | None,
    precisions: Sequence[str],
    counts: Sequence[int],
    clock: Clock | None = None,
) -> Calibration | None:
    """The calibration to plan with.

    Args:
        config: of the run: its own shapes are measured, and its folder is where the file goes by default.
        traces: of its stages.
        fresh: measure this machine now, and keep the result.
        path: the file; None: OUT/calibrations/NAME.json if something is measured.
        precisions: that are measured.
        counts: the numbers of ranks that are planned.
        clock: as for `measure`; None: wall.

    Returns:
        None: neither measured nor named.

    Raises:
        ConfigError: the file cannot be read, or there is a clock and nothing to be measured.
    """
    if not fresh:
        if clock is not None:
            raise ConfigError(f"--clock {clock}: only with --measure")
        return None if path is None else read(path)
    gpu = torch.cuda.is_available()
    if clock == "cpu" and gpu:
        raise ConfigError("--clock cpu: processor time says nothing of a GPU; leave --clock out")
    require_rows(config, max(counts))
    local = min(max(counts), places_here(config.runtime.threads, gpu=gpu))
    stages = list(steps_of(config))
    kinds = [kind for count in counts for each in precisions for kind in shapes(traces, stages, count, each)]
    for name in stages_of(config).keys() - steps_of(config).keys():
        kinds += [kind for every in traces.fit(name).operators.values() for kind in every if kind.flops]
    precisions = list(dict.fromkeys([*precisions, "fp32", *(kind.precision for kind in kinds if kind.precision)]))
    found = measure(
        processes=local, precisions=precisions, kinds=list(dict.fromkeys(kinds)), threads=config.runtime.threads,
        clock=clock or "wall",
    )  # fmt: skip
    where = path or Path(config.out) / "calibrations" / f"{re.sub('[^A-Za-z0-9.]+', '-', found.name)}-{local}.json"
    where.parent.mkdir(parents=True, exist_ok=True)
    write(found, where)
    return found


def places_here(threads: int | None, *, gpu: bool) -> int:
    """Ranks that this machine runs without taking turns, and by which it is measured.

    Args:
        threads: of a rank; None: one.
        gpu: whether ranks have a GPU each.

    Returns:
        The GPUs; else the cores by the threads of a rank, and two at least, without which nothing is sent.
    """
    if gpu:
        return torch.cuda.device_count()
    return max(2, len(os.sched_getaffinity(0)) // (threads or 1))


def shapes(traces: Traces, stages: Sequence[str], world: int, precision: str | None = None) -> list[Kind]:
    """The operators of a run that compute most, the most expensive first. `precision`: None: the config's."""
    total: dict[Kind, float] = {}
    for stage in stages:
        for kinds in traces.of(stage, world, precision).operators.values():
            for kind, count in kinds.items():
                if kind.flops:
                    total[kind] = total.get(kind, 0.0) + kind.flops * count
    return sorted(total, key=lambda kind: -total[kind])[:MOST]
