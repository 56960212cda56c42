"""Stages in closed form for `plan_memory.py` and `plan_time.py`: their data, what is planned, and what a fit takes.

Of its memory what counts is anonymous: pages of the columns' files, which the kernel may drop at any time, are no part
of the plan. Of its time reading the columns does not count, as waiting for data does not for steps.
"""

from __future__ import annotations

import ctypes
import gc
import json
import math
import statistics
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks.reference import Reference

SHARD = 8192  # rows, and the block of a fit
SHARDS = 3
WIDTH = 768  # of the query encoder
COLUMNS = {"feature.q": WIDTH, "feature.en": 24}  # and of the backbone's English features
Case = tuple[str, int, dict[str, Any]]
# method, processes, options of the method; "texts": a third of the captions has no picture, the others have one
CASES: list[Case] = [
    ("map", 1, {}),
    ("kernel", 1, {"landmarks": 2048, "pictures": [0.0]}),
    ("kernel", 2, {"landmarks": 2048, "pictures": [0.0]}),
    ("kernel", 1, {"landmarks": 2048, "texts": True}),
]
TIMED: list[Case] = [
    (name, processes, options)
    for processes in (1, 2)
    for name, options in (
        ("map", {}),
        ("kernel", {"landmarks": 1024, "pictures": [0.0]}),
        ("kernel", {"landmarks": 2048, "pictures": [0.0]}),
        ("kernel", {"landmarks": 2048, "texts": True}),
    )
]


def name_of(case: Case) -> str:
    """For people."""
    name, processes, options = case
    return " ".join([name, f"x{processes}", *(f"{key}={value}" for key, value in options.items())])


def config_of(name: str, folder: Path, options: dict[str, Any]) -> dict[str, Any]:
    """A run config, as plain values, whose models and columns are made below the folder."""
    from tests import tiny

    query, dual = folder / "query", folder / "dual.json"
    if not dual.exists():
        tiny.tiny_encoder(query, width=WIDTH)
        made = tiny.tiny_dual_config(folder / "dual")
        columns(folder / "fit", made)
        dual.write_text(made.model_dump_json())
    texts = options.get("texts", False)
    shards = [str(folder / "fit" / str(number)) for number in range(SHARDS)]
    pictured, plain = (shards[:-1], shards[-1:]) if texts else (shards, [])
    return {
        "name": name,
        "out": str(folder / "runs"),
        "backbone": json.loads(dual.read_text()),
        "method": {"name": name, "query": {"text": str(query)}}
        | {key: value for key, value in options.items() if key != "texts"},
        "data": {
            "train": [{"path": path} for path in pictured], "texts": [{"path": path} for path in plain],
            "val": shards[0], "test": shards[0], "visual": "feature.image", "source": "caption.en",
            "source_feature": "feature.en", "query_features": {"en": "feature.q"}, "queries": {"en": "caption.en"},
        },
        "stages": {"fit": {"batch": SHARD}},
        "runtime": {"threads": 1, "workers": 0},
    }  # fmt: skip


def columns(folder: Path, dual: Any) -> None:
    """Datasets of one shard each, with a column of captions and random vectors."""
    import torch

    from ccr_dist.data.table.dataset import create_column, create_dataset
    from ccr_dist.models.backbones.build import build_backbone

    with torch.no_grad():
        picture = build_backbone(dual).image_features(torch.zeros(1, 3, 160, 160)).shape[-1]
    about: dict[str, Any] = {"plan": {"by": "bench"}, "provenance": {}}
    dice = np.random.default_rng(0)
    for shard in range(SHARDS):
        keys = [f"{shard}-{row}" for row in range(SHARD)]
        dataset = create_dataset(folder / str(shard), name=f"bench{shard}", split="train", keys=[keys])
        captions = create_column(dataset, "caption.en", kind="texts", extension="json", **about)
        captions.commit(0, [b'["a"]'] * SHARD)
        for name, width in {**COLUMNS, "feature.image": picture}.items():
            values = dice.standard_normal((SHARD, width), np.float32).astype(np.float16)
            create_column(dataset, name, kind="matrix", extension="npy", **about).commit_matrix(0, values)


def predicted(given: dict[str, Any]) -> dict[str, Any]:
    """By the planner."""
    from ccr_dist.methods.run_config import from_dict
    from ccr_dist.plan.cost.fit import fit_memory
    from ccr_dist.plan.step.fit import trace_fit

    begun = time.perf_counter()
    found = trace_fit(from_dict(given["config"], name="bench"), "fit")
    parts, _ = fit_memory(found, world=given["world"], saves=False, host=True)
    seconds = round(time.perf_counter() - begun, 1)
    return {
        "seconds": seconds,
        "parts": parts,
        "moments": {phase: [round(size / 1e6, 1), 0.0] for phase, size in found.highest.items()},
    }


def opened(given: dict[str, Any]) -> tuple[Any, Any, Any]:
    """A stage of a run as the training makes it, with its method and strategy."""
    from ccr_dist.methods.build import build_method
    from ccr_dist.methods.run_config import from_dict
    from ccr_dist.train.assemble import fields_for, of_texts, open_datasets, train_sets
    from ccr_dist.train.state.run_folder import RunFolder
    from ccr_dist.train.step import fit
    from ccr_dist.train.strategies.strategy import Step, Strategy
    from ccr_dist.train.watch.signals import StopRequest

    config = from_dict(given["config"], name="bench")
    strategy = Strategy(config.runtime, name=None)
    solvers()
    method = build_method(config, texts=None)
    folder = RunFolder(config.folder)
    folder.path.mkdir(parents=True, exist_ok=True)
    fit.SAVE_S = math.inf  # on a busy machine a minute passes, and a save holds one more copy of the sums
    sets = train_sets(config, "fit")
    datasets = open_datasets(sets)
    stage = fit.FitStage(
        "fit", config=config, step=Step(method), strategy=strategy, folder=folder, stop=StopRequest(folder.path),
        datasets=datasets, fields=of_texts(fields_for(config, config.method.training_stages()["fit"]), sets, datasets),
    )  # fmt: skip
    return stage, method, strategy


def measured(given: dict[str, Any]) -> dict[str, Any] | None:
    """On every rank; what rank 0 returns is of the rank that has most."""
    from tests.benchmarks.plan_memory import tensors

    stage, method, strategy = opened(given)
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    base, most, done = anonymous() - tensors(method), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.001):
            most[0] = max(most[0], anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        stage.run(lambda: (0.0, {}))
    finally:
        done.set()
        watcher.join()
    found = strategy.all({"peak": most[0] - base, "base": base})
    strategy.close()
    return max(found, key=lambda rank: rank["peak"]) if strategy.main else None


def timed(config: dict[str, Any], rounds: int) -> list[tuple[float, float, float]]:
    """Seconds on the clock, and of processor time of this rank, to sum up and to solve, and of the reference: of each
    of `rounds` fits after one that does not count.
    """
    stage, _, strategy = opened({"config": config})
    reading = [0.0, 0.0]
    plain = stage._matrices.read

    def now() -> tuple[float, float]:
        return time.perf_counter(), time.process_time()

    def read(block: Any) -> Any:
        before = now()
        found = plain(block)
        for at, (first, last) in enumerate(zip(before, now(), strict=True)):
            reading[at] += last - first
        return found

    stage._matrices.read = read
    spent, reference = [], Reference()
    for _ in range(1 + rounds):
        speed = statistics.median(reference() for _ in range(5))
        reading[:], before = [0.0, 0.0], now()
        stage.run(lambda: (0.0, {}))
        wall, cpu = (last - first - part for first, last, part in zip(before, now(), reading, strict=True))
        spent.append((wall, cpu, speed))
    strategy.close()
    return spent[1:]


def solvers() -> None:
    """Libraries make their buffers when they are first used; those are the process', not the stage's."""
    import torch

    for dtype in (torch.float32, torch.float64):
        x = torch.randn(256, 256, dtype=dtype)
        square = x @ x.T + torch.eye(256, dtype=dtype)
        torch.linalg.eigh(square)
        torch.cholesky_solve(x, torch.linalg.cholesky(square))


def anonymous() -> int:
    """Bytes of this process that are no file's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))
