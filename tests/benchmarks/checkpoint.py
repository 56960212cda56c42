"""How long a save keeps training waiting: the copy to the CPU, beside the same save carried out before the next step.

    python tests/benchmarks/checkpoint.py [--megabytes 100 1000] [--repeat 5] [--device cuda] [--folder /tmp] [--save]

The state is that of AdamW over square matrices: weights and two moments. "stall": what a step waits when the save
before is on disk; "again": when it is not, since the next save comes at once; "synchronous": copy, write, sync to disk,
digest, commit. "slower": how much longer a matrix product takes on the CPU while a save is being written. Ways take
turns; ratios are of the best of each.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ccr_dist.config import StageConfig
from ccr_dist.train.optimizers.optimizer import make_optimizer
from ccr_dist.train.processes import Processes
from ccr_dist.train.state import checkpoint
from ccr_dist.train.state.checkpoint import State, Writer
from ccr_dist.train.strategies.replicated import Single
from tests.benchmarks.record import record

SIDE = 1024


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument(
        "--megabytes", type=float, nargs="+", default=[100, 1000], help="of weights and moments together"
    )
    arguments.add_argument("--repeat", type=int, default=5)
    arguments.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    arguments.add_argument("--threads", type=int, default=1)
    arguments.add_argument("--folder", type=Path, help="on the disk to write to; default: for temporary files")
    arguments.add_argument("--save", action="store_true")
    asked = arguments.parse_args()
    torch.set_num_threads(asked.threads)
    rows = [measure(size, asked.repeat, torch.device(asked.device), asked.folder) for size in asked.megabytes]
    show(rows)
    kept = {key: value for key, value in vars(asked).items() if key not in ("folder", "save")}
    record("checkpoint", {**kept, "rows": rows}, save=asked.save)


def measure(megabytes: float, repeat: int, device: torch.device, folder: Path | None) -> dict[str, Any]:
    engine = trained(max(1, round(megabytes * 1e6 / 12 / SIDE**2)), device)
    steps = iter(range(1, 10_000))
    times: dict[str, list[float]] = {"synchronous": [], "stall": [], "again": [], "alone": [], "beside": []}

    def state() -> State:
        return State({"step": next(steps)}, engine.weights(engine.trained), engine.optimizer_state())

    with tempfile.TemporaryDirectory(dir=folder) as name:
        root = Path(name)
        writer = Writer(root)
        for _ in range(repeat):
            times["synchronous"].append(clock(lambda: checkpoint.save(root, state())))
            times["alone"].append(product())
            times["stall"].append(clock(lambda: writer.write(state(), lambda: None)))
            times["beside"].append(product())
            times["again"].append(clock(lambda: (writer.wait(), writer.write(state(), lambda: None))))
            writer.wait()
            checkpoint.prune(root, keep=1, best=None)
        writer.close()
    best = {name: min(values) for name, values in times.items()}
    middle = {name: statistics.median(values) for name, values in times.items()}
    return {
        "megabytes": megabytes,
        "seconds": {
            name: {"best": best[name], "median": middle[name], "worst": max(values)} for name, values in times.items()
        },
        "ratio": round(best["synchronous"] / best["stall"], 2),
        "ratio_again": round(best["synchronous"] / best["again"], 2),
        "slower": round(best["beside"] / best["alone"], 2),
    }


def trained(matrices: int, device: torch.device) -> Single:
    """An engine that has made a step."""
    model = nn.ModuleList(nn.Linear(SIDE, SIDE, bias=False) for _ in range(matrices)).to(device)
    settings = StageConfig(steps=1, batch=1, lr=1e-3)
    processes = Processes(threads=torch.get_num_threads(), world=None, group=False, timeout=60)
    engine = Single(
        processes, model, dict(model.named_parameters()), lambda p: make_optimizer(settings, p, device), settings
    )
    engine.backward(torch.stack([parameter.sum() for parameter in model.parameters()]).sum())
    engine.update(1e-3)
    engine.reuse_copies()
    return engine


def clock(action: Callable[[], Any]) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    begun = time.perf_counter()
    action()
    return time.perf_counter() - begun


def product() -> float:
    """Seconds of a fixed amount of work on the CPU."""
    a = torch.ones(SIDE, SIDE)
    return clock(lambda: [a @ a for _ in range(5)])


def show(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("state MB", "synchronous s", "stall s", "ratio", "at once again s", "ratio", "work beside it")
    for row in rows:
        seconds = {name: f"{value['best']:.3f}" for name, value in row["seconds"].items()}
        table.add_row(
            f"{row['megabytes']:g}", seconds["synchronous"], seconds["stall"], f"{row['ratio']:.1f}", seconds["again"],
            f"{row['ratio_again']:.1f}", f"{row['slower']:.2f} x as long",
        )  # fmt: skip
    Console(file=sys.stderr).print(table)


if __name__ == "__main__":
    main()
