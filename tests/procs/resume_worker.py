"""The ranks of resume_matrix.py and of the tests of damaged checkpoints: runs of a small DASD, whole ones and ones that
go on.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ccr_dist.config import RunConfig
from ccr_dist.methods.run_config import load_config
from ccr_dist.train import loop
from ccr_dist.train.state import checkpoint
from ccr_dist.train.state.progress import RunProgress
from ccr_dist.train.step.stage import StageRun
from ccr_dist.train.strategies.strategy import Strategy
from tests import toy

PROFILES = Path(__file__).parents[2] / "launch" / "deepspeed"
CUT, TOTAL = 4, 7  # the checkpoint that is resumed from, in the middle of the second stage, and the last step
PRECISIONS: dict[str, tuple[str, ...]] = {
    "fp32": ("stages.cma.optimizer=adamw", "stages.cma.weight_decay=0.1", "stages.cma.lr_scale={net.adapter: 0.5}"),
    "bf16": (
        "stages.cma.optimizer=bert_adam",
        "stages.cma.schedule=bert",
        "stages.cma.lr=0.0001",
        "method.scale=10",  # bf16 rounds otherwise in every layout, and a scale of 100 multiplies that
        "runtime.precision=bf16",
        "runtime.micro_batch=4",
        "runtime.gradient_checkpointing=true",
    ),
}


def prepare(folder: Path) -> None:
    """The corpus, the models and the config; in a process of its own, since the parent of all ranks shall not
    compute.
    """
    languages = {"targets": {"es": "caption.es.toy", "de": "caption.es"}}  # a batch uses the adapters of one
    runtime = {"trace": "samples", "checkpoint_every": CUT, "keep": 9}
    toy.dasd(folder, cla=2, cma=TOTAL - 2, data=languages, runtime=runtime, name="run")


def config(folder: Path, name: str, precision: str) -> RunConfig:
    return load_config(folder / "run.yaml", [f"name={name}", *PRECISIONS[precision]])


def strategy_of(name: str, settings: RunConfig) -> Strategy:
    """As its launch profile has it, but cutting everything into small parts, since all tensors are small here."""
    made = Strategy(settings.runtime, name=name)
    if name.startswith("zero"):
        options = json.loads((PROFILES / f"{name}.json").read_text())["zero_optimization"]
        small = {key: 1000 for key in options if key.endswith(("bucket_size", "live_parameters", "reuse_distance"))}
        whole = 100_000 if made.world == 4 else 0  # ZeRO-3 with four ranks takes long
        made._options = {"zero_optimization": options | small | {"stage3_param_persistence_threshold": whole}}
    return made


def train(folder: Path, states: Iterable[tuple[str, str, str]]) -> None:
    """Whole runs: (name of the run, strategy, precision)."""
    for name, spread, precision in states:
        settings = config(folder, name, precision)
        strategy = strategy_of(spread, settings)
        loop.train_run(settings, strategy)
    strategy.close()


def die(folder: Path, name: str, spread: str, precision: str) -> None:
    """A run of which the last rank kills itself in the step after the next checkpoint, which has been written then."""

    class Mortal(StageRun):
        def _step(self, done: RunProgress, *arguments: Any) -> Any:
            while done.step == CUT + 1 and not self.folder.checkpoints.joinpath(f"step-{CUT:08d}").exists():
                time.sleep(0.01)
            if done.step == CUT + 1 and self.strategy.rank == self.strategy.world - 1:
                os.kill(os.getpid(), signal.SIGKILL)
            return super()._step(done, *arguments)

    settings = config(folder, name, precision)
    with replaced(loop, StageRun=Mortal):
        loop.train_run(settings, strategy_of(spread, settings))


def resume(folder: Path, cases: Iterable[tuple[str, str, str, str]], out: Path) -> None:
    """Runs that were killed, or copies of whole ones as if they had been after step CUT: (name of the whole run, name
    of the other, strategy, precision).
    """
    results = {}
    for saved, name, spread, precision in cases:
        settings = config(folder, name, precision)
        strategy = strategy_of(spread, settings)
        if strategy.main and not settings.folder.exists():
            cut(folder / "runs" / f"{saved}-s0", settings.folder)
        strategy.barrier()
        seen: dict[str, Any] = {}
        outcome = run(settings, strategy, seen)
        if strategy.main:
            results[name] = {
                "resumed_at": outcome.resumed_at,
                **seen,
                **compared(folder / "runs" / f"{saved}-s0", settings.folder),
            }
    if strategy.main:
        out.write_text(json.dumps(results))
    strategy.close()


def run(settings: RunConfig, strategy: Strategy, seen: dict[str, Any]) -> loop.TrainingOutcome:
    """`seen` gets what differed between the checkpoint and what each stage had taken over from it."""

    class Witness(StageRun):
        def __init__(self, *arguments: Any, state: checkpoint.State | None = None, **rest: Any) -> None:
            super().__init__(*arguments, state=state, **rest)
            # weights of these are in shards
            assert rest["step"].method.backbone.slices == (strategy.name not in ("zero3", "fsdp2"))
            if state is not None:
                kept = {name: p for name, p in rest["step"].named_parameters() if name in state.weights}
                held = [self.engine.weights(kept), self.engine.optimizer_state(), self.auxiliary_state()]
                if strategy.main:
                    files = (state.weights, state.optimizer, state.auxiliary)
                    seen["lost"] = [name for pair in zip(held, files, strict=True) for name in differences(*pair)]
                    seen["carried"] = sum(len(tensors) for tensors in files)

    with replaced(loop, StageRun=Witness):
        return loop.train_run(settings, strategy)


@contextlib.contextmanager
def replaced(module: Any, **others: Any) -> Iterator[None]:
    before = {name: getattr(module, name) for name in others}
    for name, other in others.items():
        setattr(module, name, other)
    try:
        yield
    finally:
        for name, own in before.items():
            setattr(module, name, own)


def cut(whole: Path, copy: Path) -> None:
    shutil.copytree(whole, copy)
    for path in (
        copy / "trace",
        *(checkpoint.folder_of(copy / "checkpoints", step) for step in checkpoint.steps(copy / "checkpoints")),
    ):
        if path.name == "trace" or int(path.name.removeprefix("step-")) > CUT:
            shutil.rmtree(path)
    for name in ("best.json", "model.safetensors"):
        (copy / name).unlink()


def differences(have: Mapping[str, Tensor], want: Mapping[str, Tensor]) -> list[str]:
    """Names of tensors that are not the same, bit for bit."""
    missing = sorted(have.keys() ^ want.keys())
    return missing + [
        name
        for name in have.keys() & want.keys()
        if have[name].dtype != want[name].dtype
        or have[name].shape != want[name].shape
        or not torch.equal(have[name], want[name])
    ]


def compared(whole: Path, copy: Path) -> dict[str, Any]:
    """A run that went on beside the one that it is a copy of."""
    last = [checkpoint.load(checkpoint.folder_of(path / "checkpoints", TOTAL)) for path in (whole, copy)]
    files = [(state.weights, state.optimizer, state.auxiliary) for state in last]
    logs = [losses(path) for path in (whole, copy)]
    weights = [
        (files[1][0][name] - value).abs().max() / value.abs().max().clamp_min(1e-6)
        for name, value in files[0][0].items()
    ]
    return {
        "batches": {step: items for step, items in batches(copy).items() if step >= CUT}
        == {step: items for step, items in batches(whole).items() if step >= CUT},
        "losses": distance(*logs),
        "weights": float(max(weights)),
        "bits": not any(differences(*pair) for pair in zip(*files, strict=True)) and logs[0] == logs[1],
    }


def losses(run: Path) -> dict[int, dict[str, float]]:
    """The numbers of each step that do not depend on the clock."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    wanted = ("loss", "mse", "contrastive", "consistency", "adversarial", "aux_discriminator", "grad_norm")
    return {line["step"]: {key: line[key] for key in wanted if key in line} for line in lines if "event" not in line}


def distance(alone: dict[int, dict[str, float]], other: dict[int, dict[str, float]]) -> float:
    """Largest relative difference of any number that was logged."""
    assert alone.keys() == other.keys()
    return max(
        abs(other[step][key] - value) / max(abs(value), 1e-6) for step in alone for key, value in alone[step].items()
    )


def validations(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [line["mR"] for line in lines if line.get("event") == "validation"]


def batches(run: Path) -> dict[int, tuple[str, list[Any]]]:
    """Step -> language and items in the order of the global batch, of all ranks; of steps that were made again, the
    last time.
    """
    found: dict[int, Any] = {}
    for path in sorted((run / "trace").glob("rank*.jsonl")):
        for step, line in {line["step"]: line for line in map(json.loads, path.read_text().splitlines())}.items():
            _, slots = found.setdefault(step, (line["lang"], []))
            slots += zip(line["slots"], line["items"], strict=True)
    return {step: (lang, sorted(slots)) for step, (lang, slots) in found.items()}
