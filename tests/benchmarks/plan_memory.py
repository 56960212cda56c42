"""Peak memory of a step as the planner predicts it, beside what a rank's process really takes.

    python tests/benchmarks/plan_memory.py [--only TEXT,...] [--save]

Each configuration is trained for two steps on a toy dataset, in processes of its own over gloo, with the DeepSpeed
config of its launch profile. Measured is resident memory: the highest of the second step (`VmHWM` after a reset by
`/proc/self/clear_refs`), less the process: what was resident once the model was built, less the bytes of its tensors
(libraries and tokenisers; a small model has gone through all kinds of operators before). glibc gives every freed block
above 128 KiB back at once (MALLOC_MMAP_THRESHOLD_), so that this is what is live, of every allocator in the process.
Of stages in closed form (`plan_fit.py`) that is anonymous memory, watched while they are fitted.
The rank that has most is compared. Captions are of one length, and pictures of one size, as the planner takes them.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import multiprocessing
import os
import socket
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ccr_dist.environment import commit
from tests.benchmarks import methods, plan_fit
from tests.benchmarks.record import RESULTS, pictures, record

ROOT = Path(__file__).parents[2]
FORK = multiprocessing.get_context("fork")  # a process has imported everything when it starts
WORDS = 20  # of a caption
COLUMNS = ("caption.en", "caption.pt.mt", "caption.en.back-pt-mt", "description.mllm")
# method, strategy, processes, batch, runtime
CASES: list[tuple[str, str, int, int, dict[str, Any]]] = [
    ("full", "ddp", 2, 32, {}),
    ("dasd", "single", 1, 32, {}),
    ("full", "ddp", 4, 16, {}),
    ("leccr", "single", 1, 8, {}),
    ("dasd", "ddp", 2, 32, {"precision": "bf16"}),
    ("full", "fsdp2", 4, 16, {}),
    ("nrccr", "single", 1, 32, {}),
    ("full", "ddp", 2, 32, {"micro_batch": 4, "gradient_checkpointing": True}),
    ("full", "zero2", 4, 16, {}),
    ("dasd", "fsdp2", 2, 16, {}),
    ("full", "zero2", 2, 16, {}),
    ("full", "fsdp2", 2, 16, {}),
    ("full", "zero3", 2, 16, {}),
    ("full", "zero1", 2, 16, {}),
    ("full", "single", 1, 32, {}),
    ("full", "single", 1, 32, {"gradient_checkpointing": True}),
    ("full", "single", 1, 32, {"precision": "bf16"}),
    ("full", "single", 1, 64, {"micro_batch": 16}),
    ("english", "single", 1, 32, {}),
    ("english", "single", 1, 32, {"gradient_checkpointing": True}),
]
OPTIONS = {"english": {"train": "all"}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="configurations whose name has one of these texts, by commas")
    parser.add_argument("--backbone", default="ViT-S-32", help="an open_clip architecture, with random weights")
    parser.add_argument(
        "--kept", type=Path, help="a file of JSON lines: what is measured is kept there, and not measured again"
    )
    parser.add_argument("--predict", action="store_true", help="only those in --kept: predict them again")
    parser.add_argument("--save", action="store_true", help="keep the JSON in results/; with --only, others in it stay")
    asked = parser.parse_args()
    if "MALLOC_MMAP_THRESHOLD_" not in os.environ:  # glibc reads it at the start of a process
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        environment |= {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_ARENA_MAX": "1", "HF_HUB_OFFLINE": "1"}
        os.execve(sys.executable, [sys.executable, *sys.argv], environment)
    imports()
    lines = []
    kept = list(map(json.loads, asked.kept.read_text().splitlines())) if asked.kept and asked.kept.exists() else []
    with tempfile.TemporaryDirectory() as folder:
        built: set[int] = set()
        for method, strategy, world, batch, runtime in CASES:
            name = " ".join([method, strategy, f"x{world}", str(batch), *(f"{k}={v}" for k, v in runtime.items())])
            known = next((each["measured"] for each in kept if each["name"] == name), None)
            if not any(text in name for text in asked.only.split(",")) or (asked.predict and known is None):
                continue
            root = Path(folder) / f"train{batch}"
            if batch not in built and known is None:
                build(root, batch)
                built.add(batch)
            config = config_of(method, root, batch, runtime, asked.backbone)
            works = (("measured", measured, world), ("predicted", predicted, 1))
            lines.append(told(name, line(config, strategy, world, Path(folder), known, works), asked.kept, known))
        for method, world, options in plan_fit.CASES:
            name = plan_fit.name_of((method, world, options))
            known = next((each["measured"] for each in kept if each["name"] == name), None)
            if not any(text in name for text in asked.only.split(",")) or (asked.predict and known is None):
                continue
            config = plan_fit.config_of(method, Path(folder), options)
            works = (("measured", plan_fit.measured, world), ("predicted", plan_fit.predicted, 1))
            lines.append(told(name, line(config, "ddp", world, Path(folder), known, works), asked.kept, known))
    if asked.save and asked.only:
        lines = with_others(lines, RESULTS / "plan_memory.json")
    errors = [abs(each["error"]) for each in lines if "error" in each]
    summary = {"median_error": statistics.median(errors), "largest_error": max(errors)} if errors else {}
    record("plan_memory", {"backbone": asked.backbone, **summary, "lines": lines}, save=asked.save)


def with_others(lines: list[dict[str, Any]], file: Path) -> list[dict[str, Any]]:
    """Lines, and those of a file of results that were not made now, each with the commit that made it."""
    if not file.exists():
        return lines
    before, now = json.loads(file.read_text()), {each["name"] for each in lines}
    others = [{"commit": before["commit"], **each} for each in before["results"]["lines"] if each["name"] not in now]
    return [*others, *({**each, "commit": commit()} for each in lines)]


def told(name: str, found: dict[str, Any], kept: Path | None, known: dict[str, float] | None) -> dict[str, Any]:
    """A line of the results, shown, and kept where it was measured now."""
    found = {"name": name, **found}
    print(json.dumps(found), file=sys.stderr, flush=True)
    if kept and "failed" not in found and known is None:
        with kept.open("a") as file:
            file.write(json.dumps(found) + "\n")
    return found


def config_of(method: str, root: Path, batch: int, runtime: dict[str, Any], backbone: str) -> dict[str, Any]:
    asked = argparse.Namespace(backbone=backbone, batch=batch, steps=1, workers=0)
    config = methods.config(method, "plain", root, asked)
    config["runtime"] |= {"cached_features": False, "threads": 1, **runtime}
    config["method"] |= OPTIONS.get(method, {})
    return config


def imports() -> None:
    """What all processes need, before they are forked: once."""
    import open_clip
    import transformers.models.bert.modeling_bert  # noqa: F401

    from ccr_dist.train.strategies.zero import imported

    imported()
    open_clip.get_tokenizer("ViT-B-32")(["a"])


def line(
    config: dict[str, Any],
    strategy: str,
    world: int,
    folder: Path,
    known: dict[str, float] | None,
    works: Sequence[tuple[str, Any, int]],
) -> dict[str, Any]:
    """Prediction and measurement of one configuration. `known`: MB that were measured before. `works`: what makes the
    two, on so many processes.
    """
    given = {"config": config, "strategy": strategy, "world": world, "out": str(folder / "found.json")}
    found: dict[str, Any] = {"measured": {key: mb * 1e6 for key, mb in known.items()}} if known else {}
    for key, work, processes in works:
        if key in found:
            continue
        Path(given["out"]).unlink(missing_ok=True)
        port = free_port()
        started = [FORK.Process(target=process, args=(work, given, rank, processes, port)) for rank in range(processes)]
        for each in started:
            each.start()
        for each in started:
            each.join()
        if not Path(given["out"]).exists():
            return {"failed": key}
        found[key] = json.loads(Path(given["out"]).read_text())
    parts, real = found["predicted"]["parts"], found["measured"]
    total = sum(parts.values())
    return {
        "predicted_mb": round(total / 1e6, 1),
        "measured_mb": round(real["peak"] / 1e6, 1),
        "error": round(total / real["peak"] - 1, 4),
        "moments_mb": found["predicted"]["moments"],
        "parts_mb": {key: round(value / 1e6, 1) for key, value in parts.items() if value},
        "measured": {key: round(value / 1e6, 1) for key, value in real.items()},
        "seconds_to_plan": found["predicted"]["seconds"],
    }


def process(work: Any, given: dict[str, Any], rank: int, world: int, port: int) -> None:
    """One process of a run, with the variables that `accelerate launch` sets."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    if given["strategy"].startswith("zero"):
        os.environ |= {
            "ACCELERATE_USE_DEEPSPEED": "true",
            "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(ROOT / f"launch/deepspeed/{given['strategy']}.json"),
        }
    found = work(given)
    if found is not None:
        Path(given["out"]).write_text(json.dumps(found))


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def predicted(given: dict[str, Any]) -> dict[str, Any]:
    """By the planner."""
    import time

    from ccr_dist.methods.run_config import from_dict
    from ccr_dist.plan.cost.memory import memory
    from ccr_dist.plan.step.trace import trace

    config = from_dict(given["config"], name="bench")
    begun = time.perf_counter()
    texts = [" ".join(["a"] * WORDS)]
    found = trace(config, list(config.stages)[-1], world=given["world"], tokens=WORDS + 2, texts=texts)
    return {
        "seconds": round(time.perf_counter() - begun, 1),
        "parts": memory(found, strategy=given["strategy"], touched=True),
        "moments": {
            live.phase: [round(live.beside / 1e6, 1), round(live.gradients / 1e6, 1)] for live in found.moments
        },
    }


def measured(given: dict[str, Any]) -> dict[str, Any] | None:
    """On every rank; what rank 0 returns is of the rank that has most."""
    from ccr_dist.methods.build import build_method
    from ccr_dist.methods.run_config import from_dict
    from ccr_dist.train.assemble import fields_for, open_datasets, training_texts
    from ccr_dist.train.state.progress import RunProgress
    from ccr_dist.train.state.run_folder import RunFolder
    from ccr_dist.train.step.stage import StageRun
    from ccr_dist.train.strategies.strategy import Step, Strategy
    from ccr_dist.train.watch.signals import StopRequest

    config = from_dict(given["config"], name="bench")
    name = list(config.stages)[-1]
    strategy = Strategy(config.runtime, name=given["strategy"] if given["world"] > 1 else None)
    warm_up(strategy, config.stages[name])
    method = build_method(config, texts=training_texts(config))
    method.gradient_checkpointing = config.runtime.gradient_checkpointing
    method.backbone.slices = not strategy.shards_weights
    step = Step(method).to(strategy.device)
    gc.collect()
    base = resident("VmRSS") - tensors(method)
    folder = RunFolder(config.folder)
    folder.path.mkdir(parents=True, exist_ok=True)
    fields = fields_for(config, config.method.training_stages()[name])
    stage = StageRun(
        name, config=config, step=step, strategy=strategy, folder=folder, stop=StopRequest(folder.path),
        order=methods.order(config, name, fields), datasets=open_datasets(config.data.train), fields=fields,
    )  # fmt: skip
    marks = []
    for _ in stage.steps(RunProgress()):
        gc.collect()
        marks.append({"peak": resident("VmHWM") - base, "between": resident("VmRSS") - base})
        Path("/proc/self/clear_refs").write_text("5")
    found = strategy.all({**marks[-1], "base": base, **stage.engine.held()})
    strategy.close()
    return max(found, key=lambda rank: rank["peak"]) if strategy.main else None


def tensors(method: Any) -> int:
    """Bytes of all parameters and buffers that a method holds, each once."""
    from torch import nn

    modules = [each for each in vars(method).values() if isinstance(each, nn.Module)]
    held = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
    storages = {each.untyped_storage()._cdata: each.untyped_storage().nbytes() for each in held}
    return sum(storages.values())


def warm_up(strategy: Any, settings: Any) -> None:
    """Libraries load code and make buffers when they are first used; that is the process', not the step's."""
    import torch
    from torch import nn

    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            pictures = nn.Sequential(nn.Conv2d(3, 256, 16, 16), nn.Flatten(2), nn.Linear(4, 4), nn.GELU())
            self.backbone = nn.ModuleList([pictures, nn.TransformerEncoderLayer(256, 4, 512, batch_first=True)])

        def forward(self, part: str, pixels: Any) -> Any:
            pictures, layer = self.backbone
            return layer(pictures(pixels).transpose(1, 2)).sum()

    small = Small()
    engine = strategy.engine(small, dict(small.named_parameters()), settings)
    for _ in range(2):
        with strategy.autocast():
            loss = engine("outputs", torch.randn(8, 3, 32, 32))
        engine.backward(loss)
        engine.update(1e-3)
    del small, engine, loss
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)


def resident(what: str) -> int:
    """Bytes of a line of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{what}:"))


def build(root: Path, rows: int) -> None:
    """A dataset of as many rows as a batch has; all captions are alike."""
    from ccr_dist.data.table.dataset import create_column

    dataset = pictures(root, rows, shards=4, side=64, seed=0)
    text = " ".join(["a"] * WORDS)
    for name in COLUMNS:
        column = create_column(dataset, name, kind="texts", extension="json", plan={"recipe": "bench"}, provenance={})
        for shard, count in enumerate(dataset.shard_rows):
            column.commit(shard, [column.encode([text])] * count)


if __name__ == "__main__":
    main()
