"""What each strategy keeps on a rank and what a step costs under it, beside ddp: where most weights are trained, and
where few are.

    python tests/benchmarks/strategies.py [--methods full dasd] [--world 2] [--batch 64] [--rounds 2] [--backbone
    ViT-B-32] [--save]

Strategies take turns, each in processes of its own, as its launch profile starts them; the best step of all rounds
counts. "kept": bytes of parameters and optimiser state from step to step, of the rank that has most, beside what
`strategies/advice.py` expects; "peak": resident memory of that rank's process, on GPUs what torch had allocated at
most. Data, models and cached features are those of `methods.py`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.benchmarks import methods
from tests.benchmarks.record import record

ROOT = Path(__file__).parents[2]
STRATEGIES = ("ddp", "zero1", "zero2", "zero3", "zero3_offload", "fsdp2")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=["full", "dasd"])
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=STRATEGIES)
    parser.add_argument("--world", type=int, default=2, help="processes; one a GPU, where there are any")
    parser.add_argument("--batch", type=int, default=64, help="global batch")
    parser.add_argument("--steps", type=int, default=4, help="measured; one more warms up")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument(
        "--backbone",
        metavar="MODEL",
        help="an open_clip architecture with random weights; default: EfficientNet-Lite0, MiniLM",
    )
    parser.add_argument("--save", action="store_true", help="keep the JSON in results/")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        measure(json.loads(asked.one))
        return
    asked.workers = 0
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "train"
        methods.build(root, asked)
        for _ in range(asked.rounds):
            for method in asked.methods:
                config = methods.config(method, "cached", root, asked)
                for strategy in asked.strategies:
                    found.setdefault((method, strategy), []).append(run(config, strategy, asked.world, Path(folder)))
    lines = [summed(method, strategy, rounds) for (method, strategy), rounds in found.items()]
    for line in lines:
        beside = next(
            (other for other in lines if other["method"] == line["method"] and other["strategy"] == "ddp"), None
        )
        if beside and "failed" not in line and "failed" not in beside:
            line["times_ddp"] = {key: round(line[key] / beside[key], 3) for key in ("step_s", "kept_mb", "peak_mb")}
    show(lines)
    record(
        "strategies",
        {**{k: v for k, v in vars(asked).items() if k not in ("save", "one")}, "lines": lines},
        save=asked.save,
    )


def run(config: dict[str, Any], strategy: str, world: int, folder: Path) -> dict[str, Any]:
    """A strategy for a few steps, in processes of its own."""
    out = folder / "found.json"
    out.unlink(missing_ok=True)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **({} if gpus() else {"CUDA_VISIBLE_DEVICES": ""})}
    given = json.dumps({"config": config, "out": str(out)})
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", f"launch/accelerate/{strategy}.yaml"]
    command = [*launch, "--num_processes", str(world), __file__, "--one", given]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if not out.exists():
        print(done.stderr[-3000:], file=sys.stderr)
        return {"failed": done.returncode}
    found = json.loads(out.read_text())
    print(config["method"]["name"], strategy, found["steps_s"], file=sys.stderr)
    return found


def gpus() -> int:
    import torch

    return torch.cuda.device_count()


def measure(given: dict[str, Any]) -> None:
    """On every rank; rank 0 writes what was found."""
    from ccr_dist.methods.build import build_method
    from ccr_dist.methods.run_config import from_dict
    from ccr_dist.train.assemble import fields_for, open_datasets, training_texts
    from ccr_dist.train.state.progress import RunProgress
    from ccr_dist.train.state.run_folder import RunFolder
    from ccr_dist.train.step.stage import StageRun
    from ccr_dist.train.strategies.advice import held
    from ccr_dist.train.strategies.strategy import Step, Strategy
    from ccr_dist.train.watch.signals import StopRequest

    config = from_dict(given["config"], name="bench")
    name = list(config.stages)[-1]
    strategy = Strategy(config.runtime)
    method = build_method(config, texts=training_texts(config))
    step = Step(method).to(strategy.device)
    method.aux.to(strategy.device)
    folder = RunFolder(config.folder)
    folder.path.mkdir(parents=True, exist_ok=True)
    fields = fields_for(config, config.method.training_stages()[name])
    sizes = {n: p.numel() * p.element_size() for n, p in step.named_parameters()}
    stage = StageRun(
        name, config=config, step=step, strategy=strategy, folder=folder, stop=StopRequest(folder.path),
        order=methods.order(config, name, fields), datasets=open_datasets(config.data.train), fields=fields,
    )  # fmt: skip
    seconds = [report.step_s for report in stage.steps(RunProgress())][1:]
    trained = sum(sizes[n] for n in stage.engine.trained if n in sizes)
    frozen = sum(sizes.values()) - trained
    ranks = strategy.all({**stage.engine.held(), "peak_mb": methods.peak_mb(strategy.device), "steps_s": seconds})
    if strategy.main:
        found = {
            "strategy": strategy.name,
            "device": strategy.facts["device"],
            "trained_mb": trained / 1e6,
            "frozen_mb": frozen / 1e6,
            "expected": {
                key: value / 1e6 for key, value in held(strategy.name, trained, frozen, strategy.world).items()
            },
            "kept": [{key: rank[key] / 1e6 for key in ("parameters", "optimizer")} for rank in ranks],
            "peak_mb": max(rank["peak_mb"] for rank in ranks),
            "steps_s": [max(times) for times in zip(*(rank["steps_s"] for rank in ranks), strict=True)],
            "advice": stage.advice,
        }
        Path(given["out"]).write_text(json.dumps(found))
    strategy.close()


def summed(method: str, strategy: str, rounds: list[dict[str, Any]]) -> dict[str, Any]:
    good = [found for found in rounds if "failed" not in found]
    if not good:
        return {"method": method, "strategy": strategy, **rounds[0]}
    kept = max(good[-1]["kept"], key=lambda rank: sum(rank.values()))
    return {
        **good[-1],
        "method": method,
        "strategy": strategy,
        "steps_s": [found["steps_s"] for found in good],
        "step_s": min(time for found in good for time in found["steps_s"]),
        "kept_mb": sum(kept.values()),
        "peak_mb": min(found["peak_mb"] for found in good),
    }


def show(lines: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(
        "method", "strategy", "trained MB", "frozen MB", "kept MB", "expected", "x ddp", "peak MB", "step s", "x ddp"
    )
    for line in lines:
        if "failed" in line:
            table.add_row(line["method"], line["strategy"], f"failed: code {line['failed']}")
            continue
        expected, ratio = line["expected"], line.get("times_ddp", {})
        table.add_row(
            line["method"], line["strategy"], f"{line['trained_mb']:.1f}", f"{line['frozen_mb']:.1f}",
            f"{line['kept_mb']:.1f}",
            f"{expected['parameters'] + expected['optimizer']:.1f}", f"{ratio.get('kept_mb', '')}",
            f"{line['peak_mb']:,.0f}",
            f"{line['step_s']:.2f}", f"{ratio.get('step_s', '')}",
        )  # fmt: skip
    Console(stderr=True, width=140).print(table)


if __name__ == "__main__":
    main()
