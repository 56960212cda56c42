"""What interrupts training on a cluster, and that every run ends with the weights of an undisturbed one, bit for
bit.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.slurm.cluster import Cluster, script, until
from tests.slurm.experiment import Experiment, Ground, Run, training

LIMIT = 500


def begun(cluster: Cluster, ground: Ground, shared: Path, name: str, **profile: Any) -> tuple[Experiment, Run, str]:
    """Training that has saved its first checkpoint, and its job."""
    experiment = Experiment.made(cluster, shared / name, {"train": training(ground.config(name))}, **profile)
    job = experiment.submit()["train"]
    run = ground.run(name)
    experiment.await_saved(run, 25)
    return experiment, run, job


def same(experiment: Experiment, run: Run, undisturbed: Run) -> None:
    assert run.steps() == list(range(1, 151)), experiment.why()
    assert run.weights() == undisturbed.weights(), experiment.why()


def test_a_signal_a_requeue_and_preemption(cluster: Cluster, ground: Ground, shared: Path, undisturbed: Run) -> None:
    experiment, run, job = begun(cluster, ground, shared, "polite", partition="low")

    # SLURM's warning before the time limit is this signal, to the batch script.
    cluster.slurm("scancel", "--signal=USR1", "--batch", job)
    experiment.until("it starts again", lambda: cluster.restarts(job) == 1)
    warned = run.saved()
    experiment.until("it goes on from there", lambda: len(run.starts()) == 2)
    assert run.starts()[1]["step"] == warned, experiment.why()

    cluster.slurm("scontrol", "requeue", job)
    experiment.until("it goes on again", lambda: len(run.starts()) == 3)

    saved = run.saved()
    urgent = cluster.sbatch("--partition=high", "--nodes=4", "--exclusive", script(shared, "urgent", ["sleep 1"]))
    assert cluster.wait(urgent) == "COMPLETED"
    preempted = run.saved()
    experiment.finish(LIMIT)
    same(experiment, run, undisturbed)
    first, second, third, last = experiment.attempts("train")
    assert first["why"] == "time limit" and first["decision"] == "again" and first["counted"] and first["progressed"], (
        first
    )
    # KillWait may be shorter than a save on a busy machine
    assert second == {} or second["decision"] == "leave", second
    assert third["why"] == "preempted" and not third["counted"] and preempted > saved, third
    [log] = (experiment.run / "steps" / "train" / "logs").iterdir()
    assert (
        f"time limit; saved {first['saved_s']} s after the signal: runs again" in log.read_text()
        and last["decision"] == "done"
    )
    # At most a step is lost: the next start begins where the signal found the run.
    assert [start["step"] for start in run.starts()][1] == warned and run.starts()[3]["step"] == preempted


def test_a_crashed_host(cluster: Cluster, ground: Ground, shared: Path, undisturbed: Run) -> None:
    experiment, run, job = begun(cluster, ground, shared, "crash")
    [_, other] = cluster.nodes_of(job)
    try:
        cluster.do("crash", other)
        experiment.until("it goes on on other nodes", lambda: len(run.starts()) == 2)
        assert other not in cluster.nodes_of(job)
        experiment.finish(LIMIT)
    finally:
        cluster.do("boot", other)
    same(experiment, run, undisturbed)
    assert run.starts()[1]["step"] >= 25


@pytest.mark.slow
def test_a_host_that_is_cut_off_does_not_write_any_more(cluster: Cluster, ground: Ground, shared: Path) -> None:
    # On one node: nothing but the network is missed, and training goes on there, beside its successor.
    experiment = Experiment.made(cluster, shared / "cut", {"train": training(ground.config("cut", steps=9000), 1)})
    job = experiment.submit()["train"]
    run = ground.run("cut")
    experiment.await_saved(run, 25)
    [node] = cluster.nodes_of(job)
    try:
        cluster.do("cut", node)
        experiment.until("a successor has begun", lambda: len(run.starts()) == 2)
        holder = (run.folder / "lock").read_text()
        assert holder.startswith(f"{job}.1 ") and node not in cluster.nodes_of(job), holder
        [log] = (experiment.run / "steps" / "train" / "logs").glob("*.log")
        until("the one that was cut off ends", lambda: "a later attempt trains this run" in log.read_text(), 300)
    finally:
        cluster.do("heal", node)
    done = experiment.ccr_dist("checkpoint", "verify", run.folder)
    assert done.returncode == 0, done.stderr
    wanted = run.saved() + 25

    def goes_on() -> bool:
        # SLURM may cancel the successor's step, whose number is that of the one which was cut off, and give the next
        # attempt to the node that is back before it has got rid of the old one: it then holds the job until a person
        # releases it.
        if "held" in experiment.status()["train"]["states"]:
            experiment.ccr_dist("resume", experiment.run)
        return run.saved() >= wanted

    experiment.until("it goes on", goes_on)
    [stale, *_] = experiment.attempts("train")
    assert stale["decision"] == "leave", stale  # it did not requeue what is not its own


def test_slurm_is_away_for_a_while(cluster: Cluster, ground: Ground, shared: Path, undisturbed: Run) -> None:
    experiment, run, _ = begun(cluster, ground, shared, "away")
    cluster.do("kill", "ctl")
    try:
        until("the run is over, though nobody can be asked", lambda: (run.folder / "model.safetensors").exists(), 300)
    finally:
        cluster.do("start", "ctl")
    experiment.finish(LIMIT)
    same(experiment, run, undisturbed)
    [only] = experiment.attempts("train")
    assert only["decision"] == "done"


@pytest.mark.slow
def test_fewer_nodes_make_the_same_batches(cluster: Cluster, ground: Ground, shared: Path, undisturbed: Run) -> None:
    """Asked for 2 to 4 nodes; two of the four go away."""
    experiment = Experiment.made(cluster, shared / "elastic", {"train": training(ground.config("elastic"), "2-4")})
    job = experiment.submit()["train"]
    run = ground.run("elastic")
    experiment.await_saved(run, 25)
    assert len(cluster.nodes_of(job)) == 4
    gone = cluster.nodes_of(job)[2:]
    try:
        for node in gone:
            cluster.do("crash", node)
        experiment.until("it goes on", lambda: len(run.starts()) == 2)
        assert [start["world"] for start in run.starts()] == [4, 2]
        experiment.finish(LIMIT)
    finally:
        for node in gone:
            cluster.do("boot", node)
    assert run.batches() == undisturbed.batches()
    # Sums over other numbers of ranks round differently.
    assert run.losses() == pytest.approx(undisturbed.losses(), rel=1e-3)


@pytest.mark.slow
def test_nodes_with_different_numbers_of_ranks(
    cluster: Cluster, ground: Ground, shared: Path, undisturbed: Run
) -> None:
    """Three GPUs on two nodes that have two each: as many ranks as SLURM gives GPUs. (There are none; the ranks take
    the CPU.)
    """
    step = {**training(ground.config("uneven", steps=12), 2, gpus=3), "ranks": None}
    experiment = Experiment.made(cluster, shared / "uneven", {"train": step}, gpus="--gpus={n}", preflight="off")
    experiment.submit()
    experiment.finish(LIMIT)
    run = ground.run("uneven")
    [start] = run.starts()
    hosts = [process["host"] for process in start["processes"]]
    assert start["world"] == 3 and sorted(map(hosts.count, set(hosts))) == [1, 2], start
    assert run.steps() == list(range(1, 13))
    assert all(sorted(batch) == list(range(10)) for batch in run.batches().values())


@pytest.mark.parametrize("wrong", ["data.val=nowhere"])
def test_what_cannot_succeed_is_not_tried_again(cluster: Cluster, ground: Ground, shared: Path, wrong: str) -> None:
    """Found only when it runs: the dataset goes away after the submission."""
    data, kept = ground.data(shared / "vanishing"), ground.data(shared / "kept")
    config = ground.config("vanishing", data=data, steps=12)
    experiment = Experiment.made(
        cluster, shared / "never", {"train": training(config, 1), "inspect": {"command": f"shards inspect {kept}"}}
    )
    hold = cluster.sbatch("--nodes=4", "--exclusive", script(shared, "hold", ["sleep 600"]))
    cluster.wait(hold, "RUNNING")
    jobs = experiment.submit()
    data.rename(shared / "vanished")
    cluster.slurm("scancel", hold)
    assert cluster.wait(jobs["train"]) == "FAILED", experiment.why()
    assert cluster.restarts(jobs["train"]) == 0
    assert cluster.wait(jobs["inspect"]) == "CANCELLED"  # it does not wait for ever
    found = experiment.status()
    assert found["train"]["states"] == {"failed": 1} and found["inspect"]["states"] == {"cancelled": 1}
    assert "exit code 3" in found["train"]["why"][0]
