"""What others have published of training CLIP and CLAP on GPUs, and what the planner says of the same.

    OMP_NUM_THREADS=1 python tests/benchmarks/plan_published.py [--save]

Method english with `train: all` is the training of a CLIP; its step is traced for each point. CLAP's towers are no
backbone here: its losses and features are traced, and its towers are the FLOPs and parameters that were published.

Two predictions. `plain`: with the constants of `plan/machine.py`, the same everywhere. `one fitted`: computations are
slower by one factor for each system, such that its first point (marked) comes out as published, as `--measure` would
find it on that system; the others are predicted with it. Nothing is fitted to any other point.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from ccr_dist import devices
from ccr_dist.methods.run_config import load_config
from ccr_dist.plan.cost.machine import Machine, machine_of
from ccr_dist.plan.cost.seconds import step_time
from ccr_dist.plan.step.operators import Kind
from ccr_dist.plan.step.trace import Trace, trace
from tests.benchmarks.record import record

NEMO = "NVIDIA NeMo user guide 24.07, CLIP, performance (August 2023)"
LAION = "trained_models_info.csv of LAION's scaling study (arXiv 2212.07143), JUWELS Booster"
CLAP = "github.com/LAION-AI/open-clap-scaling, JUPITER, DDP, HTSAT-tiny with RoBERTa of 512 tokens"


@dataclass(frozen=True)
class Point:
    """A published throughput.

    Attributes:
        system: points with the same one share a factor, which the first of them gives.
        local: rows of a GPU. NeMo does not say it for g/14; 80 is what it gives for H/14.
        samples_per_s: of all GPUs, as published.
        towers: where they are no backbone here: FLOPs of a forward of one row, and parameters.
    """

    system: str
    source: str
    model: str
    device: str
    per_node: int
    gpus: int
    local: int
    samples_per_s: float
    network: str | None = None
    checkpointing: bool = False
    towers: tuple[float, int] | None = None


def _laion(model: str, gpus: int, local: int, rate: float, checkpointing: bool) -> Point:
    return Point("JUWELS", LAION, model, "a100-40gb", 4, gpus, local, rate, "hdr200x4", checkpointing)


def _clap(gpus: int, rate: float) -> Point:
    return Point("JUPITER", CLAP, "CLAP", "gh200-96gb", 4, gpus, 616, rate, None, False, (111.2e9, 153_000_000))


POINTS = (
    _laion("ViT-L-14", 768, 112, 60328, True),
    _laion("ViT-L-14", 1024, 84, 79116, True),
    _laion("ViT-B-32", 128, 256, 773 * 128, False),
    Point("DGX A100", NEMO, "ViT-g-14", "a100-80gb", 8, 8, 80, 559),
    Point("DGX A100", NEMO, "ViT-g-14", "a100-80gb", 8, 128, 80, 8633),
    Point("DGX H100", NEMO, "ViT-g-14", "h100-80gb", 8, 8, 80, 935),
    Point("DGX H100", NEMO, "ViT-g-14", "h100-80gb", 8, 128, 80, 13829),
    _clap(4, 2495),
    _clap(64, 38512),
    _clap(512, 278833),
)


def traced(point: Point, folder: Path) -> Trace:
    """A step of the point."""
    values = {
        "name": "published",
        "out": str(folder),
        "backbone": {"kind": "open_clip", "model": "ViT-B-32" if point.towers else point.model, "pretrained": None},
        "method": {"name": "english", "train": "all"},
        "data": {"train": [{"path": "none"}], "val": "none", "queries": {"en": "caption.en"}},
        "stages": {"english": {"steps": 1, "batch": point.local * point.gpus, "lr": 1e-4}},
        "runtime": {"precision": "bf16", "gradient_checkpointing": point.checkpointing},
    }
    path = folder / "published.yaml"
    path.write_text(yaml.safe_dump(values))
    made = trace(load_config(path), "english", world=point.gpus)
    # open_clip and CLAP take their losses under autocast; here they are float32
    made = replace(made, operators={phase: _half(kinds) for phase, kinds in made.operators.items()})
    if point.towers is None:
        return made
    flops, parameters = point.towers
    towers = {
        phase: {Kind("product", 1, 1, 1, 1, times * point.local * flops, 0.0): 1}
        for phase, times in (("forward", 1), ("backward", 2))
    }
    operators = {phase: kinds for phase, kinds in made.operators.items() if phase not in towers} | towers
    return replace(made, operators=operators, trained=parameters, trained_bytes=4 * parameters)


def _half(kinds: dict[Kind, int]) -> dict[Kind, int]:
    found: dict[Kind, int] = {}
    for kind, count in kinds.items():
        made = replace(kind, precision="bf16" if kind.precision == "fp32" else kind.precision)
        found[made] = found.get(made, 0) + count
    return found


def predicted(points: Sequence[Point], folder: Path) -> list[dict[str, Any]]:
    """A row for each point."""
    rows: list[dict[str, Any]] = []
    factors: dict[str, float] = {}
    first: dict[str, Point] = {}
    for point in points:
        device = devices.named(point.device)
        machine = machine_of(device, gpus=point.gpus, per_node=point.per_node, precision="bf16", network=point.network)
        made = traced(point, folder)
        plain = _rate(point, made, machine)
        if point.system not in factors:
            factors[point.system] = _factor(point, made, machine)
        fitted = _rate(point, made, replace(machine, factor=factors[point.system]))
        start = first.setdefault(point.system, point)
        mfu = 3 * _forward(made, point) * point.samples_per_s / point.gpus / (1e12 * device.tflops["bf16"])
        rows.append(
            {
                "system": point.system, "model": point.model, "gpus": point.gpus, "local": point.local,
                "source": point.source, "published": point.samples_per_s / point.gpus, "plain": plain,
                "fitted": fitted, "gives_the_factor": start is point, "factor": factors[point.system],
                "error": fitted / (point.samples_per_s / point.gpus) - 1, "mfu": mfu,
            }
        )  # fmt: skip
    return rows


def _forward(made: Trace, point: Point) -> float:
    """FLOPs of a forward of one row."""
    return sum(kind.flops * count for kind, count in made.operators["forward"].items()) / point.local


def _rate(point: Point, made: Trace, machine: Machine) -> float:
    return point.local / step_time(made, strategy="ddp", machine=machine).step


def _factor(point: Point, made: Trace, machine: Machine) -> float:
    """By which computations are slower, so that the step takes what was published; by bisection."""
    wanted = point.samples_per_s / point.gpus
    low, high = 0.1, 20.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _rate(point, made, replace(machine, factor=middle)) > wanted else (low, middle)
    return (low + high) / 2


def table(rows: Sequence[dict[str, Any]]) -> str:
    """For the page."""
    lines = [
        "| system | model | GPUs | rows a GPU | published samples/s a GPU | of the peak | plain | one fitted | error |",
        "|" + " --- |" * 9,
    ]
    for row in rows:
        error = "gives the factor" if row["gives_the_factor"] else f"{row['error']:+.0%}"
        lines.append(
            f"| {row['system']} | {row['model']} | {row['gpus']} | {row['local']} | {row['published']:.1f} |"
            f" {row['mfu']:.0%} | {row['plain']:.1f} | {row['fitted']:.1f} | {error} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--save", action="store_true", help="keep the JSON in results/")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="plan-published-") as folder:
        rows = predicted(POINTS, Path(folder))
    print(table(rows))
    record("plan_published", {"rows": rows}, save=asked.save)


if __name__ == "__main__":
    main()
