"""Runs of test_recompute_world.py: the English stage of a whole CLIP, with and without gradient checkpointing.

    python -m tests.procs.recompute_worker FOLDER

FOLDER/found.json: {strategy: {"plain" or "again": {"losses": of the steps, "calls": blocks that were computed again}}}.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from ccr_dist.methods import recompute
from ccr_dist.methods.run_config import load_config
from ccr_dist.train import loop
from tests.procs import forked
from tests.procs.resume_worker import strategy_of

STRATEGIES = {
    "alone": ("ddp", 1),
    "ddp": ("ddp", 2),
    "zero2": ("zero2", 2),
    "zero3": ("zero3", 2),
    "fsdp2": ("fsdp2", 2),
}


def train(folder: Path, key: str) -> None:
    """One rank's: both runs."""
    real = recompute.checkpoint
    made: dict[str, Any] = {}
    for way in ("plain", "again"):
        calls: list[Any] = []
        recompute.checkpoint = lambda *given, kept=calls, **named: kept.append(given) or real(*given, **named)
        asked = str(way == "again").lower()
        config = load_config(folder / "run.yaml", [f"name={key}-{way}", f"runtime.gradient_checkpointing={asked}"])
        strategy = strategy_of(STRATEGIES[key][0], config)
        loop.train_run(config, strategy)
        log = map(json.loads, (config.folder / "log.jsonl").read_text().splitlines()) if strategy.main else ()
        losses = [line["loss"] for line in log if line.get("stage") == "english" and "event" not in line]
        made[way] = {"losses": losses, "calls": len(calls)}
    if strategy.main:
        (folder / f"{key}.json").write_text(json.dumps(made))
    strategy.close()


def main(folder: Path) -> None:
    forked.prepare()
    for key, (_, world) in STRATEGIES.items():
        forked.world(world, train, folder, key)
    found = {key: json.loads((folder / f"{key}.json").read_text()) for key in STRATEGIES}
    (folder / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
