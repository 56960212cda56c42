"""The ranks of test_accidents.py: what may befall a run of several processes, and a method that gives strategies
trouble; out of one start.

    python -m tests.procs.accidents_worker FOLDER

FOLDER/found.json: what each scene found, rank by rank where that matters.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import io
import json
import math
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ccr_dist.config import RunConfig
from ccr_dist.data.stream.batch import Batch
from ccr_dist.errors import CcrError, DataError, StorageError
from ccr_dist.methods.run_config import load_config
from ccr_dist.train import loop, measure, recorders, subjects
from ccr_dist.train.record.telemetry import Telemetry
from ccr_dist.train.state import checkpoint
from ccr_dist.train.state.progress import RunProgress
from ccr_dist.train.step.stage import StageRun
from ccr_dist.train.strategies.strategy import Strategy
from tests import tiny, toy
from tests.procs import forked
from tests.procs.resume_worker import CUT, TOTAL, config, distance, losses, prepare, replaced, strategy_of

LECCR = {"name": "leccr", "mode": "intended", "dim": 15, "heads": 2, "dropout": 0.0, "least_part": None}
DAMAGES = ("truncated", "missing", "other bytes", "half deleted", "two damaged")
SPREADS = ("ddp", "zero1", "zero2", "zero3", "fsdp2")


def prepare_all(folder: Path) -> None:
    prepare(folder)
    encoder = tiny.tiny_encoder(folder / "encoder", toy.ALL_TEXTS)
    stage = {"train": {"steps": 4, "batch": 10, "lr": 5e-3, "warmup": 0.1}}
    toy.config(folder, {**LECCR, "text_encoder": encoder}, stage, data={"description": "caption.en"})


def leccr(folder: Path, spreads: tuple[str, ...], found: dict[str, Any]) -> None:
    """The image encoder, a text encoder and a temperature of shape (1,) are trained; then the test split is
    measured.
    """
    for spread in spreads:
        settings = load_config(folder / "leccr.yaml", [f"name=leccr-{spread}"])
        strategy = strategy_of(spread, settings)
        loop.train_run(settings, strategy)
        path = measure.measure(subjects.MeasuredRun(settings), strategy, split="test", again=False)
        if strategy.main:
            languages = json.loads(path.read_text())["languages"]
            found[f"leccr {spread}"] = {
                "losses": losses(settings.folder),
                "test": {k: v["metrics"]["mR"] for k, v in languages.items()},
            }


def damaged(folder: Path, found: dict[str, Any]) -> None:
    """A whole run, and copies of it that go on after something happened to the newest checkpoint."""
    sound = config(folder, "sound", "fp32")
    loop.train_run(sound, strategy_of("zero2", sound))
    for damage, spread in zip(DAMAGES, SPREADS, strict=True):
        settings = config(folder, damage.replace(" ", "-"), "fp32")
        strategy = strategy_of(spread, settings)
        if strategy.main:
            shutil.copytree(sound.folder, settings.folder)
            (settings.folder / "model.safetensors").unlink()
            spoil(settings.folder / "checkpoints", damage)
        strategy.barrier()
        said = io.StringIO()
        with contextlib.redirect_stderr(said):
            outcome = loop.train_run(settings, strategy)
        resumed = strategy.all(outcome.resumed_at)
        if strategy.main:
            healed = checkpoint.problem(checkpoint.folder_of(settings.folder / "checkpoints", TOTAL)) is None
            far = distance(losses(sound.folder), losses(settings.folder))
            found[damage] = {"resumed": resumed, "said": said.getvalue(), "healed": healed, "far": far}


def spoil(root: Path, damage: str) -> None:
    newest = checkpoint.folder_of(root, TOTAL)
    weights, optimizer, auxiliary = (newest / f"{part}.safetensors" for part in checkpoint.PARTS)
    if damage == "truncated":
        os.truncate(weights, weights.stat().st_size // 2)
    elif damage == "missing":
        optimizer.unlink()
    elif damage == "other bytes":
        content = auxiliary.read_bytes()
        auxiliary.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "half deleted":
        (newest / "state.json").unlink()
        weights.unlink()
    else:
        os.truncate(newest / "state.json", 100)
        os.truncate(checkpoint.folder_of(root, CUT) / "weights.safetensors", 8)


def full_disk(folder: Path, found: dict[str, Any]) -> None:
    """The disk fills up while the last checkpoint is written beside the training; then there is room, and the run goes
    on.
    """
    settings = config(folder, "full", "fp32")
    strategy = strategy_of("fsdp2", settings)

    def save(root: Path, state: checkpoint.State, *rest: Any) -> Path:
        def full(descriptor: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        with replaced(os, **({"fsync": full} if state.values["step"] == TOTAL else {})):
            return written(root, state, *rest)

    written = checkpoint.save
    with replaced(checkpoint, save=save):
        told = raised(settings, strategy)
    gc.collect()  # what is left of the run has its folder locked
    left = sorted(path.name for path in (settings.folder / "checkpoints").iterdir())
    outcome = loop.train_run(settings, strategy)
    found["full disk"] = {
        "raised": told,
        "left": left,
        "resumed": strategy.all(outcome.resumed_at),
        "step": outcome.step,
    }


def poisoned(folder: Path, found: dict[str, Any]) -> None:
    """The last rank's gradient is not finite, twice; once is allowed."""

    class Poisoned(StageRun):
        def _step(self, done: RunProgress, *arguments: Any) -> Any:
            backward = self.engine.backward
            if done.step in (2, 3) and self.strategy.rank == self.strategy.world - 1:
                self.engine.backward = lambda share: backward(share * math.nan)
            try:
                return super()._step(done, *arguments)
            finally:
                self.engine.backward = backward

    for spread in SPREADS[1:]:
        settings = load_config(folder / "run.yaml", [f"name=nan-{spread}", "runtime.skipped_steps=1"])
        strategy = strategy_of(spread, settings)
        with replaced(loop, StageRun=Poisoned):
            told = raised(settings, strategy)
        left = [checkpoint.problem(path) for path in (settings.folder / "checkpoints").iterdir()]
        found[f"nan {spread}"] = {"raised": told, "problems": left, "steps": sorted(losses(settings.folder))}


def one_rank_alone(folder: Path, found: dict[str, Any]) -> None:
    """What only one rank does goes wrong: the first one's log has no room, the last one cannot read its rows."""

    class Log(Telemetry):
        def _put(self, line: Mapping[str, Any]) -> None:
            if line["step"] == 3:
                raise StorageError(f"{self.path}: no room")
            super()._put(line)

    class Rows(StageRun):
        def _batches(self, first: int) -> Iterator[Batch]:
            for number, batch in enumerate(super()._batches(first)):
                if number == 1 and self.strategy.rank == self.strategy.world - 1:
                    raise DataError("rows: cannot be read")
                yield batch

    for name, kind, where in (("Telemetry", Log, recorders), ("StageRun", Rows, loop)):
        settings = config(folder, f"alone-{name.lower()}", "fp32")
        strategy = strategy_of("ddp", settings)
        with replaced(where, **{name: kind}):
            found[f"alone {name}"] = raised(settings, strategy)


def raised(settings: RunConfig, strategy: Strategy) -> list[tuple[int, str]]:
    """Exit code and message of the error that ends the run, of every rank."""
    return strategy.all(_raised(settings, strategy))


def _raised(settings: RunConfig, strategy: Strategy) -> tuple[int, str]:
    try:
        loop.train_run(settings, strategy)
    except CcrError as error:
        return error.exit_code, str(error)
    return 0, ""


def scenes(folder: Path, out: Path, *chosen: Callable[[Path, dict[str, Any]], None]) -> None:
    found: dict[str, Any] = {}
    for scene in chosen:
        scene(folder, found)
    if os.environ.get("RANK", "0") == "0":
        out.write_text(json.dumps(found))


def alone(folder: Path, found: dict[str, Any]) -> None:
    leccr(folder, ("ddp",), found)


def together(folder: Path, found: dict[str, Any]) -> None:
    leccr(folder, ("zero3", "fsdp2"), found)


if __name__ == "__main__":
    root = Path(sys.argv[1])
    forked.prepare()
    forked.world(1, prepare_all, root)
    forked.world(1, scenes, root, root / "alone.json", alone)
    forked.world(2, scenes, root, root / "together.json", together, damaged, full_disk, poisoned, one_rank_alone)
