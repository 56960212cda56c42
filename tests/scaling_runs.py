"""Run folders of scaling studies whose logs say what they are told to."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ccr_dist.data.storage.json_lines import line_of
from ccr_dist.scaling.measured import PHASES
from ccr_dist.scaling.plan import ScalingPlan, Trial, load_plan
from tests import toy

SHARES = dict(zip(PHASES, (0.1, 0.1, 0.4, 0.1, 0.2, 0.1), strict=True))
TRAINED = 4000  # bytes


def base(folder: Path) -> Path:
    stage = {"steps": 3, "batch": 10, "lr": 1e-2}
    return toy.config(folder, {"name": "dasd", "rank": 4}, {"cla": stage, "cma": stage}, backbone={"kind": "dual"})


def study(run: Path, folder: Path, **changes: Any) -> ScalingPlan:
    """A study on a config: strong scaling over 1 and 2 processes, two repeats."""
    values = {
        "name": "s", "title": "Toy <study>", "out": str(folder / "out"), "config": str(run), "kind": "strong",
        "grid": {"world": [1, 2], "batch": [12]}, "steps": 4, "warmup": 2, "repeats": 2, **changes,
    }  # fmt: skip
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in values.items() if value is not None}))
    return load_plan(path)


def leave(
    trial: Trial, seconds: float, *, starts: Sequence[int] = (0,), engine: str | None = None,
    about: Mapping[str, Any] | None = None,
) -> None:  # fmt: skip
    """What a complete training leaves: warm-up steps are ten times as slow, and memory is 1 GB and a MB a rank."""
    folder, point = trial.folder, trial.point
    folder.mkdir(parents=True)
    world = point.settings.world
    engine = engine or ("ddp" if world > 1 else "single")
    begun = [
        {
            "step": step, "world": world, "processes": [{"host": "n1"}] * world, "strategy": engine, "device": "cpu",
            "hardware": "a <processor>", "commit": "abc1234", "versions": {"torch": "2.0"},
            **{key: value for key, value in (about or {}).items() if value is not None},
        }
        for step in starts
    ]  # fmt: skip
    (folder / "starts.jsonl").write_text("".join(json.dumps(start) + "\n" for start in begun))
    lines: list[dict[str, Any]] = []
    step = 0
    for name, stage in point.config.stages.items():
        first, warm = step, point.study.warmup
        for _ in range(stage.steps):
            step += 1
            cold = any(begin < step <= begin + warm for begin in (first, *starts))
            took = seconds * (10 if cold else 1)
            speed = {f"{part}_s": share * took for part, share in SHARES.items()}
            speed |= {"longest_s": took, "sent_bytes": 100.0 * (world - 1), "tokens_per_s": 1000.0}
            lines.append({"step": step, "stage": name, "speed": speed})
            if step == first + 1:
                held = [{"parameters": 3 * TRAINED, "optimizer": 2 * TRAINED}] * world
                lines.append(
                    {"step": step, "event": "held", "stage": name, "strategy": engine, "regathered": 0, "bytes": held}
                )
        most = [10**9 + 10**6 * rank for rank in range(world)]
        lines.append({"step": step, "event": "memory", "stage": name, "bytes": most})
    (folder / "log.jsonl").write_bytes(b"".join(map(line_of, lines)))
    (folder / "best.json").write_text(json.dumps({"step": step, "stage": "cma", "metric": "mR", "value": 40.0 + world}))
