"""Random disturbances over one run of a pipeline, which has to end like an undisturbed one:

    python -m tests.slurm.disturb --rounds 20 --seed 0 --save      kept in tests/benchmarks/results/disturb.json

A third of the rounds hit the generating arrays, the others the training on two nodes, a quarter of those in the middle
of a save. Each is listed with what it hit, and where that was. Root; takes about a minute a round.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests import toy
from tests.benchmarks.record import record
from tests.slurm.cluster import OVER, Cluster, script, until
from tests.slurm.experiment import COLUMNS, Experiment, Ground, Run, columns, model_server, training

STEPS, EVERY, ROWS, DELAY_S = 900, 10, 90, 15
PROMISES = ("same weights", "same columns", "every step once", "checkpoints are whole")
KINDS = ("warn", "requeue", "kill", "crash", "cut", "preempt", "away")


@dataclass
class Disturber:
    """What can be done to a pipeline under way, and what is remembered of it."""

    experiment: Experiment
    run: Run
    data: Path
    dice: random.Random
    done: list[dict[str, Any]] = field(default_factory=list)
    released: int = 0  # jobs that SLURM held

    @property
    def cluster(self) -> Cluster:
        return self.experiment.cluster

    def running(self, *steps: str) -> dict[str, str]:
        """The step of each job, or task of an array, that runs."""
        jobs = self.experiment.jobs()
        found: dict[str, str] = {}
        for step in steps:
            states = self.cluster.jobs(f"--jobs={jobs[step]}") if step in jobs else {}
            found |= {job: step for job, state in states.items() if state == "RUNNING"}
        return found

    def where(self, step: str) -> str:
        if step == "train":
            steps = self.run.steps() if (self.run.folder / "log.jsonl").exists() else []
            return f"step {max(steps, default=0)}, newest checkpoint {self.run.saved()}"
        shards = list((self.data / COLUMNS[step == "translate"]).glob("*.tar"))
        return f"{len(shards)} of {ROWS // 5} shards done"

    def disturb(self, kind: str, *steps: str, save: bool = False) -> None:
        """One round: harm, wait until all that it hit runs again, make up for the harm. save: at the moment of a
        save.
        """
        cluster = self.cluster
        jobs = until(f"{' or '.join(steps)} runs", lambda: self.running(*steps))
        target = self.dice.choice(sorted(jobs))
        nodes = cluster.nodes_of(target)
        node = nodes[0] if save else self.dice.choice(nodes)  # the first one's rank 0 writes
        before = {job: cluster.restarts(job) for job in jobs}
        if save:
            self.await_save(node)
        begun = time.monotonic()
        entry: dict[str, Any] = {
            "kind": kind,
            "stage": jobs[target],
            "at": self.where(jobs[target]),
            "job": target,
            "node": node,
        }
        repair: Callable[[], Any] = lambda: None  # noqa: E731
        expected = [target]
        # a node that is back too soon, for a job of which it still has processes, SLURM takes for broken
        if kind in ("crash", "cut"):
            expected = [job for job in jobs if node in cluster.nodes_of(job)]
        if kind == "warn":
            cluster.slurm("scancel", "--signal=USR1", "--batch", target)
        elif kind == "requeue":
            cluster.slurm("scontrol", "requeue", target)
        elif kind == "kill":
            # of the job itself it would be a cancellation
            cluster.slurm("scancel", "--signal=KILL", self.step_of(target))
        elif kind == "crash":
            cluster.do("crash", node)
            repair = lambda: cluster.do("boot", node)  # noqa: E731
        elif kind == "cut":
            cluster.do("cut", node)
            repair = lambda: cluster.do("heal", node)  # noqa: E731
        elif kind == "preempt":
            urgent = cluster.sbatch(
                "--partition=high", "--nodes=4", "--exclusive", script(self.experiment.folder, "urgent", ["sleep 1"])
            )
            cluster.wait(urgent, "COMPLETED")
        elif kind == "away":
            cluster.do("kill", "ctl")
            time.sleep(10)
            cluster.do("start", "ctl")
            until("slurmctld answers", lambda: cluster.run("scontrol", "ping").returncode == 0)
            expected = []
        if save:
            left = [path.name for path in (self.run.folder / "checkpoints").glob(".step-*")]
            entry["interrupted save"] = left
        until(
            "all that was hit runs again, or is over",
            lambda: all(self.restarted(job, before[job]) for job in expected),
            600,
        )
        entry["hit"] = {job: step for job, step in jobs.items() if cluster.restarts(job) > before[job]}
        entry["seconds until all runs again"] = round(time.monotonic() - begun, 1)
        repair()
        self.done.append(entry)
        print(len(self.done), entry, flush=True)

    def step_of(self, job: str) -> str:
        """What `srun` has started in the job: its number goes on where the job runs again."""

        def look() -> list[str]:
            steps = self.cluster.slurm("squeue", "--steps", "--noheader", "--format=%i", f"--jobs={job}").split()
            return [step for step in steps if step.rpartition(".")[2].isdecimal()]

        return until(f"job {job} has a step", look)[-1]

    def restarted(self, job: str, before: int) -> bool:
        state = self.cluster.state(job)
        assert state != "FAILED", f"{job}: {self.experiment.why()}"
        # the one thing that takes a person
        if "held" in self.cluster.slurm("squeue", "--noheader", "--format=%r", f"--jobs={job}"):
            self.released += 1
            self.experiment.ccr_dist("resume", self.experiment.run)
        return state in OVER or (state == "RUNNING" and self.cluster.restarts(job) > before)

    def await_save(self, node: str) -> None:
        """Power off the node while it writes a checkpoint: what tells is the temporary folder."""
        pid = int((self.cluster.folder / "run" / f"{node}.host").read_text().split()[0])
        folder, end = self.run.folder / "checkpoints", time.monotonic() + 300
        while time.monotonic() < end:
            if any(folder.glob(".step-*.tmp")):
                os.kill(pid, signal.SIGKILL)  # as `crash` does; that one would come too late
                return
            time.sleep(0.001)
        raise AssertionError("no checkpoint was written")

    def await_progress(self, by: int = EVERY) -> None:
        goal = self.run.saved() + by
        until(f"step {goal} is saved", lambda: self.run.saved() >= goal or not self.running("train"), 400)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save", action="store_true")
    given = parser.parse_args()
    dice = random.Random(given.seed)
    with (
        tempfile.TemporaryDirectory(prefix="ccr-d-", dir="/tmp") as folder,
        tempfile.TemporaryDirectory(prefix="ccr-disturb-", dir="/tmp") as place,
        Cluster.started(Path(folder), Path(place)) as cluster,
    ):
        results = disturbed(cluster, Path(place), given.rounds, dice)
    record("disturb", results | {"seed": given.seed}, save=given.save)
    if not all(results[promise] for promise in PROMISES):
        sys.exit("the disturbed run is not like the undisturbed one")


def disturbed(cluster: Cluster, place: Path, rounds: int, dice: random.Random) -> dict[str, Any]:
    ground = Ground.made(place / "ground")
    rows = toy.build(place / "rows", "train", rows=ROWS)
    with model_server(cluster, place / "server") as url:
        made, experiments = {}, {}
        for name in ("undisturbed", "disturbed"):
            data = ground.data(place / name, rows.root)
            steps = ground.generation(data, url, tasks=1 if name == "undisturbed" else 3)
            config = ground.config(
                name, steps=STEPS, data=data, column=COLUMNS[1], **{"runtime.checkpoint_every": EVERY}
            )
            steps["train"] = training(
                config, after=["describe", "translate"], **({"nodes": 1, "ranks": 2} if name == "undisturbed" else {})
            )
            experiments[name] = (Experiment.made(cluster, place / f"{name}-pipeline", steps, partition="low"), data)
        alone, data = experiments["undisturbed"]
        done = alone.ccr_dist("run", alone.folder / "pipeline.yaml", timeout=3000)
        assert done.returncode == 0, done.stderr
        made["undisturbed"] = (ground.run("undisturbed").weights(), columns(data))

        (place / "server" / "delay").write_text(str(DELAY_S))
        experiment, data = experiments["disturbed"]
        experiment.submit()
        disturber = Disturber(experiment, ground.run("disturbed"), data, dice)
        until("all tasks have made something", lambda: len(list(data.glob("*/*.journal.*"))) >= 6)
        kinds = [KINDS[i % len(KINDS)] for i in range(rounds)]
        dice.shuffle(kinds)
        first = rounds // 3
        for kind in kinds[:first]:
            disturber.disturb(kind, "describe", "translate")
        (place / "server" / "delay").write_text("0")
        until("training has begun", disturber.run.saved, 400)
        for number, kind in enumerate(kinds[first:]):
            save = number % 4 == 1
            disturber.disturb("crash" if save else kind, "train", save=save)
            disturber.await_progress()
        experiment.finish(1200)
        made["disturbed"] = (ground.run("disturbed").weights(), columns(data))
        verified = experiment.ccr_dist("checkpoint", "verify", ground.run("disturbed").folder)
    rounds_done = disturber.done
    return {
        "in generation": sum(entry["stage"] != "train" for entry in rounds_done),
        "in training": sum(entry["stage"] == "train" for entry in rounds_done),
        "during a save": sum(bool(entry.get("interrupted save")) for entry in rounds_done),
        "rounds": rounds_done,
        "same weights": made["disturbed"][0] == made["undisturbed"][0],
        "same columns": made["disturbed"][1] == made["undisturbed"][1],
        "every step once": disturber.run.steps() == list(range(1, STEPS + 1)),
        "checkpoints are whole": verified.returncode == 0,
        "jobs that SLURM held, released by `ccr-dist resume`": disturber.released,
        "attempts": {step: experiment.status()[step]["attempts"] for step in ("describe", "translate", "train")},
        "signal to saved checkpoint, seconds": [
            end["saved_s"] for end in experiment.attempts("train") if "saved_s" in end
        ],
    }


if __name__ == "__main__":
    main()
