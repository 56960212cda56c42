"""The contrastive loss of one process, forward and backward, beside open_clip's `ClipLoss`: seconds and peak memory.

    python tests/benchmarks/contrastive.py [--batch 1024 4096 16384] [--memory-gb 12] [--device cuda] [--save]

`clip` is open_clip's, `gathered` and `tiled` are ours (`losses/contrastive.py`, `losses/tiled.py`). Every measurement
is a process of its own; losses take turns, and the best of each counts, by the wall clock and by CPU time (which other
work on the machine hardly changes). Memory is the peak during the first forward and backward above what was there
before (features included, their gradients not): resident memory, on a GPU allocated memory. What needs more than
`--memory-gb` in all is out of memory. All compute the same value, which is checked.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.benchmarks.record import out_of_memory, record

LOSSES = ("clip", "gathered", "tiled")
OUT_OF_MEMORY = "out of memory"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--batch", type=int, nargs="+", default=[1024, 2048, 4096, 8192], help="pairs")
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--losses", nargs="+", choices=LOSSES, default=LOSSES)
    parser.add_argument("--memory-gb", type=float, default=12.0, help="of a process, or of the GPU")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of the features")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--rounds", type=int, default=5, help="turns of each loss; fewer once a batch has taken two minutes"
    )
    parser.add_argument("--save", action="store_true", help="keep the JSON in results/")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        limit_memory(asked)
        print(json.dumps(measure(asked.one, asked)))
        return
    rows = {batch: compare(batch, asked) for batch in asked.batch}
    about = {"device": device_name(asked.device), "dim": asked.dim, "dtype": asked.dtype, "threads": asked.threads}
    ratios = {batch: ratio(row["tiled"], row["clip"]) for batch, row in rows.items() if {"tiled", "clip"} <= row.keys()}
    results = {**about, "memory_limit_gib": asked.memory_gb, "losses": rows, "tiled_to_clip": ratios}
    record("contrastive", results, save=asked.save)


def compare(batch: int, asked: argparse.Namespace) -> dict[str, Any]:
    """Of each loss seconds, MiB and value, or that it does not fit."""
    found: dict[str, Any] = {}
    started = time.perf_counter()
    for turn in range(asked.rounds):
        if turn and time.perf_counter() - started > 120:
            break
        for name in asked.losses:
            if found.get(name) != OUT_OF_MEMORY:
                found[name] = better(found.get(name), ask(name, batch, asked))
    values = [each["value"] for each in found.values() if each != OUT_OF_MEMORY]
    assert max(values) - min(values) < 1e-4 * abs(values[0]), found
    print(batch, found, file=sys.stderr)
    return found


def ask(name: str, batch: int, asked: argparse.Namespace) -> Any:
    same = ["--dim", asked.dim, "--memory-gb", asked.memory_gb, "--device", asked.device, "--threads", asked.threads]
    same += ["--dtype", asked.dtype]
    command = [sys.executable, __file__, "--one", name, "--batch", batch, *same]
    done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def better(known: Any, new: Any) -> Any:
    if known is None or new == OUT_OF_MEMORY:
        return new
    return {key: min(known[key], new[key]) for key in new}


def ratio(a: Any, b: Any) -> Any:
    if OUT_OF_MEMORY in (a, b):
        return {"clip": OUT_OF_MEMORY} if b == OUT_OF_MEMORY else OUT_OF_MEMORY
    return {name: round(a[key] / b[key], 3) for name, key in (("time", "s"), ("cpu_time", "cpu_s"), ("memory", "mib"))}


def limit_memory(asked: argparse.Namespace) -> None:
    """Of this process."""
    import torch

    if asked.device == "cuda":
        torch.cuda.set_per_process_memory_fraction(min(1.0, asked.memory_gb * 2**30 / torch.cuda.mem_get_info()[1]))
    else:  # private writable memory: an allocation beyond it fails, instead of the machine
        resource.setrlimit(resource.RLIMIT_DATA, (int(asked.memory_gb * 2**30),) * 2)


def measure(name: str, asked: argparse.Namespace) -> Any:
    """Of one batch: best seconds, MiB and value, or that it does not fit."""
    import torch
    from torch.nn.functional import normalize

    torch.set_num_threads(asked.threads)
    cuda = asked.device == "cuda"
    (batch,) = asked.batch
    loss = loss_of(name)

    def once(x: Any, y: Any, scale: Any) -> tuple[float, dict[str, float]]:
        """The value, and seconds."""
        begun, busy = now(cuda), time.process_time()
        value = loss(x, y, scale)
        forward = now(cuda)
        value.backward()
        end = now(cuda)
        return value.item(), {"s": end - begun, "forward_s": forward - begun, "cpu_s": time.process_time() - busy}

    def features(rows: int) -> list[Any]:
        dice = torch.Generator().manual_seed(0)
        dtype = getattr(torch, asked.dtype)
        sides = (normalize(torch.randn(rows, asked.dim, generator=dice), dim=-1).to(dtype) for _ in range(2))
        return [part.to(asked.device).requires_grad_() for part in (*sides, torch.tensor(1 / 0.07))]

    try:
        once(*features(64))
        inputs = features(batch)
        before = memory(cuda, restart=True)
        runs = [once(*inputs)]
        peak = memory(cuda) - before
        # of a size, the first run on a GPU also fetches memory from the driver
        while len(runs) < (2 if cuda else 1) or (len(runs) < 10 and sum(seconds["s"] for _, seconds in runs) < 1):
            for part in inputs:
                part.grad = None
            runs.append(once(*inputs))
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        return OUT_OF_MEMORY
    best = {key: min(seconds[key] for _, seconds in runs) for key in runs[0][1]}
    return {
        **{key: float(f"{seconds:.4g}") for key, seconds in best.items()},
        "mib": round(peak / 2**20),
        "value": runs[0][0],
    }


def loss_of(name: str) -> Callable[[Any, Any, Any], Any]:
    if name == "clip":
        from open_clip.loss import ClipLoss

        return ClipLoss()
    if name == "siglip":
        from open_clip.loss import SigLipLoss

        sigmoid = SigLipLoss()
        return lambda x, y, scale: sigmoid(x, y, scale, logit_bias=-10.0)
    from ccr_dist.losses.context import Context

    return lambda x, y, scale: Context(seed=0, step=0, rows=len(x), loss=name).contrastive(
        x, y, scale=scale, score=products
    )


def products(x: Any, y: Any) -> Any:
    """Features are at unit length already, as ClipLoss expects them."""
    from ccr_dist.losses.contrastive import similarities

    return similarities(x, y)


def now(cuda: bool) -> float:
    if cuda:
        import torch

        torch.cuda.synchronize()
    return time.perf_counter()


def memory(cuda: bool, *, restart: bool = False) -> int:
    """Bytes: the peak since the restart; with `restart`, what is in use."""
    if cuda:
        import torch

        torch.cuda.reset_peak_memory_stats() if restart else None
        return torch.cuda.memory_allocated() if restart else torch.cuda.max_memory_allocated()
    if restart:
        Path("/proc/self/clear_refs").write_text("5")  # the peak of resident memory starts anew
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:" if restart else "VmHWM:")[1].split()[0]) * 1024


def device_name(device: str) -> str:
    import torch

    return torch.cuda.get_device_name() if device == "cuda" else "cpu"


if __name__ == "__main__":
    main()
