"""The goodput of a training whose processes are killed at random moments, beside what `ccr-dist simulate` says of it:

    python -m tests.slurm.goodput --seconds 300 --mean 75 --save     kept in tests/benchmarks/results/goodput.json

The simulation gets the rate of the kills (or their moments), and of the run: the mean length of a step, of the stall of
a save, and of a restart. It has to find which part of the time is training that is kept. Root; takes about two minutes
more than `--seconds`.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ccr_dist.simulate.events import simulate
from ccr_dist.simulate.schema import Job
from tests.benchmarks.record import record
from tests.slurm.cluster import OVER, Cluster, until
from tests.slurm.experiment import Experiment, Ground, Run, training

EVERY, STEPS, WITHIN = 100, 60_000, 0.05


@dataclass
class Watch:
    """A training that is looked at, and killed; seconds are counted from its first step."""

    experiment: Experiment
    run: Run
    job: str
    kills: list[float] = field(default_factory=list)
    restarts: list[float] = field(default_factory=list)
    executed: int = 0
    down: float = 0.0

    def last(self) -> int:
        """The last step that was logged."""
        lines = (self.run.folder / "log.jsonl").read_bytes().splitlines()[-3:]
        return max((json.loads(line).get("step", 0) for line in lines if line.endswith(b"}")), default=0)

    def step_of_slurm(self) -> str | None:
        """What `srun` has started in the job, if it runs."""
        steps = self.experiment.cluster.slurm(
            "squeue", "--steps", "--noheader", "--format=%i", f"--jobs={self.job}"
        ).split()
        return next((step for step in reversed(steps) if step.rpartition(".")[2].isdecimal()), None)

    def watch(self, seconds: float, mean: float, dice: random.Random) -> int:
        """Kill for that many seconds; the number of steps that are kept at the end."""
        begun = time.monotonic()
        due, harmed = dice.expovariate(1 / mean), None
        first = self.last()
        entered, starts, seen = first, len(self.run.starts()), first
        while (now := time.monotonic() - begun) < seconds:
            if harmed is None:
                seen = self.last()
            elif len(self.run.starts()) > starts and self.last() > (resumed := self.run.starts()[-1]["step"]):
                self.restarts.append(now - harmed)
                self.down += now - harmed
                print(f"{now:6.1f} s: goes on from step {resumed}", flush=True)
                starts, entered, harmed, seen = len(self.run.starts()), resumed, None, self.last()
            if harmed is not None:
                state = self.experiment.cluster.state(self.job)
                assert state not in OVER, f"the job is {state}\n{self.experiment.why()}"
            if now >= due and (step := self.step_of_slurm()):
                if harmed is None:
                    seen = self.last()
                    self.executed += seen - entered
                else:  # killed while it recovered: the recovery begins again
                    self.down += now - harmed
                starts = len(self.run.starts())
                self.experiment.cluster.slurm("scancel", "--signal=KILL", step)
                self.kills.append(now)
                print(f"{now:6.1f} s: killed at step {seen}", flush=True)
                harmed, due = now, now + dice.expovariate(1 / mean)
            time.sleep(0.3)
        if harmed is None:
            self.executed += self.last() - entered
            return self.last() - first
        self.down += seconds - harmed
        return self.run.saved() - first


def measured(cluster: Cluster, place: Path, seconds: float, mean: float, dice: random.Random) -> dict[str, Any]:
    ground = Ground.made(place / "ground")
    config = ground.config("goodput", steps=STEPS, **{"runtime.checkpoint_every": EVERY, "runtime.trace": "off"})
    experiment = Experiment.made(cluster, place / "pipeline", {"train": training(config)}, retries=99)
    watch = Watch(experiment, ground.run("goodput"), experiment.submit()["train"])
    experiment.until("it trains", lambda: (watch.run.folder / "log.jsonl").exists() and watch.last() > 0)
    kept = watch.watch(seconds, mean, dice)
    lines = [json.loads(line) for line in (watch.run.folder / "log.jsonl").read_text().splitlines()]
    experiment.ccr_dist("cancel", experiment.run)
    until("it is over", lambda: watch.step_of_slurm() is None, 60)
    assert watch.kills and watch.restarts, "nothing was killed: more seconds, or more kills"
    stall = statistics.mean(line["stall_s"] for line in lines if "stall_s" in line)
    saves = watch.executed / EVERY
    step = (seconds - watch.down - saves * stall) / watch.executed
    return {
        "seconds": seconds,
        "mean seconds between kills": mean,
        "killed at": [round(each, 1) for each in watch.kills],
        "restarts, seconds": [round(each, 1) for each in watch.restarts],
        "steps made": watch.executed,
        "steps kept": kept,
        "step, seconds": step,
        "stall of a save, seconds": stall,
        "steps between saves": EVERY,
        "goodput": kept * step / seconds,
    }


def simulated(found: dict[str, Any]) -> dict[str, Any]:
    """The same by simulation: with these kills, and with any at this rate."""
    recovery = found["restarts, seconds"]
    spread = statistics.stdev(recovery) / statistics.mean(recovery) if len(recovery) > 1 else 0.0
    kind: dict[str, Any] = {"kind": "lognormal", "spread": spread} if spread else {}
    job = {
        "gpus": 2,
        "per_node": 1,
        "days": found["seconds"] / 86400,
        "checkpoint": {"every": EVERY * found["step, seconds"], "stall": found["stall of a save, seconds"]},
        "restart": {"mean": statistics.mean(recovery), **kind},
        "repetitions": 1000,
    }
    replayed = simulate(Job.model_validate(job | {"causes": {"kill": {"scope": "job", "at": found["killed at"]}}}))
    per_day = 86400 / found["mean seconds between kills"]
    drawn = simulate(Job.model_validate(job | {"causes": {"kill": {"scope": "job", "per_day": per_day}}}))
    return {"with these kills": replayed.goodput.to_json(), "at this rate": drawn.goodput.to_json()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--mean", type=float, default=75)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save", action="store_true")
    given = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="ccr-g-", dir="/tmp") as folder,
        tempfile.TemporaryDirectory(prefix="ccr-goodput-", dir="/tmp") as place,
        Cluster.started(Path(folder), Path(place), nodes=3) as cluster,
    ):
        found = measured(cluster, Path(place), given.seconds, given.mean, random.Random(given.seed))
    said = simulated(found)
    difference = said["with these kills"]["mean"] - found["goodput"]
    results = found | {"simulated": said, "difference": difference, "seed": given.seed}
    record("goodput", results, save=given.save)
    if abs(difference) > WITHIN:
        sys.exit(f"the simulation differs by {100 * difference:.1f} points")


if __name__ == "__main__":
    main()
