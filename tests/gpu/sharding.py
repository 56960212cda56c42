"""FSDP2 and ZeRO on one device: a few steps of DASD with the losses and gradient norms of DDP's. On a GPU the
collectives are NCCL's, of one process.

The strategies are chosen as a launch profile chooses them, by its variables; DDP of one process is made by hand, since
a run alone needs none.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

from ccr_dist.config import RunConfig
from tests import toy
from tests.gpu.part import Found, run

FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_CPU_RAM_EFFICIENT_LOADING": "false"}
STRATEGIES: dict[str, dict[str, str]] = {
    "ddp": {},
    "fsdp2": FSDP,
    "zero1": {"ACCELERATE_USE_DEEPSPEED": "true"},
    "zero2": {"ACCELERATE_USE_DEEPSPEED": "true"},
    "zero3": {"ACCELERATE_USE_DEEPSPEED": "true"},
}
# Parts of a value: strategies sum in other orders, and bf16 rounds to 3 digits.
WITHIN = {"fp32": {"loss": 1e-4, "norm": 1e-3}, "bf16": {"loss": 2e-2, "norm": 5e-2}}


def sharding(found: Found) -> None:
    from ccr_dist.methods.run_config import load_config
    from ccr_dist.train.strategies import zero

    zero.imported()
    names = ("ddp", "fsdp2", "zero2") if found.cpu else tuple(STRATEGIES)
    with tempfile.TemporaryDirectory() as folder:
        path = toy.dasd(Path(folder), cla=4, cma=4)
        for precision in ("fp32",) if found.cpu else ("fp32", "bf16"):
            expected: dict[str, Any] = {}
            for name in names:
                config = load_config(path, [f"name={name}-{precision}", f"runtime.precision={precision}"])
                mine = steps(config, name)
                expected = expected or mine
                found.line(strategy=name, precision=precision, **mine)
                for step, (loss, norm) in enumerate(zip(mine["losses"], mine["norms"], strict=True)):
                    within = WITHIN[precision]
                    what = f"{name}, {precision}, step {step}:"
                    found.near(f"{what} the loss", loss, expected["losses"][step], within=within["loss"])
                    found.near(f"{what} the gradient's norm", norm, expected["norms"][step], within=within["norm"])


def steps(config: RunConfig, name: str) -> dict[str, Any]:
    """Of the last stage under a strategy: losses and norms of its steps, seconds of them all, bytes that it holds."""
    from ccr_dist.methods.build import build_method
    from ccr_dist.train.assemble import fields_for, open_datasets, training_texts
    from ccr_dist.train.state.progress import RunProgress
    from ccr_dist.train.state.run_folder import RunFolder
    from ccr_dist.train.step.stage import StageRun
    from ccr_dist.train.strategies.strategy import Step, Strategy
    from ccr_dist.train.watch.signals import StopRequest
    from tests.benchmarks.methods import order

    variables = dict(STRATEGIES[name])
    if name.startswith("zero"):
        variables["ACCELERATE_DEEPSPEED_CONFIG_FILE"] = f"launch/deepspeed/{name}.json"
    with mock.patch.dict(os.environ, variables):
        strategy = Strategy(config.runtime)
    if name == "ddp":
        strategy = grouped(config, strategy)
    stage = list(config.stages)[-1]
    method = build_method(config, texts=training_texts(config))
    step = Step(method).to(strategy.device)
    method.aux.to(strategy.device)
    folder = RunFolder(config.folder)
    folder.path.mkdir(parents=True, exist_ok=True)
    fields = fields_for(config, config.method.training_stages()[stage])
    ran = StageRun(
        stage, config=config, step=step, strategy=strategy, folder=folder, stop=StopRequest(folder.path),
        order=order(config, stage, fields), datasets=open_datasets(config.data.train), fields=fields,
    )  # fmt: skip
    begun = time.perf_counter()
    reports = list(ran.steps(RunProgress()))
    return {
        "engine": type(ran.engine).__name__,
        "backend": strategy.facts["backend"],
        "losses": [report.loss for report in reports],
        "norms": [report.grad_norm for report in reports],
        "seconds": round(time.perf_counter() - begun, 3),
        "held": json.loads(json.dumps(ran.engine.held())),
    }


def grouped(config: RunConfig, alone: Any) -> Any:
    """The strategy of one process, with a process group and so with DDP's engine."""
    import torch.distributed as dist

    from ccr_dist.train.strategies.strategy import Strategy

    if not dist.is_initialized():
        backend = "nccl" if alone.device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    strategy = Strategy(config.runtime)
    strategy.name = "ddp"
    return strategy


if __name__ == "__main__":
    run(sharding)
