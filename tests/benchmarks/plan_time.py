"""Predicted against measured time of a step, on this machine's CPUs: 1, 2 and 4 processes.

    OMP_NUM_THREADS=1 python tests/benchmarks/plan_time.py [--clock cpu] [--rounds 2] [--steps 8] [--only NAME]
        [--processes 2] [--what fits] [--save]

First the machine is measured as `ccr-dist plan --measure` does, over as many processes as are planned. Then every
configuration is trained by the training's own code, in turns (all of them once, then all of them again), and its steps
are timed without the wait for data. Steps of two configurations, one method each, give the one factor by which whole
steps are slower than their operators (`Calibration.factor`); all others are predicted with it. Those two are shown, and
do not count. Stages in closed form (`plan_fit.py`) are fitted whole, without reading their columns, and take no factor.

--clock cpu compares seconds of processor time of a rank, which other work on the machine changes little; --clock wall,
seconds on the clock, means something on a quiet machine only.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ccr_dist.methods.run_config import from_dict, load_config
from ccr_dist.plan.cost.calibration import Calibration, fitted
from ccr_dist.plan.cost.fit import fit_time
from ccr_dist.plan.cost.machine import Machine, machine_of
from ccr_dist.plan.cost.seconds import step_time
from ccr_dist.plan.measure import measure, shapes
from ccr_dist.plan.predict import Traces
from ccr_dist.plan.step.fit import trace_fit
from tests import tiny, toy
from tests.benchmarks import plan_fit
from tests.benchmarks.record import record
from tests.benchmarks.reference import Reference

ROOT = Path(__file__).parents[2]
ROWS = 256
SHARDED = ("zero1", "zero2", "zero3", "fsdp2")
SKIPPED = 3  # first steps of a run, in which memory is taken from the system


@dataclass(frozen=True)
class Case:
    """A configuration: a run of so many processes."""

    name: str
    path: str
    processes: int
    strategy: str = "ddp"
    overrides: tuple[str, ...] = ()
    fits: bool = False  # gives the factor, and does not count


def model(folder: Path, width: int, layers: int) -> dict[str, Any]:
    """A CLIP of that size for pictures of 64 pixels in patches of 8, with random weights."""
    import open_clip
    from safetensors.torch import save_file

    folder.mkdir()
    heads = width // 64
    text = {"context_length": 24, "vocab_size": 49408, "width": width, "heads": heads, "layers": layers}
    vision = {"image_size": 64, "layers": layers, "width": width, "head_width": 64, "patch_size": 8}
    config = {"embed_dim": 128, "vision_cfg": vision, "text_cfg": text}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {"size": 64}}))
    torch.manual_seed(0)
    made = open_clip.create_model(f"local-dir:{folder}")
    save_file({k: v.contiguous() for k, v in made.state_dict().items()}, str(folder / "open_clip_model.safetensors"))
    return {"kind": "open_clip", "model": f"local-dir:{folder}"}


def cases(folder: Path) -> list[Case]:
    """What is measured, and the files for it."""
    data = folder / "data"
    for split, rows in (("train", ROWS), ("val", 8), ("test", 8)):
        toy.build(data, split, rows=rows, shard_rows=rows // 4)
    tiny.tiny_frontend_folder(folder / "mbert", toy.ALL_TEXTS)
    small, large = model(folder / "small", 128, 4), model(folder / "large", 256, 6)
    front = {"embeddings": str(folder / "mbert"), "rows": "all"}
    stage = {"lr": 1e-4, "warmup": 0, "steps": 8}

    def run(name: str, backbone: dict[str, Any], method: dict[str, Any], *stages: str) -> str:
        made = toy.config(
            folder,
            method,
            {key: {**stage, "batch": 64 if method is clip else 32} for key in stages},
            backbone=backbone,
            name=name,
        )
        return str(made)

    clip = {"name": "english", "train": "all"}
    whole = run("clip", small, clip, "english")
    larger = run("clip-large", large, clip, "english")
    dasd = run("dasd", large, {"name": "dasd", "rank": 16, "frontend": front}, "cla", "cma")
    lora = run("lora", large, {"name": "lora", "rank": 8, "frontend": front}, "cla", "cma")

    def batch(rows: int) -> tuple[str, ...]:
        return (f"stages.english.batch={rows}",)

    return [
        Case("CLIP, batch 64", whole, 1, fits=True),
        Case("dasd, batch 32", dasd, 1, fits=True),
        Case("CLIP, batch 32", whole, 1, overrides=batch(32)),
        Case("CLIP, batch 128", whole, 1, overrides=batch(128)),
        Case("CLIP, batch 128 in parts of 32", whole, 1, overrides=(*batch(128), "runtime.micro_batch=32")),
        Case("CLIP, large, batch 64", larger, 1),
        Case("CLIP, large, batch 64, checkpointing", larger, 1, overrides=("runtime.gradient_checkpointing=true",)),
        Case("lora, batch 32", lora, 1),
        Case("CLIP, batch 64", whole, 2),
        Case("CLIP, large, batch 64", larger, 2),
        Case("dasd, batch 32", dasd, 2),
        *(Case(f"CLIP, batch 64, {name}", whole, 2, name) for name in SHARDED),
        *(Case(f"CLIP, large, batch 64, {name}", larger, 2, name) for name in ("zero1", "fsdp2")),
        *(Case(f"dasd, batch 32, {name}", dasd, 2, name) for name in ("zero2", "fsdp2")),
        Case("CLIP, batch 128", whole, 4, overrides=batch(128)),
        Case("dasd, batch 32", dasd, 4),
        *(Case(f"CLIP, batch 128, {name}", whole, 4, name, overrides=batch(128)) for name in ("zero2", "fsdp2")),
    ]


def measured(every: Sequence[Case], processes: int, rounds: int, steps: int, folder: Path) -> list[dict[str, Any]]:
    """Seconds of the steps of these cases, all on the same number of processes: by case and stage."""
    work = [(each.path, each.strategy, each.overrides) for each in every]
    ranks = on_ranks(_rank, processes, folder, work, rounds, steps, str(folder))
    found = []
    for number in range(len(every)):
        stages = {}
        for stage in ranks[0][number]:
            # of every step the mean over ranks, then the median over steps
            each = [[statistics.mean(pair) for pair in zip(*rows, strict=True)] for rows in
                    zip(*(rank[number][stage] for rank in ranks), strict=True)]  # fmt: skip
            wall, cpu, reference = zip(*each, strict=True)
            stages[stage] = {
                "wall": statistics.median(wall), "cpu": statistics.median(cpu),
                "reference": statistics.median(reference),
                "spread": (statistics.quantiles(cpu, n=4)[2] - statistics.quantiles(cpu, n=4)[0])
                / 2 / statistics.median(cpu),
            }  # fmt: skip
        found.append(stages)
    return found


def on_ranks(work: Any, processes: int, folder: Path, *given: Any) -> list[Any]:
    """What so many processes leave in `rankN.json` of the folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(work, args=(processes, port, *given), nprocs=processes)
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(processes)]


def as_rank(rank: int, processes: int, port: int) -> None:
    """Sets the variables of torchrun."""
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1",
    }  # fmt: skip


def _rank(rank: int, processes: int, port: int, every: list[Any], rounds: int, steps: int, folder: str) -> None:
    as_rank(rank, processes, port)
    from ccr_dist.train.loop import train_run
    from ccr_dist.train.step.stage import StageRun
    from ccr_dist.train.strategies.strategy import Strategy

    spent: dict[str, list[tuple[float, ...]]] = {}
    plain, reference = StageRun._step, Reference()

    def timed(self: Any, *given: Any) -> Any:
        speed = reference()
        wall, cpu = time.perf_counter(), time.process_time()
        report = plain(self, *given)
        spent.setdefault(self.name, []).append((time.perf_counter() - wall, time.process_time() - cpu, speed))
        return report

    setattr(StageRun, "_step", timed)  # noqa: B010 (mypy refuses the plain assignment)
    found: list[dict[str, list[tuple[float, ...]]]] = [{} for _ in every]
    for turn in range(rounds):
        for number, (path, strategy, overrides) in enumerate(every):
            name = f"name=p{processes}-{number}-{turn}"
            config = load_config(path, [*overrides, name, "runtime.log_every=1000"])
            stages = {key: value.model_copy(update={"steps": steps}) for key, value in config.stages.items()}
            config = config.model_copy(update={"stages": stages})
            spent.clear()
            profiled(strategy)
            train_run(config, Strategy(config.runtime, world=None, name=None if strategy == "ddp" else strategy))
            for stage, rows in spent.items():
                found[number].setdefault(stage, []).extend(rows[SKIPPED:])
    (Path(folder) / f"rank{rank}.json").write_text(json.dumps(found))


def reference_of(processes: int, folder: Path) -> float:
    """Seconds of the reference, on as many processes at the same time."""
    return statistics.median(on_ranks(_reference_rank, processes, folder, str(folder)))


def _reference_rank(rank: int, processes: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    reference = Reference()
    (Path(folder) / f"rank{rank}.json").write_text(json.dumps(statistics.median(reference() for _ in range(40))))


def measured_fits(configs: Sequence[dict[str, Any]], processes: int, rounds: int, folder: Path) -> list[dict[str, Any]]:
    """Seconds of stages in closed form, as `measured`: of rank 0, which also solves."""
    found = []
    for pairs in on_ranks(_fit_rank, processes, folder, list(configs), rounds, str(folder))[0]:
        wall, cpu, reference = zip(*pairs, strict=True)
        spread = (max(cpu) - min(cpu)) / 2 / statistics.median(cpu)
        found.append({"wall": statistics.median(wall), "cpu": statistics.median(cpu), "spread": spread,
                      "reference": statistics.median(reference)})  # fmt: skip
    return found


def _fit_rank(rank: int, processes: int, port: int, configs: list[Any], rounds: int, folder: str) -> None:
    as_rank(rank, processes, port)
    torch.set_num_threads(1)
    found = [plan_fit.timed(config, rounds) for config in configs]
    (Path(folder) / f"rank{rank}.json").write_text(json.dumps(found))


def profiled(strategy: str) -> None:
    """Sets the variables by which the launch profile of a strategy names it, in place of those of the run before."""
    os.environ["ACCELERATE_USE_DEEPSPEED"] = str(strategy.startswith("zero")).lower()
    os.environ["ACCELERATE_DEEPSPEED_CONFIG_FILE"] = str(ROOT / f"launch/deepspeed/{strategy}.json")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clock", choices=("cpu", "wall"), default="cpu")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--only", default="", help="cases whose name has this in it, and the two that give the factor")
    parser.add_argument("--processes", default="1,2,4", help="only cases of so many processes, and the two")
    parser.add_argument("--what", choices=("steps", "fits", "both"), default="both", help="fits: stages in closed form")
    parser.add_argument("--save", action="store_true", help="keep the JSON in results/")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="plan-time-") as place:
        folder = Path(place)
        counts = set(map(int, asked.processes.split(",")))
        if asked.what != "fits":
            every = cases(folder)
            every = [each for each in every if each.fits or (asked.only in each.name and each.processes in counts)]
            shown("plan_time", compared(every, asked.clock, asked.rounds, asked.steps, folder), asked)
        if asked.what != "steps":
            closed = [each for each in plan_fit.TIMED if asked.only in plan_fit.name_of(each) and each[1] in counts]
            shown("plan_time_fit", compared_fits(closed, asked.clock, asked.rounds, folder), asked)


def shown(name: str, rows: Sequence[dict[str, Any]], asked: argparse.Namespace) -> None:
    """The table, for people; and the JSON."""
    counted = sorted(abs(row["error"]) for row in rows if not row["fits"])
    print(table(rows, asked.clock), flush=True)
    results = {"clock": asked.clock, "rounds": asked.rounds, "steps": asked.steps - SKIPPED, "rows": rows}
    if counted:
        results |= {"median_error": statistics.median(counted), "largest_error": counted[-1]}
    record(name, results, save=asked.save)


def compared(every: Sequence[Case], clock: str, rounds: int, steps: int, folder: Path) -> list[dict[str, Any]]:
    """Predictions beside measurements, a row for each case and stage."""
    traces = {each: Traces(load_config(each.path, each.overrides)) for each in every}
    rows: list[dict[str, Any]] = []
    factor = 1.0
    for processes in sorted({each.processes for each in every}):
        mine = [each for each in every if each.processes == processes]
        kinds = [kind for each in mine for kind in shapes(traces[each], list(traces[each].config.stages), processes)]
        speeds, reference = measured_machine(processes, kinds, ("fp32",), clock, folder)
        pairs = []
        for case, stages in zip(mine, measured(mine, processes, rounds, steps, folder), strict=True):
            for stage, found in stages.items():
                found["same speed"] = found[clock] * reference / found["reference"]
                machine = machine_here(speeds, clock)
                strategy = "single" if processes == 1 else case.strategy
                trace = traces[case].of(stage, processes)
                plain = step_time(trace, strategy=strategy, machine=machine)
                if case.fits:
                    pairs.append((plain.step, found["same speed"]))
                rows.append({"case": case.name, "stage": stage, "processes": processes, "fits": case.fits,
                             "measured": found, "machine": machine, "trace": trace, "strategy": strategy})  # fmt: skip
        if pairs:
            factor = fitted(pairs)
    for row in rows:
        machine = replace(row.pop("machine"), factor=factor)
        time_ = step_time(row.pop("trace"), strategy=row["strategy"], machine=machine)
        row |= {"predicted": time_.step, "parts": time_.parts, "error": time_.step / row["measured"]["same speed"] - 1}
    return rows


def measured_machine(
    processes: int, kinds: Sequence[Any], precisions: Sequence[str], clock: str, folder: Path
) -> tuple[Calibration, float]:
    """The calibration, and the seconds of the reference meanwhile: the mean of before and after."""
    before = reference_of(processes, folder)
    speeds = measure(processes=processes, kinds=kinds, precisions=precisions, threads=1, clock=clock, device="cpu")
    return speeds, (before + reference_of(processes, folder)) / 2


def machine_here(speeds: Calibration, clock: str) -> Machine:
    """What was measured, as as many ranks of one node, without a factor."""
    here, plain = speeds.processes, replace(speeds, factor=1.0)
    machine = machine_of(None, gpus=here, per_node=here, precision="fp32", calibration=plain)
    # by processor time a rank is compared by itself, whoever has the core meanwhile
    return replace(machine, crowd=1.0) if clock == "cpu" else machine


def compared_fits(every: Sequence[plan_fit.Case], clock: str, rounds: int, folder: Path) -> list[dict[str, Any]]:
    """Stages in closed form: a row for each. Nothing is fitted."""
    rows = []
    for processes in sorted({processes for _, processes, _ in every}):
        mine = [case for case in every if case[1] == processes]
        configs = [plan_fit.config_of(name, folder / "fits", options) for name, _, options in mine]
        traces = [trace_fit(from_dict(config, name="bench"), "fit") for config in configs]
        kinds = {kind: None for made in traces for each in made.operators.values() for kind in each if kind.flops}
        speeds, reference = measured_machine(processes, list(kinds), ("fp32", "fp64"), clock, folder)
        machine = machine_here(speeds, clock)
        for case, made, found in zip(mine, traces, measured_fits(configs, processes, rounds, folder), strict=True):
            time_ = fit_time(made, machine, threads=1)
            found["same speed"] = found[clock] * reference / found["reference"]
            rows.append({"case": plan_fit.name_of(case), "stage": "fit", "processes": processes, "fits": False,
                         "measured": found, "predicted": time_.total, "parts": time_.parts,
                         "error": time_.total / found["same speed"] - 1})  # fmt: skip
    return rows


def table(rows: Sequence[dict[str, Any]], clock: str) -> str:
    """For people."""
    lines = [
        f"| run | stage | processes | measured, wall | measured, cpu | {clock}, at the same speed | predicted |"
        " error |",
        "|---" * 8 + "|",
    ]
    for row in rows:
        found, mark = row["measured"], " (gives the factor)" if row["fits"] else ""
        lines.append(
            f"| {row['case']}{mark} | {row['stage']} | {row['processes']} | {1000 * found['wall']:.1f} ms |"
            f" {1000 * found['cpu']:.1f} ms +- {found['spread']:.0%} |"
            f" {1000 * found['same speed']:.1f} ms | {1000 * row['predicted']:.1f} ms |"
            f" {row['error']:+.1%} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
