"""What is refused before anything is queued, what is named with its node, and what a person can do with a queued
pipeline.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import jobs
from tests.slurm.cluster import ROOT, Cluster, log_of, script
from tests.slurm.experiment import Experiment, Ground, training


@pytest.mark.parametrize(
    ("where", "change", "message"),
    [
        ("profile", {"partition": "nowhere"}, "invalid partition"),
        ("profile", {"partion": "main"}, "did you mean 'partition'"),
        ("profile", {"time": 1440}, "write it in quotes"),
        ("profile", {"python": "/nowhere/python"}, "cannot use ccr_dist"),
        ("step", {"gpus": 9}, "Requested node configuration is not available"),
        ("step", {"nodes": 5}, "step train: SLURM refuses"),
        ("step", {"memory": "64G"}, "step train: SLURM refuses"),
        ("step", {"command": "train CONFIG data.val=nowhere"}, "nowhere: there is no dataset"),
        ("step", {"command": "train CONFIG 'data.targets={es: caption.es.none}'"}, "caption.es.none"),
        ("step", {"command": "train CONFIG stages.cla.stepps=3"}, "did you mean 'steps'"),
        ("step", {"command": "trian CONFIG", "nodes": 1}, "did you mean 'train'"),
        (
            "step",
            {"command": "featurise CONFIG --config CONFIG --from image --column fature.x", "nodes": 1},
            "column name 'fature.x'",
        ),
        ("step", {"launch": "launch/nowhere.yaml"}, "launch/nowhere.yaml: no such file"),
        ("step", {"after": ["tarin"]}, "comes after 'tarin'"),
    ],
)
def test_bad_input_is_refused_before_queueing(
    cluster: Cluster, ground: Ground, shared: Path, where: str, change: dict[str, Any], message: str
) -> None:
    step = training(f"{ground.folder}/dasd.yaml") | (change if where == "step" else {})
    step["command"] = step["command"].replace("CONFIG", f"{ground.folder}/dasd.yaml")
    folder = Path(tempfile.mkdtemp(dir=shared))
    experiment = Experiment.made(cluster, folder / "bad", {"train": step}, **(change if where == "profile" else {}))
    before = cluster.jobs()
    done = experiment.try_submit()
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert cluster.jobs() == before and not (experiment.run / "jobs.jsonl").exists()


def test_nodes_without_the_environment_are_named_and_left_out(cluster: Cluster, ground: Ground, shared: Path) -> None:
    dirty = shared / "dirty"
    shutil.copytree(ROOT / "ccr_dist", dirty, ignore=shutil.ignore_patterns("__pycache__"))
    (dirty / "errors.py").write_text((dirty / "errors.py").read_text() + "\n# changed\n")
    package = str(ROOT / "ccr_dist")
    cluster.do("on", "n1", "mount", "-t", "tmpfs", "tmpfs", package)
    cluster.do("on", "n2", "mount", "--bind", str(dirty), package)
    try:
        experiment = Experiment.made(
            cluster, shared / "environment", {"train": training(ground.config("environment", steps=3))}
        )
        # The login host of a site is no node; so is this one, whose package is whole.
        job = experiment.submit()["train"]
        experiment.finish()
    finally:
        cluster.do("on", "n1", "umount", package)
        cluster.do("on", "n2", "umount", package)
    said = log_of(experiment.run)
    assert "n1: " in said and "cannot import ccr_dist" in said and "preflight: n2: another environment" in said
    assert cluster.nodes_of(job) == ["n3", "n4"], said
    assert [end["exclude"] for end in experiment.attempts("train")] == [["n2"], []]  # n1 could not even write that down


def test_a_site_that_exports_nothing_paths_of_any_name_and_edited_steps(cluster: Cluster, shared: Path) -> None:
    home = shared / """my "own" project's $HOME `touch x` #1 %j"""
    home.mkdir()
    data = jobs.captions(home / "data", rows=(2, 2))
    (home / "more.jsonl").write_text(
        "".join(json.dumps({"key": key, "value": ["x"]}) + "\n" for s in (0, 1) for key in data.keys(s))
    )
    steps = {
        "import": {"command": "replay '$home/data' '$home/more.jsonl' --column caption.es.imp --quiet", "cpus": 1},
        "verify": {"command": "shards verify '$home/data' -q", "cpus": 1},
    }
    experiment = Experiment.made(cluster, home / "experiment", steps)

    def write(**sites: Any) -> None:
        experiment.write(
            "pipeline", {"name": "toy", "folder": str(home / "runs"), "values": {"home": str(home)}, "steps": steps}
        )
        experiment.write("profile", {**yaml.safe_load((experiment.folder / "profile.yaml").read_text()), **sites})

    experiment.folder, run = home / "experiment", home / "runs" / "toy"
    write()
    cluster.environment["SBATCH_EXPORT"] = "NONE"
    try:
        first = experiment.try_submit()
        assert first.returncode == 0, first.stderr
        queued = [
            line["job"]
            for line in map(json.loads, (run / "jobs.jsonl").read_text().splitlines())
            if line["event"] == "submitted"
        ]
        assert cluster.wait(queued[-1]) == "COMPLETED", log_of(run)
    finally:
        del cluster.environment["SBATCH_EXPORT"]
    data.column("caption.es.imp").require_complete()

    def status() -> dict[str, Any]:
        done = experiment.ccr_dist("status", run, "--json")
        return {step["step"]: step["states"] for step in json.loads(done.stdout)["steps"]}

    assert status() == {"import": {"done": 1}, "verify": {"done": 1}}
    again = experiment.try_submit()
    assert again.stderr.count("nothing to queue") == 2, again.stderr

    steps["verify"]["command"] += " --fast"
    write(sbatch=["--hold"])
    third = experiment.try_submit()
    assert third.returncode == 0 and "import: nothing to queue" in third.stderr and "verify: job" in third.stderr, (
        third.stderr
    )
    assert status()["verify"] == {"held": 1}
    steps["verify"]["command"] += " --no-decode"
    write()
    refused = experiment.try_submit()
    assert refused.returncode == 2 and "step verify (job" in refused.stderr and "ccr-dist cancel" in refused.stderr, (
        refused.stderr
    )
    done = experiment.ccr_dist("cancel", run)
    assert done.returncode == 0 and "cancelled" in done.stderr
    nowhere = experiment.ccr_dist("cancel", home)
    assert nowhere.returncode == 2 and "no run of a pipeline" in nowhere.stderr


def test_dry_run_cancel_stop_and_resume(cluster: Cluster, ground: Ground, shared: Path) -> None:
    steps = {"train": training(ground.config("person", steps=20000), 1)}
    experiment = Experiment.made(cluster, shared / "person", steps)
    before = cluster.jobs()
    experiment_script = experiment.run / "steps" / "train" / "script.sbatch"
    dry = experiment.try_submit("--dry-run")
    assert dry.returncode == 0 and cluster.jobs() == before and experiment_script.exists(), dry.stderr
    assert "was not measured yet" in dry.stderr

    busy = cluster.sbatch("--nodes=4", "--exclusive", script(shared, "busy", ["sleep 600"]))
    cluster.wait(busy, "RUNNING")
    job = experiment.submit()["train"]
    assert experiment.status()["train"]["states"] == {"queued": 1}
    cluster.slurm("scontrol", "hold", job)  # as SLURM does itself with a job that could not be launched
    held = experiment.status()["train"]
    assert held["states"] == {"held": 1} and f"ccr-dist resume {experiment.run}" in held["why"][0], held
    cluster.slurm("scancel", busy)
    done = experiment.ccr_dist("resume", experiment.run)
    assert done.returncode == 0 and f"job {job} was held" in done.stderr, done.stderr
    run = ground.run("person")
    experiment.await_saved(run, 25)
    found = experiment.status()["train"]
    assert found["states"] == {"running": 1} and found["jobs"] == [job] and found["nodes"] == ["n1"], found
    assert found["total"] == 20000 and found["rate"] > 0 and found["eta_s"] > 0, found
    assert experiment.submit()["train"] == job  # it is queued already
    done = experiment.ccr_dist("cancel", experiment.run)
    assert done.returncode == 0 and cluster.wait(job) == "CANCELLED", done.stderr
    saved = run.saved()
    assert experiment.status()["train"]["states"] == {"cancelled": 1}

    done = experiment.ccr_dist("resume", experiment.run)
    assert done.returncode == 0, done.stderr
    again = experiment.jobs()["train"]
    assert again != job
    experiment.until("it goes on", lambda: len(run.starts()) == 2)
    assert run.starts()[1]["step"] == saved > 25 or saved % 25 == 0
    experiment.await_saved(run, saved + 25)
    (experiment.run / "stop").touch()
    cluster.wait(again)
    assert experiment.attempts("train")[-1]["why"] == "a person asked to stop", experiment.why()
    refused = experiment.ccr_dist("resume", experiment.run)
    assert refused.returncode == 2 and "remove it first" in refused.stderr
