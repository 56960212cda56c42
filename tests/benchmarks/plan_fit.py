"""Stages in closed form for `plan_memory.py`: their data, what is planned, and what a fit really takes.

Anonymous memory of the process is watched while a stage is fitted, since pages of the columns' files, which the kernel
may drop at any time, are no part of the plan.
"""

from __future__ import annotations

import ctypes
import gc
import json
import math
import threading
from pathlib import Path
from typing import Any

import numpy as np

SHARD = 8192  # rows, and the block of a fit
SHARDS = 3
WIDTH = 768  # of the query encoder
COLUMNS = {"feature.q": WIDTH, "feature.en": 24}  # and of the backbone's English features
# method, processes, options of the method
CASES: list[tuple[str, int, dict[str, Any]]] = [
    ("map", 1, {}),
    ("kernel", 1, {"landmarks": 2048, "pictures": [0.0]}),
    ("kernel", 2, {"landmarks": 2048, "pictures": [0.0]}),
]


def config_of(name: str, folder: Path, options: dict[str, Any]) -> dict[str, Any]:
    """A run config, as plain values, whose models and columns are made below the folder."""
    from ccr_dist.data.table.dataset import create_column, create_dataset
    from tests import tiny

    train, query = folder / "fit", folder / "query"
    if not train.exists():
        dataset = create_dataset(
            train, name="bench", split="train", keys=[[f"{s}-{row}" for row in range(SHARD)] for s in range(SHARDS)]
        )
        about: dict[str, Any] = {"plan": {"by": "bench"}, "provenance": {}}
        captions = create_column(dataset, "caption.en", kind="texts", extension="json", **about)
        dice = np.random.default_rng(0)
        columns = [(create_column(dataset, c, kind="matrix", extension="npy", **about), w) for c, w in COLUMNS.items()]
        for shard in range(SHARDS):
            captions.commit(shard, [b'["a"]'] * SHARD)
            for column, width in columns:
                column.commit_matrix(shard, dice.standard_normal((SHARD, width), np.float32).astype(np.float16))
        tiny.tiny_encoder(query, width=WIDTH)
    dual = folder / "dual.json"
    if not dual.exists():
        dual.write_text(tiny.tiny_dual_config(folder / "dual").model_dump_json())
    return {
        "name": name,
        "out": str(folder / "runs"),
        "backbone": json.loads(dual.read_text()),
        "method": {"name": name, "query": {"text": str(query)}, **options},
        "data": {
            "train": [{"path": str(train)}], "val": str(train), "test": str(train), "source": "caption.en",
            "source_feature": "feature.en", "query_features": {"en": "feature.q"}, "queries": {"en": "caption.en"},
        },
        "stages": {"fit": {"batch": SHARD}},
        "runtime": {"threads": 1, "workers": 0},
    }  # fmt: skip


def predicted(given: dict[str, Any]) -> dict[str, Any]:
    """By the planner."""
    import time

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


def measured(given: dict[str, Any]) -> dict[str, Any] | None:
    """On every rank; what rank 0 returns is of the rank that has most."""
    from ccr_dist.methods.build import build_method
    from ccr_dist.methods.run_config import from_dict
    from ccr_dist.train.assemble import fields_for, open_datasets
    from ccr_dist.train.state.run_folder import RunFolder
    from ccr_dist.train.step import fit
    from ccr_dist.train.strategies.strategy import Step, Strategy
    from ccr_dist.train.watch.signals import StopRequest
    from tests.benchmarks.plan_memory import tensors

    config = from_dict(given["config"], name="bench")
    strategy = Strategy(config.runtime, name=None)
    solvers()
    method = build_method(config, texts=None)
    step = Step(method)
    folder = RunFolder(config.folder)
    folder.path.mkdir(parents=True, exist_ok=True)
    fit.SAVE_S = math.inf  # on a busy machine a minute passes, and a save holds one more copy of the sums
    stage = fit.FitStage(
        "fit", config=config, step=step, strategy=strategy, folder=folder, stop=StopRequest(folder.path),
        datasets=open_datasets(config.data.train), fields=fields_for(config, config.method.training_stages()["fit"]),
    )  # fmt: skip
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
