"""The ranks of test_fit_world.py: stages in closed form on worlds of 1 to 3, out of one start.

    python -m tests.procs.fit_worker FOLDER

FOLDER/runs/METHOD-TYPE-WORLD-s0: of columns of that type. FOLDER/runs/METHOD-STRATEGY-s0: on two ranks.
FOLDER/runs/METHOD-killed-WORLD-s0: begun on two ranks, of which one was killed in the midst of the sums, and ended on
WORLD.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ccr_dist.config import RunConfig
from ccr_dist.data.stream.matrices import Block
from ccr_dist.data.table.dataset import Dataset, create_column
from ccr_dist.methods.run_config import load_config
from ccr_dist.train import loop
from ccr_dist.train.step import fit
from tests import query_side
from tests.procs import forked
from tests.procs.resume_worker import strategy_of

METHODS: dict[str, dict[str, Any]] = {
    "map": {"penalties": [1e-2, 1.0], "space": "shared", "pictures": [0.0, 0.5], "centre": "language"},
    "kernel": {"penalties": [1e-1, 1.0], "landmarks": 20},
}
BATCH = 2  # rows: three blocks a shard, 36 in all
KILLED_AT = 5  # blocks that the rank that dies has read in vain or not


def prepare(folder: Path) -> None:
    """Runs of both methods, and the features once more as float32, with the same values."""
    for name, options in METHODS.items():
        query_side.config(folder, name, stages={"fit": {"batch": BATCH}}, **options)
    train = Dataset.open(folder / "data" / "train")
    for name in (*query_side.QUERY.values(), "feature.en"):
        column = train.column(name)
        wide = create_column(
            train, f"{name}.32", kind="matrix", extension="npy", plan={"of": name}, provenance={}, dtype="float32"
        )
        for shard in range(len(train.shard_rows)):
            values, offsets = column.matrix(shard)
            assert values.dtype == np.float16
            wide.commit_matrix(shard, np.asarray(values), np.diff(offsets).tolist())


def settings(folder: Path, method: str, name: str, *overrides: str) -> RunConfig:
    return load_config(folder / f"{method}.yaml", [f"name={method}-{name}", *overrides])


def wide() -> list[str]:
    columns = {f"query_features.{lang}": column for lang, column in query_side.QUERY.items()}
    return [f"data.{key}={name}.32" for key, name in {**columns, "source_feature": "feature.en"}.items()]


def train(folder: Path, runs: Sequence[tuple[str, str, str, Sequence[str]]]) -> None:
    """(method, name, strategy, overrides) of each run."""
    for method, name, spread, overrides in runs:
        config = settings(folder, method, name, *overrides)
        strategy = strategy_of(spread, config)
        loop.train_run(config, strategy)
    strategy.close()


def die(folder: Path, method: str) -> None:
    """The last rank kills itself at a block, when both have saved some."""
    config = settings(folder, method, "killed")
    strategy = strategy_of("ddp", config)
    read = fit.FitStage._of
    fit.SAVE_S = -1.0  # after every block

    def mortal(self: fit.FitStage, block: Block) -> fit.Sums:
        mortal.blocks += 1  # type: ignore[attr-defined]
        if mortal.blocks == KILLED_AT and not strategy.main:  # type: ignore[attr-defined]
            os.kill(os.getpid(), signal.SIGKILL)
        return read(self, block)

    mortal.blocks = 0  # type: ignore[attr-defined]
    fit.FitStage._of = mortal
    loop.train_run(config, strategy)


def count(folder: Path, method: str, name: str) -> None:
    """Ends a run, and keeps how many blocks were summed up for it in FOLDER/METHOD-NAME.RANK."""
    config = settings(folder, method, name)
    strategy = strategy_of("ddp", config)
    summed, real = [], fit.FitStage._of

    def counted(self: fit.FitStage, block: Block) -> fit.Sums:
        summed.append(block)
        return real(self, block)

    fit.FitStage._of = counted
    loop.train_run(config, strategy)
    (folder / f"{method}-{name}.{strategy.rank}").write_text(str(len(summed)))


def main(folder: Path) -> None:
    forked.world(1, prepare, folder)
    for world in (1, 2, 3):
        runs = [
            (method, f"{kind}-{world}", "ddp", overrides)
            for method in METHODS
            for kind, overrides in (("float16", []), ("float32", wide()))
        ]
        forked.world(world, train, folder, runs)
    for spread in ("fsdp2", "zero3"):
        forked.world(2, train, folder, [(method, spread, spread, []) for method in METHODS])
    for method in METHODS:
        with contextlib.suppress(RuntimeError):
            forked.world(2, die, folder, method)
        for world in (1, 3):
            shutil.copytree(folder / "runs" / f"{method}-killed-s0", folder / "runs" / f"{method}-killed-{world}-s0")
            forked.world(world, count, folder, method, f"killed-{world}")


if __name__ == "__main__":
    forked.prepare()
    main(Path(sys.argv[1]))
